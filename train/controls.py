"""Boxes to hold against the selected ones: what a model loses with them is what the selection is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..runtime.selector import Regions

Boxes = tuple[NDArray[np.float32], NDArray[np.float32]]  # (B, K, 4) in [0, 1] and counts (B, K), as normalised() gives

# Four quarters, and the left, right, upper and lower half.
GRID = np.array(
    [
        (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1),
        (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1),
    ],
    np.float32,
)  # fmt: skip


def box_controls(regions: Regions, rng: np.random.Generator) -> dict[str, Boxes]:
    """The selected boxes of a batch, and what stands in for them.

    Args:
        regions: Of at least two images.
        rng: For the random boxes.

    Returns:
        ``selected``: as they are. ``random``: as many, with their counts; the width and height of each are those of a
        box drawn from the other images, its place is uniform over the cells, so nothing tells about the image.
        ``other_image``: the boxes of the image before in the batch. ``grid``: `GRID`, each once. ``whole``: the whole
        image, once.
    """
    boxes, counts = regions.normalised()
    ones = np.ones((len(boxes), len(GRID)), np.float32)
    return {
        "selected": (boxes, counts),
        "random": (_random(regions, rng)[:, : boxes.shape[1]], counts),
        "other_image": (np.roll(boxes, 1, axis=0), np.roll(counts, 1, axis=0)),
        "grid": (np.tile(GRID, (len(boxes), 1, 1)), ones),
        "whole": (np.tile(np.array((0, 0, 1, 1), np.float32), (len(boxes), 1, 1)), ones[:, :1]),
    }


def _random(regions: Regions, rng: np.random.Generator) -> NDArray[np.float32]:
    real = np.arange(regions.boxes.shape[1]) < regions.n[:, np.newaxis]
    sizes = (regions.boxes[..., 2:] - regions.boxes[..., :2])[real]
    owner = np.nonzero(real)[0]
    side = np.array(regions.grid[::-1])
    drawn = np.zeros(regions.boxes.shape, np.float32)
    for image, n in enumerate(regions.n):
        size = rng.choice(sizes[owner != image], n)
        low = rng.integers(0, side - size, endpoint=True)
        drawn[image, :n] = np.concatenate([low / side, (low + size) / side], axis=1)
    return drawn
