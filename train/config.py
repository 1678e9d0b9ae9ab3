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
        head: ``glocal`` is the network of the paper. ``global`` is its global branch alone. ``average``, ``max`` and
            ``csra`` are peers without attention: one classifier per position of F32, pooled by the mean, the maximum,
            or mean + max / 2 (residual attention with one head, T = infinity and lambda = 0.5; Zhu and Wu, ICCV 2021).
        image_size: Input height and width in pixels, multiples of 32.
        mean: Per-channel mean of the RGB input, on a scale of 0 to 1.
        std: Per-channel standard deviation, on the same scale.
        k_s: Categories proposed per image (section 3.3).
        k_e: Regions per category.
        zetas: Factors of the threshold shift of the box variants (eq. 8).
        rank: What makes a region strong: its ``energy`` (the paper's), or its ``area`` in active cells (table 7).
        shift: Unit of the variants (eq. 8): ``absolute`` is |mean| / sigma of the class maps' batch norm. ``signed``
            takes a negative mean as 0, because a threshold that sinks inside the crop gives the region itself again.
        map_features: What the class maps are made from (F_w of table 6).
        roi_features: What regions are pooled from (F_r of table 6). With ``f32`` there is no local stage.
        roi_size: Side of the pooled region in cells.
        local_stride: Stride of the local stage: 2 as in the backbone, or 1 to keep every cell of a pooled region.
        global_pool: ``max`` is the paper's: logits and F_g are maxima over positions. ``average_max``: logits are
            mean + max / 2 (as CSRA) and F_g is the mean, pooled as the region tokens are.
        global_attention: Non-local self-attention on F32 ("GA" in table 3).
        cross_attention: Cross-granularity attention over F_g and the region tokens ("CA", eq. 4).
        cross_scale: Divide the logits of eq. 4 by sqrt(d). The paper does not.
        normalise_tokens: LayerNorm before the queries, keys and values of the cross attention.
        box_fusion: Local logits from those of the boxes: ``max`` (section 3.5), ``sum`` over all proposals (3.4), or
            ``average_max``: their mean + max / 2, as ``global_pool``.
        fusion: Fused score: mean of the two ``probability`` values, or probability of the mean ``logit``.
        shared_map_head: The global branch's classifier also makes the class maps.
        shared_local_head: It also classifies the regions. Sharing both is the reading of the paper that gives the
            parameter count of its table 8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    classes: tuple[str, ...] = Field(min_length=1)
    head: Literal["glocal", "global", "average", "max", "csra"] = "glocal"
    image_size: tuple[int, int] = (448, 448)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    k_s: int = Field(4, ge=1)
    k_e: int = Field(2, ge=1)
    zetas: tuple[float, ...] = (0.5, 1.0)
    rank: Literal["energy", "area"] = "energy"
    shift: Literal["absolute", "signed"] = "absolute"
    map_features: Literal["f16", "f32"] = "f32"
    roi_features: Literal["f16", "f32"] = "f16"
    roi_size: int = Field(4, ge=1)
    local_stride: Literal[1, 2] = 2
    global_pool: Literal["max", "average_max"] = "max"
    global_attention: bool = True
    cross_attention: bool = True
    cross_scale: bool = False
    normalise_tokens: bool = False
    box_fusion: Literal["max", "sum", "average_max"] = "max"
    fusion: Literal["probability", "logit"] = "probability"
    shared_map_head: bool = True
    shared_local_head: bool = True

    @property
    def k_o(self) -> int:
        """The most boxes an image can have: k_s * k_e * k_r."""
        return self.k_s * self.k_e * (1 + len(self.zetas))


# `paper` is the literal reading: the defaults above. `glocal` departs from it; train/README.md gives the figures.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "glocal": {
        "roi_features": "f32",
        "roi_size": 3,
        "global_pool": "average_max",
        "cross_scale": True,
        "normalise_tokens": True,
        "box_fusion": "average_max",
        "fusion": "logit",
        "shared_map_head": False,
        "shared_local_head": False,
    },
}


def model_config(preset: Preset, **overrides: Any) -> ModelConfig:
    """A configuration: the preset's switches, then ``overrides``."""
    return ModelConfig(**{**PRESETS[preset], **overrides})
