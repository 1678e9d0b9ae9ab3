"""The images that calibration takes, as its caller gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import CalibrationError


class Photos(Protocol):
    """Images by number."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> NDArray[np.uint8]:
        """Image ``index``, (H, W, 3) uint8 RGB of any size."""


class Labelled(Photos, Protocol):
    """Images with their targets."""

    @property
    def targets(self) -> NDArray[Any]:
        """(n, N); 1 present, 0 absent, -1 ignored."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some of the images, in a fixed order."""

    photos: Photos
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` of the chosen ones, (H, W, 3) uint8 RGB."""
        return self.photos.load(self.indices[index])


@dataclass(frozen=True, eq=False)
class ChosenLabelled(Chosen):
    """Some of the images, with their targets (n, N)."""

    targets: NDArray[Any]


def draw(photos: Photos, count: int, seed: int = 0) -> Chosen:
    """Choose images at random; the same numbers for the same seed.

    Raises:
        CalibrationError: There are fewer.
    """
    return Chosen(photos, _numbers(photos, count, seed))


def draw_labelled(photos: Labelled, count: int, seed: int = 0) -> ChosenLabelled:
    """Choose labelled images at random, see ``draw``."""
    indices = _numbers(photos, count, seed)
    return ChosenLabelled(photos, indices, photos.targets[list(indices)])


def at_most(photos: Labelled, count: int | None) -> Labelled:
    """All labelled images, or ``count`` of them drawn at random where there are more."""
    return photos if count is None or count >= len(photos) else draw_labelled(photos, count)


def _numbers(photos: Photos, count: int, seed: int) -> tuple[int, ...]:
    if count > len(photos):
        raise CalibrationError(
            f"{count} images are wanted, but there are fewer.",
            found=f"{len(photos)} images",
            fix=f"Give more images, or ask for at most {len(photos)}.",
        )
    return tuple(sorted(np.random.default_rng(seed).permutation(len(photos))[:count].tolist()))
