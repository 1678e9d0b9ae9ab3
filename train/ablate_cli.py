"""The command ``glocal ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from .cli import parse_switch, train_config

# `small` trains what is above 1/16 of a pretrained network, on kept features: minutes a row on a CPU. `digits` trains
# all of a tiny network, which has first been pretrained on single digits.
BUDGETS: dict[str, dict[str, Any]] = {
    "small": {
        "backbone": "tf_efficientnet_lite0",
        "weights": "lite0",
        "image_size": 224,
        "epochs": 3,
        "batch": 32,
        "lr": 1e-3,
        "backbone_lr": 0.4,
        "weight_decay": 0.01,
        "freeze": "spatial",
        "workers": 0,
    },
    "digits": {
        "backbone": "test_resnet",
        "image_size": 128,
        "epochs": 7,
        "batch": 16,
        "lr": 4e-3,
        "backbone_lr": 0.5,
        "weight_decay": 0.02,
        "train_images": 1000,
        "val_images": 1000,
        "workers": 0,
    },
    "paper": {"backbone": "resnet101", "weights": "hub"},
}


def ablate(
    table: Annotated[str, typer.Argument(help="3, 4, 5, 6 or 7 (of the paper), peers, or switches.")],
    data: Annotated[str, typer.Option(help="'digits', 'digits-hard', or a data folder: labels.csv, VOC or COCO.")],
    out: Annotated[Path, typer.Option(help="Folder of the report and the runs; finished runs in it are kept.")],
    budget: Annotated[
        Literal["small", "digits", "paper"],
        typer.Option(
            help="'small': a frozen trunk with kept features; 'digits': a tiny network, pretrained on single digits; "
            "'paper': the paper's training."
        ),
    ] = "small",
    preset: Annotated[Literal["glocal", "paper"], typer.Option(help="What the rows vary.")] = "glocal",
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Give it again for further seeds. [default: 0]")] = None,
    split: Annotated[Literal["test", "val"], typer.Option(help="What is scored.")] = "test",
    only: Annotated[list[str] | None, typer.Option(help="A row to run; give it again for more.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also ask of each model whether its regions matter; into the CSV files.")
    ] = False,
    switch: Annotated[
        list[str] | None, typer.Option("--set", help="A switch for all rows, NAME=VALUE, such as roi_size=4.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A timm model name.")] = None,
    weights: Annotated[str | None, typer.Option(help="'none', 'hub', 'lite0' or a file, as for train.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels, a multiple of 32.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int | None, typer.Option(min=2)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the heads.")] = None,
    cache: Annotated[str | None, typer.Option(help="Folder of kept features. [default: OUT/features]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images.")] = None,
) -> None:
    """Train and score the rows of one of the paper's tables, and compare them."""
    given = {key: value for key, value in locals().items() if value is not None}
    from .ablate import ablate as run_table
    from .ablate_report import print_report
    from .ablate_tables import find_table
    from .pretrain import pretrain
    from .settings import RECIPES, TrainConfig

    settings = {**RECIPES["paper" if budget == "paper" else "small"], **BUDGETS[budget], "cache": str(out / "features")}
    settings |= {key: value for key, value in given.items() if key in TrainConfig.model_fields and key != "seed"}
    settings["switches"] = dict(parse_switch(text) for text in switch or ())
    if budget == "small":
        settings["views"] = settings["epochs"]
    if "weights" not in settings:
        settings["weights"] = str(out / "pretrained.safetensors")
        if not Path(settings["weights"]).is_file():
            pretrain(settings["backbone"], Path(settings["weights"]))
    quiet = not Console(stderr=True).is_terminal  # a bar in a log file is a page for each epoch
    base = train_config(settings)
    results = run_table(table, base, out, seeds=seed or [0], split=split, only=only or (), probe=probe, quiet=quiet)
    print_report(Console(), find_table(table), results)
    print(f"wrote {out / table}.csv, {table}-summary.csv and {table}.png")
