"""A histogram that takes any amount of values and stays small."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

HALF = 4096


class Histogram:
    """How often values fall into bins of equal width around 0.

    The width is a power of two. It grows when a value lies outside: then whole bins are added up, so that the counts
    stay exact whatever the order of the values. The larger side has 2048 to 4096 bins.

    Attributes:
        counts: (2 * HALF,) int64; bin i holds values from (i - HALF) * width up to the next bin, without exact zeros.
        width: Of a bin; 0 before the first value other than 0.
        zeros: How many values are exactly 0. They are kept apart because every quantisation represents them exactly.
        low: Smallest value.
        high: Largest value.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF, np.int64)
        self.width = 0.0
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf

    @property
    def total(self) -> int:
        """How many values there are, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def edges(self) -> NDArray[np.float64]:
        """(2 * HALF + 1,) limits of the bins."""
        return np.arange(-HALF, HALF + 1, dtype=np.float64) * self.width

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of an array of any shape.

        Raises:
            ValueError: A value is not finite.
        """
        x = values.ravel()
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a value is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = x.size - int(np.count_nonzero(x))
        self.zeros += zeros
        peak = max(-low, high)
        if peak == 0:
            return
        self._reach(peak)
        # Exact, because the width is a power of two; HALF is added to integers, where it cannot round.
        index = np.floor(x * np.float32(1 / self.width)).astype(np.int32) + HALF
        np.minimum(index, 2 * HALF - 1, out=index)
        self.counts += np.bincount(index, minlength=2 * HALF)
        self.counts[HALF] -= zeros

    def _reach(self, peak: float) -> None:
        """Widen the bins until they reach ``peak``."""
        width = 2.0 ** math.ceil(math.log2(max(peak, 1e-30) / HALF))
        if self.width == 0:
            self.width = width
        while self.width < width:
            factor = int(min(width / self.width, HALF))
            merged = self.counts.reshape(-1, factor).sum(1)
            self.counts[:] = 0
            middle = len(merged) // 2
            self.counts[HALF - middle : HALF + middle] = merged
            self.width *= factor
