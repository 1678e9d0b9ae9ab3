"""Convolutions of the local graph as products: the same result, with the same names and contract."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from glocal.export.graphs import export_local, export_module
from glocal.export.half import to_half
from glocal.export.products import convolutions_to_products
from glocal.train.config import model_config
from glocal.train.model import GlocalNet
from torch import nn
from torch.export import Dim


class Stage(nn.Module):
    """What a stage may hold: strides, uneven pads and kernels, groups, dilation, no bias, Clip, a gate, two users."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(8, 6, 1, bias=False)
        self.wide = nn.Conv2d(6, 12, (3, 2), stride=(2, 1), padding=(1, 0))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.dilated = nn.Conv2d(12, 12, 3, padding=2, dilation=2)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=(2, 1))
        self.gate = nn.Conv2d(12, 12, 1)
        self.last = nn.Conv2d(12, 5, 3, stride=2, padding=1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.narrow(cells))
        x = self.dilated(nn.functional.relu(self.depthwise(self.wide(x))))
        x = x + self.shortcut(cells)[..., 1:]
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.last(x)


def run(graph: bytes, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def kinds(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def test_every_kind_of_convolution_gives_the_same() -> None:
    torch.manual_seed(0)
    stage, cells = Stage().eval(), torch.randn(7, 8, 4, 4)
    graph = export_module(stage, {"cells": cells}, {"cells": {0: Dim("rows", min=1, max=99)}}, ["cells"], ["out"])
    changed = convolutions_to_products(graph)
    assert kinds(graph)["Conv"] == 7
    assert kinds(changed)["Conv"] == 2  # the one in groups, and the dilated one
    assert kinds(changed)["MatMul"] == 5
    for rows in (7, 1, 30):
        cells = torch.randn(rows, 8, 4, 4)
        np.testing.assert_allclose(run(changed, {"cells": cells.numpy()}), stage(cells).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_a_copied_stage_gives_the_same_in_fp32_and_fp16(backbone: str) -> None:
    torch.manual_seed(0)
    config = model_config("paper", backbone=backbone, classes=("a", "b", "c"), image_size=(64, 64))
    model = GlocalNet(config).eval()
    graph = export_local(model, "matmul")
    changed = convolutions_to_products(graph)
    assert kinds(changed)["MatMul"] > kinds(graph)["MatMul"]
    assert len({node.name for node in onnx.load_from_string(changed).graph.node}) == sum(kinds(changed).values())
    with torch.no_grad():
        out = model.global_branch(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    low, size = torch.rand(2, 5, 2) * 0.5, torch.rand(2, 5, 2) * 0.4 + 0.1
    inputs = {
        "features": out.features.numpy(),
        "global_feature": out.global_feature.numpy(),
        "boxes": torch.cat([low, low + size], 2).numpy(),
        "counts": np.array([[1, 2, 3, 0, 0], [1, 1, 1, 1, 4]], np.float32),
    }
    expected = run(graph, inputs)
    np.testing.assert_allclose(run(changed, inputs), expected, rtol=1e-4, atol=1e-5)
    half = {k: v.astype(np.float16) if k in ("features", "global_feature") else v for k, v in inputs.items()}
    np.testing.assert_allclose(run(to_half(changed), half), expected, atol=0.02 * np.abs(expected).max())


def test_a_border_is_not_multiplied() -> None:
    """3x3 on 2x2 cells: one product of all cells, with a block of the weight for each pair of cells."""
    torch.manual_seed(0)
    stage, cells = nn.Conv2d(3, 5, 3, padding=1).eval(), torch.randn(4, 3, 2, 2)
    graph = export_module(stage, {"input": cells}, {"input": {0: Dim("rows", min=1, max=9)}}, ["cells"], ["out"])
    changed = convolutions_to_products(graph)
    shapes = [list(tensor.dims) for tensor in onnx.load_from_string(changed).graph.initializer]
    assert [4 * 3, 4 * 5] in shapes
    assert kinds(changed)["Gather"] == 0
    np.testing.assert_allclose(run(changed, {"cells": cells.numpy()}), stage(cells).detach(), rtol=1e-4, atol=1e-5)


def test_a_graph_without_a_stage_is_left_alone() -> None:
    config = model_config("glocal", backbone="test_resnet", classes=("a", "b"), image_size=(64, 64))
    graph = export_local(GlocalNet(config).eval(), "matmul")
    assert convolutions_to_products(graph) == graph
    assert kinds(convolutions_to_products(graph)) == kinds(graph)
