"""A timm backbone cut in two where its feature map has 1/16 of the input's side."""

from __future__ import annotations

from typing import NamedTuple

import timm
import torch
from torch import nn

from ..runtime.errors import UsageError

# timm's chains end where one of these begins.
_HEADS = {"global_pool", "head", "head_drop", "fc", "classifier"}


class Backbone(NamedTuple):
    """The two halves of a backbone: image -> ``trunk`` -> F16 -> ``tail`` -> F32."""

    trunk: nn.Sequential
    tail: nn.Sequential
    channels16: int
    channels32: int


def create_timm_model(name: str) -> nn.Module:
    """The named timm model with random weights and its classifier removed.

    Raises:
        UsageError: timm does not know the name.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "none similar"
        raise UsageError(
            f"unknown backbone {name!r}",
            found=f"close to it in timm: {near}",
            fix="choose one of timm.list_models()",
        )
    return timm.create_model(name, pretrained=False, num_classes=0, global_pool="")


def split(model: nn.Module, name: str) -> Backbone:
    """Cut a timm model after its last step at 1/16.

    Works for every model whose ``forward_features`` is a chain of its children (ResNet, ResNeXt, EfficientNet,
    RegNet, MobileNet, ConvNeXt, ...); that is checked by running both ways.

    Raises:
        UsageError: The model is no such chain, or has no features at 1/16 and 1/32.
    """
    steps: list[nn.Module] = []
    for child_name, child in model.named_children():
        if child_name in _HEADS:
            break
        steps += list(_flatten(child))
    model.eval()
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) - 0.5
    reductions, channels = [], []
    with torch.inference_mode():
        try:
            expected, y = model.forward_features(x), x  # type: ignore[operator]
            for step in steps:
                y = step(y)
                reductions.append(128 // y.shape[-1] if y.ndim == 4 else 0)
                channels.append(y.shape[1])
            chain = y.shape == expected.shape and torch.allclose(y, expected, atol=1e-4)
        except Exception:  # a module that is fed something else than in its own model may raise anything
            chain = False
    if not chain or 16 not in reductions or reductions[-1] != 32:
        raise UsageError(
            f"backbone {name!r} cannot be split",
            found=f"reductions {sorted(set(reductions))}, {'a' if chain else 'not a'} chain of its stages",
            fix="use a convolutional backbone with features at 1/16 and 1/32, such as resnet101",
        )
    model.train()
    cut = len(reductions) - reductions[::-1].index(16)
    return Backbone(nn.Sequential(*steps[:cut]), nn.Sequential(*steps[cut:]), channels[cut - 1], channels[-1])


def _flatten(module: nn.Module) -> list[nn.Module]:
    """The steps of nested plain Sequentials; a subclass may have a forward of its own and is kept whole."""
    if type(module) is not nn.Sequential:
        return [module]
    return [step for child in module for step in _flatten(child)]
