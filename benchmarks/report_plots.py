"""Plots of reports as PNG. They get finished numbers and labels; what is missing was sorted out before."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

P = ParamSpec("P")
Points = Sequence[tuple[float, float]]
_STYLE: dict[Any, bool] = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_WIDTH = 5.6  # inches: a phone shows it at about its true size
_GREY = "#9aa3b2"
PLAIN = "plain backbone"


def _png(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, bytes]:
    """Give a plot a figure of its own, and make its PNG."""

    @wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks is drawn as a box
            figure, picture = Figure(layout="constrained"), io.BytesIO()
            draw(figure, *args, **kwargs)
            figure.savefig(picture, format="png", dpi=140)
            return picture.getvalue()

    return run


@_png
def stacked(figure: Figure, cases: Sequence[tuple[str, Mapping[str, float], str]], xlabel: str) -> None:
    """Horizontal bars of parts: (label, value by part, note at the end) each, from top to bottom."""
    figure.set_size_inches(_WIDTH, 1.6 + 0.34 * len(cases))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for _, parts, _ in cases for name in parts))
    coloured = [name for name in names if name != PLAIN]
    colours = {name: f"C{index % 10}" for index, name in enumerate(coloured)} | {PLAIN: _GREY}
    left = [0.0] * len(cases)
    for name in names:
        widths = [parts.get(name, 0.0) for _, parts, _ in cases]
        axes.barh(range(len(cases)), widths, left=left, color=colours[name], label=_label(name))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for index, (end, (_, _, note)) in enumerate(zip(left, cases, strict=True)):
        axes.annotate(_label(note), (end, index), (4, 0), textcoords="offset points", va="center", fontsize=8)
    _rows(axes, [label for label, _, _ in cases])
    axes.set_xlabel(xlabel)
    axes.margins(x=0.2)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)


@_png
def bars(
    figure: Figure,
    cases: Sequence[tuple[str, float, tuple[float, float] | None]],
    xlabel: str,
    bounds: Mapping[str, float] | None = None,
) -> None:
    """Horizontal bars with their intervals, (label, value, interval) each, and upright lines for bounds."""
    figure.set_size_inches(_WIDTH, 1.2 + 0.36 * len(cases) + 0.22 * len(bounds or {}))
    axes = figure.add_subplot()
    axes.barh(range(len(cases)), [value for _, value, _ in cases], color="C0")
    for index, (_, value, interval) in enumerate(cases):
        low, high = interval or (value, value)
        axes.plot([low, high], [index, index], color="#1c2330", linewidth=2)
        place = (max(value, high), index)
        axes.annotate(f"{value:.4g}", place, (4, 0), textcoords="offset points", va="center", fontsize=8)
    for index, (name, bound) in enumerate((bounds or {}).items()):
        axes.axvline(bound, color=f"C{index + 1}", linestyle="--", label=_label(f"{name}: {bound:.4g}", 60))
    _rows(axes, [label for label, _, _ in cases])
    axes.set_xlabel(xlabel)
    axes.margins(x=0.18)
    if bounds:
        figure.legend(loc="outside lower center", fontsize=8)


@_png
def lines(
    figure: Figure,
    panels: Mapping[str, Mapping[str, Points]],
    xlabel: str,
    ylabel: str,
    log: bool = False,
    crosses: Points = (),
    from_zero: bool = True,
) -> None:
    """Curves over a common axis, by panel and name; logarithmic values must be above 0. Crosses go on all panels."""
    figure.set_size_inches(_WIDTH, 0.6 + 3.4 * len(panels))
    places = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (title, curves) in zip(places, panels.items(), strict=True):
        for name, points in curves.items():
            marker = "o" if len(points) <= 20 else ""
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=_label(name))
        if crosses:
            axes.plot(*zip(*crosses, strict=True), "x", color="#1c2330", markersize=9, label="the paper")
        axes.set_title(_label(title, 60), fontsize=10)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.15, which="minor")
        elif from_zero:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


@_png
def scatter(figure: Figure, points: Sequence[tuple[str, float, float, str]], xlabel: str, ylabel: str) -> None:
    """Labelled points, (label, x, y, kind) each; a line joins those than which none is as far left and as high."""
    figure.set_size_inches(_WIDTH, 4.4)
    axes = figure.add_subplot()
    best: list[tuple[float, float]] = []
    for x, y in sorted(((x, y) for _, x, y, _ in points), key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    axes.plot(*zip(*best, strict=True), color=_GREY, linewidth=1, zorder=1)
    for kind in dict.fromkeys(kind for *_, kind in points):
        chosen = [(x, y) for _, x, y, one in points if one == kind]
        axes.plot(*zip(*chosen, strict=True), "o", label=_label(kind))
    for index, (label, x, y, _) in enumerate(sorted(points, key=lambda point: point[1])):
        place = (0, 7 if index % 2 == 0 else -14)  # labels of neighbours above and below in turn
        axes.annotate(_label(label, 30), (x, y), place, textcoords="offset points", ha="center", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(0.16)
    axes.grid(alpha=0.3)
    if any(kind for *_, kind in points):
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [_label(label) for label in labels], fontsize=9)
    axes.invert_yaxis()


def _label(value: str, most: int = 36) -> str:
    """Text from a report: not too long, and no formula; a legend leaves names out that begin with an underscore."""
    value = value.lstrip("_")
    return (value if len(value) <= most else value[: most - 1] + "…").replace("$", r"\$")
