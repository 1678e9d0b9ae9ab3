"""The opponent as a graph: a bundle's backbone with average pooling and one classifier, cut out of its global graph.

It has the weights, the precision and the quantised layers of the graph that it is cut from, so that a comparison on one
engine compares the networks and nothing else. Needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..runtime.errors import BundleError

if TYPE_CHECKING:
    import onnx

_STAGE = "tail"  # the module of the backbone's last stage
_ADDED = "plain"  # what the new tensors' names start with
_FIX = "Export the bundle again: nodes are named after their modules since version 0.3."


def plain_graph(global_graph: bytes) -> bytes:
    """Cut the plain classifier out of a global graph.

    The mean over space and the classifier compute in float32 at every precision, as the classifier of the global graph
    does.

    Args:
        global_graph: A serialised global graph of any precision, for ONNX Runtime or TensorRT.

    Returns:
        A serialised graph: ``image`` uint8 (B, H, W, 3), already resized -> ``logits`` float32 (B, N).

    Raises:
        BundleError: The graph cannot be read, or its nodes are not named after the network's modules.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    try:
        model = onnx.load_from_string(global_graph)
    except Exception as error:  # protobuf's, whose types it does not publish
        raise BundleError("The global graph is no ONNX model.", found=str(error), fix=_FIX) from error
    graph = model.graph
    weight, bias = _classifier(graph)
    last = _last_stage(graph)
    names = {name: f"{_ADDED}/{name}" for name in ("single", "axes", "pooled", "product")}
    added = [
        helper.make_node("Cast", [last], [names["single"]], f"{_ADDED}/Cast", to=TensorProto.FLOAT),
        helper.make_node(
            "ReduceMean", [names["single"], names["axes"]], [names["pooled"]], f"{_ADDED}/ReduceMean", keepdims=0
        ),
        helper.make_node("MatMul", [names["pooled"], weight], [names["product"]], "head/MatMul"),
        helper.make_node("Add", [names["product"], bias], ["logits"], "head/Add"),
    ]
    wanted, kept = {last, weight, bias}, []
    for node in reversed(graph.node):  # a graph stands in the order of computation
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in wanted]
    weights.append(numpy_helper.from_array(np.array([2, 3]), names["axes"]))
    outputs = [value for value in graph.output if value.name == "logits"]
    for field, content in (
        ("node", [*reversed(kept), *added]),
        ("initializer", weights),
        ("output", outputs),
        ("value_info", []),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(content)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(
            "No plain classifier can be cut out of the global graph.", found=str(error), fix=_FIX
        ) from error
    return model.SerializeToString()


def _classifier(graph: onnx.GraphProto) -> tuple[str, str]:
    """Weight (C, N) and bias (N,) of the global classifier."""
    named = {node.name: node for node in graph.node}
    product, total = named.get("head/MatMul"), named.get("head/Add")
    if product is None or total is None or product.output[0] not in total.input:
        raise BundleError("The global graph has no classifier that could be found.", found=_names(graph), fix=_FIX)
    (bias,) = (name for name in total.input if name != product.output[0])
    return product.input[1], bias


def _last_stage(graph: onnx.GraphProto) -> str:
    """The tensor that the backbone's last stage gives; where it is quantised at once, as it is afterwards."""
    last = next((node for node in reversed(graph.node) if node.name.startswith((f"{_STAGE}.", f"{_STAGE}/"))), None)
    if last is None:
        raise BundleError("The global graph has no last stage that could be found.", found=_names(graph), fix=_FIX)
    found: str = last.output[0]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        found = next((node.output[0] for node in graph.node if node.op_type == kind and found in node.input), found)
    return found


def _names(graph: onnx.GraphProto) -> str:
    return f"nodes {', '.join(node.name or node.op_type for node in graph.node[-3:])} at its end"
