"""A score threshold for each class, fitted on a validation set."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import IGNORED, checked

DEFAULT = 0.5


def fit_thresholds(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float32]:
    """The threshold of highest F1 of each class, where a label is given at `score >= threshold`.

    A threshold lies half way between the lowest score that gets the label and the next lower one (or 0), because new
    images do not have exactly these scores. Of several with the same F1 it is the one nearest to 0.5. A class without
    a positive or without a negative says nothing about its threshold and keeps 0.5.

    Args:
        scores: (n, N) float32 in [0, 1]; one row an image, one column a class.
        targets: (n, N); 1 present, 0 absent, -1 ignored.

    Returns:
        (N,) float32.

    Raises:
        ValueError: If shapes disagree, there are no images, a score is not finite or not in [0, 1], or a target is
            not 0, 1 or -1.
    """
    exact, t = checked(scores, targets, ndim=2)
    if exact.min() < 0 or exact.max() > 1:
        raise ValueError(f"scores must lie in [0, 1]; found {exact.min()} to {exact.max()}")
    s = np.where(t == IGNORED, -np.inf, exact.astype(np.float32)).astype(np.float32)
    order = np.argsort(-s, axis=0, kind="stable")  # ignored scores come last
    s, t = np.take_along_axis(s, order, axis=0), np.take_along_axis(t, order, axis=0)
    lower = np.concatenate([s[1:], np.full((1, s.shape[1]), -np.inf, np.float32)])
    hits, positives = np.cumsum(t == 1, axis=0), np.sum(t == 1, axis=0)
    # Row k: the k + 1 highest scores get the label. Equal scores can only get it together.
    f1 = 2 * hits / (np.arange(1, len(s) + 1)[:, np.newaxis] + np.maximum(positives, 1))
    f1[(s == lower) | np.isneginf(s)] = -1
    lower = np.maximum(lower, 0)
    middle = lower + (s - lower) / 2
    # Between neighbouring floats the middle rounds to one of them, which must not be the lower one.
    thresholds = np.where(middle > lower, middle, np.maximum(s, 0)).astype(np.float32)
    distance = np.where(f1 == f1.max(axis=0), np.abs(thresholds.astype(np.float64) - DEFAULT), np.inf)
    best = np.take_along_axis(thresholds, distance.argmin(axis=0)[np.newaxis], axis=0)[0]
    informative = (positives > 0) & np.any(t == 0, axis=0)
    return np.where(informative, best, np.float32(DEFAULT)).astype(np.float32)
