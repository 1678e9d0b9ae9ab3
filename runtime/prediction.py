"""What the runtime says about one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A part of the image that the local branch looked at.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the source image, half-open.
        category: The label whose class map was active there; None for the whole image, which stands in where
            no class map is active at all.
        energy: Sum of the positive activation of the class map in the box.
        variant: 0 for the region itself, 1 and up for its shrunk variants (paper, eq. 8).
        count: How often this very box was proposed; it weighs that much in the local branch's attention.
    """

    box: tuple[float, float, float, float]
    category: str | None
    energy: float
    variant: int
    count: int

    def to_json(self) -> dict[str, Any]:
        """The region as JSON-ready values."""
        return {
            "box": [round(edge, 2) for edge in self.box],
            "category": self.category,
            "energy": _rounded(self.energy),
            "variant": self.variant,
            "count": self.count,
        }


@dataclass(frozen=True, eq=False)
class Prediction:
    """Scores and regions of one image, or the reason why there are none.

    Attributes:
        source: The file or name the caller gave.
        size: (height, width) of the source image, pixels; None where it could not be read.
        classes: All N labels of the model, in the order of the scores.
        labels: The labels whose fused score reaches their threshold, by falling score.
        scores: (N,) float32 fused scores: the mean of the global and the local score, or the probability of the
            mean logit, as the bundle's ``fusion`` says. Where the image exited, the global scores.
        global_scores: (N,) float32 probabilities of the global branch.
        local_scores: (N,) float32 probabilities of the local branch; empty where the image exited.
        thresholds: (N,) float32 fused scores from which each label is given.
        regions: What the local branch looked at, in the order proposed: first the most probable label's. None where
            the image exited.
        timings: Milliseconds per stage: decode, resize, to_device, global, to_host, select, local, fuse, and their
            sum, total. decode and resize are the image's own; of the others it has an equal share of its batch. The
            copies to_device and to_host are 0 on a CPU, and where the engine library makes them within global.
        error: Why the image has no scores; None where it has. The arrays are empty then.
        exited: Whether the global scores settled the image and the local branch was not asked, which only a pipeline
            that was loaded with ``early_exit`` does.
    """

    source: str
    size: tuple[int, int] | None
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    global_scores: NDArray[np.float32]
    local_scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    regions: tuple[Region, ...]
    timings: dict[str, float]
    error: str | None = None
    exited: bool = False

    @classmethod
    def failed(
        cls, source: str, error: str, classes: tuple[str, ...], size: tuple[int, int] | None = None
    ) -> Prediction:
        """The prediction of an image that has none."""
        none = np.empty(0, dtype=np.float32)
        return cls(source, size, classes, (), none, none, none, none, (), {}, error)

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON-ready values; scores are rounded to six digits.

        Returns:
            source, size ([height, width] or null), labels, scores ({label: {fused, global, local, threshold}}, local
            null where the image exited), regions, exited, timings in ms, error.
        """
        names = ("fused", "global", "local", "threshold")
        local = [None] * len(self.scores) if self.exited else self.local_scores
        columns = zip(self.scores, self.global_scores, local, self.thresholds, strict=True)
        return {
            "source": self.source,
            "size": None if self.size is None else list(self.size),
            "labels": list(self.labels),
            "scores": {
                label: dict(zip(names, map(_rounded, values), strict=True))
                for label, values in zip(self.classes, columns, strict=False)  # no scores after an error
            },
            "regions": [region.to_json() for region in self.regions],
            "exited": self.exited,
            "timings": {stage: round(ms, 3) for stage, ms in self.timings.items()},
            "error": self.error,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
