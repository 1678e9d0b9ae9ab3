"""Videos to read: real files, and a stand-in for ``cv2.VideoCapture`` that fails when it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tiny_model import painted

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def whole(colour: tuple[int, int, int]) -> np.ndarray:
    return painted(64, 96, (slice(0, 64), slice(0, 96), colour))


def write_video(path: Path, colours: Sequence[tuple[int, int, int]], fps: float = 10) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (96, 64))
    assert writer.isOpened()
    for colour in colours:
        writer.write(whole(colour)[..., ::-1])
    writer.release()
    return path


def frames_of(avi: bytes) -> list[slice]:
    """Where the frames of an AVI file lie."""
    found, at = [], avi.index(b"movi") + 4
    while avi[at : at + 4] == b"00dc":
        size = int.from_bytes(avi[at + 4 : at + 8], "little")
        found.append(slice(at + 8, at + 8 + size))
        at += 8 + size + size % 2
    return found


def damage(path: Path, frames: Sequence[int]) -> Path:
    """Overwrite some frames of an AVI file with zeros."""
    data = bytearray(path.read_bytes())
    for index, part in enumerate(frames_of(bytes(data))):
        if index in frames:
            data[part] = bytes(part.stop - part.start)
    path.write_bytes(data)
    return path


class StandIn:
    """A capture whose grabs follow a script: a colour, "damaged" (not decoded) or False (grab fails), then lost."""

    def __init__(self, script: Sequence[Any] = (), opens: bool = True, count: float = -1) -> None:
        self._script: Iterator[Any] = iter(script)
        self._opens, self._count = opens, count
        self._now: Any = None
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return self._opens and not self.released

    def grab(self) -> bool:
        assert not self.released
        self._now = next(self._script, False)
        return self._now is not False

    def retrieve(self) -> tuple[bool, Any]:
        return (False, None) if self._now == "damaged" else (True, whole(self._now)[..., ::-1].copy())

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FRAME_COUNT: self._count, cv2.CAP_PROP_FPS: 30.0}.get(prop, 0.0)

    def release(self) -> None:
        self.released = True
