from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime import Pipeline, __version__
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.errors import BundleError, UsageError
from glocal.runtime.fusion import sigmoid
from glocal.runtime.images import resize
from glocal.runtime.selector import RegionSelector
from PIL import Image
from tiny_model import FILES, GLOBAL, LABELS, LOCAL, black_is_nan, graph, painted

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, threads=1) as pipeline:
        yield pipeline


def red_corner() -> np.ndarray:
    """Red where the upper left cell of the class maps lies; twice as wide and three times as high as the input."""
    return painted(192, 192, (slice(0, 96), slice(0, 64), RED))


def test_a_prediction_says_what_is_seen_and_where(pipeline: Pipeline) -> None:
    (prediction,) = pipeline.predict([red_corner()], ["corner.png"])
    assert prediction.error is None
    assert prediction.source == "corner.png"
    assert prediction.size == (192, 192)
    assert prediction.classes == LABELS
    assert prediction.labels == ("red",)
    assert prediction.global_scores == pytest.approx(sigmoid(np.array([5, -1.4706, -1.4706])), abs=1e-4)
    np.testing.assert_allclose(prediction.scores, (prediction.global_scores + prediction.local_scores) / 2, rtol=1e-6)
    (region,) = prediction.regions
    assert region.box == (0, 0, 64, 96)
    assert (region.category, region.variant, region.count) == ("red", 0, 3)  # both variants are the same box
    assert region.energy == pytest.approx(2)
    assert list(prediction.timings) == [
        "decode",
        "resize",
        "to_device",
        "global",
        "to_host",
        "select",
        "local",
        "fuse",
        "total",
    ]
    assert prediction.timings["total"] == pytest.approx(sum(list(prediction.timings.values())[:-1]))


def test_labels_need_their_own_threshold(pipeline: Pipeline) -> None:
    (prediction,) = pipeline.predict([painted(64, 96, (slice(0, 64), slice(0, 96), (255, 165, 165)))])
    assert prediction.scores[1] == prediction.scores[2]
    assert 0.5 < prediction.scores[2] < 0.9  # the threshold of blue is 0.9
    assert prediction.labels == ("red", "green")


def test_an_image_without_regions_gets_the_whole_image(pipeline: Pipeline) -> None:
    (prediction,) = pipeline.predict([painted(10, 20)])
    assert [(region.box, region.category) for region in prediction.regions] == [((0, 0, 20, 10), None)]
    assert prediction.labels == ()


def test_the_stages_agree_with_each_other_run_by_hand(pipeline: Pipeline) -> None:
    image = painted(50, 80, (slice(5, 40), slice(3, 30), RED), (slice(10, 50), slice(40, 80), GREEN))
    engines = OnnxRuntimeEngines(FILES["fp32/global.onnx"], FILES["fp32/local.onnx"], 1)
    outputs = engines.run_global(resize(image, (64, 96))[None])
    regions = RegionSelector(np.full(3, 0.1), 2, 2, (0.5, 1.0))(outputs.class_maps, outputs.logits)
    boxes, counts = regions.normalised(24)  # padding must not change the result
    logits = engines.run_local(outputs, boxes, counts)
    (prediction,) = pipeline.predict([image])
    np.testing.assert_allclose(prediction.local_scores, sigmoid(logits)[0], rtol=1e-5)
    assert len(prediction.regions) == regions.n[0]


def test_logits_are_fused_where_the_bundle_says_so(pipeline: Pipeline, write_tiny: Callable[..., Path]) -> None:
    # Green fills no cell, so that the two branches disagree about it.
    image = painted(64, 96, (slice(0, 32), slice(0, 32), RED), (slice(20, 50), slice(40, 75), GREEN))
    (mean,) = pipeline.predict([image])
    with Pipeline.load(write_tiny(fusion="logit")) as fusing:
        (fused,) = fusing.predict([image])
    logits = [np.log(scores / (1 - scores)) for scores in (mean.global_scores, mean.local_scores)]
    assert abs(logits[0] - logits[1]).max() > 1
    np.testing.assert_allclose(fused.scores, sigmoid((logits[0] + logits[1]) / 2), rtol=1e-5)
    np.testing.assert_array_equal(fused.global_scores, mean.global_scores)
    np.testing.assert_array_equal(fused.local_scores, mean.local_scores)
    assert abs(fused.scores - mean.scores).max() > 0.01


@pytest.mark.filterwarnings("error")
def test_the_mean_of_enormous_logits_is_finite(write_tiny: Callable[..., Path]) -> None:
    files = {"fp32/global.onnx": GLOBAL, "fp32/local.onnx": LOCAL}
    enormous = {name: graph(text.replace("ten = {10}", "ten = {3e38}")) for name, text in files.items()}
    with Pipeline.load(write_tiny(enormous, fusion="logit")) as pipeline:
        (prediction,) = pipeline.predict([red_corner()])
    assert prediction.error is None
    assert prediction.scores[0] == 1


@pytest.mark.parametrize(("rank", "box"), [("energy", (64, 0, 96, 32)), ("area", (0, 0, 32, 64))])
def test_regions_are_ranked_as_the_bundle_says(write_tiny: Callable[..., Path], rank: str, box: tuple) -> None:
    image = painted(64, 96, (slice(0, 64), slice(0, 32), (150, 90, 90)), (slice(0, 32), slice(64, 96), RED))
    settings = {"k_s": 1, "k_e": 1, "zetas": (), "shift": (0.1, 0.1, 0.1), "rank": rank}
    with Pipeline.load(write_tiny(selector=settings)) as pipeline:
        (prediction,) = pipeline.predict([image])
    assert [region.box for region in prediction.regions] == [box]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_batch_does_not_change_the_result(pipeline: Pipeline, batch: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + i, 70 - i, 3), dtype=np.uint8) for i in range(5)]
    for image, prediction in zip(images, pipeline.predict(images, batch=batch), strict=True):
        (alone,) = pipeline.predict([image])
        np.testing.assert_allclose(prediction.scores, alone.scores, rtol=1e-5)
        assert prediction.size == image.shape[:2]
        assert [region.box for region in prediction.regions] == [region.box for region in alone.regions]


def test_a_bad_array_does_not_take_the_others_with_it(pipeline: Pipeline) -> None:
    images = [red_corner(), red_corner().astype(np.float32), red_corner(), red_corner()[..., 0]]
    predictions = pipeline.predict(images, batch=4)
    assert [prediction.labels for prediction in predictions] == [("red",), (), ("red",), ()]
    assert [prediction.error is None for prediction in predictions] == [True, False, True, False]
    assert "image 1" in str(predictions[1].error)
    assert "float32" in str(predictions[1].error)
    assert len(predictions[3].scores) == 0


def test_a_bad_file_does_not_take_the_others_with_it(pipeline: Pipeline, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "missing.png", "cut.png", "b.png")]
    for path in paths:
        Image.fromarray(red_corner()).save(path)
    paths[1].unlink()
    paths[2].write_bytes(paths[0].read_bytes()[:100])
    predictions = list(pipeline.predict_files(paths, batch=3))
    assert [prediction.source for prediction in predictions] == [str(path) for path in paths]
    assert [prediction.labels for prediction in predictions] == [("red",), (), (), ("red",)]
    assert "missing.png" in str(predictions[1].error)
    assert "cut.png" in str(predictions[2].error)
    assert predictions[0].timings["decode"] > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_non_finite_outputs_are_an_error_of_their_image(write_tiny: Callable[..., Path], batch: int) -> None:
    bundle = write_tiny({"fp32/global.onnx": graph(black_is_nan(GLOBAL))})
    images = [red_corner(), np.zeros((9, 9, 3), np.uint8), red_corner()]
    with Pipeline.load(bundle) as pipeline:
        predictions = pipeline.predict(images, ["a", "black.png", "c"], batch=batch)
    assert [prediction.labels for prediction in predictions] == [("red",), (), ("red",)]
    assert str(predictions[1].error).startswith("black.png could not be predicted")
    assert predictions[1].size == (9, 9)


def test_a_local_engine_that_fails_or_is_not_finite_is_an_error(write_tiny: Callable[..., Path]) -> None:
    last = "silent = Mul (global_feature, nothing)"
    not_finite = LOCAL.replace(last, "silent = Div (nothing, nothing)")
    beyond = "far = Size (features)\n  there = Gather (shape, far)\n  value = Cast <to = 1> (there)\n"
    failing = LOCAL.replace(last, beyond + "  silent = Mul (global_feature, value)")
    for text, message in ((not_finite, "not finite"), (failing, "local engine failed")):
        with Pipeline.load(write_tiny({"fp32/local.onnx": graph(text)})) as pipeline:
            for prediction in pipeline.predict([red_corner(), red_corner()]):
                assert message in str(prediction.error)


def test_files_are_read_as_predictions_are_taken(pipeline: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(red_corner()).save(tmp_path / "a.png")
    asked = []

    def paths() -> Iterator[Path]:
        for index in range(1000):
            asked.append(index)
            yield tmp_path / "a.png"

    predictions = pipeline.predict_files(paths(), batch=2)
    assert asked == []
    for _ in range(3):
        assert next(predictions).labels == ("red",)
    assert len(asked) == 4
    pipeline.close()
    next(predictions)  # of the batch that was already done
    with pytest.raises(UsageError, match="closed"):
        next(predictions)


def test_source_images_are_not_kept(pipeline: Pipeline) -> None:
    image = red_corner()
    kept = weakref.ref(image)
    prediction = pipeline.predict([image])
    del image
    assert kept() is None
    assert prediction[0].labels == ("red",)


def test_wrong_use_is_told(pipeline: Pipeline, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch must be at least 1"):
        pipeline.predict([red_corner()], batch=0)
    with pytest.raises(UsageError, match="a sequence of images"):
        pipeline.predict(red_corner())
    with pytest.raises(UsageError, match="2 sources for 1 images"):
        pipeline.predict([red_corner()], ["a", "b"])
    pipeline.close()
    pipeline.close()
    with pytest.raises(UsageError, match="closed"):
        pipeline.predict([red_corner()])
    with pytest.raises(UsageError, match="closed"):
        pipeline.predict_files([])
    with pytest.raises(UsageError, match="does not exist"):
        Pipeline.load(tmp_path / "missing")
    with pytest.raises(UsageError, match="no precision 'int8'") as caught:
        Pipeline.load(tiny_bundle, precision="int8")
    assert "fp32" in caught.value.fix
    with pytest.raises(UsageError, match="no backend 'caffe'") as caught:
        Pipeline.load(tiny_bundle, backend="caffe")
    assert "onnxruntime" in caught.value.fix
    with pytest.raises(UsageError, match="threads"):
        Pipeline.load(tiny_bundle, threads=0)


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({"fp32/global.onnx": b"not a graph"}, {}, "cannot load the global graph"),
        ({"fp32/global.onnx": FILES["fp32/local.onnx"]}, {}, "inputs of the global graph"),
        ({"fp32/local.onnx": graph(LOCAL.replace("[B, 3, 4, 6]", "[B, 3, 8, 12]"))}, {}, "features does not fit"),
        ({"fp32/global.onnx": graph(GLOBAL.replace("uint8[B, 64", "uint8[1, 64"))}, {}, "image has the wrong"),
        ({"fp32/global.onnx": graph(GLOBAL.replace("uint8[B", "float[B"))}, {}, "image has the wrong"),
        ({}, {"input_size": (96, 64)}, "do not fit its manifest"),
    ],
)
def test_graphs_that_break_the_contract_are_refused(
    write_tiny: Callable[..., Path], files: dict, fields: dict, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Pipeline.load(write_tiny(files, **fields))


def test_features_are_not_copied_between_the_graphs() -> None:
    engines = OnnxRuntimeEngines(FILES["fp32/global.onnx"], FILES["fp32/local.onnx"], 1)
    outputs = engines.run_global(red_corner()[None, :64, :96])
    whole = np.array([[[0, 0, 1, 1]]], np.float32)
    before = engines.run_local(outputs, whole, np.ones((1, 1), np.float32))
    features = np.ctypeslib.as_array(
        (np.ctypeslib.ctypes.c_float * 72).from_address(outputs.on_device["features"].data_ptr())
    )
    features[:] = 1
    after = engines.run_local(outputs, whole, np.ones((1, 1), np.float32))
    assert (before < 5).any()
    np.testing.assert_allclose(after, 5)


def test_sigmoid_neither_overflows_nor_loses_small_probabilities() -> None:
    logits = np.array([-1000, -80, -30, 0, 30, 1000], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = sigmoid(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0, np.exp(-80), np.exp(-30), 0.5, 1, 1], rtol=1e-5)


def test_a_prediction_becomes_json(pipeline: Pipeline) -> None:
    good, bad = pipeline.predict([red_corner(), np.zeros(3, np.uint8)])
    document = json.loads(json.dumps(good.to_json(), allow_nan=False))
    assert document["labels"] == ["red"]
    assert document["scores"]["red"]["fused"] == round(float(good.scores[0]), 6)
    assert document["scores"]["blue"]["threshold"] == 0.9
    assert document["regions"][0] == {
        "box": [0, 0, 64, 96],
        "category": "red",
        "energy": 2,
        "variant": 0,
        "count": 3,
    }
    failed = json.loads(json.dumps(bad.to_json(), allow_nan=False))
    assert failed["scores"] == {}
    assert "image 1" in failed["error"]


def test_the_runtime_imports_none_of_the_training_libraries() -> None:
    code = """
import sys
import glocal.runtime, glocal.runtime.selector, glocal.runtime.cli
heavy = {"torch", "onnx", "matplotlib", "scipy", "onnxruntime", "numba"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_projects() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in project
