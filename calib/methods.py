"""From the values of a tensor to the range that is quantised: four methods.

Values outside the range are clipped to it, values inside are rounded to one of 255 steps. A wide range makes coarse
steps, a narrow one clips more; the methods weigh this differently. A range always holds 0, which every step grid
represents exactly, and never exceeds the values that were seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .histogram import HALF, Histogram

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99
LEVELS = 128
_ENTROPY_BINS = 2048
_GRID = 128
_LEAST = 0.99


class Range(NamedTuple):
    """Smallest and largest value that is represented; low <= 0 <= high."""

    low: float
    high: float


def minmax(histogram: Histogram) -> Range:
    """All values: nothing is clipped."""
    return _within(histogram, histogram.low, histogram.high)


def percentile(histogram: Histogram, share: float = PERCENTILE) -> Range:
    """All but the outermost values: half of what is left out lies below, half above (in steps of one bin).

    Args:
        histogram: The values.
        share: Percentage of the values, zeros included, that lie within the range.
    """
    counts = histogram.counts.copy()
    counts[HALF] += histogram.zeros
    cumulated = np.cumsum(counts)
    cut = (100 - share) / 200 * cumulated[-1]
    edges = histogram.edges
    low = edges[np.searchsorted(cumulated, cut, side="right")]
    high = edges[np.searchsorted(cumulated, cumulated[-1] - cut, side="left") + 1]
    return _within(histogram, low, high)


def entropy(histogram: Histogram) -> Range:
    """The magnitude that loses least information, by Kullback-Leibler divergence.

    As in TensorRT's entropy calibrator (Migacz, "8-bit inference with TensorRT", GTC 2017): for each candidate, the
    magnitudes below it with all above added to the last bin are compared with themselves rounded to 128 levels.
    Exact zeros do not count, and at most 1 % of the other values are clipped.
    """
    magnitudes = (histogram.counts[HALF:] + histogram.counts[:HALF][::-1]).astype(np.float64)
    if not magnitudes.any():
        return _within(histogram, histogram.low, histogram.high)
    used = int(np.flatnonzero(magnitudes)[-1]) + 1
    width = histogram.width
    if used > _ENTROPY_BINS:  # after the last widening there may be twice as many
        magnitudes = magnitudes.reshape(-1, 2).sum(1)
        width, used = 2 * width, (used + 1) // 2
    magnitudes = magnitudes[:used]
    # A limit below nearly all values would add them up in one bin, and so look like no loss at all.
    least = int(np.searchsorted(np.cumsum(magnitudes), _LEAST * magnitudes.sum())) + 1
    candidates = np.unique(np.append(np.arange(min(max(LEVELS, least), used), used, 8), used))
    losses = [_divergence(magnitudes, int(candidate)) for candidate in candidates]
    # Of equal losses the widest range: it clips least.
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))
    limit = float(candidates[best]) * width
    return _within(histogram, -limit, limit)


def mse(histogram: Histogram) -> Range:
    """The range of least expected squared error at 255 steps, searched on a grid of both of its ends."""
    counts, edges = histogram.counts, histogram.edges
    filled = counts > 0
    centres, n = ((edges[:-1] + edges[1:]) / 2)[filled], counts[filled].astype(np.float64)
    lows = np.linspace(min(histogram.low, 0), 0, _GRID + 1)[: _GRID + 1 if histogram.low < 0 else 1]
    highs = np.linspace(0, max(histogram.high, 0), _GRID + 1)[0 if histogram.high > 0 else _GRID :]
    above_count, above = _clipped(centres, n, highs)
    below_count, below = _clipped(-centres[::-1], n[::-1], -lows)
    step = (highs[np.newaxis, :] - lows[:, np.newaxis]) / 255
    inside = n.sum() - below_count[:, np.newaxis] - above_count[np.newaxis, :]
    loss = inside * step**2 / 12 + below[:, np.newaxis] + above[np.newaxis, :]
    row, column = np.unravel_index(int(np.argmin(loss)), loss.shape)
    return _within(histogram, float(lows[row]), float(highs[column]))


RANGES: dict[Method, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}


def _within(histogram: Histogram, low: float, high: float) -> Range:
    """A range that holds 0 and no more than what was seen."""
    return Range(
        min(max(float(low), histogram.low), 0.0),
        max(min(float(high), histogram.high), 0.0),
    )


def _divergence(magnitudes: NDArray[np.float64], candidate: int) -> float:
    reference = magnitudes[:candidate].copy()
    reference[-1] += magnitudes[candidate:].sum()
    seen = reference > 0
    starts = np.arange(LEVELS) * candidate // LEVELS if candidate > LEVELS else np.arange(candidate)
    sums = np.add.reduceat(magnitudes[:candidate], starts)
    filled = np.add.reduceat(seen.astype(np.float64), starts)
    level = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, candidate)))
    rounded = np.where(seen, (sums / np.maximum(filled, 1))[level], 0.0)
    # Clipped values in a last level that is empty otherwise have no counterpart; this keeps the divergence finite.
    rounded += 1e-4
    p, q = reference / reference.sum(), rounded / rounded.sum()
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def _clipped(
    values: NDArray[np.float64], counts: NDArray[np.float64], limits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many of the ascending values lie above each limit, and their summed squared distance to it."""
    first = np.searchsorted(values, limits, side="right")

    def above(moments: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(np.cumsum(moments[::-1])[::-1], 0.0)[first]

    count, mean, square = above(counts), above(counts * values), above(counts * values**2)
    return count, square - 2 * limits * mean + limits**2 * count
