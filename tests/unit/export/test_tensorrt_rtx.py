"""Real builds by TensorRT-RTX on the CPU: every exported graph, and what must be refused."""

import importlib.util
import platform
import signal

import onnx
import pytest
from glocal.export.half import to_half
from glocal.export.tensorrt import BuiltPlan, build_plan
from glocal.runtime.backends.tensorrt_api import gpu
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.plans import PlanOptions
from rich.progress import Progress

# How a graph of each precision is made from the exported one.
FORMS = {"fp32": bytes, "fp16": to_half}
NETWORKS = ("paper", "glocal")


@pytest.fixture(scope="module")
def build(rtx):
    def build(graph: bytes, precision: str, **options) -> BuiltPlan:
        return build_plan(rtx, graph, f"{precision}.onnx", precision, PlanOptions(**options), gpu=gpu())

    return build


@pytest.fixture(scope="module")
def networks(request):
    return lambda name: request.getfixturevalue({"paper": "graphs", "glocal": "default_graphs"}[name])


@pytest.mark.parametrize("precision", FORMS)
@pytest.mark.parametrize("graph", ["global", "matmul"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_exported_graph_builds(build, networks, network, graph, precision):
    exported = networks(network)[graph]
    plan = build(FORMS[precision](exported), precision)
    working = [
        node for node in onnx.load_from_string(exported).graph.node if node.op_type in ("Conv", "MatMul", "Gemm")
    ]
    assert plan.strongly_typed
    assert sum(plan.inspection.precisions.values()) == len(working)
    assert plan.inspection.precisions[precision] > len(working) / 2
    weights = sum(len(tensor.raw_data) for tensor in onnx.load_from_string(exported).graph.initializer)
    assert len(plan.data) > weights * {"fp32": 1, "fp16": 0.5}[precision]


def test_half_is_used_where_it_was_asked_for(build, graphs):
    asked = build(to_half(graphs["global"]), "fp16").inspection.asked
    assert {
        asked[node.name] for node in onnx.load_from_string(graphs["global"]).graph.node if node.op_type == "Conv"
    } == {"fp16"}
    assert asked["head/MatMul"] == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_of_another_precision_is_refused(build, graphs, precision):
    with pytest.raises(GlocalError, match=f"asked for in {precision}") as caught:
        build(graphs["global"], precision)
    assert "trunk.0 (fp32)" in caught.value.found
    assert "more" in caught.value.found


def test_one_convolution_that_was_forgotten_is_named(build, graphs):
    """Between casts, as a converter would leave it."""
    model = onnx.load_from_string(to_half(graphs["global"]))
    place, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == "trunk.10.conv2")
    before = [onnx.helper.make_node("Cast", [name], [f"{name}/wide"], to=1) for name in node.input]
    after = onnx.helper.make_node("Cast", ["wide"], [node.output[0]], to=10)
    node.input[:] = [f"{name}/wide" for name in node.input]
    node.output[0] = "wide"
    for cast in reversed(before):
        model.graph.node.insert(place, cast)
    model.graph.node.insert(place + len(before) + 1, after)
    with pytest.raises(GlocalError, match="asked for in fp16") as caught:
        build(model.SerializeToString(), "fp16")
    assert caught.value.found == "trunk.10.conv2 (fp32)"


def test_the_operator_needs_a_gpu(build, graphs):
    if gpu() is not None:
        pytest.skip("there is a GPU, where the operator can be built")
    with pytest.raises(GlocalError, match="does not parse") as caught:
        build(graphs["operator"], "fp32")
    assert "RoiAlign" in caught.value.found
    name = next(n.name for n in onnx.load_from_string(graphs["operator"]).graph.node if n.op_type == "RoiAlign")
    assert name in caught.value.found
    assert "matmul" in caught.value.fix


def test_what_is_no_onnx_is_refused(build):
    with pytest.raises(GlocalError, match="does not parse") as caught:
        build(b"junk", "fp32")
    assert "Failed to parse" in caught.value.found


def test_plans_for_named_gpus(build, graphs):
    assert build(graphs["global"], "fp32", compute_capabilities=("8.9", "12.0")).data
    with pytest.raises(UsageError, match="SM10"):
        build(graphs["global"], "fp32", compute_capabilities=("1.0",))


def test_options_that_rtx_does_not_have_are_refused(build, graphs):
    with pytest.raises(UsageError, match="version-compatible"):
        build(graphs["global"], "fp32", version_compatible=True)
    with pytest.raises(UsageError, match="AMPERE_PLUS"):
        build(graphs["global"], "fp32", hardware_compatible="ampere_plus")


QUANTIZED = """
<ir_version: 9, opset_import: ["": 18]>
quantized (uint8[B, 8, 8, 4] image) => (float[B, 4, 8, 8] maps)
<float scale = {0.05}, int8 zero = {0}, float[4] scales = {0.1, 0.2, 0.3, 0.4}, int8[4] zeros = {0, 0, 0, 0},
 int8[4, 4, 1, 1] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
{
  single = Cast <to = 1> (image)
  planes = Transpose <perm = [0, 3, 1, 2]> (single)
  q = QuantizeLinear (planes, scale, zero)
  dq = DequantizeLinear (q, scale, zero)
  wdq = DequantizeLinear <axis = 0> (weight, scales, zeros)
  [conv] maps = Conv (dq, wdq)
}
"""


def test_quantised_layers_are_told_from_those_that_cannot_be(build):
    model = onnx.parser.parse_model(QUANTIZED)
    assert build(model.SerializeToString(), "int8").inspection.asked == {"conv": "int8"}
    model.graph.node[-1].input[0] = "planes"  # weights are quantised, what they are applied to is not
    with pytest.raises(GlocalError, match="one input of a layer") as caught:
        build(model.SerializeToString(), "int8")
    assert caught.value.found == "conv"


def test_ctrl_c_stops_a_real_build(build, graphs, monkeypatch):
    steps = []

    def update(*_, **__):
        steps.append(None)
        if len(steps) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "update", update)
    with pytest.raises(KeyboardInterrupt):
        build(graphs["global"], "fp32")
    assert steps
    monkeypatch.undo()
    assert build(graphs["global"], "fp32").data  # TensorRT is none the worse for it


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="no wheels for this machine")
def test_the_builder_is_there_where_the_extra_brings_it():
    """Without it all builds would be skipped, and nobody would notice."""
    assert importlib.util.find_spec("tensorrt_rtx") is not None
