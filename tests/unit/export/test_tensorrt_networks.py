"""The networks of the paper and of the edge at their real size (random weights), built by TensorRT-RTX on the CPU."""

import onnx
import pytest
import torch
from glocal.calib.graph import read_graph
from glocal.calib.qdq_tensorrt import quantize_for_tensorrt
from glocal.export.graphs import export_global, export_local
from glocal.export.half import to_half
from glocal.export.tensorrt import build_plan
from glocal.runtime.backends.tensorrt_api import gpu
from glocal.runtime.plans import PlanOptions
from glocal.train.config import model_config
from glocal.train.model import GlocalNet

pytestmark = pytest.mark.slow
# How a graph of each precision is made from the exported one.
FORMS = {"fp32": bytes, "fp16": to_half, "int8": lambda graph: quantised(graph)}
NETWORKS = {
    "resnet101 at 448": ("paper", "resnet101", 448, 80),
    "lite0 at 224": ("glocal", "tf_efficientnet_lite0", 224, 18),
}


def quantised(graph: bytes) -> bytes:
    """With ranges out of the air: whether it builds depends on where the Q/DQ pairs stand, not on their scales."""
    read = read_graph("a graph", graph)
    return quantize_for_tensorrt(read, dict.fromkeys(read.activations(), (-6.0, 6.0)), read.kept)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, rtx) -> dict[str, bytes]:
    preset, backbone, size, labels = NETWORKS[request.param]
    classes = tuple(f"label{index}" for index in range(labels))
    torch.manual_seed(0)
    model = GlocalNet(model_config(preset, backbone=backbone, classes=classes, image_size=(size, size))).eval()
    return {"global": export_global(model), "local": export_local(model, "matmul")}


@pytest.mark.parametrize("precision", FORMS)
@pytest.mark.parametrize("graph", ["global", "local"])
def test_it_builds(network, rtx, graph, precision):
    plan = build_plan(rtx, FORMS[precision](network[graph]), graph, precision, PlanOptions(), gpu=gpu())
    nodes = onnx.load_from_string(network[graph]).graph.node
    working = [node for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert sum(plan.inspection.precisions.values()) == len(working)
    convolutions = sum(node.op_type == "Conv" for node in nodes)
    if precision == "int8":  # convolutions, all of them, and nothing else
        assert plan.inspection.precisions.get("int8", 0) == convolutions
    else:
        assert plan.inspection.precisions[precision] > len(working) / 2
    share = {"fp32": 0.9, "fp16": 0.45, "int8": 0.2}[precision]  # of the bytes
    assert len(plan.data) > len(network[graph]) * share
