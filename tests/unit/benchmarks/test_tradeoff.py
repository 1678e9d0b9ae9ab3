import csv
import json
import shutil
import sys

import numpy as np
import pytest
from glocal.benchmarks.cli import main
from glocal.benchmarks.tradeoff import bench_tradeoff, pareto
from glocal.runtime.bundle import Bundle, add_to_bundle
from glocal.runtime.errors import DataError, GlocalError, UsageError
from glocal.runtime.metrics import multilabel_metrics
from glocal.runtime.pipeline import Pipeline
from glocal.train.data import open_data
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
EXIT = (0.25, 0.9)


@pytest.fixture
def data(tmp_path):
    """Photos of clear colours, and of vague ones that the local branch is asked about."""
    folder = tmp_path / "data"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "split", "labels"])
        for index in range(12):
            colour = list(COLOURS)[index % 3]
            image = np.full((64, 96, 3), 90, np.uint8)
            clear = index % 4 == 0
            image[:32, :32] = COLOURS[colour] if clear else np.where(COLOURS[colour], 130 + index, 90)
            Image.fromarray(image).save(folder / "JPEGImages" / f"{index}.png")
            rows.writerow([f"{index}.png", "test", colour if index % 5 else "red"])
    return folder


@pytest.fixture
def bundles(tiny_bundle, tmp_path):
    """One bundle without and one with thresholds for an early exit."""
    leaving = tmp_path / "leaving"
    shutil.copytree(tiny_bundle, leaving)
    add_to_bundle(Bundle.load(leaving), {}, early_exit={"fp32": EXIT})
    return [tiny_bundle, leaving]


def test_each_bundle_is_a_point_and_again_with_its_early_exit(bundles, data):
    report = bench_tradeoff(bundles, str(data), images=4, rounds=3, threads=1)
    plain, again, early = report["results"]
    assert [one["name"] for one in report["results"]] == ["bundle fp32", "leaving fp32", "leaving fp32 early exit"]
    assert [one["early_exit"] for one in report["results"]] == [False, False, True]
    for one in report["results"]:
        assert one["calls"] == 4 * 3
        assert 0 < one["p50_ms_ci"][0] <= one["p50_ms"] <= one["p90_ms"]
        assert one["mean_ms"] > 0
    assert plain["mean_ratio"] == 1
    assert early["mean_ratio"] == pytest.approx(early["mean_ms"] / plain["mean_ms"], abs=1e-3)
    accuracy = ("mAP", "OF1", "boxes", "exits")
    assert {name: plain[name] for name in accuracy} == {name: again[name] for name in accuracy}
    assert (plain["exits"], early["exits"]) == (0, 0.25)
    assert 0 < early["boxes"] < plain["boxes"]
    assert (report["benchmark"], report["images"], report["timed_images"]) == ("tradeoff", 12, 4)
    assert report["models"]["leaving"]["files"] == Bundle.load(bundles[1]).manifest.files
    json.dumps(report, allow_nan=False)


def test_scores_are_those_of_the_pipeline(bundles, data):
    (_, point) = bench_tradeoff(bundles[1:], str(data), images=1, rounds=1)["results"]
    images = open_data(data, "test")
    with Pipeline.load(bundles[1], early_exit=True) as pipeline:
        scores = np.stack([one.scores for one in pipeline.predict_files(images.paths)])
        expected = multilabel_metrics(scores, images.targets, pipeline.thresholds)
    assert expected["mAP"] < 1
    assert point["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    assert point["OF1"] == pytest.approx(expected["OF1"], abs=1e-6)


def test_every_point_sees_every_photo_as_often(bundles, data, monkeypatch):
    seen, predict = [], Pipeline.predict_files

    def watched(self, paths, batch=8):
        seen.append((id(self), paths[0].name))
        return predict(self, paths, batch)

    monkeypatch.setattr(Pipeline, "predict_files", watched)
    report = bench_tradeoff(bundles, str(data), images=3, rounds=2)
    timed = seen[-3 * 2 * 3 :]
    names = sorted({name for _, name in timed})
    assert len(names) == 3
    for pipeline in {pipeline for pipeline, _ in timed}:
        assert sorted(name for one, name in timed if one == pipeline) == sorted(names * 2)
    for start in range(0, len(timed), 3):  # of a round all have the same photo
        assert len({name for _, name in timed[start : start + 3]}) == 1
    early = report["results"][2]
    assert early["timed_exits"] * 3 == pytest.approx(sum(int(name[:-4]) % 4 == 0 for name in names), abs=1e-3)


def test_the_pareto_line_holds_what_none_beats():
    points = [{"mean_ms": ms, "mAP": mean} for ms, mean in ((3, 0.7), (1, 0.5), (2, 0.5), (4, 0.6), (3, 0.6), (5, 0.8))]
    assert [(one["mean_ms"], one["mAP"]) for one in pareto(points)] == [(1, 0.5), (3, 0.7), (5, 0.8)]


@pytest.mark.parametrize("busy", [0.5, 0.0])
def test_the_command_writes_report_and_plot(bundles, data, tmp_path, monkeypatch, capsys, busy):
    monkeypatch.setattr("glocal.benchmarks.record.busy_share", lambda: busy)
    files = [tmp_path / "tradeoff.json", tmp_path / "tradeoff.png"]
    options = ["--limit", "6", "--images", "2", "--rounds", "1", "--precision", "fp32", "--threads", "1"]
    command = ["glocal", "bench", "tradeoff", *map(str, bundles), "--data", str(data), *options]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(files[0]), "--plot", str(files[1])])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    report = json.loads(files[0].read_text())
    assert (report["images"], report["loaded"], len(report["results"])) == (6, busy > 0, 3)
    with Image.open(files[1]) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # not an empty page
    out = capsys.readouterr().out
    assert out.count("leaving fp32") == 2
    assert ("LOADED MACHINE" in out) == (busy > 0)


def test_scenes_are_timed_as_files():
    from glocal.benchmarks.tradeoff import _files

    with _files(open_data("digits", "test", length=4, size=64), 2) as paths:
        assert len(paths) == 2
        for path in paths:
            with Image.open(path) as image:
                assert image.size == (64, 64)
    assert not paths[0].exists()


def test_what_cannot_be_compared_is_refused(bundles, data, tmp_path):
    with pytest.raises(UsageError, match="No bundle"):
        bench_tradeoff([], str(data))
    twin = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(bundles[0], twin)
    with pytest.raises(UsageError, match="one name"):
        bench_tradeoff([bundles[0], twin], str(data))
    with pytest.raises(DataError):
        bench_tradeoff(bundles, "digits")
    with pytest.raises(UsageError, match="no precision 'int8'"):
        bench_tradeoff(bundles, str(data), precisions=["int8"])
    with pytest.raises(GlocalError, match="threads"):
        bench_tradeoff(bundles, str(data), images=1, rounds=1, backend="onnxruntime", threads=0)
