"""Where frames come from: image files, folders, videos, cameras, URLs, or anything that can be iterated over."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .camera import Camera, Retry
from .capture import VIDEO_SUFFIXES, Capture, Frame, Video, announced_frames, open_capture
from .errors import UsageError
from .images import SUFFIXES, list_images, read_image, starts_like_image
from .progress import note

_CAMERA = re.compile(r"(?:camera:|/dev/video)?(\d{1,4})")
_SECRET = re.compile(r"(?<=://)[^/@]*@")


class Source(Protocol):
    """Frames, one after the other.

    Attributes:
        name: What to call it; a URL without its user and password.
        live: Whether frames come at their own pace and are lost when nobody takes them.
        sequential: Whether `read` does the decoding; if not, several threads may load frames at once.
        total: How many frames there are, where that is known.
        fps: Frames a second, where that is known.
        reconnects: How often it was lost and came back.
        images: The files, where it is a list of image files.
    """

    name: str
    live: bool
    sequential: bool
    total: int | None
    fps: float | None
    reconnects: int
    images: Sequence[Path]

    def read(self) -> Frame | None:
        """The next frame; None at the end. One thread at a time."""

    def stop(self) -> None:
        """Make a `read` that waits end soon. Any thread may call it."""

    def close(self) -> None:
        """Free what is held. `read` must not be running."""


AnySource = str | int | os.PathLike[str] | Source | Iterable[NDArray[np.uint8] | str | os.PathLike[str]]


class Items:
    """A source of image files, or of arrays in memory. See `Source`."""

    live, sequential, reconnects = False, False, 0
    fps: float | None = None

    def __init__(self, items: Iterable[Any], name: str, every: int = 1, images: Sequence[Path] = ()) -> None:
        self.name, self.images = name, images[::every]
        self.total = -(-len(items) // every) if isinstance(items, Sized) else None
        self._all = iter(items)
        self._taken = itertools.islice(self._all, 0, None, every)
        self._indices = itertools.count(0, every)

    def read(self) -> Frame | None:
        """The next file or array; None at the end."""
        for item in self._taken:
            index = next(self._indices)
            if isinstance(item, str | os.PathLike):
                return Frame(os.fspath(item), _reading(item))
            return Frame(f"image {index}", _giving(item))
        return None

    def stop(self) -> None:
        """Nothing to do: what an iterator waits for is its own business."""

    def close(self) -> None:
        """Close the iterator, where it is a generator."""
        if isinstance(self._all, Iterator) and (close := getattr(self._all, "close", None)):
            close()


def open_source(
    source: AnySource,
    every: int = 1,
    retry: Retry | None = None,
    notice: Callable[[str], None] = note,
    opener: Callable[[int | str], Capture] = open_capture,
) -> Source:
    """Open a source of frames. What it stands for is decided in this order.

    Args:
        source: A camera: its number, ``camera:0`` or ``/dev/video0``. A URL (``rtsp://``, ``http://``, ``udp://`` and
            what else OpenCV's FFmpeg reads): live, unless it is a video that says how many frames it has. A folder of
            images, without its sub-folders. A video file or an image file: by its suffix, else by what is in it. An
            iterable of (H, W, 3) uint8 RGB arrays, which may not change afterwards, and of paths of images; a reader's
            thread takes from it. A source that is open already is given back.
        every: Take only each ``every``-th frame, from the first on.
        retry: How to open a lost camera again; `Retry()` by default.
        notice: Called with what happens to a camera, in a reader's thread; by default it is written to stderr.
        opener: Opens a capture.

    Raises:
        UsageError: There is no such path, the folder holds no image, or the argument is none of these.
        SourceError: OpenCV cannot open the video, camera or URL.
    """
    if every < 1:
        raise UsageError(f"every must be at least 1, not {every}.")
    if isinstance(source, int) and not isinstance(source, bool):
        source = f"camera:{source}"
    if isinstance(source, str) and (match := _CAMERA.fullmatch(source)):
        number = int(match[1])
        name = source if source.startswith("/") else f"camera:{number}"
        return Camera(number, name, opener(number), retry, notice, every, opener)
    if isinstance(source, str) and "://" in source:
        name, capture = _SECRET.sub("", source), opener(source)
        if capture.isOpened() and announced_frames(capture) is not None:
            return Video(capture, name, every)
        return Camera(source, name, capture, retry, notice, every, opener)
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), every, opener)
    if all(hasattr(source, name) for name in ("read", "stop", "close", "live")):
        return source  # type: ignore[return-value]
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise UsageError("A source is a sequence of images.", found="one array", fix="Give [image].")
    if not isinstance(source, Iterable) or isinstance(source, bytes | dict):
        fix = "Give a path, a URL, the number of a camera, or an iterable of RGB arrays or paths."
        raise UsageError("This is no source of images.", found=type(source).__name__, fix=fix)
    return Items(source, "images", every)


def _open_path(path: Path, every: int, opener: Callable[[int | str], Capture]) -> Source:
    if not path.exists():
        fix = "Name an image, a folder of images or a video; or a URL, or a camera, such as camera:0."
        raise UsageError(f"{path} does not exist.", fix=fix)
    if path.is_file() and path.suffix.lower() not in SUFFIXES and not starts_like_image(path):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return Video(opener(str(path)), str(path), every)
        capture = opener(str(path))
        if capture.isOpened():
            return Video(capture, str(path), every)
        capture.release()  # what is wrong with it as an image is told when it is read
    paths = list_images(path)
    return Items(paths, str(path), every, paths)


def _reading(path: str | os.PathLike[str]) -> Callable[[], NDArray[np.uint8]]:
    return lambda: read_image(path)


def _giving(array: Any) -> Callable[[], NDArray[np.uint8]]:
    return lambda: array  # whether it is an image is checked where it is predicted
