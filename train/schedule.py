"""The learning rate over a run, and the end of a run that has a time limit."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch.callbacks import Callback

WARMUP = 0.05


def warmup_cosine(progress: float) -> float:
    """Share of the peak learning rate at a share ``progress`` of the run: linear warm-up, then a half cosine to 0."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


def falling_steps(progress: float) -> float:
    """Share of the learning rate at a share ``progress`` of the run: a tenth after 60 %, a hundredth after 80 %."""
    return 0.1 ** ((progress >= 0.6) + (progress >= 0.8))


class TimeLimit(Callback):
    """Ends a run after the last whole epoch that fits into a time limit.

    Args:
        minutes: The limit; None for no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = math.inf if minutes is None else minutes * 60
        self.start = self.epoch_start = time.monotonic()

    def progress(self) -> float:
        """Share of the limit that has passed; 0 without a limit."""
        return (time.monotonic() - self.start) / self.seconds

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self.start = self.epoch_start = time.monotonic()

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Stop if another epoch like the last one would not fit."""
        now = time.monotonic()
        if now + (now - self.epoch_start) > self.start + self.seconds:
            trainer.should_stop = True
        self.epoch_start = now
