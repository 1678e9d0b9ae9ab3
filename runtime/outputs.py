"""Where predictions go: JSON lines, CSV, drawn pictures, a drawn video.

A file is written under a hidden name beside its own, ``.NAME.partial.SUFFIX``, and gets its name when it is finished:
it is never there half. Closing an output early, after Ctrl-C for instance, finishes it with what it has so far.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .draw import draw
from .errors import GlocalError, UsageError
from .files import write_atomically
from .images import encode_jpeg
from .prediction import Prediction

_FOURCC = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


class Output(Protocol):
    """Something that takes the predictions of a source, one after the other."""

    def write(self, image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
        """Take the prediction of a source image, which is None where it failed."""

    def close(self) -> None:
        """Finish what was written. Closing twice is fine."""


class JsonLines:
    """One line of JSON per prediction, see `glocal.runtime.Prediction.to_json`.

    Args:
        path: The file, or None for stdout, where each line is flushed at once.

    Raises:
        UsageError: The path is something else than a file.
        GlocalError: It cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = None if path is None else _TextFile(path)

    def write(self, image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
        """Write one line."""
        line = json.dumps(prediction.to_json(), allow_nan=False)
        if self._file is None:
            print(line, flush=True)
        else:
            self._file.write(line + "\n")

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()


class Csv:
    """A table: source, labels joined by ``|``, error, total (ms), and the fused score of each label.

    Args:
        path: The file.
        labels: The labels of the model.

    Raises:
        UsageError: The path is something else than a file.
        GlocalError: It cannot be written.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._file = _TextFile(path)
        self._labels = len(labels)
        self._row("source", "labels", "error", "total_ms", *labels)

    def write(self, image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
        """Write one row; without scores where the prediction failed."""
        error = " ".join((prediction.error or "").split())
        total = f"{prediction.timings['total']:.3f}" if prediction.timings else ""
        scores = [f"{score:.6f}" for score in prediction.scores.tolist()] or [""] * self._labels
        self._row(prediction.source, "|".join(prediction.labels), error, total, *scores)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _row(self, *values: str) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        self._file.write(text.getvalue())


class Pictures:
    """A drawn JPEG per prediction.

    Args:
        folder: Where they go.
        images: The image files of the source, whose names the pictures get; without any, they are named by their
            frame's number: ``frame-000017.jpg``.
        top: Labels whose scores are drawn.

    Raises:
        UsageError: The folder is a file, or that of the images.
    """

    def __init__(self, folder: Path, images: Sequence[Path], top: int) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file.", fix="Name a folder with --out.")
        if images and folder.resolve() == images[0].parent.resolve():
            fix = "Name another folder with --out."
            raise UsageError(f"The pictures would stand among the images in {folder}.", fix=fix)
        self._folder, self._top, self._names = folder, top, picture_names(images)

    def write(self, image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
        """Write a picture, where there is an image."""
        if image is None:
            return
        name = self._names.get(prediction.source)
        if name is None:
            name = f"frame-{int(prediction.source.rpartition('#')[2]):06d}.jpg"
        path = self._folder / name
        picture = draw(image, prediction, self._top)
        try:
            write_atomically(path, encode_jpeg(picture))
        except OSError as error:
            fix = "Free space, or name another folder with --out."
            raise GlocalError(f"{path} cannot be written.", found=str(error), fix=fix) from error

    def close(self) -> None:
        """Nothing to do: each picture is finished."""


class DrawnVideo:
    """A video of the drawn predictions. All frames get the size of the first; where one failed, the last stays.

    Args:
        path: The file: ``.mp4``, ``.m4v``, ``.mov`` (MPEG-4), ``.avi`` or ``.mkv`` (Motion JPEG). Without any frame,
            there will be none.
        fps: Frames a second.
        top: Labels whose scores are drawn.

    Raises:
        UsageError: The suffix is another one, or the path is something else than a file.
        GlocalError: It cannot be written.
    """

    def __init__(self, path: Path, fps: float, top: int) -> None:
        suffix = path.suffix.lower()
        if suffix not in _FOURCC:
            raise UsageError(f"{path} has no suffix of a video.", fix=f"End it with one of {' '.join(_FOURCC)}.")
        self._code = cv2.VideoWriter.fourcc(*_FOURCC[suffix])
        self._partial = _Partial(path)
        self._fps, self._top = fps, top
        self._writer: cv2.VideoWriter | None = None
        self._last: NDArray[np.uint8] | None = None  # (H, W, 3) BGR

    def write(self, image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
        """Write a frame."""
        if image is not None:
            picture = draw(image, prediction, self._top)
            if self._last is None:
                height, width = picture.shape[:2]
                size = (height + height % 2, width + width % 2)  # codecs that halve the colours want even sizes
            else:
                size = self._last.shape[:2]
            self._last = np.asarray(cv2.cvtColor(_fit(picture, size), cv2.COLOR_RGB2BGR), dtype=np.uint8)
        if self._last is None:
            return
        if self._writer is None:
            height, width = self._last.shape[:2]
            self._writer = cv2.VideoWriter(str(self._partial.path), self._code, self._fps, (width, height))
            if not self._writer.isOpened():
                self._writer = None
                raise self._partial.broken("OpenCV cannot open it with this codec and size")
        self._writer.write(self._last)

    def close(self) -> None:
        """Finish the video."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # A writer does not tell of a full disk.
        written = cv2.VideoCapture(str(self._partial.path))
        readable = written.isOpened() and written.grab()
        written.release()
        if not readable:
            raise self._partial.broken("what was written cannot be read")
        self._partial.finish()


def picture_names(images: Sequence[Path]) -> dict[str, str]:
    """A name for the picture of each image: ``a.jpg`` gives ``a.jpg``, and ``a.png`` beside it ``a.png.jpg``."""
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for path in images:
        name = path.stem if path.stem.casefold() not in taken else path.name
        number = 2
        while name.casefold() in taken:
            name = f"{path.name}-{number}"
            number += 1
        taken.add(name.casefold())
        chosen[os.fspath(path)] = f"{name}.jpg"
    return chosen


class _Partial:
    """A file that is not finished yet."""

    def __init__(self, path: Path) -> None:
        self._target = path.resolve()  # a link stays one
        if self._target.exists() and not self._target.is_file():  # /dev/null, say, would be replaced
            raise UsageError(f"{path} is no file that could be replaced.", fix="Name a file.")
        self.path = self._target.with_name(f".{self._target.stem}.partial{self._target.suffix}")
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.path.unlink()
        except OSError as error:
            raise self.broken(str(error)) from error

    def broken(self, found: str) -> GlocalError:
        """The error of a file that cannot be written; what there is of it goes."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        return GlocalError(f"{self._target} cannot be written.", found=found, fix="Free space, or name another file.")

    def finish(self) -> None:
        """Give the file its name."""
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self.path, self._target)
        except OSError as error:
            raise self.broken(str(error)) from error


class _TextFile:
    """A text file, written line by line."""

    def __init__(self, path: Path) -> None:
        self._partial = _Partial(path)
        try:
            self._file = self._partial.path.open(
                "w", buffering=1, encoding="utf-8", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise self._partial.broken(str(error)) from error

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise self._partial.broken(str(error)) from error

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.close()
        except OSError as error:
            raise self._partial.broken(str(error)) from error
        self._partial.finish()


def _fit(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture in the middle of a white one of another size (height, width); shrunk where it is too large."""
    height, width = picture.shape[:2]
    scale = min(size[0] / height, size[1] / width, 1.0)
    if scale < 1:
        shrunk = (max(int(width * scale), 1), max(int(height * scale), 1))
        picture = np.asarray(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    canvas = np.full((*size, 3), 255, np.uint8)
    top, left = (size[0] - picture.shape[0]) // 2, (size[1] - picture.shape[1]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas
