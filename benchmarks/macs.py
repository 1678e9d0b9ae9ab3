"""Multiply-accumulates and parameters, against the plain backbone (table 8 and figure 10 of the paper).

Counted per image on PyTorch's meta device, so nothing is computed. Two conventions, as users compare with both:

- **products**: convolutions, linear layers, the two products of each attention, and those of RoIAlign's matrix form.
- **with the rest**: as ptflops, which the paper's figures follow: also 2 per element of a batch norm, 1 of an
  activation, 1 per input element of a pooling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..train.attention import NonLocal
from ..train.config import ModelConfig, Preset, model_config
from ..train.model import GlocalNet, LocalBranch
from .plain import PlainClassifier

# Table 8: 448 px, 80 labels; G MACs and M parameters.
PAPER = {"backbone": (31.39, 44.55), "without attentions": (32.43, 57.63), "full": (35.98, 74.42)}
PAPER_SETTING = ("resnet101", "paper", 448, 80, 24)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.LeakyReLU)


@dataclass(frozen=True)
class Count:
    """What one image costs.

    Attributes:
        products: Multiply-accumulates of products, by stage: ``trunk``, ``tail``, ``attention`` and so on.
        rest: Operations of batch norms, activations and poolings.
        parameters: Trainable values of the network.
    """

    products: dict[str, int]
    rest: int
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all products."""
        return sum(self.products.values())

    @property
    def with_rest(self) -> int:
        """As ptflops counts."""
        return self.macs + self.rest


@dataclass
class _Tally:
    products: Counter[str] = field(default_factory=Counter)
    rest: int = 0


def count_network(config: ModelConfig, boxes: int) -> Count:
    """Both branches for one image.

    Args:
        config: The network.
        boxes: Boxes that go through the local branch.
    """
    model = GlocalNet(config).eval().to("meta")
    branch, local, tally = model.global_branch, model.local_branch, _Tally()
    assert local is not None  # for mypy: the presets have two branches
    image = torch.empty(1, *config.image_size, 3, dtype=torch.uint8, device="meta")
    with torch.no_grad():
        out = _watched(branch, tally, "", lambda: branch(image))
        place, count = torch.empty(1, boxes, 4, device="meta"), torch.empty(1, boxes, device="meta")
        local.roi_form = "matmul"
        _watched(local, tally, "local ", lambda: local(out.features, out.global_feature, place, count))
    tally.products["local RoIAlign"] += _roi_align_macs(out.features, boxes, local)
    return Count(dict(tally.products), tally.rest, sum(value.numel() for value in model.parameters()))


def count_backbone(config: ModelConfig) -> Count:
    """The plain backbone with average pooling and one classifier, for one image."""
    plain, tally = PlainClassifier(GlocalNet(config)).eval().to("meta"), _Tally()
    image = torch.empty(1, *config.image_size, 3, dtype=torch.uint8, device="meta")
    with torch.no_grad():
        _watched(plain, tally, "", lambda: plain(image))
    return Count(dict(tally.products), tally.rest, sum(value.numel() for value in plain.parameters()))


def compare_costs(backbone: str, preset: Preset, size: int, labels: int, boxes: int) -> dict[str, Count]:
    """The rows of table 8: ``backbone``, ``without attentions`` and ``full``.

    Args:
        backbone: A timm model name.
        preset: Which network.
        size: Side of the square input, pixels.
        labels: How many labels.
        boxes: Boxes that go through the local branch.
    """
    given: dict[str, Any] = {
        "backbone": backbone,
        "classes": tuple(f"label {index}" for index in range(labels)),
        "image_size": (size, size),
    }
    bare = {"global_attention": False, "cross_attention": False}
    return {
        "backbone": count_backbone(model_config(preset, **given)),
        "without attentions": count_network(model_config(preset, **given, **bare), boxes),
        "full": count_network(model_config(preset, **given), boxes),
    }


def _watched(module: nn.Module, tally: _Tally, prefix: str, run: Callable[[], Any]) -> Any:
    """Run a module, and tally what its parts do."""
    hooks = [
        part.register_forward_hook(_hook(tally, prefix + (name.partition(".")[0] or "self")))
        for name, part in module.named_modules()
    ]
    try:
        return run()
    finally:
        for hook in hooks:
            hook.remove()


def _hook(tally: _Tally, stage: str) -> Callable[[nn.Module, Sequence[Tensor], Any], None]:
    def hook(module: nn.Module, inputs: Sequence[Tensor], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            tally.products[stage] += output.numel() * (module.in_channels // module.groups) * height * width
        elif isinstance(module, nn.Linear):
            tally.products[stage] += output.numel() * module.in_features
        elif isinstance(module, NonLocal):
            batch, tokens, _ = inputs[0].shape
            tally.products[stage] += 2 * batch * tokens * tokens * module.query.out_features
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            tally.rest += 2 * inputs[0].numel()
        elif isinstance(module, _ACTIVATIONS):
            tally.rest += output.numel()
        elif isinstance(module, _POOLS):
            tally.rest += inputs[0].numel()

    return hook


def _roi_align_macs(features: Tensor, boxes: int, local: LocalBranch) -> int:
    """Both products of ``roi_align_matmul``: along x for all boxes, then along y."""
    _, channels, height, width = features.shape
    return boxes * local.roi_size * channels * height * (width + local.roi_size)
