"""Command line of the latency benchmark: ``glocal bench latency BUNDLE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.backends import BACKENDS
from . import record
from .latency import OWN, bench_latency


def latency(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    backend: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BACKENDS)}; several are fine.", show_default="all")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; several are fine.", show_default="all in the bundle")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images per call; may be given again.", show_default="1 and 8")
    ] = None,
    boxes: Annotated[
        list[str] | None,
        typer.Option(
            help="What goes through the local engine: own, as the selector gives them; a number of boxes an image; "
            "or another bundle, whose boxes on the same images are taken. Several are fine.",
            show_default=OWN,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 50,
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to predict.", show_default="generated images")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one engine.", show_default="the engine's choice")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the report.")] = None,
) -> None:
    """Milliseconds from file to scores of each backend and precision, against its plain backbone, in turn."""
    report = bench_latency(
        bundle,
        backend or BACKENDS,
        precision or (),
        rounds=rounds,
        batches=batch or (1, 8),
        boxes=boxes or (OWN,),
        images=images,
        threads=threads,
    )
    print_report(report)
    record.save(report, json_file)


def print_report(report: record.Report) -> None:
    """Print the report as three tables: whole calls, engines and host, and the stages of an image."""
    console = Console(highlight=False)
    stages = [stage for stage in report["results"][0]["stages"] if stage != "total"]
    whole = _table("file to scores", ("p50 ms", "p90", "p99", "images/s", "plain p50", "ratio", "p10-p90", "to first"))
    parts = _table("engines only", ("p50 ms", "plain p50", "ratio", "p10-p90", "host share", "load s", "first ms"))
    each = _table("ms an image, p50", stages)
    for row in report["results"]:
        name = (
            f"{row['backend']} {row['precision']}",
            str(row["batch"]),
            row["boxes_from"],
            f"{row['boxes']['mean']:.1f}",
        )
        plain, engines, ratio = row["plain"], row["engines"], row["ratio"]
        whole.add_row(
            *name,
            *(f"{row[percentile]:.2f}" for percentile in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_s']:.1f}",
            f"{plain['p50_ms']:.2f}",
            f"{ratio['p50']:.3f}",
            _spread(ratio),
            f"{row['to_first']['p50']:.2f}",
        )
        parts.add_row(
            *name,
            f"{engines['p50_ms']:.2f}",
            f"{plain['engine']['p50_ms']:.2f}",
            f"{engines['ratio']['p50']:.3f}",
            _spread(engines["ratio"]),
            f"{row['host_share']['p50']:.1%}",
            f"{row['load_s']:.2f}",
            f"{row['first_ms']:.1f}",
        )
        each.add_row(*name, *(f"{row['stages'][stage]['p50_ms']:.3f}" for stage in stages))
    for table in (whole, parts, each):
        console.print(table)
        console.print()
    for row in report["skipped"]:
        told = [str(row[key]) for key in ("backend", "precision", "batch", "boxes_from") if key in row]
        console.print(f"skipped {' '.join(told)}: {row['reason']}", markup=False)
    if text := record.loaded_text(report):
        console.print(text, style="red")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title, box=None, pad_edge=False, header_style="bold")
    for name in ("batch", "boxes", "mean", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['p10']:.2f}-{ratio['p90']:.2f}"
