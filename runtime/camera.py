"""Cameras and live streams: a lost one is opened again, after waits that grow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .capture import Capture, Frame, frames_at, grab_next, known_fps, open_capture
from .errors import SourceError, UsageError
from .progress import note

_TRIES = 3  # to grab a frame at once before the camera counts as lost
_BAD_IN_A_ROW = 30  # frames without an image after which a camera counts as lost, though it still answers


@dataclass(frozen=True)
class Retry:
    """How to open a lost camera again.

    Attributes:
        first_s: The first wait, seconds; each further one is twice as long.
        longest_s: The longest wait, seconds.
        tries: How often to try in a row before giving up; None tries for ever.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    tries: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s < float("inf") or (self.tries is not None and self.tries < 0):
            fix = "0 < first_s <= longest_s, and tries is None or 0 and more."
            raise UsageError("These waits for a lost camera make no sense.", found=str(self), fix=fix)

    def wait_s(self, attempt: int) -> float:
        """The wait before the ``attempt``-th try (from 1), seconds."""
        return min(self.first_s * 2.0 ** min(attempt - 1, 60), self.longest_s)


class Camera:
    """A source of the frames of a camera or a live URL. See `glocal.runtime.sources.Source`.

    Args:
        target: The camera's number, or the URL.
        name: What to call it.
        capture: Opened already; it is replaced when the camera is lost.
        retry: How to open a lost camera again.
        notice: Called in the reader's thread with what happens to the camera.
        every: Take only each ``every``-th frame.
        opener: Opens a capture.
        pause: Waits for some seconds and says whether the source was stopped meanwhile; by default it really waits.

    Attributes:
        reconnects: How often the camera was lost and came back.

    Raises:
        SourceError: The capture is not open: a camera that never answered is more likely a mistake than lost.
    """

    live, sequential = True, True
    total: int | None = None
    images: Sequence[Path] = ()

    def __init__(
        self,
        target: int | str,
        name: str,
        capture: Capture,
        retry: Retry | None = None,
        notice: Callable[[str], None] = note,
        every: int = 1,
        opener: Callable[[int | str], Capture] = open_capture,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        if not capture.isOpened():
            capture.release()
            raise SourceError(
                f"{name} cannot be opened.",
                found="no answer",
                fix="Check that it is there and that no other program uses it; for a URL, also user and password.",
            )
        self.name, self._target, self._every = name, target, every
        self._capture: Capture | None = capture
        self._retry, self._notice, self._opener = retry or Retry(), notice, opener
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self.fps = known_fps(capture, every)
        self.reconnects = 0
        self._index = 0
        self._passed: deque[Frame] = deque()  # read, but not given yet
        self._bad = 0  # frames without an image in a row
        self._failures = 0  # tries in a row that gave no frame
        self._lost_at = 0.0

    def read(self) -> Frame | None:
        """The next frame; None after `stop`. A lost camera is waited for.

        Raises:
            SourceError: The camera was lost, and did not come back in the tries that it has.
        """
        while not self._stopped.is_set():
            if self._passed:
                return self._passed.popleft()
            if self._capture is None:
                self._reopen()
            elif self._bad >= _BAD_IN_A_ROW or (damaged := grab_next(self._capture, _TRIES)) is None:
                self._lose()
            else:
                self._take(self._capture, damaged)
        return None

    def stop(self) -> None:
        """End `read`, also while it waits for a lost camera. Any thread may call it."""
        self._stopped.set()

    def close(self) -> None:
        """Free the capture. `read` must not be running."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _take(self, capture: Capture, damaged: int) -> None:
        """Note the frame that was grabbed, and the damaged ones before it."""
        indices = range(self._index, self._index + damaged + 1)
        self._index = indices.stop
        frames, good = frames_at(capture, self.name, indices, self._every)
        self._passed.extend(frames)
        if good is None:
            return
        self._bad = 0 if good else self._bad + 1
        if good and self._failures:
            self._back()

    def _lose(self) -> None:
        self.close()
        self._bad = 0
        if not self._failures:
            self._lost_at = time.monotonic()
        self._failures += 1

    def _reopen(self) -> None:
        """Wait, then try to open the camera once. Only a frame proves that it is back."""
        attempt = self._failures
        if self._retry.tries is not None and attempt > self._retry.tries:
            raise SourceError(
                f"{self.name} was lost.",
                found=f"no frame in {self._retry.tries} tries to open it again",
                fix="Check the camera, its cable or the network.",
            )
        wait = self._retry.wait_s(attempt)
        self._notice(f"{self.name} lost, trying again in {wait:g} s ({_ordinal(attempt)} time)")
        if self._pause(wait):
            return
        capture = self._opener(self._target)
        if capture.isOpened():
            self._capture = capture
        else:
            capture.release()
            self._failures += 1

    def _back(self) -> None:
        self._notice(f"{self.name} back after {time.monotonic() - self._lost_at:.1f} s")
        self.reconnects += 1
        self._failures = 0


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"
