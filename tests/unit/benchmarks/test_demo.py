"""The demo in small: every step is real, only the numbers of images are low."""

import json

import pytest
from glocal.benchmarks.demo import demo, table_rows
from glocal.benchmarks.startup import STEPS, startup
from glocal.benchmarks.timing import alternate
from glocal.runtime import Pipeline
from glocal.runtime.errors import UsageError


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    demo(out, pretrain_crops=64, epochs=1, train_images=32, test_images=50, rounds=5)
    return out


def test_everything_is_left_for_a_look(out):
    page = (out / "index.html").read_text()
    assert (out / "curves.png").stat().st_size > 1000
    drawn = sorted((out / "drawn").iterdir())
    assert len(drawn) == 12
    assert all(f"drawn/{path.name}" in page for path in drawn)
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert all(json.loads(line)["error"] is None for line in lines)


def test_the_table_is_what_was_measured(out):
    results = json.loads((out / "results.json").read_text())
    assert results["test_images"] == results["metrics"]["images"] == 50
    assert results["max_score_difference"]["fused"] < 1e-4
    assert results["latency_ms"]["glocal"] > results["stages_ms"]["global"] > 0
    rows = dict(table_rows(results))
    assert rows["mAP fused"] == f"{results['metrics']['mAP']:.4f}"
    assert rows["mAP fused"] in (out / "index.html").read_text()


def test_its_bundle_runs(out):
    with Pipeline.load(out / "bundle") as pipeline:
        (prediction,) = pipeline.predict_files([out / "scenes" / "JPEGImages" / "test_000000.png"])
    assert prediction.error is None


def test_startup_is_measured_in_fresh_processes(out, tmp_path):
    startup(out / "bundle", processes=1, json_file=tmp_path / "startup.json")
    report = json.loads((tmp_path / "startup.json").read_text())
    assert list(report["seconds"]) == list(STEPS)
    assert all(0 < value < 120 for (value,) in report["seconds"].values())
    assert "cores" in report["machine"]
    assert report["benchmark"] == "startup"
    assert report["model"]["labels"] == 10
    assert report["loaded"] in (True, False)


def test_a_folder_in_use_is_refused(out):
    with pytest.raises(UsageError, match="not empty"):
        demo(out, pretrain_crops=64, epochs=1, train_images=32, test_images=50, rounds=5)


def test_alternate_takes_turns():
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warmup=1)
    assert calls == ["a", "b"] * 5
    assert times["a"].shape == times["b"].shape == (4,)
    assert (times["a"] > 0).all()
