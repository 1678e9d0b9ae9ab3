"""The two ONNX graphs of a model (design: "The two graphs")."""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from typing import Any, Literal

import onnx
import torch
from torch import nn
from torch.export import Dim

from ..runtime.errors import UsageError
from ..train.model import GlocalNet, LocalBranch

RoiForm = Literal["operator", "matmul"]
# RoiAlign has its half-pixel mode since opset 16; 18 is the oldest that the exporter writes without conversion.
OPSET = 18


def check_exportable(model: GlocalNet) -> LocalBranch:
    """The local branch.

    Raises:
        UsageError: The network has one branch, which makes no bundle.
    """
    if model.local_branch is None:
        raise UsageError(
            "only a network of two branches becomes a bundle",
            found=f"head {model.config.head}",
            fix="train with --head glocal",
        )
    return model.local_branch


def export_global(model: GlocalNet) -> bytes:
    """The global branch as ONNX: ``image`` uint8 (B, H, W, 3) -> logits, class_maps, features, global_feature."""
    branch = model.global_branch.eval()
    image = torch.zeros(2, *model.config.image_size, 3, dtype=torch.uint8)
    names = ["logits", "class_maps", "features", "global_feature"]
    return export_module(branch, {"images": image}, {"images": {0: Dim("batch", min=1, max=1024)}}, ["image"], names)


def export_local(model: GlocalNet, form: RoiForm = "operator") -> bytes:
    """The local branch as ONNX: features, global_feature, boxes, counts -> logits; B and K are dynamic.

    Args:
        model: The network.
        form: RoIAlign as the ONNX operator, or as a product of matrices.

    Raises:
        UsageError: The network has one branch.
    """
    branch, config = check_exportable(model).eval(), model.config
    with torch.inference_mode():
        out = model.global_branch.eval()(torch.zeros(2, *config.image_size, 3, dtype=torch.uint8))
    slots = min(3, config.k_o)
    boxes = torch.tensor([0.1, 0.2, 0.8, 0.9]).expand(2, slots, 4).contiguous()
    inputs = {
        "features": out.features.clone(),
        "global_feature": out.global_feature.clone(),
        "boxes": boxes,
        "counts": torch.ones(2, slots),
    }
    batch, count = Dim("batch", min=1, max=1024), Dim("boxes", min=1, max=1024)
    shapes = {name: {0: batch, 1: count} if name in ("boxes", "counts") else {0: batch} for name in inputs}
    before, branch.roi_form = branch.roi_form, form
    try:
        return export_module(branch, inputs, shapes, list(inputs), ["logits"])
    finally:
        branch.roi_form = before


def export_module(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    shapes: dict[str, dict[int, Any]],
    input_names: list[str],
    output_names: list[str],
) -> bytes:
    """A module as checked ONNX, without external data and without paths of this machine.

    Args:
        module: What to export, in evaluation mode.
        inputs: Example tensors by argument name.
        shapes: By argument name, the dimensions that are dynamic.
        input_names: Names in the graph.
        output_names: Likewise.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            args=(),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True without a file returns the program
    graph = program.model_proto
    _name_nodes(graph)
    _drop_paths(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString()


def _name_nodes(graph: onnx.ModelProto) -> None:
    """Name nodes by their module: ``trunk.10.conv1``, ``attention.query/MatMul``, ``/MatMul`` outside of sub-modules.

    Layers are then told apart by name where precisions are chosen, in TensorRT's plans, and in calibration.
    """
    weights, seen = {tensor.name for tensor in graph.graph.initializer}, Counter[str]()
    for node in graph.graph.node:
        # A convolution is named after its weight: its scope is that of the batch norm that was folded into it.
        owner = next((name.rpartition(".")[0] for name in node.input[1:2] if name in weights and "." in name), "")
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]
        module = next((scope for scope in reversed(scopes) if not scope.startswith("_")), "")
        name = owner if node.op_type == "Conv" and owner else f"{module}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _drop_paths(graph: onnx.ModelProto) -> None:
    """Remove the exporter's notes on nodes: they hold source paths of the machine and triple the node count's bytes."""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (graph.graph.value_info, graph.graph.input, graph.graph.output, graph.graph.initializer):
        for value in values:
            del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
