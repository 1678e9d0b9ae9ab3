"""Figures 6 and 7 of the paper: regions by energy and by area, and the variants of a region."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..runtime.errors import GlocalError, UsageError
from ..runtime.selector import RegionSelector
from .checkpoint import Checkpoint
from .figure_parts import (
    COLOURS,
    Drawn,
    Sample,
    Seen,
    data_name,
    leading,
    look,
    overlaps,
    plain,
    run_name,
    show_boxes,
    show_map,
    show_photo,
)

DRAWN = 6  # photos of a figure
RANKS: tuple[Literal["energy"], Literal["area"]] = ("energy", "area")
BY_ENERGY, BY_AREA = COLOURS[0], COLOURS[4]


def draw_energy(runs: Sequence[Checkpoint], sample: Sample, seed: int) -> Drawn:
    """Regions by energy and by area on the same class maps (fig. 6).

    Drawn are random photos in which the boxes differ, each with its category of the largest difference. The table
    compares all photos: the ``strongest`` region of each category, all ``regions``, and the ``boxes`` that the local
    branch sees, which are the regions and their variants. ``differ`` is the share of photos where the two sets of
    boxes are not equal. ``iou`` is the mean over the boxes of both sets of the best IoU in the other, as the mean over
    photos; ``iou_differing`` only over those that differ.
    """
    (run,) = runs
    seen, config = look(run.model, sample), run.model.config
    shift = run.model.selector().shift
    settings = {"strongest": (1, ()), "regions": (config.k_e, ()), "boxes": (config.k_e, config.zetas)}
    table = []
    for name, (k_e, zetas) in settings.items():
        sets = (_unique_boxes(seen, RegionSelector(shift, config.k_s, k_e, zetas, rank)) for rank in RANKS)
        agreement = np.array([set_iou(*pair) for pair in zip(*sets, strict=True)])
        differs = agreement < 1
        table.append(
            {
                "compared": name,
                "photos": len(agreement),
                "differ": float(differs.mean()),
                "iou": float(agreement.mean()),
            }
            | {"iou_differing": float(agreement[differs].mean()) if differs.any() else ""}
        )
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(differs) if differs.any() else np.arange(len(differs))  # of the last setting: all boxes
    chosen = np.sort(rng.permutation(candidates)[:DRAWN])
    figure = _draw_energy(run, seen, sample, chosen, shift)
    what = f"random photos out of the {differs.sum()} of {len(differs)} whose boxes differ"
    if not differs.any():
        what = f"random photos; the boxes differ in none of {len(differs)}"
    figure.suptitle(
        f"{plain(run_name(run))} on {plain(data_name(sample))}: {what}\n"
        "each with the category that differs the most; solid: regions, dashed: their variants",
        fontsize=11,
    )
    return Drawn(figure, table, [])


def _draw_energy(
    run: Checkpoint, seen: Seen, sample: Sample, chosen: NDArray[np.int64], shift: NDArray[np.float32]
) -> Figure:
    config = run.model.config
    figure, grid = _grid(len(chosen), 3)
    for axes, index in zip(grid, chosen.tolist(), strict=False):
        found = []
        for category in leading(seen.logits[index], config.k_s).tolist():
            plane = seen.class_maps[index, category]
            pair = [
                RegionSelector(shift[[category]], 1, config.k_e, config.zetas, rank)(*_alone(plane)) for rank in RANKS
            ]
            found.append((set_iou(*(regions.boxes[0, : regions.n[0]] for regions in pair)), category, pair))
        iou, category, pair = min(found, key=lambda item: item[0])
        photo, plane = sample.photo(index), seen.class_maps[index, category]
        name = plain(sample.images.classes[category], 18)
        show_photo(axes[0], photo, f"{plain(sample.name(index), 24)}\n{name}, IoU {iou:.2f}")
        for axis, regions, rank, colour in zip(axes[1:], pair, RANKS, (BY_ENERGY, BY_AREA), strict=True):
            n = int(regions.n[0])
            show_map(axis, photo, plane, f"by {rank}\nboxes: {n}", colour)
            for dashed in (True, False):
                of_kind = (regions.variants[0, :n] > 0) == dashed
                width = 1.2 if dashed else 2.2
                boxes = regions.boxes[0, :n][of_kind]
                show_boxes(axis, boxes, photo.shape[:2], plane.shape, colour, width=width, dashed=dashed)
    return figure


def set_iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    """How well two sets of boxes (K, 4) and (M, 4) agree: mean over all boxes of the best IoU in the other set."""
    iou = overlaps(one, other)
    return float(np.concatenate([iou.max(1), iou.max(0)]).mean())


def _unique_boxes(seen: Seen, selector: RegionSelector) -> list[NDArray[np.int32]]:
    regions = selector(seen.class_maps, seen.logits)
    return [boxes[:n] for boxes, n in zip(regions.boxes, regions.n, strict=True)]


def _alone(plane: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One class map (h, w) as a batch of one image with one category."""
    return plane[None, None], np.zeros((1, 1), np.float32)


class Chain(NamedTuple):
    """A region with its variants, repeats included."""

    photo: int  # index in the sample
    category: int
    boxes: NDArray[np.int32]  # (k_r, 4) in cells: the region's own box, then one for each zeta

    @property
    def areas(self) -> NDArray[np.int64]:
        """(k_r,) in cells."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return sides[:, 0].astype(np.int64) * sides[:, 1]


def chains(seen: Seen, selector: RegionSelector) -> Iterator[Chain]:
    """Every region of each photo with its variants (eq. 8), the leading category and the strongest region first.

    The selector keeps each box once; here a variant that equals another stands there as well.
    """
    shift = np.zeros(1, np.float32)
    regions_of = RegionSelector(shift, 1, selector.k_e, (), selector.rank)
    strongest_of = RegionSelector(shift, 1, 1, (), selector.rank)
    for index, logits in enumerate(seen.logits):
        for category in leading(logits, selector.k_s).tolist():
            plane = seen.class_maps[index, category]
            regions = regions_of(*_alone(plane))
            for box in regions.boxes[0, : regions.n[0]] if regions.categories[0, 0] == 0 else ():
                variants = [box]
                for zeta in selector.zetas:
                    step = np.float32(zeta) * selector.shift[category]
                    tighter = _strongest_box(strongest_of, plane - step, box)
                    variants.append(variants[-1] if tighter is None else tighter)
                yield Chain(index, category, np.stack(variants))


def _strongest_box(
    selector: RegionSelector, plane: NDArray[np.float32], window: NDArray[np.int32]
) -> NDArray[np.int32] | None:
    """The box of the strongest region of a class map within a window, both in cells; None where nothing is active."""
    x0, y0, x1, y1 = window.tolist()
    found = selector(*_alone(plane[y0:y1, x0:x1]))
    return None if found.categories[0, 0] < 0 else found.boxes[0, 0] + np.array([x0, y0, x0, y0], np.int32)


def draw_variants(runs: Sequence[Checkpoint], sample: Sample, seed: int) -> Drawn:
    """A region and its variants, one for each zeta (fig. 7).

    Drawn is the strongest region of the leading category of random photos. The table has for each zeta, over the
    ``regions`` of all photos: ``mean_area``, that of the variant relative to its region's; ``same``, the share of
    variants that equal the box before them; and ``same_as_region``, the share that equal the region's own box.

    Raises:
        UsageError: The model has no zetas.
        GlocalError: No class map has an active cell.
    """
    (run,) = runs
    zetas = run.model.config.zetas
    if not zetas:
        raise UsageError(f"{run.path} has no variants", found="zetas ()", fix="give a run with zetas")
    seen, selector = look(run.model, sample), run.model.selector()
    found = list(chains(seen, selector))
    if not found:
        raise GlocalError("no class map has an active cell, so there are no regions", fix="train the model for longer")
    boxes = np.stack([chain.boxes for chain in found])
    areas = np.stack([chain.areas for chain in found])
    same = (boxes[:, 1:] == boxes[:, :-1]).all(2).mean(0)
    as_region = (boxes[:, 1:] == boxes[:, :1]).all(2).mean(0)
    relative = (areas[:, 1:] / areas[:, :1]).mean(0)
    table = [
        {"zeta": zeta, "regions": len(found), "mean_area": area, "same": equal, "same_as_region": unchanged}
        for zeta, area, equal, unchanged in zip(
            zetas, relative.tolist(), same.tolist(), as_region.tolist(), strict=True
        )
    ]
    figure = _draw_variants(run, seen, sample, selector, found, np.random.default_rng(seed))
    note = (
        f"|mean| / sigma of the class maps, the unit of zeta: {selector.shift.mean():.3f} in the mean over categories."
    )
    return Drawn(figure, table, [note])


def _draw_variants(
    run: Checkpoint, seen: Seen, sample: Sample, selector: RegionSelector, found: list[Chain], rng: np.random.Generator
) -> Figure:
    of_photo: dict[int, list[Chain]] = defaultdict(list)
    for chain in found:
        of_photo[chain.photo].append(chain)
    chosen = np.sort(rng.permutation(list(of_photo))[:DRAWN])
    figure, grid = _grid(len(chosen), 2 + len(selector.zetas))
    for axes, index in zip(grid, chosen.tolist(), strict=False):
        chain, photo = of_photo[index][0], sample.photo(index)
        plane, name = seen.class_maps[index, chain.category], plain(sample.images.classes[chain.category], 18)
        show_photo(axes[0], photo, f"{plain(sample.name(index), 24)}\n{name}")
        for place, (zeta, area) in enumerate(zip((0.0, *selector.zetas), chain.areas.tolist(), strict=True)):
            step = np.float32(zeta) * selector.shift[chain.category]
            title = f"zeta {zeta:g}\n{area / chain.areas[0]:.0%} of the area" if place else f"region\n{area} cells"
            colour = COLOURS[place % len(COLOURS)]
            show_map(axes[1 + place], photo, plane - step, title, colour)
            show_boxes(axes[1 + place], chain.boxes[place : place + 1], photo.shape[:2], plane.shape, colour)
    figure.suptitle(
        f"{plain(run_name(run))} on {plain(data_name(sample))}: strongest region of the leading category\n"
        "random photos; heat: class map above zeta * shift of its category",
        fontsize=11,
    )
    return figure


def _grid(count: int, panels: int) -> tuple[Figure, list[NDArray[Any]]]:
    """A figure with two photos in a row, ``panels`` each; returns the axes of each photo."""
    rows = -(-count // 2)
    figure = Figure((2.3 * (2 * panels + 0.3), 2.2 * rows + 0.8), layout="constrained")
    ratios = [1.0] * panels + [0.15] + [1.0] * panels
    axes = figure.subplots(rows, 2 * panels + 1, squeeze=False, width_ratios=ratios)
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, [part for row in axes for part in (row[:panels], row[panels + 1 :])]
