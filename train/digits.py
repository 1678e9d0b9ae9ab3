"""Built-in data: multi-label scenes of real handwritten digits, large and tiny, on cluttered backgrounds.

The digits are the 1,797 images (8x8) of scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten
Digits); nothing is downloaded. Each digit image belongs to one split, so a test scene never shows a digit
that was trained on. A scene is a function of (seed, split, index, epoch) alone.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..runtime.errors import UsageError
from ..runtime.progress import progressed

CLASSES = tuple("0123456789")
SPLITS = ("train", "val", "test")

MAX_OVERLAP = 0.1
LUMA = np.array([0.299, 0.587, 0.114])

Array = NDArray[Any]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Difficulty:
    """What makes scenes easy or hard; the defaults are those of ``digits``.

    Attributes:
        digits: Fewest and most digits of a scene.
        sides: Longer side of a digit relative to the scene's: smallest, tiny, largest. Log-uniform between the first
            two for a tiny digit, and between the last two for any other.
        tiny_share: Probability that a digit is tiny.
        clutter: The number of facets, strokes, arcs and blobs is multiplied by this.
        min_contrast: Least difference of luma between a digit and what is around it, beyond the spread of the
            background there.
    """

    digits: tuple[int, int] = (1, 5)
    sides: tuple[float, float, float] = (1 / 10, 1 / 7, 1 / 2.5)
    tiny_share: float = 0.3
    clutter: int = 1
    min_contrast: float = 80.0


# By the name of the data.
DIFFICULTIES = {
    "digits": Difficulty(),
    "digits-hard": Difficulty((2, 6), (1 / 16, 1 / 11, 1 / 8), 0.5, 3, 35.0),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        target: (10,) float32; 1 where the digit occurs.
        boxes: (n, 5) int32 rows x0, y0, x1, y1, digit in pixels, x1 and y1 exclusive; in the order drawn.
    """

    image: NDArray[np.uint8]
    target: NDArray[np.float32]
    boxes: NDArray[np.int32]


@dataclass(frozen=True)
class DigitScenes:
    """Scenes of digits of varied size and contrast: by default 1 to 5, of which about 30 % are tiny (< size/7).

    Which digits a scene holds depends on (seed, split, index). How it looks depends on the epoch too, so each
    epoch brings fresh images with the same targets.

    Args:
        split: `train`, `val` or `test`.
        length: Number of scenes.
        size: Side of the square scenes in pixels; below 128 the smallest digits are hard to read.
        seed: Not negative. It does not change which digit images belong to which split.
        difficulty: How many digits there are, how small, and in what surroundings.

    Raises:
        UsageError: If an argument is out of range.
    """

    split: str
    length: int
    size: int = 192
    seed: int = 0
    difficulty: Difficulty = DIFFICULTIES["digits"]

    classes = CLASSES

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            fix = "Use one of " + ", ".join(SPLITS) + "."
            raise UsageError("The built-in digits have no such split.", found=repr(self.split), fix=fix)
        for name, value, low, high in (
            ("length", self.length, 1, 2**32),
            ("size", self.size, 64, 4096),
            ("seed", self.seed, 0, 2**32),
        ):
            if not low <= value < high:
                what = f"The {name} of the digit scenes must be at least {low} and less than {high}."
                raise UsageError(what, found=str(value))
        _glyphs(self.split)  # read once here, not in every worker that is forked for an epoch

    def __len__(self) -> int:
        return self.length

    @property
    def targets(self) -> NDArray[np.int8]:
        """(length, 10) int8; 1 where the scene holds the digit."""
        targets = np.zeros((self.length, len(CLASSES)), np.int8)
        for index in range(self.length):
            targets[index, self._digits(index)] = 1
        return targets

    def scene(self, index: int, epoch: int = 0) -> Scene:
        """Compose the scene `index` as it looks in `epoch`.

        Raises:
            IndexError: If there is no such scene.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = self._generator(index, epoch)
        how = self.difficulty
        image = _background(rng, self.size, how.clutter)
        glyphs = _glyphs(self.split)
        digits = self._digits(index)
        boxes: list[Box] = []
        for digit, side in zip(digits, sorted(_sides(rng, len(digits), self.size, how), reverse=True), strict=True):
            glyph = glyphs[digit][rng.integers(len(glyphs[digit]))]
            mask, box = _place(rng, glyph, side, boxes, self.size)
            _paint(rng, image[box[1] : box[3], box[0] : box[2]], mask, how.min_contrast)
            boxes.append(box)
        target = np.zeros(len(CLASSES), np.float32)
        target[digits] = 1
        return Scene(image, target, np.column_stack([boxes, digits]).astype(np.int32))

    def _generator(self, index: int, *epoch: int) -> np.random.Generator:
        key = (SPLITS.index(self.split), index, *epoch)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _digits(self, index: int) -> Array:
        rng, (fewest, most) = self._generator(index), self.difficulty.digits
        return rng.integers(len(CLASSES), size=rng.integers(fewest, most + 1))


@lru_cache(maxsize=3)
def _glyphs(split: str) -> tuple[Array, ...]:
    """Digit images of a split, ten (m, 8, 8) float32 in [0, 1]: 70 % are train, 10 % val, 20 % test."""
    from sklearn.datasets import load_digits  # slow to import, and not needed for a folder of photos

    data = load_digits()
    glyphs = []
    for digit in range(len(CLASSES)):
        mine = data.images[data.target == digit].astype(np.float32) / 16
        order = np.random.default_rng(digit).permutation(len(mine))
        a, b = round(0.7 * len(mine)), round(0.8 * len(mine))
        glyphs.append(mine[{"train": order[:a], "val": order[a:b], "test": order[b:]}[split]])
    return tuple(glyphs)


def _sides(rng: np.random.Generator, n: int, size: int, how: Difficulty) -> Array:
    """Longer side of each digit's box in pixels, (n,) float."""
    smallest, middle, largest = how.sides
    tiny = rng.random(n) < how.tiny_share
    low, high = np.where(tiny, smallest, middle), np.where(tiny, middle, largest)
    return size * low * (high / low) ** rng.random(n)


def _place(rng: np.random.Generator, glyph: Array, side: float, boxes: list[Box], size: int) -> tuple[Array, Box]:
    """Find room for a digit, made smaller until there is some: its mask and its box."""
    angle, shear = math.radians(rng.uniform(-15, 15)), rng.uniform(-0.2, 0.2)
    while True:
        mask = _mask(glyph, side, angle, shear)
        h, w = mask.shape
        for x, y in rng.integers(0, (size - w + 1, size - h + 1), (16, 2)).tolist():
            box = (x, y, x + w, y + h)
            if not any(_overlap(box, other) > MAX_OVERLAP for other in boxes):
                return mask, box
        side *= 0.85


def _overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes as a fraction of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _mask(glyph: Array, side: float, angle: float, shear: float) -> Array:
    """Opacity (h, w) float32 of a digit, rotated, sheared, and enlarged until its longer side is `side`."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, cos * shear - sin], [sin, sin * shear + cos]])  # rotation times shear
    rows, columns = np.nonzero(glyph > 0.2)
    ink = turn @ (columns, rows)
    low, high = ink.min(axis=1) - 0.75, ink.max(axis=1) + 0.75
    scale = side / (high - low).max()
    w, h = (max(int(length), 1) for length in (high - low) * scale)
    # Pixel centres: the middle of the ink goes to ((w - 1) / 2, (h - 1) / 2).
    shift = np.array([w - 1, h - 1]) / 2 - scale * (low + high) / 2
    smooth = cv2.warpAffine(glyph, np.column_stack([scale * turn, shift]), (w, h), flags=cv2.INTER_CUBIC)
    return np.clip((smooth - 0.3) / 0.45, 0, 1)


def _paint(rng: np.random.Generator, under: Array, mask: Array, min_contrast: float) -> None:
    """Draw a digit in place, lighter or darker than the background under it, faint to strong."""
    mean, spread = (float(v[0, 0]) for v in cv2.meanStdDev(cv2.cvtColor(under, cv2.COLOR_RGB2GRAY)))
    least = min_contrast + 1.5 * spread
    room = (mean, 255 - mean)  # darker, lighter
    fits = [side for side in (0, 1) if room[side] >= least]
    side = fits[rng.integers(len(fits))] if fits else int(room[1] > room[0])
    contrast = rng.uniform(min(least, room[side]), room[side])
    tint = rng.uniform(-60, 60, 3)
    colour = np.clip(mean + (contrast if side else -contrast) + tint - tint @ LUMA, 0, 255)
    colour = colour.astype(np.float32)  # float64 would double the work below
    under[:] = (under + (colour - under) * mask[..., None] + 0.5).astype(np.uint8)


def _background(rng: np.random.Generator, size: int, clutter: int = 1) -> Array:
    """Smooth colours and noise, (size, size, 3) uint8, with clutter on top."""
    grid = int(rng.integers(2, 7))
    coarse = rng.uniform(40, 215) + rng.normal(0, 25, 3) + rng.normal(0, rng.uniform(5, 25), (grid, grid, 3))
    fine = cv2.resize(coarse, (24, 24), interpolation=cv2.INTER_CUBIC)
    fine = np.clip(fine + rng.normal(0, rng.uniform(0, 8), (24, 24, 3)), 25, 230).astype(np.uint8)
    colours = cv2.resize(fine, (72, 72), interpolation=cv2.INTER_CUBIC)
    image = cv2.resize(colours, (size, size), interpolation=cv2.INTER_LINEAR)
    _clutter(rng, image, clutter)
    return image


def _clutter(rng: np.random.Generator, image: Array, times: int) -> None:
    """Draw facets, strokes, arcs, blobs and specks in place.

    None may pass for a digit: each is filled and compact, much longer than the largest digit, or one pixel.
    """
    size = len(image)
    facets, strokes, arcs, blobs = (times * rng.integers(0, (3, 3, 2, 7))).tolist()
    mean = cv2.mean(image)[:3]
    colours = np.clip(mean + rng.normal(0, 30, (facets + strokes + arcs + blobs, 3)), 15, 240).tolist()

    def draw(n: int, *ranges: tuple[float, float]) -> list[list[float]]:
        low, high = np.array(ranges).T
        return (low + (high - low) * rng.random((n, len(ranges)))).tolist()

    anywhere = (0, size)
    for x, y, radius, turn, corners in draw(facets, anywhere, anywhere, (0.1 * size, 0.35 * size), (0, 6), (3, 6)):
        around = [turn + k * 2 * math.pi / int(corners) for k in range(int(corners))]
        points = [(int(x + radius * math.cos(a)), int(y + 0.7 * radius * math.sin(a))) for a in around]
        cv2.fillConvexPoly(image, np.array(points), colours.pop(), cv2.LINE_AA)
    for x, y, angle, width in draw(strokes, anywhere, anywhere, (0, math.pi), (1, 4)):
        dx, dy = 0.6 * size * math.cos(angle), 0.6 * size * math.sin(angle)
        ends = (int(x - dx), int(y - dy)), (int(x + dx), int(y + dy))
        cv2.line(image, *ends, colours.pop(), int(width), cv2.LINE_AA)
    radii = (0.4 * size, 0.9 * size)
    for x, y, a, b, start, width in draw(arcs, anywhere, anywhere, radii, radii, (0, 360), (1, 4)):
        span = (0, start, start + 120)
        cv2.ellipse(image, (int(x), int(y)), (int(a), int(b)), *span, colours.pop(), int(width), cv2.LINE_AA)
    for x, y, a, ratio, turn in draw(blobs, anywhere, anywhere, (0.01 * size, 0.06 * size), (0.7, 1), (0, 180)):
        axes = int(a) + 1, int(a * ratio) + 1  # nearly round: a long one would pass for a 1
        cv2.ellipse(image, (int(x), int(y)), axes, turn, 0, 360, colours.pop(), -1, cv2.LINE_AA)
    specks = rng.integers(0, size, (2, int(rng.integers(size // 2))))
    image[specks[0], specks[1]] = rng.integers(0, 256, (specks.shape[1], 3))


@dataclass(frozen=True)
class DigitCrops(Dataset[tuple[NDArray[np.uint8], int]]):
    """Small crops with one digit each, to pretrain a backbone on before it meets whole scenes.

    A crop is a function of (seed, split, index) alone; its digit images are those of the same split of the scenes.

    Args:
        split: `train`, `val` or `test`.
        length: Number of crops.
        size: Side in pixels; a digit's longer side is log-uniform between 12 pixels and 0.95 of it.
        seed: Not negative.
    """

    split: str
    length: int
    size: int = 32
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Crop `index`: (size, size, 3) uint8 RGB, and its digit."""
        if not 0 <= index < self.length:
            raise IndexError(f"crop {index} of {self.length}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), self.size, index))
        image = _background(rng, self.size)
        digit = int(rng.integers(len(CLASSES)))
        glyphs = _glyphs(self.split)[digit]
        side = 12 * (0.95 * self.size / 12) ** rng.random()
        mask, box = _place(rng, glyphs[rng.integers(len(glyphs))], side, [], self.size)
        _paint(rng, image[box[1] : box[3], box[0] : box[2]], mask, DIFFICULTIES["digits"].min_contrast)
        return image, digit


def write_data_folder(path: Path, lengths: Mapping[str, int], *, size: int = 192, seed: int = 0) -> None:
    """Write scenes as a data folder: `JPEGImages/*.png`, `labels.csv` and `classes.txt`.

    The folder appears whole or not at all.

    Args:
        path: The folder to make; its parent is made as needed.
        lengths: Number of scenes per split, such as `{"train": 2000, "val": 300, "test": 600}`.
        size: Side of the scenes in pixels.
        seed: As in `DigitScenes`.

    Raises:
        UsageError: If `path` exists, cannot be written, or a split or number is out of range.
    """
    path = Path(path)
    splits = [DigitScenes(split, length, size, seed) for split, length in lengths.items()]
    if not splits:
        raise UsageError("There are no scenes to write.", fix="Name a split and its number of scenes.")
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already.", fix="Name a new folder, or remove this one first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    todo = [(scenes, index) for scenes in splits for index in range(len(scenes))]
    try:
        (temporary / "JPEGImages").mkdir(parents=True)
        (temporary / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        with open(temporary / "labels.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "split", "labels"])
            for scenes, index in progressed(todo, "writing scenes"):
                scene, name = scenes.scene(index), f"{scenes.split}_{index:06d}.png"
                png = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))[1]
                (temporary / "JPEGImages" / name).write_bytes(png.tobytes())
                labels = [CLASSES[k] for k in np.flatnonzero(scene.target)]
                rows.writerow([name, scenes.split, "|".join(labels)])
        os.rename(temporary, path)
    except OSError as error:
        fix = "Choose a folder that can be written."
        raise UsageError(f"{path} cannot be written.", found=str(error), fix=fix) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
