"""Labelled images of one split, and what all layouts of a data folder share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError, ImageError
from ..runtime.images import read_image
from .digits import DigitScenes


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """The images of one split with their labels. Can be pickled.

    Attributes:
        name: What to call the data in a message: `digits`, or the folder.
        split: Which part of the data.
        classes: The N labels, in the order of the targets' columns.
        targets: (n, N) int8; 1 present, 0 absent, -1 ignored (only objects that VOC marks as difficult).
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


class Layout(NamedTuple):
    """A way to lay out a data folder.

    Attributes:
        needs: What a folder of this layout holds, for a message.
        fits: Whether a folder looks like one.
        open: Reads a split (folder, split); raises DataError where the folder does not follow the layout.
    """

    needs: str
    fits: Callable[[Path], bool]
    open: Callable[[Path, str], LabeledImages]


def labeled_files(
    folder: Path,
    split: str,
    classes: tuple[str, ...],
    targets: NDArray[np.int8],
    paths: Sequence[Path],
    written_in: Path,
) -> LabeledImages:
    """A split of a data folder, whose files exist and of which some have a label; no image is decoded.

    Args:
        folder: The data folder.
        split: The split.
        classes: The N labels.
        targets: (n, N) int8.
        paths: The n image files.
        written_in: The file or folder that lists the images, for a message.

    Raises:
        DataError: If image files are missing, or no target is 1.
    """
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        what = f"{len(missing)} of the {len(paths)} images of split {split!r} are missing."
        found = "no file " + ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(what, found=found, fix=f"Put them there, or drop them from {written_in}.")
    if not (targets == 1).any():
        what = f"No image of split {split!r} has a label."
        found = f"{len(paths)} images without a label in {written_in}"
        raise DataError(what, found=found, fix="Label some of them, or use a split whose labels are public.")
    return LabeledImages(str(folder), split, classes, targets, tuple(paths))


def read_lines(path: Path, fix: str) -> list[str]:
    """Lines of a UTF-8 file, with or without a byte order mark; line ends are kept.

    Raises:
        DataError: If it cannot be read; `fix` says what the layout needs.
    """
    try:
        # newline="" leaves line ends inside quoted fields to the csv module.
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read.", found=str(error), fix=fix) from error


def list_folder(folder: Path) -> list[str]:
    """Sorted names in a folder.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed.", found=str(error), fix="Check its rights.") from error


def safe_name(image: str, where: str, folder: str) -> str:
    """An image's path below the folder of images, in one spelling.

    Raises:
        DataError: If the path leaves that folder; `where` names the file and line that give it.
    """
    path = PurePosixPath(image)
    # The Windows reading sees drive letters and backslashes too.
    if not path.parts or ".." in path.parts or path.is_absolute() or "\\" in image or PureWindowsPath(image).drive:
        what = f"{where}: an image must lie in {folder}/."
        raise DataError(what, found=repr(image), fix=f"Give its path relative to {folder}/, with '/' and no '..'.")
    return str(path)


def check_labels(images: LabeledImages, labels: Sequence[str]) -> None:
    """Refuse data that are labelled otherwise than a model.

    Raises:
        DataError: The labels differ, or their order.
    """
    if tuple(images.classes) == tuple(labels):
        return
    missing = [label for label in labels if label not in images.classes]
    raise DataError(
        f"the labels of {images.name} are not the model's",
        found=f"{len(images.classes)} labels, the model has {len(labels)}"
        + (f"; not in the data: {', '.join(missing[:3])}" if missing else "; another order"),
        fix="give data with the labels of the training data, in their order",
    )
