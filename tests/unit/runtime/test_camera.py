from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from glocal.runtime.camera import Camera, Retry
from glocal.runtime.capture import open_capture
from glocal.runtime.errors import ImageError, SourceError, UsageError
from glocal.runtime.sources import open_source
from mjpeg import MjpegCamera
from videos import BLUE, GREEN, RED, StandIn, whole


class Bench:
    """A camera that follows a script for each time it is opened; None does not open."""

    def __init__(self, *scripts: list | None, retry: Retry | None = None, every: int = 1) -> None:
        self.captures = [StandIn(script or (), opens=script is not None) for script in scripts]
        self._next: Iterator[StandIn] = iter(self.captures)
        self.waits: list[float] = []
        self.notices: list[str] = []
        self.camera = Camera(
            0, "camera:0", next(self._next), retry, self.notices.append, every, self._open, self._pause
        )

    def _open(self, target: int | str) -> StandIn:
        assert target == 0
        return next(self._next)

    def _pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return False

    def read(self, count: int) -> list[str]:
        frames = [self.camera.read() for _ in range(count)]
        return [frame.source.rpartition("#")[2] if frame else "end" for frame in frames]


def test_a_camera_that_is_lost_twice_comes_back() -> None:
    bench = Bench([RED] * 2, None, [], None, [GREEN], [BLUE] * 3)
    assert bench.read(6) == ["0", "1", "2", "3", "4", "5"]
    # Opening alone is no success: the third capture opened and gave no frame.
    assert bench.waits == [0.5, 1, 2, 4, 0.5]
    assert bench.camera.reconnects == 2
    assert [capture.released for capture in bench.captures] == [True] * 5 + [False]
    assert bench.notices[0] == "camera:0 lost, trying again in 0.5 s (1st time)"
    assert bench.notices[2] == "camera:0 lost, trying again in 2 s (3rd time)"
    assert re.fullmatch(r"camera:0 back after \d+\.\d s", bench.notices[4])
    assert len(bench.notices) == 7
    bench.camera.close()
    assert bench.captures[-1].released


def test_waits_grow_up_to_the_longest() -> None:
    bench = Bench([RED], *[None] * 6, [RED], retry=Retry(first_s=1, longest_s=10))
    assert bench.read(2) == ["0", "1"]
    assert bench.waits == [1, 2, 4, 8, 10, 10, 10]
    assert Retry().wait_s(10_000) == 30


@pytest.mark.parametrize("tries", [0, 3])
def test_it_gives_up_when_it_may(tries: int) -> None:
    bench = Bench([RED], *[None] * tries, retry=Retry(tries=tries))
    bench.read(1)
    with pytest.raises(SourceError, match="camera:0 was lost") as caught:
        bench.camera.read()
    assert f"{tries} tries" in str(caught.value)
    assert len(bench.waits) == tries


def test_a_damaged_frame_is_no_loss() -> None:
    bench = Bench([RED, "damaged", False, GREEN, BLUE])
    frames = [bench.camera.read() for _ in range(5)]
    for index, frame in enumerate(frames):
        assert frame is not None
        assert frame.source == f"camera:0#{index}"
        if index in (1, 2):
            with pytest.raises(ImageError, match=f"#{index} cannot be decoded"):
                frame.load()
        else:
            frame.load()
    assert bench.waits == []


def test_a_camera_that_only_gives_damaged_frames_is_lost() -> None:
    bench = Bench([RED] + ["damaged"] * 100, [GREEN])
    names = bench.read(32)
    assert names == [str(index) for index in range(32)]
    assert bench.camera.reconnects == 1


def test_each_nth_frame_is_taken() -> None:
    assert Bench([RED] * 7, every=3).read(3) == ["0", "3", "6"]


def test_stop_ends_the_wait_for_a_lost_camera() -> None:
    waiting = threading.Event()
    captures = iter([StandIn([RED])])
    camera = Camera(
        0,
        "camera:0",
        next(captures),
        Retry(first_s=3600, longest_s=3600),
        lambda text: waiting.set(),
        opener=lambda _: 1 / 0,
    )
    assert camera.read() is not None
    frames: list[object] = []
    reader = threading.Thread(target=lambda: frames.append(camera.read()))
    reader.start()
    assert waiting.wait(20)
    camera.stop()
    reader.join(20)
    assert not reader.is_alive()
    assert frames == [None]


def test_wrong_waits_are_told() -> None:
    for settings in ({"first_s": 0}, {"first_s": 2, "longest_s": 1}, {"tries": -1}, {"longest_s": float("nan")}):
        with pytest.raises(UsageError, match="no sense"):
            Retry(**settings)  # type: ignore[arg-type]


def test_a_camera_on_the_network_is_opened_again() -> None:
    notices: list[str] = []
    with MjpegCamera(whole(RED), lasts=(4, 3)) as server:
        source = open_source(server.url, retry=Retry(first_s=0.01), notice=notices.append)
        assert source.live
        for index in range(12):
            frame = source.read()
            assert frame is not None
            assert frame.source == f"{server.url}#{index}"
            np.testing.assert_allclose(frame.load(), whole(RED), atol=4)
        assert source.reconnects == 2
        assert server.connections == 3
        source.close()
    assert [text.split(" ")[1] for text in notices] == ["lost,", "back", "lost,", "back"]


def test_a_stream_that_hangs_counts_as_lost() -> None:
    opener = functools.partial(open_capture, timeout_s=0.3)
    notices: list[str] = []
    with MjpegCamera(whole(RED), hangs_after=6) as server:
        source = open_source(server.url, retry=Retry(first_s=0.01), notice=notices.append, opener=opener)
        for _ in range(8):  # more than one connection gives
            assert source.read() is not None
        assert source.reconnects >= 1
        source.close()
    assert "lost" in notices[0]
