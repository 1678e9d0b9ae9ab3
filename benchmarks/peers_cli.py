"""Command line of the comparison with peers: ``glocal bench peers BUNDLE --checkpoint RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import record
from .options import BundleFolder, Images, JsonFile, show_loaded


def peers(
    bundle: BundleFolder,
    checkpoint: Annotated[Path, typer.Option(help="The run that it was exported from.", show_default=False)],
    batch: Annotated[
        list[int] | None, typer.Option(help="Images per call; may be given again.", show_default="1")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 50,
    images: Images = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each.", show_default="all cores")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether torch.compile takes part; it compiles for minutes.")
    ] = True,
    json_file: JsonFile = None,
) -> None:
    """The same network in PyTorch, torch.compile, one ONNX graph and OpenVINO, against the pipeline, in turn."""
    from .peers import bench_peers

    report = bench_peers(
        bundle,
        checkpoint,
        rounds=rounds,
        batches=batch or (1,),
        images=images,
        threads=threads,
        compiled=compiled,
    )
    print_report(report)
    record.save(report, json_file)


def print_report(report: record.Report) -> None:
    """Print the report as two tables: what was timed, and what each peer is."""
    console = Console(highlight=False)
    timed = _table("image to scores, fp32", ("batch", "p50 ms", "p99", "images/s", "x glocal", "95 %"))
    peers = _table("peer", ("load s", "compile s", "scores differ by"))
    for row in report["results"]:
        timed.add_row(
            row["peer"],
            str(row["batch"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_s']:.1f}",
            f"{row['ratio']['p50']:.2f}",
            "{:.2f}-{:.2f}".format(*row["ratio"]["p50_ci"]),
        )
    for name, facts in report["peers"].items():
        peers.add_row(
            name,
            f"{facts['load_s']:.2f}",
            f"{facts['compile_s']:.1f}" if facts["compile_s"] else "",
            f"{facts['max_score_difference']:.1e}" if facts["computes_the_same"] else "its boxes are others",
        )
    for table in (timed, peers):
        console.print(table)
        console.print()
    for row in report["skipped"]:
        console.print(f"skipped {row['peer']}: {row['reason']}", markup=False)
    show_loaded(console, report)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    return table
