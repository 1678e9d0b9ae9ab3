from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime.errors import ImageError, SourceError, UsageError
from glocal.runtime.sources import Source, open_source
from PIL import Image
from videos import BLACK, BLUE, GREEN, RED, StandIn, damage, frames_of, whole, write_video


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name, colour in (("b.png", GREEN), ("a.png", RED), ("below/c.png", BLUE), ("d.bmp", BLUE)):
        Image.fromarray(whole(colour)).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def everything(source: Source) -> list[tuple[str, tuple[int, ...] | str]]:
    """Names, and the colour in a corner or the error."""
    found: list[tuple[str, tuple[int, ...] | str]] = []
    while (frame := source.read()) is not None:
        try:
            pixel = frame.load()[0, 0]
            found.append((frame.source, tuple(255 if value > 127 else 0 for value in pixel.tolist())))
        except ImageError as error:
            found.append((frame.source, error.what))
    source.close()
    source.close()
    return found


def test_a_folder_is_its_images_by_name(photos: Path) -> None:
    source = open_source(photos)
    assert (source.live, source.total, source.sequential) == (False, 3, False)
    expected = [(str(photos / name), colour) for name, colour in (("a.png", RED), ("b.png", GREEN), ("d.bmp", BLUE))]
    assert everything(source) == expected
    source = open_source(str(photos), every=2)
    assert source.total == 2
    assert list(source.images) == [photos / "a.png", photos / "d.bmp"]
    assert everything(source) == [expected[0], expected[2]]


def test_paths_and_arrays_are_taken_from_any_iterable(photos: Path) -> None:
    def items() -> Iterator[object]:
        yield whole(RED)
        yield str(photos / "b.png")
        yield photos / "missing.png"

    source = open_source(items())
    assert source.total is None
    missing = str(photos / "missing.png")
    expected = [("image 0", RED), (str(photos / "b.png"), GREEN), (missing, f"{missing} cannot be read.")]
    assert everything(source) == expected
    assert open_source([whole(RED)] * 4).total == 4
    assert everything(open_source([whole(RED), whole(BLUE), whole(GREEN)], every=2)) == [
        ("image 0", RED),
        ("image 2", GREEN),
    ]


def test_a_generator_is_closed() -> None:
    ended = []

    def images() -> Iterator[np.ndarray]:
        try:
            while True:
                yield whole(RED)
        finally:
            ended.append(True)

    source = open_source(images())
    assert source.read() is not None
    source.close()
    assert ended == [True]


def test_a_video_is_read_in_order_and_in_rgb(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", [RED, GREEN, BLUE, BLACK], fps=12)
    source = open_source(path)
    assert (source.live, source.total, source.fps, source.sequential) == (False, 4, 12, True)
    names = [f"{path}#{index}" for index in range(4)]
    assert everything(source) == list(zip(names, [RED, GREEN, BLUE, BLACK], strict=True))
    source = open_source(path, every=3)
    assert (source.total, source.fps) == (2, 4)
    assert everything(source) == [(names[0], RED), (names[3], BLACK)]


def test_a_file_is_what_is_in_it(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", [RED, GREEN]).rename(tmp_path / "clip.recorded")
    assert open_source(tmp_path / "clip.recorded").total == 2
    Image.fromarray(whole(BLUE)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo")
    assert everything(open_source(tmp_path / "photo")) == [(str(tmp_path / "photo"), BLUE)]
    text = tmp_path / "notes.txt"
    text.write_text("neither image nor video")
    assert everything(open_source(text)) == [(str(text), f"{text} is not an image.")]
    text.rename(tmp_path / "notes.mp4")
    with pytest.raises(SourceError, match=r"notes\.mp4 cannot be opened as a video"):
        open_source(tmp_path / "notes.mp4")


def test_damaged_frames_do_not_end_a_video(tmp_path: Path) -> None:
    path = damage(write_video(tmp_path / "clip.avi", [RED] * 12), [0, 5, 6, 7])
    found = everything(open_source(path))
    assert [name for name, _ in found] == [f"{path}#{index}" for index in range(12)]
    wrong = [index for index, (_, colour) in enumerate(found) if colour != RED]
    assert wrong == [0, 5, 6, 7]
    assert found[6][1] == f"{path}#6 cannot be decoded."
    taken = everything(open_source(path, every=3))
    assert [name.rpartition("#")[2] for name, _ in taken] == ["0", "3", "6", "9"]
    assert [colour == RED for _, colour in taken] == [False, True, False, True]


def test_a_truncated_video_is_told_at_its_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", [GREEN] * 20)
    data = path.read_bytes()
    path.write_bytes(data[: frames_of(data)[7].start])
    found = everything(open_source(path))
    assert [colour for _, colour in found] == [GREEN] * 7 + [f"{path} ends too early."]
    assert found[-1][0] == f"{path}#7"


def test_a_frame_that_is_grabbed_but_not_decoded_fails() -> None:
    source = open_source("http://host/clip", opener=lambda target: StandIn([RED, "damaged", BLUE], count=3))
    assert [colour for _, colour in everything(source)] == [RED, "http://host/clip#1 cannot be decoded.", BLUE]


def test_cameras_and_urls_are_live() -> None:
    asked: list[object] = []

    def opener(target: int | str) -> StandIn:
        asked.append(target)
        return StandIn([RED])

    names = [open_source(source, opener=opener).name for source in ("0", 3, "camera:1", "/dev/video2")]
    assert names == ["camera:0", "camera:3", "camera:1", "/dev/video2"]
    assert asked == [0, 3, 1, 2]
    source = open_source("rtsp://user:secret@host/stream", opener=opener)
    assert asked[-1] == "rtsp://user:secret@host/stream"
    assert (source.live, source.total, source.fps) == (True, None, 30)
    frame = source.read()
    assert frame is not None
    assert frame.source == "rtsp://host/stream#0"
    # A video that says how long it is ends, wherever it lies.
    ends = open_source("http://host/clip.mp4", opener=lambda target: StandIn([RED] * 9, count=9))
    assert (ends.live, ends.total) == (False, 9)


def test_what_never_answers_is_told(tmp_path: Path) -> None:
    closed = StandIn(opens=False)
    for source in ("camera:5", "rtsp://user:secret@host/x"):
        with pytest.raises(SourceError, match="cannot be opened") as caught:
            open_source(source, opener=lambda target: closed)
        assert "secret" not in str(caught.value)
        assert closed.released


def test_wrong_sources_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "missing", "missing does not exist"),
        ("clip.mp4", "clip.mp4 does not exist"),
        (tmp_path / "empty", "holds no image"),
        (whole(RED), "sequence of images"),
        (b"bytes", "no source"),
        (1.5, "no source"),
        (None, "no source"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(source)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="every"):
        open_source([], every=0)


def test_an_open_source_is_given_back(photos: Path) -> None:
    source = open_source(photos)
    assert open_source(source) is source
