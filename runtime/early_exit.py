"""Early exit: images that the global scores settle do without the selector and the local engine.

An image is decided when no category's global score lies strictly between two thresholds: each category is then either
clearly absent or clearly present. Its scores are the global ones. ``glocal early-exit`` fits the thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import EngineError, UsageError
from .manifest import Precision


def exit_thresholds(bundle: Bundle, precision: Precision) -> tuple[float, float]:
    """The thresholds of a precision.

    Raises:
        UsageError: None were fitted.
    """
    if precision in bundle.manifest.early_exit:
        return bundle.manifest.early_exit[precision]
    raise UsageError(
        f"{bundle.path} has no thresholds for an early exit in {precision}.",
        found=f"thresholds for {', '.join(bundle.manifest.early_exit) or 'no precision'}",
        fix=f"Fit them: glocal early-exit {bundle.path} --data DIR --precision {precision}",
    )


def decided(scores: NDArray[np.float32], thresholds: tuple[float, float]) -> NDArray[np.bool_]:
    """Which images the global scores settle.

    Each image is judged by its own scores. A batch can change these in their last digits, and so the image's fate
    where a score is that close to a threshold.

    Args:
        scores: (B, N) float32 global scores.
        thresholds: (low, high); compared as float32, and neither of them is between.

    Returns:
        (B,) whether no score of the image lies between the thresholds.

    Raises:
        EngineError: A score is not finite, which says nothing about its image.
    """
    if not np.isfinite(scores).all():
        raise EngineError("The global engine gave values that are not finite.", fix="Try another precision.")
    low, high = (np.float32(threshold) for threshold in thresholds)
    return ~((scores > low) & (scores < high)).any(axis=1)


def spread(
    boxes: NDArray[np.float32], counts: NDArray[np.float32], rows: NDArray[np.intp], batch: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes of some images of a batch, as the local graph takes them for the whole batch.

    The other images, whose result nobody reads, get one box, the whole image: every image needs one.

    Args:
        boxes: (U, K, 4) float32 of the images ``rows``.
        counts: (U, K) float32.
        rows: (U,) which images of the batch these are, rising.
        batch: Images in the batch.

    Returns:
        boxes (batch, K, 4) and counts (batch, K) float32.
    """
    if len(rows) == batch:
        return boxes, counts
    all_boxes = np.zeros((batch, *boxes.shape[1:]), np.float32)
    all_counts = np.zeros((batch, counts.shape[1]), np.float32)
    all_boxes[:, 0], all_counts[:, 0] = (0, 0, 1, 1), 1
    all_boxes[rows], all_counts[rows] = boxes, counts
    return all_boxes, all_counts
