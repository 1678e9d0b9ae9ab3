"""Commands of the training side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from ..runtime.errors import UsageError
from ..runtime.files import write_atomically

if TYPE_CHECKING:
    from .settings import TrainConfig


def train(
    data: Annotated[str, typer.Option(help="'digits', 'digits-hard', or a data folder: labels.csv, VOC or COCO.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[Literal["small", "paper"], typer.Option(help="Defaults of all options left out.")] = "small",
    backbone: Annotated[str | None, typer.Option(help="A timm model name.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="'none', 'hub' (timm downloads them), 'lite0' (the file in the package of glocal[lite0]), "
            "or a .safetensors or .pth file."
        ),
    ] = None,
    preset: Annotated[Literal["glocal", "paper"] | None, typer.Option(help="'paper' is the literal network.")] = None,
    head: Annotated[
        Literal["glocal", "global", "average", "max", "csra"] | None,
        typer.Option(help="'glocal' has both branches; 'global' one; the others are peers without attention."),
    ] = None,
    switch: Annotated[
        list[str] | None, typer.Option("--set", help="A switch of the network, NAME=VALUE, such as roi_size=4.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels, a multiple of 32.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images a step and device.")] = None,
    optimizer: Annotated[Literal["adamw", "sgd"] | None, typer.Option()] = None,
    schedule: Annotated[Literal["cosine", "steps"] | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the heads.")] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="The backbone's share of --lr.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    loss: Annotated[Literal["bce", "asl"] | None, typer.Option(help="Of global and local logits.")] = None,
    weak_weight: Annotated[float | None, typer.Option(help="Weight of the weak supervision in the loss.")] = None,
    region_weight: Annotated[
        float | None, typer.Option(help="Weight of a loss on the regions before the cross attention.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights; 0 for none.")] = None,
    freeze: Annotated[
        Literal["none", "trunk", "spatial"] | None,
        typer.Option(help="'trunk': the backbone up to 1/16; 'spatial': also the depthwise filters after it."),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="With a frozen trunk: keep its features of this many augmented views.")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="Folder of kept features.")] = None,
    precision: Annotated[Literal["32-true", "bf16-mixed", "16-mixed"] | None, typer.Option()] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="GPUs, or CPU processes, of a machine.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    train_images: Annotated[int | None, typer.Option(help="Scenes an epoch (digits only).")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation scenes (digits only).")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Train only as many epochs as fit into this time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train the network; the best model on the validation split is kept."""
    given = {key: value for key, value in locals().items() if value is not None}
    from .fit import fit
    from .settings import RECIPES, TrainConfig

    switches = dict(parse_switch(text) for text in switch or ())
    if head:
        switches["head"] = head
    settings = {key: value for key, value in given.items() if key in TrainConfig.model_fields}
    run = fit(train_config({**RECIPES[recipe], **settings, "switches": switches}), out, resume=resume)
    print(f"trained {run}")


def train_config(settings: dict[str, Any]) -> TrainConfig:
    """Settings that were given as options.

    Raises:
        UsageError: An option has a wrong value.
    """
    from .settings import TrainConfig

    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']}", found=repr(first["input"]), fix="glocal train --help") from error


def parse_switch(text: str) -> tuple[str, Any]:
    """``name=value``, the value as JSON or else as a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError("--set takes NAME=VALUE", found=repr(text), fix="such as --set roi_size=4")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def evaluate(
    target: Annotated[Path, typer.Argument(help="A run folder, or a bundle.")],
    data: Annotated[str, typer.Option(help="'digits', 'digits-hard', or a data folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show the AP of each class.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Show whether the regions matter: scores with other boxes (runs only).")
    ] = False,
    length: Annotated[int, typer.Option(help="Scenes (digits only).")] = 1000,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images (runs only).")] = 2,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to score (runs only).")] = "auto",
    backend: Annotated[str, typer.Option(help="What runs it: auto, onnxruntime, ... (bundles only).")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8 (bundles only).")] = "auto",
    early_exit: Annotated[
        bool,
        typer.Option("--early-exit", help="Skip the local branch where the global scores settle it (bundles only)."),
    ] = False,
) -> None:
    """Metrics of a run (PyTorch) or of a bundle (its runtime) on a split."""
    from .evaluate import evaluate as evaluate_target
    from .tables import print_classes, print_metrics, print_probe

    metrics = evaluate_target(
        target,
        data,
        split,
        length=length,
        batch=batch,
        workers=workers,
        device=device,
        probe=probe,
        backend=backend,
        precision=precision,
        early_exit=early_exit,
    )
    if json_file:
        write_atomically(json_file, (json.dumps(metrics, indent=2) + "\n").encode())
    console = Console()
    print_metrics(console, f"{target} on {data} {split}", metrics)
    if per_class:
        print_classes(console, metrics["per_class_AP"])
    if probe:
        print_probe(console, metrics["probe"])
