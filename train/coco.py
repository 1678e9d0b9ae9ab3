"""Layout of MS-COCO: `annotations/instances_<name>.json` and the photos in `<name>/` or `images/<name>/`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..runtime.errors import DataError
from .labeled import LabeledImages, Layout, labeled_files, list_folder, safe_name

ANNOTATIONS = "annotations"
PARTS = {"train": "train", "val": "val", "test": "val"}
FIX = "Unpack the annotations of COCO again, or export yours as COCO instances."


@dataclass(frozen=True, slots=True)
class _Category:
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class _Image:
    id: int
    file_name: str


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: int
    category_id: int


@dataclass(frozen=True, slots=True)
class _Instances:
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


_KEYS = frozenset(key for part in (_Category, _Image, _Annotation, _Instances) for key in part.__dataclass_fields__)


def open_coco(folder: Path, split: str) -> LabeledImages:
    """Read a split of a COCO folder.

    A class is present where the image has an annotation of it, of whatever size; a crowd (`iscrowd`) counts too.
    Classes are in the order of their category ids, images in that of the file. Images without an annotation stay, in
    all splits, with a target of zeros; some published results leave them out.

    Args:
        folder: Holds `annotations/instances_train*.json` and `instances_val*.json` of one release, such as 2014, and
            the photos in `train2014/` and `val2014/`, or in folders of these names in `images/`.
        split: `train`, `val` or `test`. The labels of COCO's test photos are not public: `test` is `val`, as
            in published results.

    Raises:
        DataError: If the folder does not follow the layout, has no such split, or holds more than one release.
    """
    path = _instances_file(folder, split)
    name = path.stem.removeprefix("instances_")
    photos = next((place for place in (folder / name, folder / "images" / name) if os.path.isdir(place)), None)
    if photos is None:
        what = f"There is no folder with the photos of {path}."
        found = f"neither {folder / name} nor {folder / 'images' / name}"
        raise DataError(what, found=found, fix="Put the photos into one of them.")
    data = _read(path)
    categories = sorted(data.categories, key=lambda category: category.id)
    classes = tuple(category.name for category in categories)
    if not classes:
        raise DataError(f"{path} names no class.", found="no categories", fix=FIX)
    files = [safe_name(image.file_name, f"{path}, image {image.id}", photos.name) for image in data.images]
    _check_unique(path, "category id", (category.id for category in categories))
    _check_unique(path, "category name", classes)
    _check_unique(path, "image id", (image.id for image in data.images))
    _check_unique(path, "file name", files)
    columns = {category.id: column for column, category in enumerate(categories)}
    rows = {image.id: row for row, image in enumerate(data.images)}
    targets = np.zeros((len(rows), len(columns)), np.int8)
    for number, annotation in enumerate(data.annotations):
        row, column = rows.get(annotation.image_id), columns.get(annotation.category_id)
        if row is None or column is None:
            what = f"{path}: annotations.{number} is of an image or a category that the file does not list."
            raise DataError(what, found=str(annotation).removeprefix("_"), fix=FIX)
        targets[row, column] = 1
    return labeled_files(folder, split, classes, targets, [photos / file for file in files], path)


LAYOUT = Layout(
    f"{ANNOTATIONS}/instances_<name>.json and the photos in <name>/ or images/<name>/ (MS-COCO)",
    lambda folder: os.path.isdir(folder / ANNOTATIONS),
    open_coco,
)


def _instances_file(folder: Path, split: str) -> Path:
    names = list_folder(folder / ANNOTATIONS)
    found = [match for name in names if (match := re.fullmatch(r"instances_(train|val)(.*)\.json", name))]
    if len({match[2] for match in found}) > 1:
        # Both splits are looked at: the photos of 2014 and 2017 are the same, and train2017 holds most of val2014.
        raise DataError(
            f"{folder / ANNOTATIONS} holds more than one release.",
            found=", ".join(match[0] for match in found),
            fix="Keep the instances files of one release there, and move the others elsewhere.",
        )
    chosen = [match[0] for match in found if match[1] == PARTS.get(split)]
    if not chosen:
        what = f"{folder / ANNOTATIONS} has no split {split!r}."
        fix = "train needs instances_train*.json there; val and test need instances_val*.json."
        raise DataError(what, found=", ".join(names[:6]) or "an empty folder", fix=fix)
    return folder / ANNOTATIONS / chosen[0]


def _read(path: Path) -> _Instances:
    try:
        with open(path, encoding="utf-8-sig") as file:
            # Outlines make up most of the file; dropping each at once keeps gigabytes out of memory.
            content = json.load(file, object_hook=_without_outlines)
        return TypeAdapter(_Instances).validate_python(content)
    except ValidationError as error:  # before ValueError, which it is too
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        found = f"{type(first['input']).__name__} {str(first['input'])[:60]}"
        raise DataError(f"{path}: {where}: {first['msg']}", found=found, fix=FIX) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON.", found=str(error), fix=FIX) from error


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key in _KEYS}


def _check_unique(path: Path, what: str, values: Iterable[int | str]) -> None:
    seen: set[int | str] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: the {what} is there twice.", found=repr(value), fix=FIX)
        seen.add(value)
