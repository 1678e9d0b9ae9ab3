"""Thresholds of an early exit, fitted on a validation split.

Of the pairs on a grid, the one that lets the most images exit while mAP and OF1 of what the pipeline then gives (global
scores of the images that exit, fused scores of the others) stay within a limit of what it gives without. The limit
holds on the images it was fitted on; on others it is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.early_exit import decided
from ..runtime.errors import CalibrationError, UsageError
from ..runtime.metrics import IGNORED, checked, multilabel_metrics

MAX_LOSS = 0.2
_HIGHS, _LOWS = 16, 32
_ROUNDING = 1e-9  # of sums in another order; every pair that is taken is scored exactly


@dataclass(frozen=True)
class EarlyExit:
    """Thresholds, and what they do on the images that they were fitted on.

    Attributes:
        low: No category of an image that exits lies above this ...
        high: ... and below this.
        exits: Share of the images that exit.
        before: ``mAP`` and ``OF1`` with the local branch for all images, fractions.
        after: Likewise with the early exit.
    """

    low: float
    high: float
    exits: float
    before: dict[str, float]
    after: dict[str, float]


def fit_early_exit(
    global_scores: ArrayLike,
    fused_scores: ArrayLike,
    targets: ArrayLike,
    thresholds: ArrayLike,
    max_loss: float = MAX_LOSS,
) -> EarlyExit:
    """Find the thresholds that let the most images exit.

    Args:
        global_scores: (n, N) float32 in [0, 1].
        fused_scores: (n, N) float32 in [0, 1].
        targets: (n, N); 1 present, 0 absent, -1 ignored.
        thresholds: (N,) scores from which a label is given, for OF1.
        max_loss: How much mAP and OF1 may each fall, in points of a hundred.

    Returns:
        The pair; 0 and 1, with which hardly any image exits, where no other keeps the limit. A higher limit never
        lets fewer images exit.

    Raises:
        ValueError: As `multilabel_metrics` does, or a score does not lie in [0, 1].
        UsageError: ``max_loss`` is no number from 0 on.
        CalibrationError: Not even 0 and 1 keep the limit: scores are exactly 0 or 1.
    """
    if not max_loss >= 0:
        raise UsageError(f"The loss allowed must be at least 0 points, not {max_loss}.")
    alone, fused = (checked(scores, targets, ndim=2)[0].astype(np.float32) for scores in (global_scores, fused_scores))
    labels = np.asarray(targets)
    if min(alone.min(), fused.min()) < 0 or max(alone.max(), fused.max()) > 1:
        raise ValueError("scores must lie in [0, 1]")
    before = _figures(fused, labels, thresholds)
    floor = {name: value - max_loss / 100 for name, value in before.items()}
    pairs = _grid(alone, labels)
    exits = np.array([decided(alone, pair) for pair in pairs])  # (pairs, n)
    of1 = _of1_of_mixes(alone, fused, labels, np.asarray(thresholds, np.float64), exits)
    mixes = _Mixes(alone, fused, labels)
    for index in np.argsort(-exits.sum(axis=1), kind="stable"):  # the first that keeps the limit is the answer
        mask = exits[index]
        if of1[index] < floor["OF1"] - _ROUNDING or mixes.mean_precision(mask) < floor["mAP"] - _ROUNDING:
            continue
        after = _figures(np.where(mask[:, np.newaxis], alone, fused), labels, thresholds)
        if all(after[name] >= floor[name] for name in floor):
            low, high = pairs[index]
            return EarlyExit(low, high, float(mask.mean()), before, after)
    raise CalibrationError(
        "No thresholds keep the accuracy: images whose global scores are all 0 or 1 would always exit.",
        found=f"mAP {before['mAP']:.4f}, OF1 {before['OF1']:.4f} without an early exit",
        fix="Allow a larger loss, or use no early exit.",
    )


def _figures(scores: NDArray[np.float32], targets: NDArray[Any], thresholds: ArrayLike) -> dict[str, float]:
    metrics = multilabel_metrics(scores, targets, thresholds)
    return {name: metrics[name] for name in ("mAP", "OF1")}


def _grid(scores: NDArray[np.float32], targets: NDArray[Any]) -> list[tuple[float, float]]:
    """Pairs to try, rounded so that they read well in a manifest.

    Upper thresholds lie at quantiles of the scores of labels that are present, and at 1; to each there are the lower
    ones that let 1/32, 2/32, ... of the images exit.
    """
    shown = np.quantile(scores[targets == 1], np.linspace(0, 1, _HIGHS))
    pairs = {(0.0, 1.0): None}
    for high in np.unique(np.append(shown, 1.0).round(6)).tolist():
        # An image exits once no score below the upper threshold is above the lower one.
        needed = np.where(scores < np.float32(high), scores, 0).max(axis=1)
        lows = np.quantile(needed, np.linspace(0, 1, _LOWS + 1), method="higher")
        pairs |= {(min(low, high), high): None for low in np.unique(lows.astype(np.float64).round(6)).tolist()}
    return list(pairs)


def _of1_of_mixes(
    alone: NDArray[np.float32],
    fused: NDArray[np.float32],
    targets: NDArray[Any],
    thresholds: NDArray[np.float64],
    exits: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """OF1 for each row of ``exits`` (pairs, n): hits and labels given are sums over the images."""
    given = [(scores >= thresholds) & (targets != IGNORED) for scores in (alone, fused)]
    counts = [np.stack([(kind & (targets == 1)).sum(axis=1), kind.sum(axis=1)]) for kind in given]  # (2, n) each
    hits, labels = (exits @ (counts[0] - counts[1]).T + counts[1].sum(axis=1)).T
    total = labels + (targets == 1).sum()
    return np.asarray(2 * hits / np.maximum(total, 1), np.float64)


class _Mixes:
    """mAP of global scores for some images and fused ones for the others, without sorting for each choice.

    The scores of both kinds are sorted once, class by class; a choice says which of them count.
    """

    def __init__(self, alone: NDArray[np.float32], fused: NDArray[np.float32], targets: NDArray[Any]) -> None:
        classes = (targets == 1).any(axis=0)
        both = np.concatenate([alone, fused])[:, classes]  # (2n, N)
        labels = np.concatenate([targets, targets])[:, classes]
        both[labels == IGNORED] = -1  # last, and counted nowhere
        self._order = np.argsort(-both, axis=0, kind="stable")
        both = np.take_along_axis(both, self._order, axis=0)
        labels = np.take_along_axis(labels, self._order, axis=0)
        self._counted, self._present = labels != IGNORED, labels == 1
        last = np.concatenate([both[1:] != both[:-1], np.ones((1, both.shape[1]), bool)])
        index = np.where(last, np.arange(len(both))[:, np.newaxis], len(both))
        self._ends = np.minimum.accumulate(index[::-1], axis=0)[::-1]  # equal scores share one threshold
        self._positives = (targets == 1).sum(axis=0)[classes]

    def mean_precision(self, exits: NDArray[np.bool_]) -> float:
        """Give the mAP where the images ``exits`` (n,) have their global scores."""
        counts = np.concatenate([exits, ~exits])[self._order]
        seen = np.cumsum(counts & self._counted, axis=0)
        hits = counts & self._present
        precision = np.cumsum(hits, axis=0) / np.maximum(seen, 1)
        at_end = np.take_along_axis(precision, self._ends, axis=0)
        return float(np.mean((at_end * hits).sum(axis=0) / self._positives))
