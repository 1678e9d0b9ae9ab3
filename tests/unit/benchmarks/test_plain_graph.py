import numpy as np
import onnx
import pytest
import torch
from glocal.benchmarks.plain import PlainClassifier
from glocal.benchmarks.plain_engine import OnnxRuntimePlain, PlainPipeline, open_plain
from glocal.benchmarks.plain_graph import plain_graph
from glocal.benchmarks.random_model import write_random_model
from glocal.export.graphs import export_global
from glocal.export.half import to_half
from glocal.runtime.errors import BundleError, ImageError, UsageError
from glocal.runtime.images import encode_jpeg, read_image, resize
from glocal.train.checkpoint import load_model

LABELS, SIDE = 5, 96  # of the fixture `exported`


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    return coarse.repeat(16, 1).repeat(16, 2)


def expected(run, images) -> np.ndarray:
    with torch.inference_mode():
        return PlainClassifier(load_model(run).model).eval()(torch.from_numpy(images)).numpy()


def test_fp32_is_the_plain_classifier_of_pytorch(exported, random_run, images):
    logits = OnnxRuntimePlain(plain_graph(exported.read("fp32/global.onnx")), 1).run(images)
    assert (logits.dtype, logits.shape) == (np.float32, (3, LABELS))
    np.testing.assert_allclose(logits, expected(random_run, images), rtol=1e-4, atol=1e-5)


def test_the_paper_preset_with_its_shared_head(images, tmp_path):
    write_random_model(tmp_path / "model.safetensors", "test_resnet", SIDE, LABELS, "paper")
    graph, wanted = export_global(load_model(tmp_path).model), expected(tmp_path, images)
    np.testing.assert_allclose(OnnxRuntimePlain(plain_graph(graph), 1).run(images), wanted, rtol=1e-4, atol=1e-5)
    half = OnnxRuntimePlain(plain_graph(to_half(graph)), 1).run(images)
    assert 0 < np.abs(half - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "share"),
    [("fp16/global.onnx", 0.03), ("int8/global.onnx", 0.3), ("int8/global.tensorrt.onnx", 0.3)],
)
def test_lower_precisions_keep_theirs(name, share, exported, random_run, images):
    source, graph = (onnx.load_from_string(data) for data in (exported.read(name), plain_graph(exported.read(name))))
    logits = OnnxRuntimePlain(graph.SerializeToString(), 1).run(images)
    wanted = expected(random_run, images)
    assert 0 < np.abs(logits - wanted).max() < share * np.abs(wanted).max()
    # What the backbone computes in is what it computed in before.
    assert kinds(graph) == kinds(source) != []
    assert {"Softmax", "BatchNormalization", "ReduceMax"}.isdisjoint(node.op_type for node in graph.graph.node)
    assert len(plain_graph(exported.read(name))) < len(exported.read(name))


def kinds(model: onnx.ModelProto) -> list[tuple]:
    """Each convolution of the backbone: name, type of its weight, what the weight and the input go through before."""
    made = {out: node for node in model.graph.node for out in node.output}
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name.startswith(("trunk", "tail")):
            weight, through = node.input[1], [made[node.input[0]].op_type]
            while weight in made:
                through.append(made[weight].op_type)
                weight = made[weight].input[0]
            found.append((node.name, weights[weight], *through))
    return found


@pytest.mark.parametrize("lost", ["head/MatMul", "head/Add", "tail"])
def test_a_graph_whose_nodes_have_other_names_is_refused(lost, exported):
    model = onnx.load_from_string(exported.read("fp32/global.onnx"))
    for node in model.graph.node:
        if node.name.startswith(lost):
            node.name = f"other_{node.name}"
    with pytest.raises(BundleError, match="could be found"):
        plain_graph(model.SerializeToString())


def test_a_head_of_another_width_is_refused(exported):
    model = onnx.load_from_string(exported.read("fp32/global.onnx"))
    (head,) = (node for node in model.graph.node if node.name == "head/MatMul")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((7, LABELS), np.float32), weight.name))
    with pytest.raises(BundleError, match="No plain classifier"):
        plain_graph(model.SerializeToString())


def test_what_is_no_graph_is_refused():
    with pytest.raises(BundleError, match="no ONNX"):
        plain_graph(b"\x08nonsense")


def test_the_plain_pipeline_goes_from_files_to_probabilities(exported, tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(2)]
    for seed, path in enumerate(paths):
        path.write_bytes(encode_jpeg(np.random.default_rng(seed).integers(0, 256, (120, 80, 3), dtype=np.uint8)))
    engine = open_plain(exported, "onnxruntime", "int8", 1)
    pipeline = PlainPipeline(engine, exported.manifest.input_size)
    scores, times = pipeline.predict_files(paths)
    logits = engine.run(np.stack([resize(read_image(path), (SIDE, SIDE)) for path in paths]))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert list(times) == ["decode", "engine"]
    assert min(times.values()) > 0
    np.testing.assert_array_equal(pipeline.predict([read_image(path) for path in paths]), scores)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        pipeline.predict_files([tmp_path / "broken.jpg"])
    engine.close()


def test_a_backend_that_is_not_here_is_told(exported):
    with pytest.raises(UsageError):
        open_plain(exported, "onnxruntime-cuda", "fp32")
