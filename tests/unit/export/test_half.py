import numpy as np
import onnx
import onnxruntime
import pytest
from glocal.export.half import to_half
from glocal.runtime.errors import GlocalError
from onnx import TensorProto

HALF = ("features", "global_feature")


def types_of(graph: bytes) -> dict[str, int]:
    """Element type of every tensor of a graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.fixture(scope="module", params=["global", "operator", "matmul"])
def pair(request, graphs) -> tuple[bytes, bytes]:
    return graphs[request.param], to_half(graphs[request.param])


def test_only_the_two_values_that_stay_on_the_device_change_their_type(pair):
    single, half = (onnx.load_from_string(graph).graph for graph in pair)
    for before, after in zip((*single.input, *single.output), (*half.input, *half.output), strict=True):
        assert before.name == after.name
        expected = TensorProto.FLOAT16 if before.name in HALF else before.type.tensor_type.elem_type
        assert after.type.tensor_type.elem_type == expected
        assert after.type.tensor_type.shape == before.type.tensor_type.shape


def test_what_must_stay_single_does_and_the_heavy_work_does_not(pair):
    types = types_of(pair[1])
    for node in onnx.load_from_string(pair[1]).graph.node:
        computed = types[node.output[0]]
        if node.op_type in ("Conv", "Relu", "MaxPool"):
            assert computed == TensorProto.FLOAT16, node.name
        elif node.op_type in ("Softmax", "LayerNormalization", "BatchNormalization", "RoiAlign", "Log"):
            assert computed == TensorProto.FLOAT, node.name
        elif node.op_type == "MatMul":
            projection = node.name.startswith(("attention.", "/"))  # or a product of RoIAlign
            assert computed == (TensorProto.FLOAT16 if projection else TensorProto.FLOAT), node.name


def test_weights_are_stored_once_and_take_half_the_bytes(pair):
    single, half = pair
    assert len(half) < 0.6 * len(single)
    model = onnx.load_from_string(half)
    names = [tensor.name for tensor in model.graph.initializer]
    used = {name for node in model.graph.node for name in node.input}
    assert set(names) <= used
    assert len(set(names)) == len(names)


def test_the_nodes_are_those_of_the_fp32_graph_with_casts_between(pair):
    single, half = ([node.name for node in onnx.load_from_string(graph).graph.node] for graph in pair)
    assert [name for name in half if name in set(single)] == single
    assert all(name.endswith("/Cast") for name in set(half) - set(single))


def test_scores_differ_by_no_more_than_half_precision_does(graphs):
    rng = np.random.default_rng(0)
    feeds = {"image": rng.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)}
    boxes = np.sort(rng.random((2, 3, 2, 2), dtype=np.float32), axis=2).reshape(2, 3, 4)
    results = []
    for convert in (lambda graph: graph, to_half):
        first, second = (onnxruntime.InferenceSession(convert(graphs[name])) for name in ("global", "matmul"))
        logits, maps, features, global_feature = first.run(None, feeds)
        local = {"features": features, "global_feature": global_feature, "boxes": boxes}
        (local_logits,) = second.run(None, {**local, "counts": np.array([[1, 2, 1], [3, 1, 0]], np.float32)})
        results.append((logits, maps, np.float32(features), local_logits))
    for expected, found in zip(*results, strict=True):
        difference = np.abs(expected - found).max() / np.abs(expected).max()
        assert 0 < difference < 1e-2


def test_a_weight_beyond_half_precision_is_refused(graphs):
    model = onnx.load_from_string(graphs["global"])
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv1.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(GlocalError, match=r"conv1\.weight is too large") as caught:
        to_half(model.SerializeToString())
    assert "1e+05" in str(caught.value)
