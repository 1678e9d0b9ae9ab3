"""What a model is: the switches of the network, in two presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Preset = Literal["glocal", "paper"]


class ModelConfig(BaseModel):
    """Everything needed to build a network, written into every checkpoint.

    Attributes:
        backbone: A timm model name.
        classes: Label names, in the order of the logits.
        image_size: Input height and width in pixels, multiples of 32.
        mean: Per-channel mean of the RGB input, on a scale of 0 to 1.
        std: Per-channel standard deviation, on the same scale.
        k_s: Categories proposed per image (section 3.3).
        k_e: Regions per category.
        zetas: Factors of the threshold shift of the box variants (eq. 8).
        roi_size: Side of the pooled region on F16, in cells.
        global_pool: ``max`` is the paper's: logits and F_g are maxima over positions. ``average_max``: logits are
            mean + max / 2 (as CSRA) and F_g is the mean, pooled as the region tokens are.
        global_attention: Non-local self-attention on F32 ("GA" in table 3).
        cross_attention: Cross-granularity attention over F_g and the region tokens ("CA", eq. 4).
        cross_scale: Divide the logits of eq. 4 by sqrt(d). The paper does not.
        normalise_tokens: LayerNorm before the queries, keys and values of the cross attention.
        shared_head: One classifier for the global branch, the class maps and the regions. This is the reading of
            the paper that gives the parameter count of its table 8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    classes: tuple[str, ...] = Field(min_length=1)
    image_size: tuple[int, int] = (448, 448)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    k_s: int = Field(4, ge=1)
    k_e: int = Field(2, ge=1)
    zetas: tuple[float, ...] = (0.5, 1.0)
    roi_size: int = Field(4, ge=1)
    global_pool: Literal["max", "average_max"] = "max"
    global_attention: bool = True
    cross_attention: bool = True
    cross_scale: bool = False
    normalise_tokens: bool = False
    shared_head: bool = True

    @property
    def k_o(self) -> int:
        """The most boxes an image can have: k_s * k_e * k_r."""
        return self.k_s * self.k_e * (1 + len(self.zetas))


# `paper` is the literal reading: the defaults above. `glocal` departs from it; the README names each figure.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "glocal": {
        "roi_size": 8,
        "global_pool": "average_max",
        "cross_scale": True,
        "normalise_tokens": True,
        "shared_head": False,
    },
}


def model_config(preset: Preset, **overrides: Any) -> ModelConfig:
    """A configuration: the preset's switches, then ``overrides``."""
    return ModelConfig(**{**PRESETS[preset], **overrides})
