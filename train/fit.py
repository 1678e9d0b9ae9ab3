"""The training loop: Lightning carries it, this module says what a step is and what is kept."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..runtime.errors import GlocalError, UsageError
from ..runtime.files import is_new_or_empty, write_atomically
from ..runtime.metrics import multilabel_metrics
from .checkpoint import STATE_FILE, SafetensorsIO
from .config import Preset, model_config
from .data import TrainImages, open_data
from .history import History
from .losses import classification_loss, weak_loss
from .model import GlocalNet
from .schedule import TimeLimit, warmup_cosine
from .weights import load_backbone


class TrainConfig(BaseModel):
    """How to train. Written into the run folder; a resumed run must have the same.

    Attributes:
        data: ``digits`` or a data folder.
        backbone: A timm model name.
        weights: ``none``, ``hub`` or a file (see ``weights.load_backbone``).
        preset: ``glocal`` or ``paper``.
        roi_size: Instead of the preset's side of a pooled region.
        image_size: Side of the square input in pixels.
        epochs: Passes over the training split.
        batch: Images a step.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr: Peak learning rate of the heads, after 5 % warm-up; then a half cosine to 0.
        backbone_lr: The backbone's share of ``lr``.
        weight_decay: On matrices and filters only.
        weak_weight: Weight of the weak supervision (eq. 2) in the loss.
        precision: Lightning's name of the arithmetic.
        workers: Processes that load images.
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
    roi_size: int | None = Field(None, ge=1)
    image_size: int = Field(224, ge=32)
    epochs: int = Field(10, ge=1)
    batch: int = Field(32, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    weak_weight: float = Field(1.0, ge=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    workers: int = Field(2, ge=0)
    seed: int = Field(0, ge=0)
    train_images: int = Field(4000, ge=2)
    val_images: int = Field(1000, ge=1)
    max_minutes: float | None = Field(None, gt=0)


class EpochSampler(Sampler[int]):
    """A new order each epoch that depends on nothing but the seed and the epoch, so that a resumed run repeats it."""

    def __init__(self, data: TrainImages, seed: int) -> None:
        self.data, self.seed, self.epoch = data, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, and before workers start."""
        self.epoch = epoch
        self.data.set_epoch(epoch)

    def __iter__(self) -> Any:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(len(self.data)).tolist())

    def __len__(self) -> int:
        return len(self.data)


class Fit(lightning.LightningModule):
    """One training step and one validation of the two-branch network."""

    def __init__(self, model: GlocalNet, config: TrainConfig, history: History, limit: TimeLimit) -> None:
        super().__init__()
        self.model, self.config, self.history, self.limit = model, config, history, limit
        self.scores: list[tuple[np.ndarray, ...]] = []
        self.metrics: dict[str, float] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss = L_global + weight * L_weak + L_local (section 3.6)."""
        images, targets = batch
        try:
            out = self.model(images)
        except ValueError as error:  # the selector refuses class maps that are not finite
            raise self._diverged(str(error)) from error
        parts = {
            "global": classification_loss(out.global_logits, targets),
            "weak": weak_loss(out.class_maps, targets) * self.config.weak_weight,
            "local": classification_loss(out.local_logits, targets),
        }
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise self._diverged(f"loss {loss.item()}")
        size = len(images)
        self.log_dict({f"loss/{k}": v for k, v in parts.items()}, on_step=False, on_epoch=True, batch_size=size)
        self.log("boxes", float(out.regions.n.mean()), on_step=False, on_epoch=True, batch_size=size)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        return loss

    def _diverged(self, found: str) -> GlocalError:
        return GlocalError(
            f"training diverged in epoch {self.current_epoch}",
            found=found,
            fix="use a lower --lr or 32-true precision; the best model of earlier epochs is kept in the run folder",
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Collect the scores of all three kinds."""
        images, targets = batch
        out = self.model(images)
        kinds = (out.scores, out.global_logits.sigmoid(), out.local_logits.sigmoid(), targets)
        self.scores.append(tuple(kind.float().cpu().numpy() for kind in kinds))

    def on_validation_epoch_end(self) -> None:
        """Mean AP of fused, global and local scores; the best fused model is kept."""
        fused, global_, local, targets = (np.concatenate(kind) for kind in zip(*self.scores, strict=True))
        self.scores.clear()
        labels = targets.astype(np.int8)
        named = {"mAP": fused, "mAP_global": global_, "mAP_local": local}
        self.metrics = {name: multilabel_metrics(scores, labels)["mAP"] for name, scores in named.items()}
        self.log_dict({f"val/{name}": value for name, value in self.metrics.items()}, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Record the epoch; validation has run by now, and the epoch's mean losses are known."""
        self.history.add(self.current_epoch, self.trainer.callback_metrics, self.metrics, self.model)

    def configure_optimizers(self) -> Any:
        """Optimizer over four groups (backbone or heads, decayed or not) and the schedule."""
        config = self.config
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, parameter in self.model.named_parameters():
            backbone = ".trunk." in f".{name}" or ".tail." in f".{name}" or ".stage." in f".{name}"
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            lr = config.lr * (config.backbone_lr if backbone else 1.0)
            group = groups.setdefault((backbone, decay), {"params": [], "lr": lr, "weight_decay": decay})
            group["params"].append(parameter)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups.values())
        else:
            optimizer = torch.optim.SGD(groups.values(), momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            # A run that will be stopped by the clock ends with small steps too.
            return warmup_cosine(max(step / steps, self.limit.progress()))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(config: TrainConfig, out: Path, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train a model.

    Args:
        config: What and how.
        out: The run folder: ``model.safetensors`` (best fused mAP on val), ``last.safetensors`` (training state),
            ``config.json``, ``metrics.csv`` and TensorBoard events.
        resume: Go on from ``last.safetensors`` in ``out``.
        quiet: No progress bar.

    Returns:
        The run folder.

    Raises:
        UsageError: ``out`` holds another run, or there is nothing to resume.
        DataError: The data do not follow their layout.
        GlocalError: The loss or the class maps stopped being finite.
    """
    state = out / STATE_FILE
    _claim(out, config, resume)
    _hush()
    lightning.seed_everything(config.seed, verbose=False)
    size = (config.image_size, config.image_size)
    train, val = (
        open_data(config.data, split, length=length, size=config.image_size, seed=config.seed)
        for split, length in (("train", config.train_images), ("val", config.val_images))
    )
    if len(train) < config.batch:
        raise UsageError(
            f"{len(train)} training images do not fill a batch of {config.batch}", fix="use a smaller --batch"
        )
    start = load_backbone(config.backbone, config.weights)
    overrides: dict[str, Any] = {"backbone": config.backbone, "classes": train.classes, "image_size": size}
    if config.roi_size:
        overrides["roi_size"] = config.roi_size
    model = GlocalNet(model_config(config.preset, mean=start.mean, std=start.std, **overrides), start.backbone)
    write_atomically(out / "config.json", config.model_dump_json(indent=2).encode())
    model = model.to(memory_format=torch.channels_last)  # the layout in which images arrive
    images = TrainImages(train, size, augment=True, seed=config.seed)
    loading: dict[str, Any] = {"batch_size": config.batch, "num_workers": config.workers}
    loaders = (
        DataLoader(images, sampler=EpochSampler(images, config.seed), drop_last=True, **loading),
        DataLoader(TrainImages(val, size, augment=False, seed=config.seed), **loading),
    )
    # A fixed name makes each epoch's state replace the one before, atomically.
    keep_state = ModelCheckpoint(out, filename=Path(STATE_FILE).stem, enable_version_counter=False)
    keep_state.FILE_EXTENSION = Path(STATE_FILE).suffix
    limit = TimeLimit(config.max_minutes)
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        precision=config.precision,
        accelerator="auto",
        devices=1,
        gradient_clip_val=10.0,  # the local branch raises the gradient's norm to 15-20
        callbacks=[limit, keep_state] if quiet else [limit, keep_state, RichProgressBar(leave=False)],
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        plugins=[SafetensorsIO()],
        enable_progress_bar=not quiet,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    history = History(out, config.model_dump(mode="json"), resume=resume)
    trainer.fit(Fit(model, config, history, limit), *loaders, ckpt_path=str(state) if resume else None)
    return out


def _claim(out: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if resume:
        if not (out / STATE_FILE).is_file():
            raise UsageError(f"nothing to resume in {out}", found=f"no {STATE_FILE}", fix="train without --resume")
        before = TrainConfig.model_validate_json((out / "config.json").read_text())
        changed = [key for key, value in config.model_dump().items() if value != getattr(before, key)]
        if set(changed) - {"workers", "max_minutes"}:
            raise UsageError(
                f"the run in {out} was trained with other settings",
                found=", ".join(f"{key}: {getattr(before, key)} then, {getattr(config, key)} now" for key in changed),
                fix="resume with the same settings, or train into another folder",
            )
    elif not is_new_or_empty(out):
        raise UsageError(f"{out} is not empty", fix="give a new folder with --out, or go on with --resume")


def _hush() -> None:
    """Keep Lightning's advice and torch's notices out of the user's way; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
