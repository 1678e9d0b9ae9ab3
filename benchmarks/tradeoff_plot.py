"""A picture of `tradeoff.bench_tradeoff`'s points."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from .tradeoff import pareto

_COLOURS = {"fp32": "tab:blue", "fp16": "tab:green", "int8": "tab:orange"}


def plot(results: Sequence[dict[str, Any]], title: str) -> bytes:
    """A PNG: mAP against the mean milliseconds of a photo, and the line of the points that none beats.

    Args:
        results: Points of a report.
        title: What stands above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    best = pareto(results)
    axis.plot([one["mean_ms"] for one in best], [100 * one["mAP"] for one in best], "-", color="0.6", lw=1, zorder=1)
    for precision, colour in _COLOURS.items():
        for early, marker in ((False, "o"), (True, "D")):
            points = [one for one in results if (one["precision"], one["early_exit"]) == (precision, early)]
            if points:
                label = f"{precision}, early exit" if early else precision
                x, y = [one["mean_ms"] for one in points], [100 * one["mAP"] for one in points]
                axis.scatter(
                    x, y, marker=marker, label=label, edgecolors=colour, facecolors="none" if early else colour
                )
    for one in results:
        at = one["mean_ms"], 100 * one["mAP"]
        axis.annotate(one["bundle"], at, fontsize=8, xytext=(5, 4), textcoords="offset points")
    axis.set_xlabel("mean ms of a photo, from the file to the scores")
    axis.set_ylabel("mAP, %")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
