from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from glocal.benchmarks import soak as soak_module
from glocal.benchmarks.cli import app
from glocal.benchmarks.soak import slope, soak
from glocal.benchmarks.stream import bench_stream
from glocal.benchmarks.threads import AS_IT_IS, bench_threads, shares
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.images import encode_jpeg
from typer.testing import CliRunner


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.jpg").write_bytes(encode_jpeg(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)))
    return folder


def test_a_stream_is_compared_with_the_serial_loop_and_three_bounds(tiny_bundle: Path, photos: Path) -> None:
    report = bench_stream(tiny_bundle, photos, length=6, rounds=3, workers=2)
    assert report["benchmark"] == "stream"
    assert [row["name"] for row in report["results"]] == ["serial loop", "stream"]
    rates = {row["name"]: row["images_per_s"] for row in report["results"]}
    low, high = report["results"][1]["images_per_s_ci"]
    assert low <= rates["stream"] <= high
    assert len(report["bounds"]) == 3
    for name, bound in report["bounds"].items():
        assert report["share_of_bound"][name] == pytest.approx(rates["stream"] / bound, rel=1e-2)
    assert (report["workers"], report["backend"], report["precision"]) == (2, "onnxruntime", "fp32")


def test_a_photo_that_cannot_be_read_ends_the_benchmark(tiny_bundle: Path, photos: Path) -> None:
    (photos / "9.jpg").write_bytes(b"no photo")
    with pytest.raises(GlocalError, match="could not be predicted"):
        bench_stream(tiny_bundle, photos, length=6, rounds=1)


def test_a_soak_counts_and_weighs(tiny_bundle: Path, photos: Path) -> None:
    report = soak(tiny_bundle, photos, frames=400, every=5)
    assert (report["predicted"], report["failed"], report["lost"], report["out_of_order"]) == (400, 0, 0, 0)
    assert [index for index, _ in report["memory"]] == list(range(0, 400, 5))
    assert all(mib > 10 for _, mib in report["memory"])
    assert report["flat"] is (report["slope"]["ci"][0] <= 0 or report["grown_mib"] < 1)


def test_a_soak_sees_frames_in_the_wrong_order(
    tiny_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = soak_module._repeated

    def swapped(files: list[Path], frames: int) -> list[Path]:
        paths = list(right(files, frames))
        paths[7], paths[8] = paths[8], paths[7]
        return paths

    monkeypatch.setattr(soak_module, "_repeated", swapped)
    assert soak(tiny_bundle, photos, frames=200, every=5)["out_of_order"] == 2


def test_a_soak_that_did_not_hold_fails(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "2.jpg").write_bytes(b"no photo")
    out = tmp_path / "soak.json"
    arguments = ["bench", "soak", tiny_bundle, "--images", photos, "--frames", 200, "--every", 5, "--json", out]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, GlocalError)
    assert "40 failed" in done.exception.found
    assert json.loads(out.read_text())["failed"] == 40


def test_what_a_soak_cannot_do_is_told(tiny_bundle: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        soak(tiny_bundle, photos, frames=100)
    with pytest.raises(UsageError, match="order cannot be seen"):
        soak(tiny_bundle, photos / "0.jpg", frames=4000)


def test_the_slope_tells_growth_from_noise() -> None:
    rng, frames = np.random.default_rng(0), np.arange(0, 10_000, 100.0)
    noise = rng.normal(500, 2, len(frames))
    flat, growing = slope(np.stack([frames, noise], 1)), slope(np.stack([frames, noise + frames / 1000], 1))
    assert flat["ci"][0] < 0 < flat["ci"][1]
    assert growing["ci"][0] > 0
    assert growing["mib_per_1000"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 2), (2, 1), (2, 2)]),
        (6, [(1, 1), (1, 2), (1, 4), (1, 6), (6, 1), (3, 2), (6, 6)]),
    ],
)
def test_threads_are_shared_out(cores: int, expected: list[tuple[int, int]]) -> None:
    assert shares(cores) == expected


def test_ways_to_share_threads_are_measured(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glocal.benchmarks.threads.usable_cores", lambda: 2)
    report = bench_threads(tiny_bundle, photos, length=4, rounds=2, calls=3)
    assert [(row["workers"], row["threads"]) for row in report["results"]] == shares(2)
    assert report["results"][1]["ratio"]["p50"] == 1
    names = [row["name"] for row in report["latency"]]
    assert names == [AS_IT_IS, "idle threads spin", "OpenCV's own choice of threads"]
    with pytest.raises(UsageError, match="no precision 'int8'"):
        bench_threads(tiny_bundle, photos, precision="int8")
    out = tmp_path / "threads.json"
    arguments = ["bench", "threads", tiny_bundle, "--length", 4, "--rounds", 2, "--calls", 2, "--json", out]
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0
    assert json.loads(out.read_text())["benchmark"] == "threads"
