"""Where Q/DQ stand, with which scales, and that the graphs compute what fp32 computes, roughly."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from glocal.calib.build import quantize
from glocal.calib.graph import default_exclude, expand, groups_of
from glocal.calib.qdq_onnxruntime import quantize_for_onnxruntime
from glocal.calib.qdq_tensorrt import quantize_for_tensorrt
from glocal.runtime.errors import CalibrationError, UsageError
from onnx import numpy_helper
from small_model import make_bundle


@pytest.fixture(scope="module")
def files(bundle, graphs, table) -> dict[str, bytes]:
    return quantize(bundle, graphs, table, "mse", default_exclude(graphs.values()))


def loaded(graph: bytes) -> tuple[dict[str, onnx.NodeProto], dict[str, np.ndarray], dict[str, onnx.NodeProto]]:
    """Nodes by name, constants by name, producers by tensor."""
    model = onnx.load_from_string(graph)
    constants = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    return {n.name: n for n in model.graph.node}, constants, {o: n for n in model.graph.node for o in n.output}


def source(tensor: str, producers) -> tuple[str, onnx.NodeProto | None]:
    """The fp32 tensor behind a Q/DQ pair, and its DequantizeLinear; the tensor itself where there is no pair."""
    node = producers.get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return tensor, None
    before = producers.get(node.input[0])
    return (node.input[0] if before is None else before.input[0]), node


def test_tensorrt_pairs_stand_only_where_they_pay(files):
    nodes, _, producers = loaded(files["int8/global.tensorrt.onnx"])
    convs = [node for node in nodes.values() if node.op_type == "Conv"]
    assert len(convs) == 5
    for conv in convs:
        assert all(source(tensor, producers)[1] is not None for tensor in conv.input[:2])
        assert conv.input[2].endswith(".bias")  # float, as it was
    identity, shortcut = nodes["trunk.1.sum/Add"], nodes["trunk.2.sum/Add"]
    assert identity.input[0] == "trunk.1.conv2"
    assert source(identity.input[1], producers)[0] == "trunk.0.relu"
    assert shortcut.input[0] == "trunk.2.conv1"
    assert source(shortcut.input[1], producers)[0] == "trunk.2.downsample.0"
    quantised = {node.input[0] for node in nodes.values() if node.op_type == "QuantizeLinear"}
    activations = {tensor for tensor in quantised if not tensor.endswith(".weight")}
    assert activations == {"scaled", "trunk.0.relu", "trunk.1.conv1.relu", "trunk.1.out", "trunk.2.downsample.0"}
    assert all(node.input[0] != "features" for node in nodes.values() if node.op_type == "DequantizeLinear")


def test_tensorrt_integers_are_signed_and_symmetric(files, table):
    nodes, constants, producers = loaded(files["int8/global.tensorrt.onnx"])
    for node in nodes.values():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    conv = nodes["trunk.1.conv1/Conv"]
    weight, pair = source(conv.input[1], producers)
    assert pair.attribute[0].i == 0
    peaks = np.abs(constants[weight]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(constants[pair.input[1]], peaks / 127, rtol=1e-6)
    _, pair = source(conv.input[0], producers)
    assert constants[pair.input[1]] == np.float32(table.of("global", "mse")["trunk.0.relu"][1] / 127)


def test_onnxruntime_integers_are_unsigned_and_asymmetric(files, table):
    nodes, constants, producers = loaded(files["int8/global.onnx"])
    ranges = table.of("global", "mse")
    seen = 0
    for conv in (node for node in nodes.values() if node.op_type == "Conv"):
        tensor, pair = source(conv.input[0], producers)
        low, high = ranges[tensor]
        assert constants[pair.input[2]].dtype == np.uint8
        assert constants[pair.input[1]] == pytest.approx((high - low) / 255, rel=1e-5)
        assert constants[pair.input[2]] == round(-low / ((high - low) / 255))
        weights = producers[conv.input[1]]
        assert constants[weights.input[0]].dtype == np.int8
        assert constants[weights.input[1]].shape == (8,)
        seen += 1
    assert seen == 5
    assert all(node.op_type != "Relu" for node in nodes.values())  # the range of U8 begins at 0


def test_both_graphs_take_their_scales_from_one_table(bundle, graphs, table):
    """The method that is asked for, in both: the other methods differ."""
    ranges = {
        graph: {tensor: r | {"mse": tuple(0.7 * x for x in r["minmax"])} for tensor, r in tensors.items()}
        for graph, tensors in table.ranges.items()
    }
    table = table.model_copy(update={"ranges": ranges})
    files = quantize(bundle, graphs, table, "mse", default_exclude(graphs.values()))
    for name, tensor in (("global", "trunk.1.out"), ("local", "pooled")):
        low, high = table.of(name, "mse")[tensor]
        assert (low, high) != table.of(name, "minmax")[tensor]
        u8 = loaded(files[f"int8/{name}.onnx"])
        s8 = loaded(files[f"int8/{name}.tensorrt.onnx"])
        given = {"pooled": "other_name"}.get(tensor, tensor)
        scales = [
            next(
                constants[node.input[1]]
                for node in nodes.values()
                if node.op_type == "QuantizeLinear" and node.input[0] == own
            )
            for (nodes, constants, _), own in ((u8, tensor), (s8, given))
        ]
        np.testing.assert_allclose(scales, [(high - low) / 255, max(-low, high) / 127], rtol=1e-5)


def test_heads_stay_in_float(files):
    for name in ("global", "local"):
        for form in ("", ".tensorrt"):
            nodes, _, producers = loaded(files[f"int8/{name}{form}.onnx"])
            head = nodes["head/MatMul"]
            assert source(head.input[1], producers)[1] is None


def test_the_image_comes_in_as_bytes(files):
    for path in ("int8/global.onnx", "int8/global.tensorrt.onnx"):
        model = onnx.load_from_string(files[path])
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]


def test_quantised_graphs_compute_nearly_the_same(bundle, files, images):
    feeds = {"image": images.pixels}
    names = ["logits", "class_maps", "features", "global_feature"]
    expected = ort.InferenceSession(bundle.read("fp32/global.onnx")).run(names, feeds)
    for path in ("int8/global.onnx", "int8/global.tensorrt.onnx"):
        found = ort.InferenceSession(files[path]).run(names, feeds)
        for a, b in zip(expected, found, strict=True):
            assert b.dtype == np.float32
            error = np.abs(a - b).mean() / np.abs(a).mean()
            assert 0 < error < 0.1


def test_an_excluded_block_stays_as_it_was(graphs, table):
    exclude = expand(graphs.values(), ["global/trunk.1", "global/head/MatMul"])
    assert set(exclude) == {
        f"global/{name}"
        for name in (
            "trunk.1.conv1/Conv", "trunk.1.conv1.relu/Relu", "trunk.1.conv2/Conv", "trunk.1.sum/Add",
            "trunk.1.out/Relu", "head/MatMul",
        )
    }  # fmt: skip
    for build in (quantize_for_onnxruntime, quantize_for_tensorrt):
        nodes, _, producers = loaded(build(graphs["global"], table.of("global", "mse"), exclude))
        assert source(nodes["trunk.1.conv1/Conv"].input[1], producers)[1] is None
        assert source(nodes["trunk.2.conv1/Conv"].input[1], producers)[1] is not None


def test_a_block_of_the_local_graph_is_that_of_both_forms(graphs):
    assert {name.partition("/")[0] for name in expand(graphs.values(), ["local/stage.0"])} == {
        "local",
        "local.tensorrt",
    }


def test_with_everything_excluded_the_graph_is_the_fp32_graph(bundle, graphs, table, images):
    exclude = [node for graph in graphs.values() for node in graph.nodes]
    for build in (quantize_for_onnxruntime, quantize_for_tensorrt):
        graph = build(graphs["global"], table.of("global", "mse"), exclude)
        outputs = [
            ort.InferenceSession(g).run(None, {"image": images.pixels[:2]})
            for g in (graph, bundle.read("fp32/global.onnx"))
        ]
        for a, b in zip(*outputs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_heads_are_quantised_where_asked(graphs, table):
    ranges = table.of("local", "minmax")
    nodes, constants, producers = loaded(quantize_for_onnxruntime(graphs["local"], ranges))
    _, pair = source(nodes["head/MatMul"].input[1], producers)
    assert constants[pair.input[1]].shape == (5,)  # one scale for each label
    nodes, _, producers = loaded(quantize_for_tensorrt(graphs["local"], ranges))  # which takes convolutions only
    assert all(source(tensor, producers)[1] is None for tensor in nodes["head/MatMul"].input)


def test_blocks_are_named_after_modules(graphs):
    groups = groups_of(graphs.values(), default_exclude(graphs.values()))
    assert list(groups) == ["global/trunk.0", "global/trunk.1", "global/trunk.2", "local/stage.0"]


def test_a_name_that_is_none_is_refused(graphs):
    with pytest.raises(UsageError, match=r"trunk\.9") as error:
        expand(graphs.values(), ["global/trunk.0", "global/trunk.9"])
    assert "global/trunk.0" in error.value.fix


def test_a_table_of_another_model_or_with_gaps_makes_no_graph(tmp_path, bundle, graphs, table):
    other = make_bundle(tmp_path / "other", seed=9)
    with pytest.raises(CalibrationError, match="another model"):
        quantize(other, graphs, table, "minmax", ())
    ranges = table.of("global", "minmax")
    del ranges["trunk.0.relu"]
    for build in (quantize_for_onnxruntime, quantize_for_tensorrt):
        with pytest.raises(CalibrationError, match="does not cover"):
            build(graphs["global"], ranges)


def test_tensorrt_rtx_builds_the_graphs(files):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(files["int8/global.tensorrt.onnx"]), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = network.get_input(0).shape
    profile.set_shape("image", (1, *shape[1:]), (1, *shape[1:]), (4, *shape[1:]))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1000
