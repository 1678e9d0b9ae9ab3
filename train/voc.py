"""Layout of PASCAL VOC 2007 and 2012: `JPEGImages/` and `ImageSets/Main/<class>_<split>.txt`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..runtime.errors import DataError
from ..runtime.metrics import IGNORED
from .labeled import LabeledImages, Layout, labeled_files, list_folder, read_lines, safe_name

IMAGES, IMAGE_SETS = "JPEGImages", "ImageSets/Main"
SPLITS = ("train", "val", "trainval", "test")
TARGETS = {"1": 1, "-1": 0, "0": IGNORED}


def open_voc(folder: Path, split: str) -> LabeledImages:
    """Read a split of a VOC folder.

    Each class has a file per split whose lines are an image's name without `.jpg` and 1 (the class is present), -1
    (absent), or 0: present, but only as objects that the annotators call difficult. The target of such a pair is -1,
    which counts neither way, as the challenge has it. Classes are in alphabetical order, as in the benchmark; images
    in the order of the first class's file.

    Args:
        folder: The folder of a year, such as `VOCdevkit/VOC2007`, or `VOCdevkit` where it holds one year.
        split: `train`, `val`, `trainval` or `test`, where the folder has its files. The published protocol of 2007
            trains on `trainval`. The test labels of 2012 are not public.

    Raises:
        DataError: If the folder holds several years, does not follow the layout, or has no such split.
    """
    years = _years(folder)
    if len(years) != 1:
        what = f"{folder} holds several years of VOC."
        found = ", ".join(year.name for year in years)
        raise DataError(what, found=found, fix=f"Name the folder of one year, such as {years[-1]}.")
    sets = years[0] / IMAGE_SETS
    labels = _labels(sets)
    if not labels.get(split):
        found = ", ".join(f"{key} ({len(value)} classes)" for key, value in labels.items()) or "no such file"
        what = f"{sets} has no files <class>_{split}.txt."
        raise DataError(what, found=found, fix="Use one of these splits, or add the files of this one.")
    # The classes of all splits, so that a file that is missing in one does not shift the columns of its targets.
    classes = tuple(sorted(set().union(*labels.values())))
    missing = [f"{label}_{split}.txt" for label in classes if label not in labels[split]]
    if missing:
        what = f"{sets}: split {split!r} lacks {len(missing)} of the {len(classes)} classes."
        raise DataError(what, found="no file " + ", ".join(missing), fix="Unpack the data again, or add the files.")
    files = {label: sets / f"{label}_{split}.txt" for label in classes}
    columns = [_read_column(file) for file in files.values()]
    images = [safe_name(image, str(files[classes[0]]), IMAGES) for image in columns[0]]
    for file, column in zip(files.values(), columns, strict=True):
        other = sorted(column.keys() ^ columns[0].keys())
        if other:
            what = f"{file} and {files[classes[0]].name} do not list the same images."
            found = f"{len(other)} in only one of them, such as {other[0]}"
            raise DataError(what, found=found, fix="Unpack the data again, or give each class a line for each image.")
    targets = np.array([[column[image] for column in columns] for image in columns[0]], np.int8)
    paths = [years[0] / IMAGES / f"{image}.jpg" for image in images]
    return labeled_files(folder, split, classes, targets, paths, sets)


def _years(folder: Path) -> list[Path]:
    """The folder itself where it is that of a year, else those of the years in it."""
    if os.path.isdir(folder / IMAGE_SETS):
        return [folder]
    return [folder / name for name in list_folder(folder) if os.path.isdir(folder / name / IMAGE_SETS)]


LAYOUT = Layout(
    f"{IMAGES}/ and {IMAGE_SETS}/<class>_<split>.txt (PASCAL VOC)", lambda folder: bool(_years(folder)), open_voc
)


def _labels(sets: Path) -> dict[str, set[str]]:
    """Classes that have a file, by split. `train.txt` is a plain list, `train_val.txt` belongs to the class train."""
    labels: dict[str, set[str]] = {}
    for name in list_folder(sets):
        label, _, split = name.removesuffix(".txt").rpartition("_")
        if name.endswith(".txt") and label and split in SPLITS:
            labels.setdefault(split, set()).add(label)
    return labels


def _read_column(path: Path) -> dict[str, int]:
    """Target of each image for one class."""
    column: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, f"Give the files in {IMAGE_SETS}/ as VOC has them."), 1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) != 2 or fields[1] not in TARGETS:
            fix = "Write an image's name without .jpg, and 1 (present), -1 (absent) or 0 (difficult)."
            raise DataError(f"{where}: not an image and its label.", found=repr(line.strip()), fix=fix)
        if fields[0] in column:
            raise DataError(f"{where}: the image {fields[0]} is there twice.", fix="Keep one of the lines.")
        column[fields[0]] = TARGETS[fields[1]]
    return column
