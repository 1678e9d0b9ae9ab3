"""The ``early-exit`` command: labelled data from the training side for `glocal.calib.early_exit`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.manifest import Precision
from .cli import chosen

if TYPE_CHECKING:
    from ..calib.early_exit import EarlyExit
    from ..calib.photos import Labelled
    from ..runtime.bundle import Bundle


def early_exit(
    bundle: Annotated[Path, typer.Argument(help="The bundle to fit thresholds for.", show_default=False)],
    data: Annotated[str, typer.Option(help="'digits', or a data folder: labels.csv, VOC or COCO.")],
    split: Annotated[str, typer.Option(help="Split to fit on.")] = "val",
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; several are fine.", show_default="all that it has")
    ] = None,
    max_loss: Annotated[
        float, typer.Option(min=0, help="Points of mAP, and of OF1, that it may cost on these images.")
    ] = 0.2,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Draw this many images of the split.", show_default="all")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Scenes (digits only).")] = 1000,
    backend: Annotated[str, typer.Option(help="What runs it: auto, onnxruntime, ...")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one engine.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Fit two thresholds: where no global score of an image lies between them, its local branch can be skipped.

    They are written into the bundle; `glocal run --early-exit` and `glocal evaluate --early-exit` use them.
    """
    from ..calib.photos import at_most
    from ..runtime.bundle import Bundle, add_to_bundle
    from ..runtime.files import write_atomically
    from ..train.data import open_data
    from ..train.labeled import check_labels

    opened = Bundle.load(bundle)
    manifest = opened.manifest
    images = open_data(data, split, length=length, size=manifest.input_size[0])
    check_labels(images, manifest.labels)
    labelled = at_most(images, limit)
    kinds = chosen("--precision", precision, get_args(Precision)) if precision else manifest.precisions
    found = {kind: _fit(opened, kind, labelled, max_loss, backend, threads) for kind in kinds}
    source = f"{Path(data).name} {split}, {len(labelled)} images, at most {max_loss} points"
    add_to_bundle(
        opened,
        {},
        early_exit={kind: (one.low, one.high) for kind, one in found.items()},
        provenance={f"{kind}_early_exit": source for kind in found},
    )
    if json_file:
        facts: dict[str, Any] = {"data": data, "split": split, "images": len(labelled), "max_loss": max_loss}
        facts |= {"results": {kind: asdict(one) for kind, one in found.items()}}
        write_atomically(json_file, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
    _show(Console(), found)
    print(f"wrote the thresholds into {bundle}; other images may lose more: see glocal evaluate --early-exit")


def _fit(
    bundle: Bundle, precision: Precision, labelled: Labelled, max_loss: float, backend: str, threads: int | None
) -> EarlyExit:
    import numpy as np

    from ..calib.early_exit import fit_early_exit
    from ..calib.gate import predict
    from ..runtime.pipeline import Pipeline

    with Pipeline.load(bundle.path, backend, precision, threads) as pipeline:
        predictions = predict(pipeline, labelled, precision)
        alone, fused = (np.stack([getattr(one, kind) for one in predictions]) for kind in ("global_scores", "scores"))
        return fit_early_exit(alone, fused, labelled.targets, pipeline.thresholds, max_loss)


def _show(console: Console, found: dict[Precision, EarlyExit]) -> None:
    table = Table("in %", box=None, header_style="bold")
    for name in ("exits", "mAP", "with exit", "OF1", "with exit", "between"):
        table.add_column(name, justify="right")
    for kind, one in found.items():
        figures = [figure for name in ("mAP", "OF1") for figure in (one.before[name], one.after[name])]
        shares = (f"{100 * share:.2f}" for share in (one.exits, *figures))
        table.add_row(kind, *shares, f"{one.low:g} and {one.high:g}")
    console.print(table)
    if not any(one.exits for one in found.values()):
        console.print("within that loss no image may exit; --max-loss allows more", highlight=False)
