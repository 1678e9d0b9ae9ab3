"""Figure 8 of the paper: the selected boxes against the proposals of selective search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ..runtime.errors import DataError
from ..runtime.progress import progressed
from . import coco
from .checkpoint import Checkpoint
from .figure_parts import (
    COLOURS,
    Drawn,
    Sample,
    data_name,
    look,
    overlaps,
    plain,
    run_name,
    show_boxes,
    show_photo,
)

DRAWN = 4  # photos of the figure
IOU = 0.5
NO_CONTRIB = (
    "Selective search is left out: OpenCV has no ximgproc here. "
    "For it, pip install opencv-contrib-python (instead of opencv-python)."
)
FIX = "Give the instances file as COCO publishes it, with bbox, width and height."
OURS, OTHER, OBJECT = COLOURS[0], COLOURS[4], "#00a020"

Boxes = NDArray[np.float64]  # (K, 4) x0, y0, x1, y1


class Objects(NamedTuple):
    """The annotated objects of a photo, without crowds."""

    size: tuple[int, int]  # height and width of the photo, pixels
    boxes: Boxes  # in pixels


class Hits(NamedTuple):
    """What the proposals for one photo find of its objects."""

    objects: int
    found: int  # objects that some proposal overlaps with an IoU of at least ``IOU``
    centres: int  # objects whose centre lies in some proposal


def draw_proposals(runs: Sequence[Checkpoint], sample: Sample, seed: int) -> Drawn:
    """The boxes of the model and of selective search (fig. 8), for random photos.

    The table has, as means over all photos: ``proposals`` and ``area``, the share of the photo that a proposal covers;
    and as the median ``ms``, measured in turns: the region selector on class maps that are there, and selective search
    (fast mode) on the photo at its size in the data. In data of the COCO layout also: ``objects``, the share of them
    that a proposal overlaps with an IoU of at least 0.5 (``recall``), and the share whose centre lies in a proposal
    (``centre``).

    Raises:
        DataError: The annotations have no boxes or no sizes.
    """
    (run,) = runs
    objects = object_boxes(sample)
    seen, selector, search = look(run.model, sample), run.model.selector(), selective_search()
    methods = ["ours"] + (["selective search"] if search else [])
    found: dict[str, list[Boxes]] = {name: [] for name in methods}
    ms: dict[str, list[float]] = {name: [] for name in methods}
    sizes, other_size = [], 0
    selector(seen.class_maps[:1], seen.logits[:1])  # the first call makes room for its work
    for index, row in enumerate(progressed(sample.rows.tolist(), "proposing")):
        photo = sample.images.load(row)
        height, width = photo.shape[:2]
        start = time.perf_counter()
        regions = selector(seen.class_maps[index : index + 1], seen.logits[index : index + 1])
        ms["ours"].append((time.perf_counter() - start) * 1e3)
        boxes = regions.normalised()[0][0].astype(np.float64)
        found["ours"].append(boxes * (width, height, width, height))
        if search:
            start = time.perf_counter()
            proposals = search(photo)
            ms["selective search"].append((time.perf_counter() - start) * 1e3)
            found["selective search"].append(proposals)
        sizes.append((height, width))
        if objects is not None and objects[index].size != (height, width):
            objects[index], other_size = Objects((height, width), np.empty((0, 4))), other_size + 1
    table = []
    for name in methods:
        hits = [hits_of(boxes, there.boxes) for boxes, there in zip(found[name], objects or (), strict=False)]
        table.append(_row(name, found[name], ms[name], sizes, hits))
    figure = _draw(run, sample, found, sizes, objects, np.random.default_rng(seed))
    notes = [] if search else [NO_CONTRIB]
    if objects is None:
        notes.append("No recall: boxes of objects are read from data of the COCO layout only.")
    if other_size:
        notes.append(f"{other_size} photos do not have the size in the annotations; their objects are not counted.")
    return Drawn(figure, table, notes)


def hits_of(proposals: Boxes, objects: Boxes) -> Hits:
    """Compare proposals (K, 4) with objects (M, 4), both in pixels."""
    if not len(objects):
        return Hits(0, 0, 0)
    iou = overlaps(proposals, objects)
    x, y = ((objects[:, :2] + objects[:, 2:]) / 2).T
    x0, y0, x1, y1 = proposals.T[..., None]
    inside = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return Hits(len(objects), int((iou >= IOU).any(0).sum()), int(inside.any(0).sum()))


def selective_search() -> Callable[[NDArray[np.uint8]], Boxes] | None:
    """Selective search in its fast mode: RGB photo -> boxes (K, 4) in pixels. None without OpenCV's contrib modules."""
    if not hasattr(cv2, "ximgproc"):
        return None
    engine = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()

    def propose(photo: NDArray[np.uint8]) -> Boxes:
        engine.setBaseImage(np.ascontiguousarray(photo[..., ::-1]))
        engine.switchToSelectiveSearchFast()
        corners = np.asarray(engine.process(), np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # it gives x, y, width, height
        return corners

    return propose


@dataclass(frozen=True, slots=True)
class _Image:
    id: int
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: int
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: int = 0


@dataclass(frozen=True, slots=True)
class _Instances:
    images: list[_Image]
    annotations: list[_Annotation]


_KEYS = frozenset(key for part in (_Image, _Annotation, _Instances) for key in part.__dataclass_fields__)


def object_boxes(sample: Sample) -> list[Objects] | None:
    """The objects of each photo of a sample; None where the data are not of the COCO layout.

    Raises:
        DataError: The annotations have no boxes, or no sizes of the photos.
    """
    folder = Path(sample.images.name)
    if sample.images.paths is None or not coco.LAYOUT.fits(folder):
        return None
    # `open_coco` has read this file already, so it is there and lists the images in the order of the data.
    part = coco.PARTS[sample.images.split]
    (path,) = (folder / coco.ANNOTATIONS).glob(f"instances_{part}*.json")
    content = _read(path)
    boxes: dict[int, list[tuple[float, float, float, float]]] = {image.id: [] for image in content.images}
    for number, entry in enumerate(content.annotations):
        if entry.bbox is None:
            raise DataError(f"{path}: annotations.{number} has no box.", found=f"of image {entry.image_id}", fix=FIX)
        if not entry.iscrowd:
            x, y, width, height = entry.bbox
            boxes[entry.image_id].append((x, y, x + width, y + height))
    result = []
    for row in sample.rows.tolist():
        image = content.images[row]
        if image.height is None or image.width is None:
            raise DataError(f"{path}: images.{row} has no size.", found=f"image {image.id}", fix=FIX)
        corners = np.array(boxes[image.id], np.float64).reshape(-1, 4)
        result.append(Objects((image.height, image.width), corners))
    return result


def _read(path: Path) -> _Instances:
    text = path.read_bytes().decode("utf-8-sig")
    try:
        # Outlines make up most of the file, and are not needed here.
        content = json.loads(text, object_hook=lambda entry: {key: entry[key] for key in entry.keys() & _KEYS})
        return TypeAdapter(_Instances).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}", found=repr(first["input"])[:60], fix=FIX) from None


def _row(
    name: str, found: list[Boxes], ms: list[float], sizes: list[tuple[int, int]], hits: list[Hits]
) -> dict[str, Any]:
    areas = [
        float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).mean()) / (height * width)
        for boxes, (height, width) in zip(found, sizes, strict=True)
        if len(boxes)
    ]
    total = sum(photo.objects for photo in hits)
    return {
        "method": name,
        "photos": len(found),
        "proposals": float(np.mean([len(boxes) for boxes in found])),
        "area": float(np.mean(areas)) if areas else "",
        "ms": float(np.median(ms)),
        "objects": total,
        "recall": sum(photo.found for photo in hits) / total if total else "",
        "centre": sum(photo.centres for photo in hits) / total if total else "",
    }


def _draw(
    run: Checkpoint,
    sample: Sample,
    found: dict[str, list[Boxes]],
    sizes: list[tuple[int, int]],
    objects: list[Objects] | None,
    rng: np.random.Generator,
) -> Figure:
    chosen = np.sort(rng.permutation(len(sizes))[:DRAWN]).tolist()
    figure = Figure((3.1 * len(chosen) + 0.4, 2.9 * len(found) + 0.9), layout="constrained")
    grid = figure.subplots(len(found), len(chosen), squeeze=False)
    for axes, (name, boxes), colour in zip(grid, found.items(), (OURS, OTHER), strict=False):
        for axis, index in zip(axes, chosen, strict=True):
            photo, size = sample.photo(index), sizes[index]
            show_photo(axis, photo, f"{plain(sample.name(index))}\n{name}, boxes: {len(boxes[index])}", colour)
            few = len(boxes[index]) <= 30
            style = (colour, 1.8) if few else (f"{colour}90", 0.4)  # see-through, as there may be thousands
            show_boxes(axis, boxes[index], photo.shape[:2], size, style[0], width=style[1])
            if objects is not None:
                there = objects[index].boxes
                show_boxes(axis, there, photo.shape[:2], size, OBJECT, width=1.8, dashed=True)
    what = "random photos" if objects is None else "random photos; dashed: annotated objects"
    figure.suptitle(f"{plain(run_name(run))} on {plain(data_name(sample))}: {what}", fontsize=11)
    return figure
