"""What `glocal evaluate` shows: the metrics, the classes and the probe, each as a table of 80 columns at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FIGURES = ("CP", "CR", "CF1", "OP", "OR", "OF1")
CONTROLS = {
    "selected": "selected boxes",
    "random": "random boxes",
    "other_image": "boxes of another image",
    "grid": "grid of 8 boxes",
    "whole": "the whole image",
    "other_global": "F_g of another image",
}
INTERVALS = {
    "fused_minus_global": "fused - global",
    "fused_minus_local": "fused - local",
    "local_minus_random": "local, selected - random boxes",
    "alone_minus_random": "the same without cross attention",
}


def print_metrics(console: Console, title: str, metrics: Mapping[str, Any]) -> None:
    """Show mAP, and precision and recall at both kinds of thresholds."""
    console.print(f"{title}: {metrics['images']} images, in %", highlight=False, markup=False)
    branches = [
        f"{_percent(metrics[f'mAP_{kind}'])} {kind}" for kind in ("global", "local") if f"mAP_{kind}" in metrics
    ]
    line = f"mAP {_percent(metrics['mAP'])}" + (f" fused, {', '.join(branches)}" if branches else "")
    console.print(line, highlight=False, markup=False)
    if "exits" in metrics:
        console.print(f"{_percent(metrics['exits'])} of the images exited early", highlight=False, markup=False)
    table = _table("threshold", *FIGURES)
    rows = {"0.5": metrics, "0.5, top 3": metrics["top3"], "of the model": metrics["fitted"]}
    for name, row in rows.items():
        table.add_row(name, *(_percent(row[figure]) for figure in FIGURES))
    console.print(table)


def print_classes(console: Console, per_class: Mapping[str, float | None]) -> None:
    """Show the average precision of each class, the best first; a class without a positive comes last."""
    table = _table("class", "AP")
    table.add_column(width=40)
    for name, ap in sorted(per_class.items(), key=lambda item: -1 if item[1] is None else item[1], reverse=True):
        table.add_row(escape(name), "-" if ap is None else _percent(ap), Bar(1, 0, ap or 0))
    console.print(table)


def print_probe(console: Console, probe: Mapping[str, Any]) -> None:
    """Show what ``probe.probe`` found."""
    kinds = {"local": "local", "fused": "fused", "local_alone": "local, no CA", "fused_alone": "fused, no CA"}
    kinds = {kind: header for kind, header in kinds.items() if kind in probe["controls"]["selected"]}
    table = _table("mAP in % with", *kinds.values())
    for name, row in probe["controls"].items():
        table.add_row(CONTROLS[name], *(_percent(row[kind]) if kind in row else "" for kind in kinds))
    console.print(table)
    table = _table("difference of mAP in %", "", "95 % interval")
    for name, row in probe["intervals"].items():
        low, high = (f"{100 * row[bound]:+.2f}" for bound in ("low", "high"))
        table.add_row(INTERVALS[name], f"{100 * row['difference']:+.2f}", f"{low} to {high}")
    console.print(table)
    regions = probe["regions"]
    lines = [
        f"correlation of global and local logits {probe['logit_correlation']:.3f}",
        f"boxes an image: {regions['unique']:.1f} unique (95 % of images: at most {regions['unique_p95']:.0f}) "
        f"of {regions['proposals']:.1f} proposed",
        f"a box covers {_percent(regions['area'])} % of its image",
        f"images without a region {_percent(regions['fallback'])} %, "
        f"chosen categories with an empty map {_percent(regions['empty'])} %",
    ]
    if "attention_on_global" in probe:
        lines.insert(0, f"cross attention (CA) of a region on F_g {_percent(probe['attention_on_global'])} %")
    console.print("\n".join(lines), highlight=False, markup=False)


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for header in others:
        table.add_column(header, justify="right")
    return table


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
