from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime import Pipeline
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.bundle import Bundle, add_to_bundle, drop_from_bundle
from glocal.runtime.cli import run
from glocal.runtime.draw import draw
from glocal.runtime.early_exit import decided, spread
from glocal.runtime.errors import BundleError, EngineError, UsageError
from glocal.runtime.selector import RegionSelector
from PIL import Image
from tiny_model import FIELDS, FILES, GLOBAL, LOCAL, black_is_nan, graph, painted
from typer import Typer
from typer.testing import CliRunner

RED = (255, 0, 0)
# With x the share of a colour in the brightest cell, its global score is sigmoid(10 x - 5).
CLEAR = painted(64, 96, (slice(0, 32), slice(0, 32), RED))  # red 0.993, the others 0.19: grey is 0.35
VAGUE = painted(64, 96, (slice(0, 32), slice(0, 32), (150, 90, 90)))  # red 0.71
MANY = painted(64, 96, (slice(0, 64), slice(0, 32), (150, 90, 90)), (slice(0, 20), slice(50, 96), (160, 140, 90)))
EXIT = {"fp32": (0.25, 0.9)}


@pytest.fixture
def leaving(write_tiny: Callable[..., Path]) -> Path:
    return write_tiny(early_exit=EXIT)


def test_an_image_is_decided_when_no_score_lies_between() -> None:
    scores = np.array([[0.1, 0.9], [0.1, 0.5], [0.2, 0.8], [0.21, 0.8], [0.2, 0.79]], np.float32)
    assert decided(scores, (0.2, 0.8)).tolist() == [True, False, True, False, False]
    assert decided(scores, (0.0, 1.0)).tolist() == [False] * 5
    assert decided(scores, (0.5, 0.5)).all()
    for bad in (np.nan, np.inf):
        with pytest.raises(EngineError, match="not finite"):
            decided(np.array([[0.1, bad]], np.float32), (0.2, 0.8))


def test_images_that_are_decided_get_one_box_and_the_others_their_own() -> None:
    boxes, counts = np.full((2, 3, 4), 0.5, np.float32), np.array([[1, 2, 0], [3, 0, 0]], np.float32)
    all_boxes, all_counts = spread(boxes, counts, np.array([1, 3]), 4)
    assert all_counts.tolist() == [[1, 0, 0], [1, 2, 0], [1, 0, 0], [3, 0, 0]]
    assert all_boxes[0, 0].tolist() == all_boxes[2, 0].tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(all_boxes[[1, 3]], boxes)
    assert spread(boxes, counts, np.arange(2), 2)[0] is boxes


def test_a_decided_image_has_its_global_scores_and_nothing_of_the_local_branch(leaving: Path) -> None:
    with Pipeline.load(leaving, early_exit=True) as early, Pipeline.load(leaving) as full:
        (left,), (whole,) = early.predict([CLEAR]), full.predict([CLEAR])
    assert left.exited
    assert not whole.exited
    np.testing.assert_array_equal(left.scores, whole.global_scores)
    np.testing.assert_array_equal(left.global_scores, whole.global_scores)
    assert (len(left.local_scores), left.regions, left.labels, left.error) == (0, (), ("red",), None)
    assert whole.regions
    assert list(left.timings) == list(whole.timings)
    document = json.loads(json.dumps(left.to_json(), allow_nan=False))
    assert document["exited"]
    assert document["scores"]["red"]["local"] is None
    assert document["scores"]["red"]["fused"] == document["scores"]["red"]["global"] > 0.99
    assert not whole.to_json()["exited"]


def test_an_image_that_is_not_decided_is_as_without(leaving: Path) -> None:
    with Pipeline.load(leaving, early_exit=True) as early, Pipeline.load(leaving) as full:
        (asked,), (whole,) = early.predict([VAGUE]), full.predict([VAGUE])
    assert not asked.exited
    np.testing.assert_array_equal(asked.scores, whole.scores)
    np.testing.assert_array_equal(asked.local_scores, whole.local_scores)
    assert asked.regions == whole.regions


def test_nothing_runs_for_a_batch_that_is_decided_and_little_for_a_mixed_one(leaving: Path, monkeypatch) -> None:
    seen: dict[str, list] = {"local": [], "selected": []}
    local, select = OnnxRuntimeEngines.run_local, RegionSelector.__call__

    def counted_local(self, outputs, boxes, counts):
        seen["local"].append((boxes.shape, (counts > 0).sum(axis=1).tolist()))
        return local(self, outputs, boxes, counts)

    def counted_select(self, maps, logits):
        seen["selected"].append(len(maps))
        return select(self, maps, logits)

    monkeypatch.setattr(OnnxRuntimeEngines, "run_local", counted_local)
    monkeypatch.setattr(RegionSelector, "__call__", counted_select)
    with Pipeline.load(leaving, early_exit=True) as pipeline:
        assert [one.exited for one in pipeline.predict([CLEAR, CLEAR])] == [True, True]
        assert seen == {"local": [], "selected": []}
        predictions = pipeline.predict([CLEAR, MANY, CLEAR, VAGUE])
    boxes = [len(one.regions) for one in predictions]
    assert boxes[0] == boxes[2] == 0 < boxes[3] < boxes[1]
    assert seen["selected"] == [2]
    assert seen["local"] == [((4, boxes[1], 4), [1, boxes[1], 1, boxes[3]])]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_batch_does_not_change_the_result(leaving: Path, batch: int) -> None:
    rng = np.random.default_rng(0)
    images = [CLEAR, VAGUE, MANY, CLEAR, *rng.integers(0, 256, (4, 50, 60, 3), dtype=np.uint8), VAGUE]
    with Pipeline.load(leaving, early_exit=True) as pipeline:
        alone = [pipeline.predict([image])[0] for image in images]
        together = pipeline.predict(images, batch=batch)
    assert {one.exited for one in alone} == {True, False}
    for one, other in zip(alone, together, strict=True):
        assert one.exited == other.exited
        assert one.regions == other.regions
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
        np.testing.assert_allclose(one.local_scores, other.local_scores, rtol=1e-6)


def test_a_stream_exits_early_too(leaving: Path) -> None:
    with (
        Pipeline.load(leaving, threads=1, early_exit=True) as pipeline,
        pipeline.stream([CLEAR, VAGUE, CLEAR], batch=2) as stream,
    ):
        assert [one.exited for one in stream] == [True, False, True]


def test_values_that_are_not_finite_never_count_as_decided(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny({"fp32/global.onnx": graph(black_is_nan(GLOBAL))}, early_exit=EXIT)
    with Pipeline.load(bundle, early_exit=True) as pipeline:
        predictions = pipeline.predict([CLEAR, np.zeros((9, 9, 3), np.uint8), VAGUE])
    assert [one.error is None for one in predictions] == [True, False, True]
    assert [one.exited for one in predictions] == [True, False, False]
    assert "not finite" in str(predictions[1].error)


def test_a_local_engine_that_fails_does_not_touch_images_that_exit(write_tiny: Callable[..., Path]) -> None:
    broken = graph(LOCAL.replace("silent = Mul (global_feature, nothing)", "silent = Div (nothing, nothing)"))
    with Pipeline.load(write_tiny({"fp32/local.onnx": broken}, early_exit=EXIT), early_exit=True) as pipeline:
        predictions = pipeline.predict([CLEAR, VAGUE])
    assert [one.error is None for one in predictions] == [True, False]
    assert predictions[0].exited


def test_without_thresholds_the_command_that_fits_them_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no thresholds for an early exit in fp32") as caught:
        Pipeline.load(tiny_bundle, early_exit=True)
    assert f"glocal early-exit {tiny_bundle} --data DIR --precision fp32" in caught.value.fix


@pytest.mark.parametrize("thresholds", [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.1, float("nan"))])
def test_wrong_thresholds_are_refused(write_tiny: Callable[..., Path], thresholds: tuple) -> None:
    with pytest.raises(BundleError, match="does not follow the schema"):
        write_tiny(early_exit={"fp32": thresholds})
    with pytest.raises(BundleError, match="early exit for fp16"):
        write_tiny(early_exit={"fp16": (0.1, 0.9)})


def test_a_bundle_from_before_loads_and_a_precision_takes_its_thresholds_along(write_tiny: Callable[..., Path]) -> None:
    path = write_tiny()
    document = json.loads((path / "manifest.json").read_text())
    del document["early_exit"]
    (path / "manifest.json").write_text(json.dumps(document))
    bundle = Bundle.load(path)
    assert bundle.manifest.early_exit == {}
    half = {f"fp16/{name}.onnx": FILES[f"fp32/{name}.onnx"] for name in ("global", "local")}
    added = add_to_bundle(bundle, half, thresholds={"fp16": FIELDS["thresholds"]["fp32"]}, early_exit=EXIT)
    added = add_to_bundle(added, {}, early_exit={"fp16": (0.1, 0.8)})
    assert Bundle.load(path).manifest.early_exit == added.manifest.early_exit == {**EXIT, "fp16": (0.1, 0.8)}
    assert drop_from_bundle(added, "fp16").manifest.early_exit == EXIT


def test_an_image_that_exited_is_drawn_without_a_local_bar(leaving: Path) -> None:
    with Pipeline.load(leaving, early_exit=True) as early, Pipeline.load(leaving) as full:
        pictures = [draw(CLEAR, pipeline.predict([CLEAR])[0], top=1) for pipeline in (early, full)]
    local_bar = (118, 140, 170)
    assert [(picture == local_bar).all(axis=2).any() for picture in pictures] == [False, True]


def test_the_command_takes_the_option(leaving: Path, tmp_path: Path) -> None:
    for name, image in (("a", CLEAR), ("b", VAGUE)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    app = Typer()
    app.command()(run)
    for options, exited in ((["--early-exit"], [True, False]), ([], [False, False])):
        done = CliRunner().invoke(app, [str(leaving), str(tmp_path), "--json", *options])
        assert done.exit_code == 0, done.output
        assert [json.loads(line)["exited"] for line in done.stdout.splitlines()] == exited
