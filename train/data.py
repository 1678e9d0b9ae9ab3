"""Labelled images: the built-in digits or a data folder, and the PyTorch data set that training draws from."""

from __future__ import annotations

import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.errors import DataError, ImageError
from ..runtime.images import read_image, resize
from .digits import CLASSES, DigitScenes

IMAGES, LABELS, CLASS_LIST = "JPEGImages", "labels.csv", "classes.txt"
COLUMNS = ("image", "split", "labels")
DIGIT_SCENES = {"train": 4000, "val": 1000, "test": 1000}
CROP_SCALES = (1.0, 0.875, 0.75, 0.66, 0.5)


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """The images of one split with their labels. Can be pickled.

    Attributes:
        name: What to call the data in a message: `digits`, or the folder.
        split: Which part of the data.
        classes: The N labels, in the order of the targets' columns.
        targets: (n, N) int8; 1 present, 0 absent.
        source: The n image files, or the built-in scenes.
        crop: Whether a random crop keeps the labels well enough to train with.
        flip: Whether mirroring keeps the labels.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    targets: NDArray[np.int8]
    source: tuple[Path, ...] | DigitScenes
    crop: bool = True
    flip: bool = True

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def paths(self) -> tuple[Path, ...] | None:
        """The image files; None for built-in data."""
        return None if isinstance(self.source, DigitScenes) else self.source

    def load(self, index: int, epoch: int = 0) -> NDArray[np.uint8]:
        """Image `index`, (H, W, 3) uint8 RGB. Built-in data look different in each epoch, with the same labels.

        Raises:
            UnreadableImageError: If the file cannot be read.
            IndexError: If there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        if isinstance(self.source, DigitScenes):
            return self.source.scene(index, epoch).image
        try:
            return read_image(self.source[index])
        except ImageError as error:
            # `from None`: a reader of the message needs no decoder's traceback.
            raise UnreadableImageError(error.what, found=error.found, fix=error.fix) from None


class UnreadableImageError(DataError):
    """An image of the data that cannot be read.

    A DataLoader raises an error of one of its workers again as `type(error)(traceback of the worker)`; of such a
    text only the message is kept.
    """

    def __init__(self, what: str, *, found: str = "", fix: str = "") -> None:
        message = what.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].rstrip()
        super().__init__(message, found=found, fix=fix)


def open_data(
    name: str | Path, split: str, *, length: int | None = None, size: int | None = None, seed: int = 0
) -> LabeledImages:
    """Open a split of the built-in digits or of a data folder.

    A data folder holds `JPEGImages/`, `classes.txt` (one label a line) and `labels.csv` with the columns image,
    split and labels (joined by `|`); further columns are ignored. All rows are checked here, and that the split's
    files exist; no image is decoded yet.

    Args:
        name: `"digits"`, or the folder (`"./digits"` for a folder of that name).
        split: Such as `train`, `val` or `test`.
        length: Number of built-in scenes; a folder gives all the images of the split.
        size: Side of built-in scenes in pixels; images of a folder have their own sizes.
        seed: Of built-in scenes.

    Raises:
        DataError: If the folder does not follow its layout, or has no such split.
        UsageError: If the built-in digits have no such split, or `length`, `size` or `seed` is out of range.
    """
    if name == "digits":
        n = DIGIT_SCENES.get(split, 1) if length is None else length
        scenes = DigitScenes(split, n, 192 if size is None else size, seed)
        return LabeledImages("digits", split, CLASSES, scenes.targets, scenes, crop=False, flip=False)
    folder = Path(name)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False where access is denied
        fix = "Name a data folder, or 'digits' for the built-in data."
        raise DataError(f"There is no data folder {folder}.", fix=fix)
    classes = _read_classes(folder / CLASS_LIST)
    rows = _read_rows(folder / LABELS, classes)
    chosen = [(image, labels) for image, row_split, labels in rows if row_split == split]
    if not chosen:
        splits = Counter(row_split for _, row_split, _ in rows)
        found = ", ".join(f"{key} ({count} images)" for key, count in splits.items()) or "no rows"
        raise DataError(f"{folder / LABELS} has no split {split!r}.", found=found, fix="Use one of these splits.")
    paths = tuple(folder / IMAGES / image for image, _ in chosen)
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        what = f"{len(missing)} of the {len(paths)} images of split {split!r} are missing."
        found = "no file " + ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(what, found=found, fix=f"Put them there, or drop their rows from {folder / LABELS}.")
    targets = np.zeros((len(chosen), len(classes)), np.int8)
    for target, (_, labels) in zip(targets, chosen, strict=True):
        target[labels] = 1
    if not targets.any():
        what = f"No image of split {split!r} has a label."
        raise DataError(what, found=f"{len(chosen)} empty rows in {folder / LABELS}", fix="Label some of them.")
    return LabeledImages(str(folder), split, classes, targets, paths)


def _read_text(path: Path) -> list[str]:
    """Lines of a UTF-8 file, with or without a byte order mark."""
    try:
        # newline="" leaves line ends inside quoted fields to the csv module.
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        fix = f"A data folder needs {CLASS_LIST}, {LABELS} (both UTF-8) and {IMAGES}/."
        raise DataError(f"{path} cannot be read.", found=str(error), fix=fix) from error


def _read_classes(path: Path) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, line in enumerate(_read_text(path), 1):
        label = line.strip()
        if not label:
            continue
        if label in seen:
            what = f"{path}, line {number}: the class {label!r} is there twice."
            raise DataError(what, found=f"also on line {seen[label]}", fix="Keep one of them.")
        if "|" in label:
            what = f"{path}, line {number}: a class must not contain '|', which joins labels."
            raise DataError(what, found=repr(label), fix="Write one class a line, and none with '|'.")
        seen[label] = number
    if not seen:
        raise DataError(f"{path} names no class.", fix="Write one class a line.")
    return tuple(seen)


def _read_rows(path: Path, classes: tuple[str, ...]) -> list[tuple[str, str, list[int]]]:
    """Rows of labels.csv: image, split, class indices."""
    reader = csv.DictReader(_read_text(path), strict=True)
    column = {label: index for index, label in enumerate(classes)}
    seen: dict[str, int] = {}
    rows = []
    try:
        header = list(reader.fieldnames or [])
        if any(header.count(name) != 1 for name in COLUMNS):
            what = f"{path} must have the columns {', '.join(COLUMNS)}, each once."
            fix = "Add them to the first line; further columns are ignored."
            raise DataError(what, found=", ".join(header) or "an empty file", fix=fix)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            image, split, joined = ((row[name] or "").strip() for name in COLUMNS)
            if row["labels"] is None or not image or not split:
                fix = "Give each row an image, a split and labels (which may be empty)."
                raise DataError(f"{where}: the row is incomplete.", found=repr(row), fix=fix)
            image = _safe_name(image, where)
            if image in seen:
                found = f"also on line {seen[image]}"
                fix = "Keep one row; an image belongs to one split."
                raise DataError(f"{where}: the image {image} is there twice.", found=found, fix=fix)
            seen[image] = reader.line_num
            labels = [label.strip() for label in joined.split("|")] if joined else []
            unknown = [label for label in labels if label not in column]
            if unknown:
                fix = f"Correct it, or add it to {CLASS_LIST}."
                raise DataError(f"{where}: unknown label.", found=repr(unknown[0]), fix=fix)
            rows.append((image, split, [column[label] for label in labels]))
    except csv.Error as error:
        fix = "Write it with a CSV library, with commas and double quotes."
        raise DataError(f"{path}, line {reader.reader.line_num}: not CSV.", found=str(error), fix=fix) from error
    return rows


def _safe_name(image: str, where: str) -> str:
    """An image's path below JPEGImages, in one spelling."""
    path = PurePosixPath(image)
    # The Windows reading sees drive letters and backslashes too.
    if ".." in path.parts or path.is_absolute() or "\\" in image or PureWindowsPath(image).drive:
        what = f"{where}: an image must lie in {IMAGES}/."
        raise DataError(what, found=repr(image), fix=f"Give its path relative to {IMAGES}/, with '/' and no '..'.")
    return str(path)


class TrainImages(Dataset[tuple[Tensor, Tensor]]):
    """Images at the network's input size, for a DataLoader: (image uint8 (H, W, 3), target float32 (N,)).

    An item is a function of (seed, epoch, index) alone, whatever worker makes it.

    Args:
        data: The images.
        size: (H, W) of the input in pixels.
        augment: Vary the images by the epoch: fresh scenes of built-in data; of photos, a random crop whose width
            and height are each 1, .875, .75, .66 or .5 of the image's (multi-scale crop, as in the paper), and
            a mirror image for half of them, where the data allow it.
        seed: Of the augmentation.
    """

    def __init__(self, data: LabeledImages, size: tuple[int, int], augment: bool, seed: int) -> None:
        self.data, self.size, self.augment, self.seed = data, size, augment, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's images. Workers take note when they start, so not while they persist."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target.

        Raises:
            UnreadableImageError: If the file cannot be read.
        """
        image = self.data.load(index, self.epoch if self.augment else 0)
        if self.augment:
            image = self._augmented(image, np.random.default_rng((self.seed, self.epoch, index)))
        return torch.from_numpy(resize(image, self.size)), torch.from_numpy(self.data.targets[index].astype(np.float32))

    def _augmented(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        if self.data.crop:
            whole = np.array(image.shape[:2])
            part = np.maximum(np.round(whole * rng.choice(CROP_SCALES, 2)), 1).astype(int)
            y, x = rng.integers(0, whole - part + 1)
            image = image[y : y + part[0], x : x + part[1]]
        if self.data.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return image
