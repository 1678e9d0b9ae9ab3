"""Half-precision graphs, made from the fp32 ones.

The half graph has the same nodes, with casts where the type changes, so a plan follows it as it stands (strongly typed
TensorRT). Weights are rounded once, after batch norm has been folded into the convolutions.

Half: the backbone and its copied stage, the projections of both attentions, and the products of RoIAlign. Single: image
scaling, boxes and RoIAlign's coordinates, attention logits and softmax, layer and batch norm, all classifiers, and
every input and output but ``features`` and ``global_feature``, which stay on the device.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import GlocalError

_HALF_MODULES = re.compile(r"(trunk|tail|stage)\b|attention\.(query|key|value|out)/")
_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Gather", "Flatten", "Identity"}
_HALF_VALUES = ("features", "global_feature")


def to_half(graph: bytes) -> bytes:
    """The half-precision form of an exported graph.

    Args:
        graph: A global or local graph in fp32, with nodes named by their module (see ``graphs``).

    Returns:
        The graph with the same inputs and outputs; ``features`` and ``global_feature`` are float16, the rest as before.

    Raises:
        GlocalError: A weight is too large for half precision.
    """
    model = onnx.load_from_string(graph)
    return _Converter(model).convert().SerializeToString()


class _Converter:
    """Walks a graph in its order and keeps account of which tensors have become float16."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        values = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        typed = (*values.value_info, *values.input, *values.output)
        self.floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats |= {name for name, tensor in self.weights.items() if tensor.data_type == TensorProto.FLOAT}
        self.outputs = {value.name for value in model.graph.output}
        self.half: set[str] = set()
        self.made: dict[tuple[str, bool], str] = {}  # casts and rounded weights, by tensor and whether it is half
        self.done: list[onnx.NodeProto] = []

    def convert(self) -> onnx.ModelProto:
        """Convert the whole graph."""
        graph = self.model.graph
        for value in (*graph.input, *graph.output):
            if value.name in _HALF_VALUES:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        self.half |= {value.name for value in graph.input if value.name in _HALF_VALUES}
        for node in self.nodes:
            self._convert_node(node)
        used = {name for node in self.done for name in node.input}
        kept = [tensor for name, tensor in self.weights.items() if name in used]
        for field, content in (("node", self.done), ("initializer", kept), ("value_info", [])):
            graph.ClearField(field)
            getattr(graph, field).extend(content)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _convert_node(self, node: onnx.NodeProto) -> None:
        half = self._computes_in_half(node)
        for index, name in enumerate(node.input):
            if name in self.floats:
                node.input[index] = self._as(name, half)
        self.done.append(node)
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if half:
                self.half.add(name)
            if name in self.outputs and half != (name in _HALF_VALUES):
                # The graph's output has the other type: the node's own result gets another name.
                node.output[index] = f"{name}/raw"
                self.made[name, half] = node.output[index]
                self._cast(node.output[index], name, not half)
                self.half ^= {name}

    def _computes_in_half(self, node: onnx.NodeProto) -> bool:
        inputs = [name for name in node.input if name in self.floats]
        if node.op_type in _LAYOUT:
            return bool(inputs) and inputs[0] in self.half
        if node.op_type == "Concat":
            return bool(inputs) and self.half.issuperset(inputs)
        if node.name.startswith("/"):  # of no sub-module: there the only products are those of RoIAlign
            return node.op_type == "MatMul" and bool(inputs)
        return _HALF_MODULES.match(node.name) is not None

    def _as(self, name: str, half: bool) -> str:
        """The tensor in half or single precision, cast or rounded once for all that need it."""
        if half == (name in self.half):
            return self.made.get((name, half), name)
        if (name, half) not in self.made:
            made = self.made[name, half] = f"{name}/{'half' if half else 'single'}"
            if name in self.weights:
                self.weights[made] = _rounded(self.weights[name], made)
            else:
                self._cast(self.made.get((name, not half), name), made, half)
        return self.made[name, half]

    def _cast(self, source: str, target: str, half: bool) -> None:
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.done.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind))


def _rounded(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if (np.isfinite(values) & ~np.isfinite(rounded)).any():
        raise GlocalError(
            f"{tensor.name} is too large for half precision",
            found=f"a magnitude of {np.abs(values[np.isfinite(values)]).max():.4g}, the largest half is 65504",
            fix="export fp32, or train with more weight decay",
        )
    return numpy_helper.from_array(rounded, name)
