"""Data folder of one's own: `JPEGImages/`, `labels.csv` and `classes.txt`."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ..runtime.errors import DataError
from .labeled import LabeledImages, Layout, labeled_files, read_lines, safe_name

IMAGES, LABELS, CLASS_LIST = "JPEGImages", "labels.csv", "classes.txt"
COLUMNS = ("image", "split", "labels")
FIX = f"A data folder needs {CLASS_LIST}, {LABELS} (both UTF-8) and {IMAGES}/."


def open_folder(folder: Path, split: str) -> LabeledImages:
    """Read a split of a folder with `labels.csv`.

    `classes.txt` has one label a line; its order is that of the targets. `labels.csv` has the columns image, split
    and labels (joined by `|`); further columns are ignored. All rows are checked, those of other splits too.

    Raises:
        DataError: If the folder does not follow its layout, or has no such split.
    """
    classes = _read_classes(folder / CLASS_LIST)
    rows = _read_rows(folder / LABELS, classes)
    chosen = [(image, labels) for image, row_split, labels in rows if row_split == split]
    if not chosen:
        splits = Counter(row_split for _, row_split, _ in rows)
        found = ", ".join(f"{key} ({count} images)" for key, count in splits.items()) or "no rows"
        raise DataError(f"{folder / LABELS} has no split {split!r}.", found=found, fix="Use one of these splits.")
    targets = np.zeros((len(chosen), len(classes)), np.int8)
    for target, (_, labels) in zip(targets, chosen, strict=True):
        target[labels] = 1
    paths = [folder / IMAGES / image for image, _ in chosen]
    return labeled_files(folder, split, classes, targets, paths, folder / LABELS)


def _fits(folder: Path) -> bool:
    # One of the two is enough, so that the error names the other.
    return os.path.isfile(folder / LABELS) or os.path.isfile(folder / CLASS_LIST)


LAYOUT = Layout(f"{LABELS}, {CLASS_LIST} and {IMAGES}/", _fits, open_folder)


def _read_classes(path: Path) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, FIX), 1):
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
    reader = csv.DictReader(read_lines(path, FIX), strict=True)
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
            image = safe_name(image, where, IMAGES)
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
