"""A training run: from settings to a run folder."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ValidationError
from torch import nn
from torch.utils.data import DataLoader

from ..runtime.errors import UsageError
from ..runtime.files import is_new_or_empty, write_atomically
from .checkpoint import STATE_FILE, SafetensorsIO
from .config import ModelConfig, model_config
from .data import LabeledImages, TrainImages, open_data
from .features import FeatureImages, keep_features
from .history import History
from .model import GlocalNet
from .sampler import EpochSampler, ShareSampler
from .schedule import TimeLimit
from .settings import NOT_OF_THE_RUN, TrainConfig
from .step import Fit
from .weights import load_backbone


def fit(config: TrainConfig, out: Path, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train a model.

    Several processes train together when ``config.world`` is above 1: Lightning starts those of this machine, or
    ``torchrun`` (or a cluster) has started them.

    Args:
        config: What and how.
        out: The run folder: ``model.safetensors`` (best fused mAP on val), ``last.safetensors`` (training state),
            ``config.json``, ``metrics.csv`` and TensorBoard events.
        resume: Go on from ``last.safetensors`` in ``out``.
        quiet: No progress bar.

    Returns:
        The run folder.

    Raises:
        UsageError: ``out`` holds another run, there is nothing to resume, or settings do not fit together.
        DataError: The data do not follow their layout.
        GlocalError: The loss or the class maps stopped being finite.
    """
    state = out / STATE_FILE
    first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"  # also before the processes have met
    if first:
        _claim(out, config, resume)
    _hush()
    lightning.seed_everything(config.seed, verbose=False)
    train, val = (open_split(config, split) for split in ("train", "val"))
    if len(train) < config.batch * config.world:
        raise UsageError(
            f"{len(train)} training images do not fill a batch of {config.batch * config.world}",
            fix="use a smaller --batch",
        )
    model = build_model(config, train.classes)
    if first:
        write_atomically(out / "config.json", config.model_dump_json(indent=2).encode())
    images, val_images = prepare(config, model, train, augment=True), prepare(config, model, val, augment=False)
    loading: dict[str, Any] = {"batch_size": config.batch, "num_workers": config.workers}
    loaders = (
        DataLoader(images, sampler=EpochSampler(images, config.seed, config.world), drop_last=True, **loading),
        DataLoader(val_images, sampler=ShareSampler(len(val), config.world), **loading),
    )
    # A fixed name makes each epoch's state replace the one before, atomically.
    keep_state = ModelCheckpoint(out, filename=Path(STATE_FILE).stem, enable_version_counter=False)
    keep_state.FILE_EXTENSION = Path(STATE_FILE).suffix
    limit = TimeLimit(config.max_minutes)
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        precision=config.precision,
        accelerator="auto",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="ddp" if config.world > 1 else "auto",
        use_distributed_sampler=False,  # ours know the epoch and the processes
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
    fitting = Fit(model, config, history, limit, len(val))
    trainer.fit(fitting, *loaders, ckpt_path=str(state) if resume else None)
    return out


def open_split(config: TrainConfig, split: str) -> LabeledImages:
    """A split of a run's data."""
    length = config.train_images if split == "train" else config.val_images
    return open_data(config.data, split, length=length, size=config.image_size, seed=config.seed)


def build_model(config: TrainConfig, classes: tuple[str, ...]) -> GlocalNet:
    """The network as a run starts with it: the preset with its switches on a pretrained backbone.

    Raises:
        UsageError: A switch does not exist or has a wrong value, or settings do not fit together.
    """
    if config.views and config.freeze == "none":
        raise UsageError("kept views need a frozen trunk", found="freeze none", fix="add --freeze trunk, or --views 0")
    if config.max_minutes and config.world > 1:
        # Each process has its own clock, and the learning rate follows it.
        raise UsageError("a time limit works in one process only", fix="leave out --max-minutes or use one device")
    start = load_backbone(config.backbone, config.weights)
    size = (config.image_size, config.image_size)
    fixed = {"backbone": config.backbone, "classes": classes, "image_size": size, "mean": start.mean, "std": start.std}
    try:
        switches = model_config(config.preset, **{**config.switches, **fixed})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"])
        raise UsageError(
            f"switch {name}: {wrong['msg']}",
            found=repr(wrong["input"]),
            fix=f"the switches are {', '.join(sorted(set(ModelConfig.model_fields) - set(fixed)))}",
        ) from error
    if switches.head == "glocal" and not config.weak_weight and not switches.shared_map_head:
        raise UsageError(
            "nothing would train the class maps",
            found="weak weight 0 and a map head of its own",
            fix="add --set shared_map_head=true, or a weak weight above 0",
        )
    model = GlocalNet(switches, start.backbone)
    if config.freeze != "none":
        model.global_branch.freeze_trunk()
    if config.freeze == "spatial":
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                module.weight.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)  # the layout in which images arrive


def prepare(
    config: TrainConfig, model: GlocalNet, images: LabeledImages, *, augment: bool
) -> TrainImages | FeatureImages:
    """What a model is fed from a split: images, or the kept features of its frozen trunk."""
    if not config.views:
        return TrainImages(images, model.config.image_size, augment=augment, seed=config.seed)
    return keep_features(
        model.global_branch,
        images,
        model.config.image_size,
        Path(config.cache),
        views=config.views if augment else 1,
        augment=augment,
        workers=config.workers,
    )


def _claim(out: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if resume:
        if not (out / STATE_FILE).is_file():
            raise UsageError(f"nothing to resume in {out}", found=f"no {STATE_FILE}", fix="train without --resume")
        before = TrainConfig.model_validate_json((out / "config.json").read_text())
        changed = [key for key, value in config.model_dump().items() if value != getattr(before, key)]
        if set(changed) - NOT_OF_THE_RUN:
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
