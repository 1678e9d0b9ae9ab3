from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime import Pipeline, stream
from glocal.runtime.errors import SourceError, UsageError
from glocal.runtime.images import read_image
from glocal.runtime.sources import open_source
from PIL import Image
from tiny_model import GLOBAL, black_is_nan, graph
from videos import BLACK, BLUE, GREEN, RED, StandIn, damage, whole, write_video


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        size = (int(rng.integers(30, 200)), int(rng.integers(30, 200)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "07.png").write_bytes((folder / "08.png").read_bytes()[:50])
    return folder


@pytest.mark.parametrize(("batch", "workers", "readers"), [(1, 1, 1), (3, 2, 2), (8, 4, None)])
def test_a_stream_says_what_predict_says(
    pipeline: Pipeline, photos: Path, batch: int, workers: int, readers: int | None
) -> None:
    expected = list(pipeline.predict_files(sorted(photos.iterdir()), batch=1))
    with pipeline.stream(photos, batch, workers=workers, readers=readers) as predictions:
        found = list(predictions)
        assert predictions.stats == stream.StreamStats(24, 23, 1, 0, 0)
    for one, other in zip(found, expected, strict=True):
        assert (one.source, one.size, one.labels, one.error) == (other.source, other.size, other.labels, other.error)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
        assert [region.box for region in one.regions] == [region.box for region in other.regions]
        assert list(one.timings) == list(other.timings)
    assert "07.png" in str(found[7].error)
    assert found[0].timings["decode"] > 0
    arrays = [read_image(path) for path in sorted(photos.iterdir()) if path.name != "07.png"]
    for one, other in zip(pipeline.stream(arrays, batch), pipeline.predict(arrays), strict=True):
        assert one.source == other.source
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_a_video_is_predicted_frame_by_frame(pipeline: Pipeline, tmp_path: Path) -> None:
    path = damage(write_video(tmp_path / "clip.avi", [RED, GREEN, BLUE, RED, BLACK] * 6), [8])
    predictions = list(pipeline.stream(path, batch=4, workers=2))
    assert [prediction.source for prediction in predictions] == [f"{path}#{index}" for index in range(30)]
    assert [prediction.labels for prediction in predictions[:5]] == [("red",), ("green",), ("blue",), ("red",), ()]
    assert [index for index, prediction in enumerate(predictions) if prediction.error is not None] == [8]


def test_a_lost_camera_is_counted(pipeline: Pipeline) -> None:
    captures = iter([StandIn([RED] * 3), StandIn([GREEN] * 3)])
    notices: list[str] = []
    from glocal.runtime.camera import Retry

    camera = open_source("0", 1, Retry(0.01, 0.01, tries=0), notices.append, lambda target: next(captures))
    with pytest.raises(SourceError, match="0 tries"):
        list(pipeline.stream(camera, drop=False))
    captures = iter([StandIn([RED] * 3), StandIn([GREEN] * 3), *[StandIn(opens=False)] * 2])
    camera = open_source("0", 1, Retry(0.01, 0.01, tries=2), notices.append, lambda target: next(captures))
    predictions = pipeline.stream(camera, drop=False)
    assert [next(predictions).labels for _ in range(6)] == [("red",)] * 3 + [("green",)] * 3
    with pytest.raises(SourceError, match="2 tries"):
        next(predictions)
    assert predictions.stats.reconnects == 1


def test_an_engine_error_is_that_of_its_frame(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny({"fp32/global.onnx": graph(black_is_nan(GLOBAL))})
    images = [whole(RED), whole(RED), np.zeros((9, 9, 3), np.uint8), whole(RED).astype(np.float32), whole(GREEN)]
    seen: list[bool] = []
    with Pipeline.load(bundle, threads=1) as pipeline:
        predictions = list(pipeline.stream(images, 5, on_frame=lambda image, prediction: seen.append(image is None)))
    assert [prediction.labels for prediction in predictions] == [("red",), ("red",), (), (), ("green",)]
    assert "image 2 could not be predicted" in str(predictions[2].error)
    assert "float32" in str(predictions[3].error)
    assert seen == [False, False, True, True, False]


def test_the_engines_of_different_batches_overlap(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = pipeline._opened()
    entered, overlapped = [], threading.Event()
    run_global, run_local = engines.run_global, engines.run_local

    def globally(images: np.ndarray) -> object:
        entered.append(len(images))
        if len(entered) == 2:
            overlapped.set()
        return run_global(images)

    def locally(*arguments: object) -> np.ndarray:
        assert overlapped.wait(20), "no second batch came while the first was in the local engine"
        return run_local(*arguments)

    monkeypatch.setattr(engines, "run_global", globally)
    monkeypatch.setattr(engines, "run_local", locally)
    assert len(list(pipeline.stream([whole(RED)] * 6, 2, workers=2))) == 6


def test_frames_are_read_while_others_are_predicted(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()

    def images() -> Iterator[np.ndarray]:
        yield whole(RED)
        yield whole(GREEN)
        read.set()

    engines = pipeline._opened()
    run_global = engines.run_global

    def globally(images: np.ndarray) -> object:
        assert read.wait(20), "nothing was read meanwhile"
        return run_global(images)

    monkeypatch.setattr(engines, "run_global", globally)
    assert len(list(pipeline.stream(images(), workers=1))) == 2


def test_closing_the_pipeline_ends_its_streams(pipeline: Pipeline) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield whole(RED)

    predictions = pipeline.stream(endless(), workers=2)
    assert next(predictions).labels == ("red",)
    finished = pipeline.stream([whole(RED)])
    assert len(list(finished)) == 1
    pipeline.close()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("glocal-")] == []
    with pytest.raises(UsageError, match="closed while a stream ran"):
        next(predictions)
    assert list(finished) == []
    with pytest.raises(UsageError, match="closed"):
        pipeline.stream([whole(RED)])


def test_wrong_use_is_told(pipeline: Pipeline, tmp_path: Path) -> None:
    for arguments, message in (
        ({"batch": 0}, "batch"),
        ({"workers": 0}, "workers"),
        ({"readers": 0}, "readers"),
        ({"max_wait_ms": -1}, "max_wait_ms"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms"),
    ):
        with pytest.raises(UsageError, match=f"{message} must be at least"):
            pipeline.stream([whole(RED)], **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not exist"):
        pipeline.stream(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"Give \[image\]"):
        pipeline.stream(whole(RED))
