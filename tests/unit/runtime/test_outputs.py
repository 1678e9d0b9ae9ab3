from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from glocal.runtime import Pipeline, Prediction
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.outputs import Csv, JsonLines, Output, Pictures, picture_names
from glocal.runtime.video_output import DrawnVideo
from PIL import Image
from tiny_model import LABELS
from videos import GREEN, RED, whole


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, threads=1) as pipeline:
        yield pipeline


FAILED = Prediction.failed("clip.mp4#1", "It cannot be decoded.\n  fix:   none, really", LABELS)


def feed(output: Output, pipeline: Pipeline, images: list[np.ndarray | None]) -> list[Prediction]:
    """Write the predictions of images; None stands for one that failed."""
    predictions = []
    for index, image in enumerate(images):
        prediction = FAILED if image is None else pipeline.predict([image], [f'a, "{index}".mp4#{index}'])[0]
        output.write(image, prediction)
        predictions.append(prediction)
    return predictions


def test_json_lines_are_there_when_finished(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "new" / "all.jsonl"
    output = JsonLines(path)
    predictions = feed(output, pipeline, [whole(RED), None])
    assert not path.exists()
    partial = path.with_name(".all.partial.jsonl")
    assert len(partial.read_text().splitlines()) == 2  # line by line
    output.close()
    output.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [item.to_json() for item in predictions]
    assert list(path.parent.iterdir()) == [path]


def test_csv_has_a_row_per_image(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    output = Csv(path, LABELS)
    predictions = feed(output, pipeline, [whole((255, 255, 90)), None])
    output.close()
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["source"] == 'a, "0".mp4#0'
    assert first["labels"].split("|") == ["red", "green"]
    assert first["error"] == ""
    assert float(first["total_ms"]) == pytest.approx(predictions[0].timings["total"], abs=1e-3)
    assert [float(first[label]) for label in LABELS] == pytest.approx(predictions[0].scores.tolist(), abs=1e-6)
    assert second["error"] == "It cannot be decoded. fix: none, really"
    assert [second[name] for name in ("labels", "total_ms", *LABELS)] == [""] * 5
    assert len(path.read_text().splitlines()) == 3


def test_what_was_there_stays_until_the_new_file_is_finished(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("before")
    output = Csv(path, LABELS)
    feed(output, pipeline, [whole(RED)])
    assert path.read_text() == "before"
    output.close()
    assert path.read_text().startswith("source,")


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
def test_a_video_has_every_frame_at_one_size(pipeline: Pipeline, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drawn{suffix}"
    output = DrawnVideo(path, 12, 3)
    odd = np.full((63, 131, 3), 200, np.uint8)
    feed(output, pipeline, [None, odd, None, np.full((300, 90, 3), 90, np.uint8), whole(RED), whole(GREEN)])
    assert not path.exists()
    output.close()
    output.close()
    assert [file.name for file in tmp_path.glob("*drawn*")] == [path.name]
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    sizes = []
    while video.grab():
        found, frame = video.retrieve()
        assert found
        sizes.append(frame.shape)
    assert len(sizes) == 5  # the failed frame repeats the one before it; there was none before the first
    assert set(sizes) == {sizes[0]}
    assert sizes[0][0] % 2 == sizes[0][1] % 2 == 0


def test_a_video_shows_the_image_in_its_colours(pipeline: Pipeline, tmp_path: Path) -> None:
    output = DrawnVideo(tmp_path / "drawn.avi", 10, 1)
    feed(output, pipeline, [whole(RED)])
    output.close()
    _, frame = cv2.VideoCapture(str(tmp_path / "drawn.avi")).read()
    blue, green, red = frame[300, 300].tolist()
    assert red > 200 > 60 > max(blue, green)


def test_a_video_without_frames_is_none(pipeline: Pipeline, tmp_path: Path) -> None:
    output = DrawnVideo(tmp_path / "drawn.avi", 10, 1)
    feed(output, pipeline, [None])
    output.close()
    assert list(tmp_path.glob("*drawn*")) == []


def test_a_video_that_cannot_be_read_back_is_told(pipeline: Pipeline, tmp_path: Path) -> None:
    output = DrawnVideo(tmp_path / "drawn.avi", 10, 1)
    feed(output, pipeline, [whole(RED)])
    (tmp_path / ".drawn.partial.avi").unlink()  # as after a full disk
    with pytest.raises(GlocalError, match="cannot be written"):
        output.close()
    assert list(tmp_path.glob("*drawn*")) == []


def test_pictures_of_frames_are_numbered(pipeline: Pipeline, tmp_path: Path) -> None:
    output = Pictures(tmp_path / "pictures", [], 2)
    feed(output, pipeline, [whole(RED), None, whole(GREEN)])
    output.close()
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["frame-000000.jpg", "frame-000002.jpg"]
    with Image.open(tmp_path / "pictures" / "frame-000000.jpg") as picture:
        assert picture.size[0] == 970


def test_pictures_have_names_of_their_own() -> None:
    names = picture_names([Path("d/a.jpg"), Path("d/a.png"), Path("d/A.JPG"), Path("d/b.png")])
    assert list(names.values()) == ["a.jpg", "a.png.jpg", "A.JPG.jpg", "b.jpg"]


@pytest.mark.parametrize("make", [JsonLines, lambda path: Csv(path, LABELS), lambda path: DrawnVideo(path, 9, 1)])
def test_places_that_cannot_be_written_are_told(make: Callable[[Path], Output], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GlocalError, match="cannot be written"):
        make(tmp_path / "file" / "out.avi")
    (tmp_path / "folder.avi").mkdir()
    with pytest.raises(UsageError, match="no file"):
        make(tmp_path / "folder.avi")


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="no file"):
        JsonLines(Path("/dev/null"))


def test_a_full_disk_is_told_and_leaves_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (prediction,) = pipeline.predict([whole(RED)])
    output = JsonLines(tmp_path / "all.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file may become longer
    try:
        with pytest.raises(GlocalError, match="cannot be written"):
            output.write(None, prediction)
        output.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.glob("*all*")) == []


def test_a_video_needs_a_suffix_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix"):
        DrawnVideo(tmp_path / "drawn.jpg", 10, 1)
