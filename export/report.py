"""Comparisons as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .compare import TOLERANCE
from .extend import Comparison

_OUTPUTS = ("logits", "class_maps", "features", "global_feature")


def print_comparisons(console: Console, title: str, comparisons: Sequence[Comparison]) -> None:
    """Print how far each engine is from its reference, with what is over the tolerance marked."""
    table = Table(title=f"{title}: largest differences on photos", title_justify="left", box=None, header_style="bold")
    for name in ("precision", "backend", *_OUTPUTS, "local logits", "score", "same boxes", "same labels"):
        table.add_column(name, justify="left" if name in ("precision", "backend") else "right")
    for one in comparisons:
        if one.skipped:
            table.add_row(one.precision, one.backend, "skipped", style="dim")
            continue
        names = [*(f"real/global.{name}" for name in _OUTPUTS), "real/local.logits", "real/scores"]
        marked = [_figure(one, name) for name in names]
        shares = [f"{one.report.get(f'real/{name}', 0.0):.0%}" for name in ("same_boxes", "same_labels")]
        table.add_row(one.precision, one.backend, *marked, *shares)
    console.print(table)
    for precision in dict.fromkeys(one.precision for one in comparisons if not one.skipped):
        tolerance = TOLERANCE[precision]
        allowed = f"{tolerance.outputs:g} of an output's largest value, {tolerance.scores:g} of a score"
        console.print(f"{precision}: allowed are {allowed}", highlight=False)
    for one in comparisons:
        if one.skipped:
            console.print(f"{one.precision} on {one.backend} was skipped: {one.skipped}", markup=False, style="dim")


def _figure(one: Comparison, name: str) -> str:
    if name not in one.report:
        return "-"  # engines keep features on the device
    text = f"{one.report[name]:.1e}"
    return f"[red]{text}[/red]" if name in one.over else text
