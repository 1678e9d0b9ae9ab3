"""A picture of a prediction: the photo with its regions, and the scores beside it."""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import UsageError
from .images import check_image
from .prediction import Prediction, Region

_PHOTO = 640  # the photo fits into a square of this side
_PANEL = 330
_MARGIN = 18
_ROW = 82  # height of one label's scores
_HEADER = 44

_PAPER = (255, 255, 255)
_INK = (28, 32, 38)
_FAINT = (112, 119, 128)
_TRACK = (233, 236, 240)
_BARS = {"global": (160, 174, 192), "local": (118, 140, 170), "fused": (37, 99, 186)}
# Bright, well apart from one another, and readable under white text.
_COLOURS = ((214, 39, 80), (0, 128, 110), (222, 110, 0), (106, 76, 200), (0, 120, 190), (150, 110, 20))
_WHOLE_IMAGE = (90, 96, 104)


class _Rectangle(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: _Rectangle) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1


def draw(image: NDArray[np.uint8], prediction: Prediction, top: int = 5) -> NDArray[np.uint8]:
    """Draw a prediction.

    Args:
        image: (H, W, 3) uint8 RGB, the source image of the prediction, of any size.
        prediction: What was predicted for it.
        top: How many labels get their scores drawn, from the highest fused score on.

    Returns:
        (H', W', 3) uint8 RGB: the photo with the regions, one colour per label, and for each of the top
        labels the global, local and fused score as bars; a tick marks the threshold. An image that exited has no
        local bar.

    Raises:
        ImageError: The array is no image.
        UsageError: The prediction has an error, or is that of an image of another size.
    """
    check_image(image, prediction.source)
    if prediction.error is not None:
        raise UsageError(f"{prediction.source} has no prediction to draw.", found=prediction.error)
    if prediction.size != image.shape[:2]:
        raise UsageError(
            f"The prediction of {prediction.source} belongs to another image.",
            found=f"an image of {image.shape[:2]}, predicted was one of {prediction.size}",
        )
    colours = _colours(prediction)
    photo = _draw_photo(image, prediction.regions, colours)
    labels = np.argsort(-prediction.scores, kind="stable")[: max(top, 1)]
    height = max(photo.height, _HEADER + _ROW * len(labels) + _MARGIN)
    panel = Image.new("RGB", (_PANEL, height), _PAPER)
    pen = ImageDraw.Draw(panel)
    _draw_header(pen, prediction)
    for row, label in enumerate(labels.tolist()):
        _draw_scores(pen, _HEADER + row * _ROW, prediction, label, colours)
    canvas = Image.new("RGB", (photo.width + _PANEL, height), _PAPER)
    canvas.paste(photo, (0, (height - photo.height) // 2))
    canvas.paste(panel, (photo.width, 0))
    return np.array(canvas)


def _colours(prediction: Prediction) -> dict[str | None, tuple[int, int, int]]:
    """A colour for each label that has regions."""
    found = dict.fromkeys(region.category for region in prediction.regions if region.category is not None)
    colours: dict[str | None, tuple[int, int, int]] = {None: _WHOLE_IMAGE}
    for index, category in enumerate(found):
        colours[category] = _COLOURS[index % len(_COLOURS)]
    return colours


def _draw_photo(
    image: NDArray[np.uint8],
    regions: tuple[Region, ...],
    colours: dict[str | None, tuple[int, int, int]],
) -> Image.Image:
    height, width = image.shape[:2]
    scale = _PHOTO / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    photo = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(photo)
    scale_x, scale_y = size[0] / width, size[1] / height
    # The first proposed are drawn last, so that the strongest lie on top.
    for region in reversed(regions):
        x0, y0, x1, y1 = region.box
        right, bottom = max(x1 * scale_x - 1, x0 * scale_x), max(y1 * scale_y - 1, y0 * scale_y)
        line = 3 if region.variant == 0 else 1
        pen.rectangle((x0 * scale_x, y0 * scale_y, right, bottom), outline=colours[region.category], width=line)
    taken: list[_Rectangle] = []
    for region in regions:
        if region.variant == 0:
            corner = (region.box[0] * scale_x, region.box[1] * scale_y)
            _draw_tag(pen, region, corner, size, colours[region.category], taken)
    return photo


def _draw_tag(
    pen: ImageDraw.ImageDraw,
    region: Region,
    corner: tuple[float, float],
    size: tuple[int, int],
    colour: tuple[int, int, int],
    taken: list[_Rectangle],
) -> None:
    """Write label and energy at a region's upper left corner, lower where another tag is in the way."""
    font = ImageFont.load_default(12)
    text = "whole image" if region.category is None else f"{region.category} {region.energy:.1f}"
    text = _shortened(pen, text, font, size[0] - 8)
    width, height = pen.textlength(text, font) + 8, 17
    x0 = max(min(corner[0], size[0] - width), 0)
    y0 = max(min(corner[1], size[1] - height), 0)
    place = _Rectangle(x0, y0, x0 + width, y0 + height)
    while any(place.overlaps(other) for other in taken) and place.y1 + height <= size[1]:
        place = _Rectangle(x0, place.y0 + height, x0 + width, place.y1 + height)
    taken.append(place)
    pen.rectangle((place.x0, place.y0, place.x1 - 1, place.y1 - 1), fill=colour)
    pen.text((place.x0 + 4, (place.y0 + place.y1) / 2), text, _PAPER, font, anchor="lm")


def _draw_header(pen: ImageDraw.ImageDraw, prediction: Prediction) -> None:
    left, right = _MARGIN, _PANEL - _MARGIN
    font = ImageFont.load_default(12)
    time = f"{prediction.timings['total']:.1f} ms" if "total" in prediction.timings else ""
    room = right - left - pen.textlength(time, font) - 12
    pen.text((left, 22), _shortened(pen, PurePath(prediction.source).name, font, room), _FAINT, font, anchor="lm")
    pen.text((right, 22), time, _FAINT, font, anchor="rm")


def _draw_scores(
    pen: ImageDraw.ImageDraw,
    y: float,
    prediction: Prediction,
    label: int,
    colours: dict[str | None, tuple[int, int, int]],
) -> None:
    """Draw one label's name and its three bars, from ``y`` downwards."""
    left, right = _MARGIN, _PANEL - _MARGIN
    name = prediction.classes[label]
    given = name in prediction.labels
    if name in colours:
        pen.rectangle((left, y + 4, left + 9, y + 13), fill=colours[name])
    title = ImageFont.load_default(17)
    shortened = _shortened(pen, name, title, right - left - 16)
    pen.text((left + 16, y + 9), shortened, _INK if given else _FAINT, title, anchor="lm")

    small = ImageFont.load_default(11)
    start, end = left + 60, right - 38
    scores = {"global": prediction.global_scores[label], "fused": prediction.scores[label]}
    if not prediction.exited:
        scores = {"global": scores["global"], "local": prediction.local_scores[label], "fused": scores["fused"]}
    for index, (branch, score) in enumerate(scores.items()):
        middle = y + 29 + index * 15
        pen.text((left + 16, middle), branch, _FAINT, small, anchor="lm")
        pen.rectangle((start, middle - 4, end, middle + 4), fill=_TRACK)
        filled = (end - start) * float(score)
        if filled >= 1:
            pen.rectangle((start, middle - 4, start + filled, middle + 4), fill=_BARS[branch])
        pen.text((right, middle), f"{score:.2f}", _INK if branch == "fused" else _FAINT, small, anchor="rm")
        if branch == "fused":
            tick = start + (end - start) * float(prediction.thresholds[label])
            pen.line((tick, middle - 7, tick, middle + 7), fill=_INK, width=2)


def _shortened(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float
) -> str:
    if pen.textlength(text, font) <= room:
        return text
    while text and pen.textlength(text + "...", font) > room:
        text = text[:-1]
    return text + "..."
