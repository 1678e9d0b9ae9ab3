"""Timing several things fairly on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray


def alternate(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 3, pause_s: float = 0
) -> dict[str, NDArray[np.float64]]:
    """Time calls in turn, one of each a round, so that whatever slows the machine slows them alike.

    Args:
        calls: What to time, by name.
        rounds: Measured rounds.
        warmup: Rounds before that are not counted.
        pause_s: Seconds to sleep before each call, where threads of the one before would spin into it.

    Returns:
        Milliseconds by name, (rounds,) each; the values of a round belong together.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-warmup, rounds):
        for name, call in calls.items():
            if pause_s:
                time.sleep(pause_s)
            start = time.perf_counter()
            call()
            if round_ >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def summary(times: NDArray[np.float64], unit: str = "ms") -> dict[str, Any]:
    """Percentiles of a sample of times, each with its 95 % confidence interval.

    The interval is that of the order statistics (binomial, no assumption on the distribution). A percentile near the
    end of a short sample has an interval that ends at the sample's extreme, which says too little: with 50 calls the
    p99 is the slowest one.

    Args:
        times: (rounds,) durations.
        unit: What they are in; it ends the names.

    Returns:
        ``p50_ms``, ``p90_ms``, ``p99_ms`` and ``p50_ms_ci``, ``p90_ms_ci``, ``p99_ms_ci`` ([low, high]), ``calls``.
    """
    ordered, found = np.sort(times), dict[str, Any]()
    for percent in (50, 90, 99):
        low, high = _order_interval(len(ordered), percent / 100)
        found[f"p{percent}_{unit}"] = round(float(np.percentile(ordered, percent)), 4)
        found[f"p{percent}_{unit}_ci"] = [round(float(ordered[low]), 4), round(float(ordered[high]), 4)]
    return {**found, "calls": len(ordered)}


def ratio(times: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, Any]:
    """How much longer something takes than a reference that was timed in the same rounds.

    Args:
        times: (rounds,) durations.
        reference: (rounds,) durations of the reference, round by round.

    Returns:
        ``p50``, ``p10``, ``p90`` of the rounds' ratios, and ``p50_ci``, the median's 95 % confidence interval.
    """
    ratios = np.sort(times / reference)
    p10, p50, p90 = np.percentile(ratios, (10, 50, 90)).round(4).tolist()
    low, high = _order_interval(len(ratios), 0.5)
    return {"p50": p50, "p10": p10, "p90": p90, "p50_ci": [round(float(ratios[low]), 4), round(float(ratios[high]), 4)]}


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    """Give OpenCV so many threads within a block; the setting belongs to the whole process."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _order_interval(count: int, share: float) -> tuple[int, int]:
    """Indices of the order statistics between which a quantile lies with at least 95 % (normal approximation)."""
    spread = 1.96 * float(np.sqrt(count * share * (1 - share)))
    low, high = int(np.floor(count * share - spread)), int(np.ceil(count * share + spread))
    return max(low, 0), min(high, count - 1)
