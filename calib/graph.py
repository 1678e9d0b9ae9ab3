"""What of an ONNX graph can be quantised, and how its nodes belong together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from ..runtime.errors import CalibrationError, UsageError

WEIGHTED = ("Conv", "MatMul", "Gemm")
# They follow a convolution and keep its integers going; all else ends the quantised part.
CARRIED = ("Relu", "Clip", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Sigmoid", "HardSigmoid",
           "HardSwish", "LeakyRelu", "Concat")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph that is prepared for quantisation.

    Attributes:
        name: ``global``, ``local`` or ``local.tensorrt``; names of nodes are written ``global/node``.
        model: The model, its nodes named and its tensors typed.
        groups: The group of each node that can be quantised, by its name: a block of the backbone such as ``trunk.5``,
            or ``attention``, where names are those of PyTorch's modules; else the convolution or matrix product itself.
    """

    name: str
    model: onnx.ModelProto
    groups: Mapping[str, str]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that can be quantised, in order, as ``global/node``."""
        return tuple(f"{self.name}/{node}" for node in self.groups)

    @property
    def kept(self) -> tuple[str, ...]:
        """Of these nodes those that stay in higher precision by default: the classifiers and the class-map head.

        They are the products with as many outputs as there are labels. The class maps decide the boxes, and these
        products are a tiny part of the time and of the bytes.
        """
        labels = next(o for o in self.model.graph.output if o.name == "logits").type.tensor_type.shape.dim[1].dim_value
        weights = constants(self.model)
        heads = {
            node.name
            for node in self.model.graph.node
            if node.name in self.groups
            and node.op_type in ("MatMul", "Gemm")
            and weights[node.input[1]].dims[output_axis(node)] == labels
        }
        return tuple(f"{self.name}/{node}" for node in self.groups if node in heads)

    def quantised(self, exclude: Iterable[str]) -> tuple[str, ...]:
        """Plain names of the nodes to quantise: all that can be, but for the excluded ``global/node``.

        A Relu or Clip goes with the node whose only user it is, excluded itself or not.
        """
        left_out, joined = set(exclude), {node.name: before.name for node, before in self.joined()}
        return tuple(node for node in self.groups if f"{self.name}/{joined.get(node, node)}" not in left_out)

    def activations(self) -> tuple[str, ...]:
        """Float tensors that go into or come out of a node that can be quantised, in order, without constants.

        What lies between a node and the Relu or Clip that goes with it is never a tensor of its own in integers.
        """
        types = float_tensors(self.model) - {node.input[0] for node, _ in self.joined()}
        found: dict[str, None] = {}
        for node in self.model.graph.node:
            if node.name in self.groups:
                found |= dict.fromkeys(name for name in (*node.input, *node.output) if name in types)
        return tuple(found)

    def joined(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Each Relu or Clip that is the only user of a node that can be quantised, with that node."""
        users = Counter(name for node in self.model.graph.node for name in node.input)
        users.update(output.name for output in self.model.graph.output)
        makers = {name: node for node in self.model.graph.node for name in node.output if node.name in self.groups}
        return [
            (node, makers[node.input[0]])
            for node in self.model.graph.node
            if node.op_type in ("Relu", "Clip") and node.input[0] in makers and users[node.input[0]] == 1
        ]


def read_graph(name: str, graph: bytes) -> Graph:
    """Prepare a graph.

    Raises:
        CalibrationError: It is no valid ONNX.
    """
    try:
        model = onnx.load_from_string(graph)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # onnx and protobuf raise what they like
        fix = "Export the bundle again."
        raise CalibrationError(f"The {name} graph cannot be read.", found=str(error), fix=fix) from error
    taken = {node.name for node in model.graph.node}
    if "" in taken or len(taken) < len(model.graph.node):
        for node in model.graph.node:
            node.name = f"{node.op_type}_{node.output[0]}"
    return Graph(name, model, _groups(model))


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The model's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors that are no constants."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    known = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return known - set(constants(model))


def default_exclude(graphs: Iterable[Graph]) -> tuple[str, ...]:
    """What stays in higher precision unless a caller says otherwise, see ``Graph.kept``."""
    return tuple(node for graph in graphs for node in graph.kept)


def groups_of(graphs: Iterable[Graph], exclude: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Nodes by group, in order, of all groups that are not excluded entirely.

    A group is written ``global/trunk.5``. Both forms of the local graph share their groups, ``local/stage.0``.
    """
    left_out, groups = set(exclude), dict[str, list[str]]()
    for graph in graphs:
        for node, group in graph.groups.items():
            groups.setdefault(f"{graph.name.partition('.')[0]}/{group}", []).append(f"{graph.name}/{node}")
    return {name: tuple(nodes) for name, nodes in groups.items() if not left_out.issuperset(nodes)}


def expand(graphs: Iterable[Graph], exclude: Iterable[str]) -> tuple[str, ...]:
    """Names of nodes from names of nodes and groups, sorted, each once.

    Raises:
        UsageError: A name is neither; the message names some that there are.
    """
    graphs = tuple(graphs)
    groups = groups_of(graphs, ())
    nodes = {node for graph in graphs for node in graph.nodes}
    found, unknown = set[str](), []
    for name in exclude:
        if name in groups:
            found.update(groups[name])
        elif name in nodes:
            found.add(name)
        else:
            unknown.append(name)
    if unknown:
        raise UsageError(
            f"{unknown[0]} is no node or group that can be quantised.",
            found=f"{len(unknown)} unknown names, such as {', '.join(unknown[:3])}",
            fix=f"Write them like {', '.join(list(groups)[:3])}." if groups else "Nothing here can be quantised.",
        )
    return tuple(sorted(found))


def _groups(model: onnx.ModelProto) -> dict[str, str]:
    weights = constants(model)
    groups: dict[str, str] = {}
    of_tensor: dict[str, str] = {}
    for node in model.graph.node:
        group = None
        if node.op_type in WEIGHTED and len(node.input) > 1 and _is_weight(weights.get(node.input[1])):
            group = _block(node.input[1]) if node.op_type == "Conv" else _module(node.name)
        elif node.op_type in CARRIED:
            group = next((of_tensor[name] for name in node.input if name in of_tensor), None)
        if group is not None:
            groups[node.name] = group
            if node.op_type not in ("MatMul", "Gemm"):  # what follows a matrix product is not quantised
                of_tensor[node.output[0]] = group
    return groups


def _is_weight(tensor: Any) -> bool:
    return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight that holds the outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1


def _module(product: str) -> str:
    """``attention`` of attention.query/MatMul, ``head`` of head/MatMul."""
    module = product.partition("/")[0]
    return module.rpartition(".")[0] or module or product


def _block(weight: str) -> str:
    """``trunk.5`` of trunk.5.conv_pw.weight: up to the last number, a shortcut's own numbers aside."""
    path = re.sub(r"\.(downsample|shortcut)\..*$", ".", weight)
    match = re.match(r"(.*\.\d+)\.", path)
    return match.group(1) if match else weight.removesuffix(".weight")
