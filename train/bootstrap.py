"""How sure a difference between two scorings of the same images is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.metrics import IGNORED, checked, multilabel_metrics
from ..runtime.progress import progressed

ROUNDS_AT_ONCE = 128  # bounds memory: a few arrays of this many rows, a column for each image


class Interval(NamedTuple):
    """A difference of mAP, as fractions, with the bounds that hold 95 % of the resampled differences."""

    difference: float
    low: float
    high: float


def paired_bootstrap(a: ArrayLike, b: ArrayLike, targets: ArrayLike, rounds: int = 1000, seed: int = 0) -> Interval:
    """mAP(a) - mAP(b) on these images, and its 95 % interval over images resampled with replacement.

    Both scorings see the same resampled images, so what makes images hard for both cancels. A class that has no
    positive in a resample is left out of that round, and a round without any positive does not count.

    Args:
        a: (n, N) finite floats; one row an image, one column a class.
        b: (n, N), of the same images.
        targets: (n, N); 1 present, 0 absent, -1 ignored.
        rounds: Resamples. The r-th draws ``integers(n, size=n)``, in turn, from ``numpy.random.default_rng(seed)``.
        seed: Of the resamples.

    Raises:
        ValueError: If shapes disagree, there are no images or no positives, a score is not finite, a target is not
            1, 0 or -1, or there are no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, found {rounds}")
    difference = multilabel_metrics(a, targets)["mAP"] - multilabel_metrics(b, targets)["mAP"]
    rng, n = np.random.default_rng(seed), len(np.asarray(targets))
    one, other = _Ranked(a, targets), _Ranked(b, targets)
    found = []
    for start in progressed(range(0, rounds, ROUNDS_AT_ONCE), "bootstrap"):
        draws = [rng.integers(n, size=n) for _ in range(min(ROUNDS_AT_ONCE, rounds - start))]
        counts = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(np.int32)
        found.append(one.mean_ap(counts) - other.mean_ap(counts))
    low, high = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return Interval(difference, float(low), float(high))


class _Ranked:
    """Scores sorted once for each class, for the mAP of many resamples."""

    def __init__(self, scores: ArrayLike, targets: ArrayLike) -> None:
        s, t = checked(scores, targets, ndim=2)
        self.classes = [_rank(s[:, k], t[:, k]) for k in range(s.shape[1]) if (t[:, k] == 1).any()]

    def mean_ap(self, counts: NDArray[np.int32]) -> NDArray[np.float64]:
        """Score R resamples that hold image i ``counts[r, i]`` times: mAP (R,), nan without a positive."""
        total, classes = np.zeros(len(counts)), np.zeros(len(counts))
        columns = np.ascontiguousarray(counts.T)  # gathering whole rows is several times faster
        for order, starts, positive, groups in self.classes:
            taken = np.cumsum(np.add.reduceat(columns[order], starts, axis=0), axis=0)
            hits = np.add.reduceat(columns[positive], groups, axis=0)
            positives = hits.sum(axis=0)
            precision = np.cumsum(hits, axis=0) / np.maximum(taken, 1)
            total += (hits * precision).sum(axis=0) / np.maximum(positives, 1)
            classes += positives > 0
        return np.divide(total, classes, out=np.full(len(counts), np.nan), where=classes > 0)


def _rank(scores: NDArray[np.float64], targets: NDArray[Any]) -> tuple[NDArray[np.intp], ...]:
    """One class, cut into segments of falling score that each end with a group of equal scores holding a positive.

    Recall only rises at these groups, so precision is needed nowhere else.

    Returns:
        The images that are not ignored by falling score, up to the last segment's end; where its segments start;
        the positive images in this order; where those of each segment start.
    """
    kept = np.flatnonzero(targets != IGNORED)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    hit = targets[order] == 1
    group = np.cumsum(np.diff(scores[order], prepend=np.inf) != 0) - 1  # of equal scores
    holding, groups = np.unique(group[hit], return_index=True)
    ends = np.searchsorted(group, holding, side="right")
    return order[: ends[-1]], np.append(0, ends[:-1]), order[hit], groups
