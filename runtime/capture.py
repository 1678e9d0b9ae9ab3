"""Frames of videos, through OpenCV: what a frame is, opening a capture, reading a video file to its end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, SourceError

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpg", ".mjpeg", ".mpg", ".mpeg", ".ts", ".wmv", ".flv",
)  # fmt: skip

_TRIES = 100  # damaged frames in a row after which a file counts as ended
_MISSING = 0.05  # part of the announced frames that may be missing: containers often announce an estimate


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a source, not necessarily decoded yet.

    Attributes:
        source: What to call it: the file, or the video and the frame's index from 0, such as ``clip.mp4#17``.
        load: Decodes it, in any thread: (H, W, 3) uint8 RGB. It raises ImageError where there is no image.
        ms: What reading it has taken so far, milliseconds.
    """

    source: str
    load: Callable[[], NDArray[np.uint8]]
    ms: float = 0.0


class Capture(Protocol):
    """The part of ``cv2.VideoCapture`` that is used."""

    def isOpened(self) -> bool:  # noqa: N802
        """Whether it can be read."""

    def grab(self) -> bool:
        """Go on to the next frame."""

    def retrieve(self) -> tuple[bool, Any]:
        """Whether the frame could be decoded, and it: (H, W, 3) uint8 BGR."""

    def get(self, prop: int) -> float:
        """A property, 0 or less where it is not known."""

    def release(self) -> None:
        """Free what it holds."""


def open_capture(target: int | str, timeout_s: float = 5.0) -> Capture:
    """Open a video file, a URL, or the camera of a number; ask ``isOpened`` whether that worked.

    Args:
        target: What to open.
        timeout_s: How long opening a URL, and reading one frame of it, may take (OpenCV's FFmpeg backend).
    """
    # A build without FFmpeg has other backends for URLs, which do not know the limits.
    if isinstance(target, str) and "://" in target and cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        settings = [number for limit in limits for number in (limit, int(timeout_s * 1e3))]
        return cv2.VideoCapture(target, cv2.CAP_FFMPEG, settings)
    return cv2.VideoCapture(target)


def grab_next(capture: Capture, tries: int) -> int | None:
    """Go on to the next frame that can be decoded.

    With OpenCV's FFmpeg, `grab` fails at the end, but also once for each damaged frame, behind which there are more.

    Returns:
        How many damaged frames were passed by; None if all ``tries`` failed, or one that took longer than a second.
    """
    for damaged in range(tries):
        start = time.perf_counter()
        if capture.grab():
            return damaged
        if time.perf_counter() - start > 1:  # not damage, but a stream that does not answer
            break
    return None


def frame_of(capture: Capture, name: str, ms: float) -> tuple[Frame, bool]:
    """The frame that was grabbed, and whether it is one."""
    start = time.perf_counter()
    found, image = capture.retrieve()
    ms += (time.perf_counter() - start) * 1e3
    if not found or image is None:
        return damaged_frame(name), False
    return Frame(name, lambda: _rgb(image), ms), True


def frames_at(
    capture: Capture, name: str, indices: range, every: int, ms: float = 0.0
) -> tuple[list[Frame], bool | None]:
    """The frames of some indices, of which the last was grabbed and the ones before are damaged.

    Args:
        capture: What they come from.
        name: What to call it.
        indices: Of the frames, from 0.
        every: Only those that this number divides are taken.
        ms: What grabbing has taken, milliseconds.

    Returns:
        The frames that are taken, and whether the last has an image; None where it is not taken.
    """
    frames = [damaged_frame(f"{name}#{at}") for at in indices[:-1] if at % every == 0]
    if indices[-1] % every:
        return frames, None
    last, good = frame_of(capture, f"{name}#{indices[-1]}", ms)
    return [*frames, last], good


def damaged_frame(name: str) -> Frame:
    """A frame that cannot be decoded."""
    fix = "One damaged frame does no harm; if there are many, check the source."
    return failed_frame(name, ImageError(f"{name} cannot be decoded.", fix=fix))


def failed_frame(name: str, error: ImageError) -> Frame:
    """A frame of which there is no image."""

    def load() -> NoReturn:
        raise error

    return Frame(name, load)


class Video:
    """A source of the frames of a video file, or of a URL whose video ends. See `glocal.runtime.sources.Source`.

    Args:
        capture: Opened.
        name: What to call the video.
        every: Take only each ``every``-th frame, from the first on.

    Raises:
        SourceError: The capture is not open.
    """

    live, sequential, reconnects = False, True, 0
    images: Sequence[Path] = ()

    def __init__(self, capture: Capture, name: str, every: int = 1) -> None:
        if not capture.isOpened():
            capture.release()
            raise SourceError(
                f"{name} cannot be opened as a video.",
                found="OpenCV knows no way to read it",
                fix="Check that it is a whole video, or convert it, such as with ffmpeg -i IN -c:v libx264 OUT.mp4.",
            )
        self.name, self._capture, self._every = name, capture, every
        self._announced = announced_frames(capture)
        self.total = -(-self._announced // every) if self._announced else None
        self.fps = known_fps(capture, every)
        self._index = 0
        self._passed: deque[Frame] = deque()  # damaged ones, and the one behind them
        self._ended = False

    def read(self) -> Frame | None:
        """The next frame; None at the end."""
        start = time.perf_counter()
        while not self._passed and (damaged := grab_next(self._capture, _TRIES)) is not None:
            indices = range(self._index, self._index + damaged + 1)
            self._index = indices.stop
            ms = (time.perf_counter() - start) * 1e3
            self._passed.extend(frames_at(self._capture, self.name, indices, self._every, ms)[0])
        if self._passed:
            return self._passed.popleft()
        if self._ended or self._announced is None:
            return None
        self._ended = True
        if self._announced - self._index <= max(2, _MISSING * self._announced):
            return None
        error = ImageError(
            f"{self.name} ends too early.",
            found=f"{self._index} frames that can be decoded, {self._announced} are announced",
            fix="The file is truncated or damaged: copy or record it again.",
        )
        return failed_frame(f"{self.name}#{self._index}", error)

    def stop(self) -> None:
        """Nothing to do: reading a frame of a file does not wait."""

    def close(self) -> None:
        """Free the capture."""
        self._capture.release()


def announced_frames(capture: Capture) -> int | None:
    """How many frames a video says it has; None for a live one, and where it is not known."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else None


def known_fps(capture: Capture, every: int) -> float | None:
    """Frames a second that are taken; None where the capture does not say, or says nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps / every if 0 < fps <= 1000 else None


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
