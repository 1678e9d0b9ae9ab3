"""Comparisons as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .compare import TOLERANCE
from .extend import Comparison

_COLUMNS = {
    "logits": "global.logits",
    "maps": "global.class_maps",
    "F": "global.features",
    "F_g": "global.global_feature",
    "local": "local.logits",
    "score": "scores",
}


def print_comparisons(console: Console, title: str, comparisons: Sequence[Comparison]) -> None:
    """Print how far each engine is from its reference, with what is over the tolerance in red.

    F and F_g are the features and the global feature, which engines other than bare graphs keep on the device.
    """
    table = Table(
        title=f"{escape(title)}: largest differences on photos", title_justify="left", box=None, header_style="bold"
    )
    table.add_column("engine", overflow="fold", min_width=18)
    for name in (*_COLUMNS, "boxes", "labels"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparisons:
        engine = f"{one.precision} {one.backend}"
        if one.skipped:
            table.add_row(engine, "skipped", style="dim")
            continue
        marked = [_figure(one, f"real/{name}") for name in _COLUMNS.values()]
        shares = [f"{one.report.get(f'real/{name}', 0.0):.0%}" for name in ("same_boxes", "same_labels")]
        table.add_row(engine, *marked, *shares)
    console.print(table)
    for precision in dict.fromkeys(one.precision for one in comparisons if not one.skipped):
        tolerance = TOLERANCE[precision]
        allowed = f"{tolerance.outputs:g} of an output's largest value, {tolerance.scores:g} of a score"
        console.print(f"{precision}: allowed are {allowed}", highlight=False)
    console.print("boxes, labels: share of the photos for which they are the same", highlight=False)
    for one in comparisons:
        if one.skipped:
            console.print(f"{one.precision} on {one.backend} was skipped: {one.skipped}", markup=False, style="dim")


def _figure(one: Comparison, name: str) -> str:
    if name not in one.report:
        return "-"  # engines keep features on the device
    text = f"{one.report[name]:.1e}"
    return f"[red]{text}[/red]" if name in one.over else text
