import numpy as np
import onnx
import onnxruntime
import pytest
from glocal.export.compare import check
from glocal.export.verify import verify_graphs
from glocal.runtime.errors import GlocalError
from sklearn.datasets import load_sample_images

FORMS = ("operator", "matmul")


def test_graphs_follow_the_contract(graphs):
    session = onnxruntime.InferenceSession(graphs["global"])
    image = session.get_inputs()[0]
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [96, 128, 3])
    outputs = {output.name: output.shape[1:] for output in session.get_outputs()}
    assert outputs == {"logits": [5], "class_maps": [5, 3, 4], "features": [192, 6, 8], "global_feature": [96]}
    for form in FORMS:
        inputs = {i.name: i.type for i in onnxruntime.InferenceSession(graphs[form]).get_inputs()}
        assert list(inputs) == ["features", "global_feature", "boxes", "counts"]
        assert set(inputs.values()) == {"tensor(float)"}


def test_the_forms_of_roi_align_are_what_they_say(graphs):
    operators = {form: {node.op_type for node in onnx.load_from_string(graphs[form]).graph.node} for form in FORMS}
    assert "RoiAlign" in operators["operator"]
    assert "RoiAlign" not in operators["matmul"]


def test_uint8_is_cast_before_anything_else(graphs):
    """TensorRT allows no other operation on a uint8 tensor."""
    nodes = onnx.load_from_string(graphs["global"]).graph.node
    assert [node.op_type for node in nodes if "image" in node.input] == ["Cast"]


@pytest.mark.parametrize("form", FORMS)
def test_both_graphs_compute_what_the_network_computes(model, graphs, form):
    report = verify_graphs(model, graphs["global"], graphs[form], load_sample_images().images)
    check(report, "fp32", "the graphs")
    assert report["real/same_boxes"] == 1
    assert len([name for name in report if name.startswith(("random/", "real/global", "real/local"))]) == 10


@pytest.mark.parametrize("form", FORMS)
def test_batch_and_number_of_boxes_are_dynamic(graphs, form):
    first, second = (onnxruntime.InferenceSession(graphs[name]) for name in ("global", form))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    seen = []
    for batch in (1, 4):
        _, _, features, global_feature = first.run(None, {"image": np.repeat(image, batch, 0)})
        for slots in (1, 24):
            feeds = {"features": features, "global_feature": global_feature}
            feeds["boxes"] = np.tile(np.float32([0.1, 0.2, 0.7, 0.8]), (batch, slots, 1))
            feeds["counts"] = np.eye(1, slots, dtype=np.float32).repeat(batch, 0)  # one box, the rest padding
            logits = second.run(None, feeds)[0]
            assert logits.shape == (batch, 5)
            assert np.isfinite(logits).all()
            np.testing.assert_allclose(logits, logits[:1].repeat(batch, 0), atol=1e-5)
            seen.append(logits[0])
    # One box is one box, however many padding slots follow it.
    np.testing.assert_allclose(seen, [seen[0]] * 4, atol=1e-5)


def test_a_wrong_graph_is_refused(model, graphs):
    graph = onnx.load_from_string(graphs["operator"])
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[: len(values) // 2] *= 1.5
    weight.raw_data = values.tobytes()
    report = verify_graphs(model, graphs["global"], graph.SerializeToString(), load_sample_images().images)
    with pytest.raises(GlocalError, match=r"local\.logits differs"):
        check(report, "fp32", "the graphs")


def test_graphs_hold_no_path_of_the_machine(graphs):
    for graph in graphs.values():
        assert b".py" not in graph
        assert b"site-packages" not in graph


def test_nodes_are_named_after_their_modules(graphs):
    for graph in graphs.values():
        names = [node.name for node in onnx.load_from_string(graph).graph.node]
        assert len(set(names)) == len(names)
    names = {node.name for name in ("global", "matmul") for node in onnx.load_from_string(graphs[name]).graph.node}
    assert {"trunk.10.conv1", "tail.0.downsample.1", "stage.0.conv2", "attention.query/MatMul", "/MatMul"} <= names
