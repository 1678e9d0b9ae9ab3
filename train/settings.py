"""How a model is trained: every setting of a run, and the recipes that choose them together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .config import Preset

Recipe = Literal["small", "paper"]


class TrainConfig(BaseModel):
    """How to train. Written into the run folder; a resumed run must have the same.

    Attributes:
        data: ``digits``, ``digits-hard`` or a data folder.
        backbone: A timm model name.
        weights: ``none``, ``hub``, ``lite0`` or a file (see ``weights.load_backbone``).
        preset: ``glocal`` or ``paper``.
        switches: Further fields of ``ModelConfig``, instead of the preset's.
        image_size: Side of the square input in pixels.
        epochs: Passes over the training split.
        batch: Images a step and device.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        schedule: ``cosine``: 5 % linear warm-up, then a half cosine to 0. ``steps``: a tenth after 60 % and again
            after 80 % of the run (epochs 30 and 40 of 50, as in the paper).
        lr: Peak learning rate of the heads.
        backbone_lr: The backbone's share of ``lr``.
        weight_decay: On matrices and filters only.
        loss: ``bce``, or ``asl`` (see ``losses.classification_loss``).
        weak_weight: Weight of the weak supervision (eq. 2) in the loss.
        region_weight: Weight of a further classification loss on the regions before the cross attention. None: that
            of the preset, 1 for ``glocal`` and 0 for ``paper``.
        ema: Decay of a moving average of the weights, which is then what is validated and kept; 0 for none.
        freeze: ``trunk`` keeps the backbone up to 1/16 as it is; ``spatial`` also the depthwise filters after it,
            which hold few of the weights and take most of the time of a backward pass on a CPU.
        views: With a frozen trunk: features of this many augmented views of each image are computed once and kept
            in ``cache``; epoch e trains on view e modulo ``views``. 0: none are kept.
        cache: Folder of these features; runs share what is in it.
        precision: Lightning's name of the arithmetic.
        workers: Processes that load images.
        devices: Processes (one a GPU, or CPU processes) a machine.
        nodes: Machines.
        seed: Of weights, order and augmentation.
        train_images: Scenes an epoch, for built-in data; a data folder gives all it has.
        val_images: Likewise for the validation split.
        max_minutes: Train only as many whole epochs as fit into this time; the schedule ends with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    backbone: str = "resnet18"
    weights: str = "none"
    preset: Preset = "glocal"
    switches: dict[str, Any] = {}
    image_size: int = Field(224, ge=32)
    epochs: int = Field(10, ge=1)
    batch: int = Field(32, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "steps"] = "cosine"
    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    loss: Literal["bce", "asl"] = "bce"
    weak_weight: float = Field(1.0, ge=0)
    region_weight: float | None = Field(None, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    freeze: Literal["none", "trunk", "spatial"] = "none"
    views: int = Field(0, ge=0)
    cache: str = "runs/features"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    workers: int = Field(2, ge=0)
    devices: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    train_images: int = Field(4000, ge=2)
    val_images: int = Field(1000, ge=1)
    max_minutes: float | None = Field(None, gt=0)

    @property
    def weight_of_regions(self) -> float:
        """``region_weight``, or that of the preset."""
        if self.region_weight is None:
            return 1.0 if self.preset == "glocal" else 0.0
        return self.region_weight

    @property
    def world(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes


# `small` is the defaults above. `paper`: section 4.1.
RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "image_size": 448,
        "epochs": 50,
        "batch": 16,
        "optimizer": "sgd",
        "schedule": "steps",
        "lr": 0.05,
        "backbone_lr": 0.25,  # 0.0125
        "weight_decay": 1e-4,  # not stated in the paper; usual with SGD
    },
}
# What may differ between a run and its continuation.
NOT_OF_THE_RUN = {"workers", "max_minutes", "cache"}
