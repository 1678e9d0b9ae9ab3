"""The ``bench tradeoff`` command."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from ..export.cli import chosen
from ..runtime.errors import GlocalError
from ..runtime.files import write_atomically
from ..runtime.manifest import Precision
from .options import EngineThreads, JsonFile, show_loaded

if TYPE_CHECKING:
    from .record import Report


def tradeoff(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles.", show_default=False)],
    data: Annotated[str, typer.Option(help="'digits', or a data folder: labels.csv, VOC or COCO.")],
    split: Annotated[str, typer.Option(help="Split to score on, and to draw the timed photos from.")] = "test",
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; several are fine.", show_default="all of each bundle")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score this many images of the split.", show_default="all")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Photos to time.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each photo is timed at each point.")] = 5,
    length: Annotated[int, typer.Option(min=1, help="Scenes (digits only).")] = 1000,
    backend: Annotated[str, typer.Option(help="What runs it: auto, onnxruntime, ...")] = "auto",
    threads: EngineThreads = None,
    json_file: JsonFile = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Where to write a PNG of the points.")] = None,
) -> None:
    """Accuracy against latency: each bundle and precision is a point, and again with an early exit."""
    from . import record
    from .report_sections import SECTIONS
    from .tradeoff import bench_tradeoff

    if plot_file is not None and find_spec("matplotlib") is None:  # before the long work
        raise GlocalError("--plot needs matplotlib, which is not installed.", fix="pip install 'glocal[train]'")
    report = bench_tradeoff(
        bundles,
        data,
        split,
        chosen("--precision", precision, get_args(Precision)) if precision else (),
        limit=limit,
        images=images,
        rounds=rounds,
        length=length,
        backend=backend,
        threads=threads,
    )
    _show(Console(highlight=False), report)
    record.save(report, json_file)
    if plot_file is not None and (draw := SECTIONS["tradeoff"](report).draw):
        write_atomically(plot_file, draw())


def _show(console: Console, report: Report) -> None:
    from .tradeoff import pareto

    table = Table("bundle", box=None, pad_edge=False, header_style="bold")
    for name in ("mAP %", "OF1 %", "mean ms", "p50 ms", "its 95 %", "boxes", "exits %"):
        table.add_column(name, justify="right", no_wrap=True)
    best = pareto(report["results"])
    for row in report["results"]:
        low, high = row["p50_ms_ci"]
        table.add_row(
            f"{row['bundle']} {row['precision']}",
            f"{100 * row['mAP']:.2f}",
            f"{100 * row['OF1']:.2f}",
            f"{row['mean_ms']:.2f}",
            f"{row['p50_ms']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['boxes']:.1f}",
            f"{100 * row['exits']:.1f}" if row["early_exit"] else "",
            style="bold" if row in best else None,
        )
    console.print(table)
    console.print(
        "bold: no other point is as fast and as accurate; with exits: a point with an early exit; "
        f"scores and exits of {report['images']} images, times of {report['timed_images']} photos",
        markup=False,
    )
    show_loaded(console, report)
