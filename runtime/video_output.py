"""A video of drawn predictions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .draw import draw
from .errors import UsageError
from .partial import PartialFile
from .prediction import Prediction

_FOURCC = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}


class DrawnVideo:
    """An output (`glocal.runtime.outputs.Output`) that is a video of the drawn predictions.

    All frames get the size of the first; where one failed, the last stays.

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
        self._partial = PartialFile(path)
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
