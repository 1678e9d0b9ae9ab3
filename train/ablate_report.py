"""The report of an ablation: CSV files, a picture, and a printed table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from ..runtime.files import write_atomically
from .ablate_tables import Row, Table

if TYPE_CHECKING:
    from .ablate import RowResult

METRICS = ("mAP", "mAP_global", "mAP_local", "CF1", "OF1", "fitted_CF1", "fitted_OF1")
# Of the probe: column, control, kind of mAP.
PROBED = (
    ("local_random_boxes", "random", "local"),
    ("local_grid", "grid", "local"),
    ("local_other_global", "other_global", "local"),
    ("alone_selected", "selected", "local_alone"),
    ("alone_random_boxes", "random", "local_alone"),
)
CAVEAT = (
    "The paper's figures are of ResNet-101 at 448 px, trained for 50 epochs on VOC 2007 or MS-COCO. "
    "Data, backbone and budget differ here, so only the order of the rows can be compared."
)


def write_report(out: Path, name: str, table: Table, results: Sequence[RowResult]) -> None:
    """Write ``NAME.csv``, ``NAME-summary.csv`` and ``NAME.png``.

    All figures in the CSV files are fractions, the paper's too; times are minutes. ``NAME.csv`` has a line for each
    run. ``NAME-summary.csv`` has a line for each row: means over its seeds, the lowest and highest mAP, and the
    differences from the reference rows with their 95 % intervals.
    """
    write_atomically(out / f"{name}.csv", _csv([line for result in results for line in _run_lines(name, result)]))
    write_atomically(out / f"{name}-summary.csv", _csv([_summary(name, result) for result in results]))
    picture = io.BytesIO()
    draw(table, results).savefig(picture, format="png", dpi=120, bbox_inches="tight")
    write_atomically(out / f"{name}.png", picture.getvalue())


def draw(table: Table, results: Sequence[RowResult]) -> Figure:
    """Bars of the mean mAP with a dot for each seed; the paper's figures beside them."""
    values = [_maps(result) for result in results]
    low, high = min(map(min, values)), max(map(max, values))
    margin = max(high - low, 0.2)
    left, places = max(low - 0.6 * margin, 0.0), range(len(results))
    figure = Figure(figsize=(9, 1.7 + 0.36 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(places, [float(np.mean(each)) - left for each in values], left=left, height=0.62, color="#a9c0e0")
    for place, each in zip(places, values, strict=True):
        axes.plot(each, [place] * len(each), "o", color="#2563ba", markersize=4.5)
        axes.annotate(f"{np.mean(each):.2f}", (max(each), place), (7, 0), textcoords="offset points", va="center")
    axes.set_xlim(left, high + 0.25 * margin)
    axes.set_ylim(len(results) - 0.4, -1.3)
    axes.set_yticks(places, [result.row.name for result in results])
    run = results[0].runs[0]
    axes.set_xlabel(f"fused mAP in %, {run.split} split of {run.metrics['images']} images; the axis is cut at the left")
    axes.set_title(table.title, loc="left", fontweight="bold")
    for x, header in ((1.08, "VOC"), (1.2, "COCO")):
        known = [result.row.voc if header == "VOC" else result.row.coco for result in results]
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        axes.text(x, -0.85, f"paper\n{header}", fontsize=8, color="#6b7280", **beside)
        for place, value in zip(places, known, strict=True):
            axes.text(x, place, "-" if value is None else f"{value:.2f}", color="#6b7280", **beside)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def print_report(console: Console, table: Table, results: Sequence[RowResult]) -> None:
    """Show the rows with the paper's figures beside them, and what can be read from that."""
    run = results[0].runs[0]
    seeds = sorted(each.config.seed for each in results[0].runs)
    head = f"{table.title}: {run.split} split of {run.metrics['images']} images, mAP in %"
    console.print(f"{head}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}", highlight=False)
    printed = Printed("row", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    references = [name for name in table.references if any(result.row.name == name for result in results)]
    columns = ("mAP", "global", "local", *(f"- {name}" for name in references), "min", "paper:\nVOC", "\nCOCO")
    for header in columns:
        printed.add_column(header, justify="right", no_wrap=not header.startswith("- "))
    for result in results:
        maps, summary = _maps(result), _summary("", result)
        spread = f"\n{min(maps):.2f}-{max(maps):.2f}" if len(maps) > 1 else ""
        printed.add_row(
            escape(result.row.name),
            f"{np.mean(maps):.2f}{spread}",
            *(_percent(summary[name]) for name in ("mAP_global", "mAP_local")),
            *(_difference(result, name) for name in references),
            "-" if summary["minutes"] is None else f"{summary['minutes']:.1f}",
            *("-" if value is None else f"{value:.2f}" for value in (result.row.voc, result.row.coco)),
        )
    console.print(printed)
    explained = "Differences: mean over the seeds; below it the lowest and highest bound of their 95 % intervals."
    for line in (explained if references else "", table.note, CAVEAT):
        if line:
            console.print(line, highlight=False, markup=False)


def _run_lines(name: str, result: RowResult) -> list[dict[str, Any]]:
    return [
        {
            "table": name,
            "row": result.row.name,
            "preset": run.config.preset,
            "seed": run.config.seed,
            "split": run.split,
            "images": run.metrics["images"],
            **_figures(run.metrics),
            "val_mAP": run.val_map,
            "epochs": run.epochs,
            "minutes": run.minutes,
            "load": run.load,
            **_paper(result.row),
            "folder": "/".join(run.folder.parts[-2:]),
        }
        for run in result.runs
    ]


def _summary(table: str, result: RowResult) -> dict[str, Any]:
    every = [_figures(run.metrics) for run in result.runs]
    names = dict.fromkeys(name for figures in every for name in figures)
    means = {name: _mean([figures.get(name) for figures in every]) for name in names}
    maps = [run.metrics["mAP"] for run in result.runs]
    line = {"table": table, "row": result.row.name, "preset": result.runs[0].config.preset, "seeds": len(maps), **means}
    line |= {"mAP_min": min(maps), "mAP_max": max(maps), "minutes": _mean([run.minutes for run in result.runs])}
    for reference, interval in result.against.items():
        line |= {f"minus_{reference}": interval.difference}
        line |= {f"minus_{reference}_low": interval.low, f"minus_{reference}_high": interval.high}
    return line | _paper(result.row)


def _figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    flat = {**metrics, **{f"fitted_{name}": value for name, value in metrics["fitted"].items()}}
    found = {name: flat.get(name) for name in METRICS}
    if "probe" in metrics:
        probe = metrics["probe"]
        found |= {name: probe["controls"].get(control, {}).get(kind) for name, control, kind in PROBED}
        found |= {"attention_on_global": probe.get("attention_on_global"), "boxes": probe["regions"]["unique"]}
    return found


def _paper(row: Row) -> dict[str, float | None]:
    known = {"paper_VOC": row.voc, "paper_COCO": row.coco}
    return {name: None if value is None else round(value / 100, 4) for name, value in known.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _csv(lines: Sequence[dict[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
    return text.getvalue().encode()


def _maps(result: RowResult) -> list[float]:
    return [100 * run.metrics["mAP"] for run in result.runs]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def _difference(result: RowResult, reference: str) -> str:
    if reference not in result.against:
        return ""
    difference, low, high = (100 * value for value in result.against[reference])
    return f"{difference:+.2f}\n{low:+.2f} to {high:+.2f}"
