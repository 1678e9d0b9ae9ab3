"""The Q/DQ graph for TensorRT: S8, zero point 0, weights per channel, float bias.

TensorRT fuses a convolution with the Q/DQ pairs before it, the bias, the residual sum and the activation after it, so
pairs stand only where it can use them: before the data and the weights of a convolution, and on the residual input of
a sum. The output of a convolution gets none: what follows would lose precision and gain nothing. Matrix products get
none: TensorRT's parser reshapes a weight for a product with three axes, and then the pair is not next to the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.errors import CalibrationError
from .graph import Graph, constants

_STEPS = 127


def quantize_for_tensorrt(
    graph: Graph, ranges: Mapping[str, tuple[float, float]], exclude: Iterable[str] = ()
) -> bytes:
    """Put Q/DQ pairs where TensorRT can use them.

    Weights stay float with a pair after them, which every version from 8.6 takes; the builder folds them to int8.

    Args:
        graph: An fp32 graph whose operators TensorRT has.
        ranges: (low, high) by tensor; the scale is the larger magnitude over 127.
        exclude: ``graph/node`` names that stay in higher precision.

    Raises:
        CalibrationError: A range is missing.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    pairs = _Pairs(graph.name, model, ranges)
    nodes = set(graph.quantised(exclude))
    producers = {output: node for node in model.graph.node for output in node.output}
    users: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    quantised_products = {node.output[0] for node in model.graph.node if _weighted(node, nodes)}
    for node in model.graph.node:
        if _weighted(node, nodes):
            node.input[0] = pairs.of_activation(node.input[0])
            node.input[1] = pairs.of_weight(node.input[1], 0)
        elif node.op_type == "Add" and node.name in nodes:
            residual = _residual(node, quantised_products, users, producers)
            if residual is not None:
                node.input[residual] = pairs.of_activation(node.input[residual])
    pairs.insert()
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Pairs:
    """The Q/DQ pairs of a model: one for each tensor, whatever reads it."""

    def __init__(self, graph: str, model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._graph, self._model, self._ranges = graph, model, ranges
        self._weights = constants(model)
        self._nodes: dict[str, list[onnx.NodeProto]] = {}

    def of_activation(self, tensor: str) -> str:
        if tensor not in self._ranges:
            raise CalibrationError(
                f"The table does not cover the {self._graph} graph.",
                found=f"no range for {tensor}",
                fix="Calibrate again with this version.",
            )
        low, high = self._ranges[tensor]
        # A tensor that is always 0 needs some scale; its value is of no consequence.
        return self._pair(tensor, np.array(max(-low, high) / _STEPS or 1.0, np.float32), None)

    def of_weight(self, tensor: str, axis: int) -> str:
        weight = numpy_helper.to_array(self._weights[tensor])
        peak = np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
        return self._pair(tensor, np.where(peak > 0, peak / _STEPS, 1.0).astype(np.float32), axis)

    def _pair(self, tensor: str, scale: np.ndarray, axis: int | None) -> str:
        if tensor not in self._nodes:
            names = [f"{tensor}_scale", f"{tensor}_zero_point"]
            self._model.graph.initializer.append(numpy_helper.from_array(scale, names[0]))
            self._model.graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), names[1]))
            attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
            quantised, value = f"{tensor}_quantised", f"{tensor}_dequantised"
            self._nodes[tensor] = [
                helper.make_node("QuantizeLinear", [tensor, *names], [quantised], f"{tensor}_q", **attributes),
                helper.make_node("DequantizeLinear", [quantised, *names], [value], f"{tensor}_dq", **attributes),
            ]
        return self._nodes[tensor][1].output[0]

    def insert(self) -> None:
        """Put each pair right after what gives its tensor."""
        old = list(self._model.graph.node)
        del self._model.graph.node[:]
        made = {output for node in old for output in node.output}
        for tensor, pair in self._nodes.items():
            if tensor not in made:  # a constant or an input of the graph
                self._model.graph.node.extend(pair)
        for node in old:
            self._model.graph.node.append(node)
            for output in node.output:
                self._model.graph.node.extend(self._nodes.get(output, ()))


def _weighted(node: onnx.NodeProto, nodes: set[str]) -> bool:
    return node.op_type == "Conv" and node.name in nodes


def _residual(
    node: onnx.NodeProto,
    products: set[str],
    users: Mapping[str, int],
    producers: Mapping[str, onnx.NodeProto],
) -> int | None:
    """Which input of a sum is the residual: the one that is not the quantised convolution to be fused with.

    The convolution must feed the sum alone. Where both inputs are such (a block with a convolution on its shortcut),
    the first is the main branch, as in timm and torchvision. Without one there is nothing to fuse with.
    """
    for main, residual in ((0, 1), (1, 0)):
        if node.input[main] in products and users[node.input[main]] == 1 and node.input[residual] in producers:
            return residual
    return None
