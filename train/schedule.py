"""The learning-rate schedule."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then a half cosine to 0."""
    first = max(1, round(steps * warmup))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - first) / max(1, steps - first))))
