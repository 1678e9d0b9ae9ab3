"""Command line of the latency benchmark: ``glocal bench latency BUNDLE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.backends import BACKENDS
from . import record
from .latency import OWN, bench_latency
from .options import BundleFolder, EngineThreads, Images, JsonFile, show_loaded


def latency(
    bundle: BundleFolder,
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
    images: Images = None,
    threads: EngineThreads = None,
    json_file: JsonFile = None,
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
    """Print the report as tables: whole calls, engines and host, what else there is, and the stages of an image."""
    console = Console(highlight=False)
    rows = report["results"]
    stages = [stage for stage in rows[0]["stages"] if stage != "total"]
    stages = [stage for stage in stages if any(row["stages"][stage]["p99_ms"] for row in rows)]  # a CPU copies nothing
    whole = _table("file to scores", ("p50 ms", "p99", "plain", "ratio", "p10-p90"))
    parts = _table("engines only", ("p50 ms", "plain", "ratio", "p10-p90", "host"))
    more = _table("file to scores", ("p90 ms", "images/s", "to first", "load s", "first ms"))
    each = _table("ms an image", [stage.replace("_", " ") for stage in stages])
    for row in rows:
        boxes = f"{row['boxes']['mean']:.1f}" if row["boxes_from"] == OWN else row["boxes_from"]
        name = f"{row['backend']} {row['precision']}", str(row["batch"]), boxes
        plain, engines, ratio = row["plain"], row["engines"], row["ratio"]
        whole.add_row(
            *name,
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{plain['p50_ms']:.2f}",
            f"{ratio['p50']:.3f}",
            _spread(ratio),
        )
        parts.add_row(
            *name,
            f"{engines['p50_ms']:.2f}",
            f"{plain['engine']['p50_ms']:.2f}",
            f"{engines['ratio']['p50']:.3f}",
            _spread(engines["ratio"]),
            f"{row['host_share']['p50']:.1%}",
        )
        more.add_row(
            *name,
            f"{row['p90_ms']:.2f}",
            f"{row['images_per_s']:.1f}",
            f"{row['to_first']['p50']:.2f}",
            f"{row['load_s']:.2f}",
            f"{row['first_ms']:.1f}",
        )
        each.add_row(*name, *(f"{row['stages'][stage]['p50_ms']:.2f}" for stage in stages))
    for table in (whole, parts, more, each):
        console.print(table)
        console.print()
    for row in report["skipped"]:
        told = [str(row[key]) for key in ("backend", "precision", "batch", "boxes_from") if key in row]
        console.print(f"skipped {' '.join(told)}: {row['reason']}", markup=False)
    show_loaded(console, report)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title, box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("batch", "boxes", *columns):
        table.add_column(name, justify="right")
    return table


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['p10']:.2f}-{ratio['p90']:.2f}"
