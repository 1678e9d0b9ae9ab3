"""Where predictions go: JSON lines, CSV, drawn pictures (and `glocal.runtime.video_output`).

Closing an output early, after Ctrl-C for instance, finishes its file with what it has so far.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .draw import draw
from .errors import GlocalError, UsageError
from .files import write_atomically
from .images import encode_jpeg
from .partial import TextFile
from .prediction import Prediction


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
        self._file = None if path is None else TextFile(path)

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
        self._file = TextFile(path)
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
