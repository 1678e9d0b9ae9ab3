"""Timing several things fairly on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 3) -> dict[str, NDArray[np.float64]]:
    """Time calls in turn, one of each a round, so that whatever slows the machine slows them alike.

    Args:
        calls: What to time, by name.
        rounds: Measured rounds.
        warmup: Rounds before that are not counted.

    Returns:
        Milliseconds by name, (rounds,) each; the values of a round belong together.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-warmup, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values) for name, values in times.items()}
