"""Commands of the training side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ..runtime.errors import UsageError
from ..runtime.files import write_atomically


def train(
    data: Annotated[str, typer.Option(help="'digits' (built in), or a data folder with labels.csv.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    backbone: Annotated[str, typer.Option(help="A timm model name.")] = "resnet18",
    weights: Annotated[
        str, typer.Option(help="'none', 'hub' (timm downloads them), or a .safetensors or .pth file.")
    ] = "none",
    preset: Annotated[Literal["glocal", "paper"], typer.Option(help="'paper' is the literal network.")] = "glocal",
    roi_size: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's side of a region.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the input in pixels, a multiple of 32.")] = 224,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=2)] = 32,
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option()] = "adamw",
    lr: Annotated[float, typer.Option(help="Peak learning rate of the heads.")] = 1e-3,
    backbone_lr: Annotated[float, typer.Option(help="The backbone's share of --lr.")] = 1.0,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    weak_weight: Annotated[float, typer.Option(help="Weight of the weak supervision in the loss.")] = 1.0,
    precision: Annotated[Literal["32-true", "bf16-mixed", "16-mixed"], typer.Option()] = "32-true",
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 2,
    seed: Annotated[int, typer.Option()] = 0,
    train_images: Annotated[int, typer.Option(help="Scenes an epoch (digits only).")] = 4000,
    val_images: Annotated[int, typer.Option(help="Validation scenes (digits only).")] = 1000,
    max_minutes: Annotated[float | None, typer.Option(help="Train only as many epochs as fit into this time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train the two-branch network; the best model on the validation split is kept."""
    settings = {key: value for key, value in locals().items() if key not in ("out", "resume")}
    from .fit import TrainConfig, fit

    try:
        config = TrainConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']}", found=repr(first["input"]), fix="glocal train --help") from error
    run = fit(config, out, resume=resume)
    print(f"trained {run}")


def evaluate(
    target: Annotated[Path, typer.Argument(help="A run folder, or a bundle.")],
    data: Annotated[str, typer.Option(help="'digits', or a data folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
    length: Annotated[int, typer.Option(help="Scenes (digits only).")] = 1000,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(help="Processes that load images (runs only).")] = 2,
) -> None:
    """Metrics of a run (PyTorch) or of a bundle (its runtime) on a split."""
    from .evaluate import evaluate as evaluate_target

    metrics = evaluate_target(target, data, split, length=length, batch=batch, workers=workers)
    if json_file:
        write_atomically(json_file, (json.dumps(metrics, indent=2) + "\n").encode())
    names = ("mAP", "mAP_global", "mAP_local", "CP", "CR", "CF1", "OP", "OR", "OF1")
    headers = ("mAP", "global", "local", *names[3:])  # narrow enough for 80 columns
    table = Table(*headers, title=f"{target}: {metrics['images']} images of {data} {split}, in %")
    table.add_row(*(f"{100 * metrics[name]:.2f}" for name in names))
    Console().print(table)
