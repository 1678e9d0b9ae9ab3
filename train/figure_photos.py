"""Figures 5 and 9 of the paper: photos with their regions, class maps and scores of both branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..runtime.errors import GlocalError
from .checkpoint import Checkpoint
from .figure_parts import (
    COLOURS,
    GREY,
    SMALL,
    Drawn,
    Sample,
    Seen,
    data_name,
    leading,
    look,
    plain,
    run_name,
    show_boxes,
    show_map,
    show_photo,
)

EACH = 2  # photos of each kind
MAPS = 4  # class maps of a photo
LABELS, TRUE_LABELS = 6, 4  # at most so many labels, and true ones, have their scores drawn
BARS = {"global": "#a0aec0", "local": "#768caa", "fused": "#2563ba"}


class Pick(NamedTuple):
    """A photo to draw, and why."""

    photo: int  # index in the sample
    kind: str


def draw_photos(runs: Sequence[Checkpoint], sample: Sample, seed: int) -> Drawn:
    """Photos with their boxes, class maps as heat, and the scores of the relevant labels (fig. 5 and 9).

    A third of the photos gains the most by fusion, a third loses the most, and a third is drawn at random: what
    fusion does to a photo's true labels is the mean of the fused minus the global score. The table has the scores.

    Raises:
        GlocalError: No photo has a true label.
    """
    (run,) = runs
    seen = look(run.model, sample)
    gains = _gains(seen, sample.targets)
    picks = pick(gains, np.random.default_rng(seed))
    if not picks:
        raise GlocalError(
            "no photo has a true label", found=f"{len(gains)} photos", fix="look at more photos with --images"
        )
    figure = Figure((15.5, 2.45 * len(picks) + 0.9), layout="constrained")
    grid = figure.subplots(len(picks), MAPS + 2, squeeze=False, width_ratios=[1] * (MAPS + 1) + [1.35])
    figure.suptitle(
        f"{plain(run_name(run))} on {plain(data_name(sample))}: {EACH} photos each of the largest gain and the largest "
        f"loss by fusion and at random, out of {len(gains)}\n"
        "heat: class map above 0, relative to its maximum; solid: regions, dashed: their variants, each at the "
        "category that proposed it first; bold and ticked: true labels",
        fontsize=11,
    )
    table: list[dict[str, Any]] = []
    for axes, (index, kind) in zip(grid, picks, strict=True):
        rows = _draw_row(axes, seen, sample, index, f"{kind}, {gains[index]:+.2f}")
        table += [{"kind": kind, **row} for row in rows]
    handles = [Line2D([], [], color=colour, lw=5) for colour in BARS.values()]
    grid[0, -1].legend(handles, BARS, ncols=3, fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    known = gains[np.isfinite(gains)]
    note = (
        f"Fusion changes the score of the true labels by {known.mean():+.4f} in the mean over all {len(known)} photos "
        f"with labels, and raises it in {(known > 0).mean():.1%} of them."
    )
    return Drawn(figure, table, [note])


def pick(gains: NDArray[np.float64], rng: np.random.Generator) -> list[Pick]:
    """Choose photos by their gain (n,), NaN where there is none: largest gain, at random, largest loss."""
    order = [int(index) for index in np.argsort(-gains, kind="stable") if np.isfinite(gains[index])]
    best, rest = order[:EACH], order[EACH:]
    worst, rest = rest[::-1][:EACH], rest[: max(len(rest) - EACH, 0)]
    chance = rng.permutation(rest)[:EACH].tolist()
    kinds = {"largest gain": best, "at random": chance, "largest loss": worst}
    return [Pick(index, kind) for kind, indices in kinds.items() for index in indices]


def _gains(seen: Seen, targets: NDArray[np.int8]) -> NDArray[np.float64]:
    """(n,) mean over a photo's true labels of fused minus global score; NaN without a true label."""
    true = targets == 1
    total = np.where(true, seen.fused.astype(np.float64) - seen.global_, 0).sum(1)
    counts = true.sum(1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _draw_row(axes: NDArray[Any], seen: Seen, sample: Sample, index: int, title: str) -> list[dict[str, Any]]:
    photo, classes = sample.photo(index), sample.images.classes
    size, cells = photo.shape[:2], seen.regions.grid
    first = leading(seen.logits[index], MAPS).tolist()
    colours = dict(zip(first, COLOURS, strict=False))
    show_photo(axes[0], photo, f"{title}\n{plain(sample.name(index))}")
    for place, category in enumerate(first, 1):
        plane = seen.class_maps[index, category]
        name, colour = plain(classes[category], 20), colours[category]
        show_map(axes[place], photo, plane, f"{name}\nmaximum {plane.max():.2f}", colour)
    for axis in axes[1 + len(first) : -1]:
        axis.set_axis_off()
    boxes = seen.boxes(index)
    # The first proposed are drawn last, so that the strongest lie on top.
    for slot in reversed(range(len(boxes))):
        category, dashed = int(seen.regions.categories[index, slot]), bool(seen.regions.variants[index, slot])
        colour, width = colours.get(category, GREY), 1.2 if dashed else 2.2
        targets = [axes[0]] + ([axes[1 + first.index(category)]] if category in first else [])
        for axis in targets:
            show_boxes(axis, boxes[slot : slot + 1], size, cells, colour, width=width, dashed=dashed)
    return _draw_bars(axes[-1], seen, sample, index)


def _draw_bars(axes: Axes, seen: Seen, sample: Sample, index: int) -> list[dict[str, Any]]:
    """Scores of the true labels and of the highest others, as bars and as rows."""
    target, scores = sample.targets[index], {"global": seen.global_, "local": seen.local, "fused": seen.fused}
    order = np.argsort(-seen.fused[index], kind="stable")
    true = [int(label) for label in order if target[label] == 1][:TRUE_LABELS]
    others = [int(label) for label in order if target[label] != 1][: LABELS - len(true)]
    labels = true + others
    for offset, (branch, values) in enumerate(scores.items()):
        places = np.arange(len(labels)) + (offset - 1) * 0.27
        axes.barh(places, values[index, labels], 0.25, color=BARS[branch])
        for place, label in zip(places, labels, strict=True):
            value = float(values[index, label])
            axes.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=6, color="#40464e")
    names = [plain(sample.images.classes[label], 18) + (" ✓" if label in true else "") for label in labels]
    axes.set_yticks(range(len(labels)), names)
    for label, tick in zip(labels, axes.get_yticklabels(), strict=True):
        tick.set(fontsize=SMALL, fontweight="bold" if label in true else "normal")
    axes.set_ylim(LABELS - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="x", labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    return [
        {"photo": sample.name(index), "label": sample.images.classes[label], "true": int(target[label])}
        | {branch: float(values[index, label]) for branch, values in scores.items()}
        for label in labels
    ]
