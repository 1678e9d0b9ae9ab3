"""From the logits of both branches to scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .manifest import Fusion


def fuse(global_logits: NDArray[np.float32], local_logits: NDArray[np.float32], fusion: Fusion) -> NDArray[np.float32]:
    """Fused scores from the logits of both branches, of any one shape (section 3.5)."""
    if fusion == "logit":
        return sigmoid(_mean(global_logits, local_logits))
    return _mean(sigmoid(global_logits), sigmoid(local_logits))


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits of any shape; nothing overflows, and small probabilities keep their digits."""
    power = np.exp(-np.abs(logits))
    return np.where(logits >= 0, np.float32(1), power) / (1 + power)


def _mean(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    half = np.float32(0.5)
    return one * half + other * half  # each halved first, because the sum of two finite logits may not be finite
