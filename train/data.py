"""Labelled images: the built-in digits or a data folder, and the PyTorch data set that training draws from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.errors import DataError
from ..runtime.images import resize
from . import coco, folders, voc
from .digits import CLASSES, DIFFICULTIES, DigitScenes
from .labeled import LabeledImages, Layout, UnreadableImageError, list_folder

__all__ = ["LabeledImages", "TrainImages", "UnreadableImageError", "open_data"]

DIGIT_SCENES = {"train": 4000, "val": 1000, "test": 1000}
LAYOUTS = (folders.LAYOUT, voc.LAYOUT, coco.LAYOUT)
CROP_SCALES = (1.0, 0.875, 0.75, 0.66, 0.5)
CROP_SHARES = np.array(
    [(h, w) for i, h in enumerate(CROP_SCALES) for j, w in enumerate(CROP_SCALES) if abs(i - j) <= 2]
)


def open_data(
    name: str | Path, split: str, *, length: int | None = None, size: int | None = None, seed: int = 0
) -> LabeledImages:
    """Open a split of the built-in digits or of a data folder.

    What is in a folder tells its layout: `labels.csv`, `classes.txt` and `JPEGImages/` (see `folders.open_folder`);
    `ImageSets/Main/` of PASCAL VOC, also in one sub-folder (`voc.open_voc`); or `annotations/` of MS-COCO
    (`coco.open_coco`). The labels are checked here, and that the split's files exist; no image is decoded yet.

    Args:
        name: `"digits"`, `"digits-hard"`, or the folder (`"./digits"` for a folder of that name).
        split: Such as `train`, `val` or `test`.
        length: Number of built-in scenes; a folder gives all the images of the split.
        size: Side of built-in scenes in pixels; images of a folder have their own sizes.
        seed: Of built-in scenes.

    Raises:
        DataError: If the folder does not follow one of the layouts, or has no such split.
        UsageError: If the built-in digits have no such split, or `length`, `size` or `seed` is out of range.
    """
    if name in DIFFICULTIES:
        name = str(name)
        n = DIGIT_SCENES.get(split, 1) if length is None else length
        scenes = DigitScenes(split, n, 192 if size is None else size, seed, DIFFICULTIES[name])
        return LabeledImages(name, split, CLASSES, scenes.targets, scenes, crop=False, flip=False)
    folder = Path(name)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False where access is denied
        fix = "Name a data folder, or 'digits' for the built-in data."
        raise DataError(f"There is no data folder {folder}.", fix=fix)
    return _layout_of(folder).open(folder, split)


def _layout_of(folder: Path) -> Layout:
    fitting = [layout for layout in LAYOUTS if layout.fits(folder)]
    if len(fitting) > 1:
        found = "files of " + "; and of ".join(layout.needs for layout in fitting)
        fix = "Keep the files of one layout there, and move the others elsewhere."
        raise DataError(f"{folder} mixes layouts of a data folder.", found=found, fix=fix)
    if not fitting:
        names = list_folder(folder)
        found = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
        fix = "Name a folder with " + "; or with ".join(layout.needs for layout in LAYOUTS) + "."
        raise DataError(f"{folder} has none of the layouts of a data folder.", found=found, fix=fix)
    return fitting[0]


class TrainImages(Dataset[tuple[Tensor, Tensor]]):
    """Images at the network's input size, for a DataLoader: (image uint8 (H, W, 3), target float32 (N,)).

    A target is 1, 0 or -1 as in `LabeledImages`. An item is a function of (seed, epoch, index) alone, whatever
    worker makes it.

    With `augment`, images vary by the epoch: fresh scenes of built-in data; of photos, a multi-scale crop and a mirror
    image for half of them, where the data allow it. The crop's height and width are 1, .875, .75, .66 or .5 of the
    photo's, drawn together from the 19 pairs that are at most two steps of this list apart, each as likely. This is
    the crop of the paper and of ML-GCN's code, where it is taken from the photo stretched to a square of the input's
    side + 64; taking it from the photo itself gives the same shares without resampling twice. The crop's place is
    uniform over the photo; ML-GCN draws it from 13 fixed places.

    Args:
        data: The images.
        size: (H, W) of the input in pixels.
        augment: Vary the images by the epoch.
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
            part = np.maximum(np.round(whole * rng.choice(CROP_SHARES)), 1).astype(int)
            y, x = rng.integers(0, whole - part + 1)
            image = image[y : y + part[0], x : x + part[1]]
        if self.data.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return image
