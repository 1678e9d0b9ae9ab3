"""The command ``glocal bench selector``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.errors import UsageError


def selector(
    sizes: Annotated[
        list[int] | None, typer.Argument(metavar="[SIZE]...", min=1, help="Sides of the maps, by default 14 28 56.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Take the class maps of this trained run, with --images; by default noise.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="A photo, or a folder of photos, for --run and --bundle.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the photos, the first by name.")] = 16,
    maps: Annotated[
        Path | None, typer.Option(help="Class maps to take instead: .npz with maps, logits and shift.")
    ] = None,
    categories: Annotated[int, typer.Option(min=1, help="Maps per image of noise.")] = 12,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images per call; give it again for more. [1, 8, 64]")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Bursts of each way, of 50 calls, at batch 1; a third of it else.")
    ] = 30,
    bundle: Annotated[
        Path | None, typer.Option(help="Also the selector's share of this bundle's pipeline, with --images.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """The region selector against OpenCV, SciPy and cc3d on the same class maps, in turn."""
    from ..runtime.bundle import Bundle
    from ..runtime.images import list_images
    from . import record
    from .selector import bench_selector, pipeline_share
    from .selector_maps import load_maps, model_maps, noise_maps

    if (run or bundle) and images is None:
        raise UsageError("--run and --bundle need photos.", fix="name a folder with --images")
    if maps and (run or sizes):
        raise UsageError("--maps has its own class maps.", fix="leave --run and the sizes out")
    paths = list_images(images)[:count] if images else []
    sizes, batches = sizes or [14, 28, 56], sorted(set(batch or [1, 8, 64]))
    if maps:
        workloads = [load_maps(maps)]
    elif run:
        workloads = model_maps(run, paths, sizes)
    else:
        workloads = [noise_maps(categories, size) for size in sizes]
    report = bench_selector(workloads, batches, rounds)
    if bundle:
        report["model"] = record.model_facts(Bundle.load(bundle))
        report["pipeline"] = pipeline_share(bundle, paths, passes=max(1, rounds // 10))
    record.finish(report)
    print_report(report, Console(highlight=False))
    record.save(report, json_file)


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    from .options import show_loaded

    groups = itertools.groupby(report["results"], lambda one: (one["maps"], one["k_s"], one["k_e"], one["zetas"]))
    for (maps, k_s, k_e, zetas), group in groups:
        results = list(group)
        first = results[0]
        title = f"{maps} maps of {first['source']}, {k_s} x {k_e} x {1 + len(zetas)} boxes"
        console.print(f"[bold]{title}[/bold]: {first['regions_per_map']} regions a map, {first['unique_boxes']} unique")
        console.print(_calls(first), "")
        if len(results) > 1:
            console.print(_images(results), "")
    for way, reason in report["skipped"].items():
        console.print(f"{way} left out: {reason}")
    if "pipeline" in report:
        pipeline = report["pipeline"]
        select, total = pipeline["select"]["p50_ms"], pipeline["total"]["p50_ms"]
        share = f"{select * 1e3:.0f} us of {total:.2f} ms, {100 * pipeline['share']:.2f} %"
        console.print(f"in the pipeline of {report['model']['name']}: {share}, {pipeline['boxes']} boxes an image")
    machine = report["machine"]
    loads = f"{machine.get('load_average')} before, {report['load_average_after']} after"
    console.print(f"{machine.get('cpu')}, {machine['cores']} cores; load average {loads}", style="dim")
    show_loaded(console, report)


def _calls(result: dict[str, Any]) -> Table:
    """Times of a call at one batch size."""
    table = Table(f"batch {result['batch']}", box=None, pad_edge=False, header_style="bold")
    for name in ("p50 us", "p90 us", "p99 us", "first us", "ratio", "p10-p90"):
        table.add_column(name, justify="right", no_wrap=True)
    for way, row in result["ways"].items():
        times = (row["p50_us"], row["p90_us"], row["p99_us"], row["first_us"]["p50_us"])
        ratio = row["ratio"]
        spread = f"{ratio['p10']:.1f}-{ratio['p90']:.1f}"
        table.add_row(way, *(f"{value:.1f}" for value in times), f"{ratio['p50']:.1f}", spread)
    return table


def _images(results: list[dict[str, Any]]) -> Table:
    """Times of an image at all batch sizes."""
    table = Table("us an image at batch", box=None, pad_edge=False, header_style="bold")
    for result in results:
        table.add_column(str(result["batch"]), justify="right", no_wrap=True)
    for way in results[0]["ways"]:
        table.add_row(way, *(f"{result['ways'][way]['us_per_image']:.1f}" for result in results))
    return table
