"""Ways to select the regions of one image with other libraries, each doing the whole job.

The whole job is the ranking, the regions, their enclosing boxes, energies, variants and merging, and the check for
values that are not finite. The ways differ in where the boxes come from, one call per map and per crop:

- ``OpenCV components``: connectedComponentsWithStats.
- ``OpenCV contours``: around the outer contours of findContours with RETR_CCOMP, which also lists a component inside
  another's hole; RETR_EXTERNAL would miss it.
- ``SciPy``: ndimage.label with a 3x3 structure, and find_objects.
- ``cc3d``: connected_components with connectivity 8, and statistics.

All take energies from ``cv2.integral``. They do not order ties, which neither smoothed noise nor a model's maps have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import GlocalError
from ..runtime.selector import Regions
from .selector_maps import Setting

FloatArray: TypeAlias = NDArray[np.float32]
Box: TypeAlias = tuple[int, int, int, int]
Merged: TypeAlias = dict[Box, list[float]]  # count, category, variant, energy
Rectangle: TypeAlias = Sequence[int]  # x, y, width, height
FindBoxes: TypeAlias = Callable[[NDArray[np.uint8]], Sequence[Rectangle]]


def find_ways() -> tuple[dict[str, FindBoxes], dict[str, str]]:
    """The ways that this environment has.

    Returns:
        By name, what finds the boxes (x, y, width, height) of the components of a uint8 (h, w) mask of 0 and 1; and by
        name, why another way is left out.
    """
    ways: dict[str, FindBoxes] = {"OpenCV components": stats_boxes, "OpenCV contours": contour_boxes}
    skipped = {}
    for name, make, package in (("SciPy", _scipy, "scipy"), ("cc3d", _cc3d, "connected-components-3d")):
        try:
            ways[name] = make()
        except ImportError as error:
            skipped[name] = f"{error}; pip install {package}"
    return ways, skipped


def select(find_boxes: FindBoxes, maps: FloatArray, logits: FloatArray, shift: FloatArray, setting: Setting) -> Merged:
    """The whole job for one image.

    Args:
        find_boxes: As `find_ways` gives it.
        maps: (N, h, w) class maps.
        logits: (N,).
        shift: (N,) as ``RegionSelector`` takes it.
        setting: Parameters of the selector.

    Returns:
        Boxes in the order in which they were first proposed.

    Raises:
        ValueError: A value is not finite.
    """
    if not (np.isfinite(maps).all() and np.isfinite(logits).all()):
        raise ValueError("not finite")
    merged: Merged = {}

    def propose(box: Box, category: int, variant: int, energy: float) -> None:
        if box in merged:
            merged[box][0] += 1
        else:
            merged[box] = [1, category, variant, energy]

    for category in np.argsort(-logits, kind="stable")[: setting.k_s].tolist():
        plane = maps[category]
        for region, energy in _strongest(find_boxes, plane, setting.k_e):
            propose(region, category, 0, energy)
            box, (x0, y0, x1, y1) = region, region
            for variant, zeta in enumerate(setting.zetas, 1):
                step = np.float32(zeta) * shift[category]
                for inner, inner_energy in _strongest(find_boxes, plane[y0:y1, x0:x1] - step, 1):
                    box, energy = (inner[0] + x0, inner[1] + y0, inner[2] + x0, inner[3] + y0), inner_energy
                propose(box, category, variant, energy)
    if not merged:
        propose((0, 0, maps.shape[2], maps.shape[1]), -1, 0, 0.0)
    return merged


def labels_only(maps: FloatArray, logits: FloatArray, k_s: int) -> Sequence[Rectangle]:
    """The least that OpenCV could need: one call over the ranked maps of an image, an empty row between each two.

    It has boxes but no energies, so it selects nothing. Shapes as for `select`.
    """
    ranked = np.argsort(-logits, kind="stable")[:k_s]
    height, width = maps.shape[1:]
    stacked = np.zeros((len(ranked), height + 1, width), np.uint8)
    np.greater(maps[ranked], 0, out=stacked[:, :height].view(np.bool_))
    return stats_boxes(stacked.reshape(-1, width))


def stats_boxes(active: NDArray[np.uint8]) -> Sequence[Rectangle]:
    """Boxes of the 8-connected components of a mask (h, w), by connectedComponentsWithStats."""
    return cv2.connectedComponentsWithStats(active, connectivity=8)[2][1:, :4].tolist()


def contour_boxes(active: NDArray[np.uint8]) -> Sequence[Rectangle]:
    """Boxes of the 8-connected components of a mask (h, w), by findContours."""
    contours, hierarchy = cv2.findContours(active, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    parents = hierarchy[0, :, 3].tolist()  # of a hole's contour; an outer one has none
    return [cv2.boundingRect(contour) for contour, parent in zip(contours, parents, strict=True) if parent < 0]


def check_same(name: str, found: Merged, regions: Regions, image: int) -> None:
    """Compare what a way found with ours for one image of a batch.

    Raises:
        GlocalError: Boxes, their order, counts, categories or variants differ, or an energy by more than 1e-5 of it.
    """
    used = slice(regions.n[image])
    boxes = regions.boxes[image, used].tolist()
    columns = (regions.counts[image, used], regions.categories[image, used], regions.variants[image, used])
    theirs = np.array(list(found.values()))
    same = boxes == [list(box) for box in found] and (np.stack(columns, axis=1) == theirs[:, :3]).all()
    if not (same and np.allclose(regions.energies[image, used], theirs[:, 3], rtol=1e-5)):
        raise GlocalError(
            f"{name} and glocal select different regions.",
            found=f"{list(found)[:4]} and {boxes[:4]} ...",
            fix="Use maps without ties, which the other ways do not order; otherwise report it as a defect.",
        )


def _strongest(find_boxes: FindBoxes, plane: FloatArray, limit: int) -> list[tuple[Box, float]]:
    energy_before = cv2.integral(np.maximum(plane, 0), sdepth=cv2.CV_64F).item
    found = []
    for x0, y0, width, height in find_boxes((plane > 0).view(np.uint8)):
        x1, y1 = x0 + width, y0 + height
        energy = energy_before(y1, x1) - energy_before(y0, x1) - energy_before(y1, x0) + energy_before(y0, x0)
        found.append(((x0, y0, x1, y1), energy))
    found.sort(key=lambda region: -region[1])
    return found[:limit]


def _scipy() -> FindBoxes:
    from scipy import ndimage

    touching = np.ones((3, 3), np.int64)

    def find_boxes(active: NDArray[np.uint8]) -> Sequence[Rectangle]:
        return [_rectangle(slices) for slices in ndimage.find_objects(ndimage.label(active, touching)[0])]

    return find_boxes


def _cc3d() -> FindBoxes:
    import cc3d

    def find_boxes(active: NDArray[np.uint8]) -> Sequence[Rectangle]:
        found = cc3d.statistics(cc3d.connected_components(active, connectivity=8))["bounding_boxes"]
        return [_rectangle(slices) for slices in found[1:]]  # the first is the background's

    return find_boxes


def _rectangle(slices: tuple[slice, ...]) -> Rectangle:
    rows, columns = slices
    return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
