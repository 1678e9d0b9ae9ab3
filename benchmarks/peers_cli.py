"""Command line of the comparison with peers: ``glocal bench peers BUNDLE --checkpoint RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import record


def peers(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    checkpoint: Annotated[Path, typer.Option(help="The run that it was exported from.", show_default=False)],
    batch: Annotated[
        list[int] | None, typer.Option(help="Images per call; may be given again.", show_default="1")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 50,
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to predict.", show_default="generated images")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each.", show_default="all cores")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Whether torch.compile takes part; it compiles for minutes.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the report.")] = None,
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
    """Print the report as one table."""
    console = Console(highlight=False)
    table = Table("image to scores, fp32", box=None, pad_edge=False, header_style="bold")
    for name in (
        "batch",
        "p50 ms",
        "p90",
        "p99",
        "images/s",
        "x glocal",
        "95 %",
        "load s",
        "compile s",
        "scores differ",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["results"]:
        facts, ratio = report["peers"][row["peer"]], row["ratio"]
        table.add_row(
            row["peer"],
            str(row["batch"]),
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_s']:.1f}",
            f"{ratio['p50']:.2f}",
            "{:.2f}-{:.2f}".format(*ratio["p50_ci"]),
            f"{facts['load_s']:.2f}",
            f"{facts['compile_s']:.1f}" if facts["compile_s"] else "",
            f"{facts['max_score_difference']:.1e}" if facts["computes_the_same"] else "other boxes",
        )
    console.print(table)
    for row in report["skipped"]:
        console.print(f"skipped {row['peer']}: {row['reason']}", markup=False)
    if text := record.loaded_text(report):
        console.print(text, style="red")
