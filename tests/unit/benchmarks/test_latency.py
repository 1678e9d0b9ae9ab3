import json
import sys

import numpy as np
import pytest
from glocal.benchmarks import latency, machine, record
from glocal.benchmarks.boxes import ReplacingSelector, boxes_of, different_boxes
from glocal.benchmarks.cli import main
from glocal.benchmarks.latency import bench_latency
from glocal.benchmarks.pictures import pictures
from glocal.runtime.backends import BACKENDS, open_engines
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.bundle import write_bundle
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.pipeline import Pipeline


def test_every_case_is_timed_beside_its_plain_backbone(exported):
    report = bench_latency(exported.path, ["onnxruntime"], rounds=4, batches=(1, 3), threads=1)
    assert [(row["backend"], row["precision"], row["batch"]) for row in report["results"]] == [
        ("onnxruntime", precision, batch) for batch in (1, 3) for precision in ("fp32", "fp16", "int8")
    ]
    with Pipeline.load(exported.path) as pipeline:
        stages = list(pipeline.predict([np.zeros((9, 9, 3), np.uint8)])[0].timings)
    for row in report["results"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert list(row["stages"]) == stages
        total = row["stages"]["total"]["p50_ms"] * row["batch"]
        assert row["engines"]["p50_ms"] * row["batch"] < total <= row["p99_ms"]
        assert row["plain"]["engine"]["p50_ms"] * row["batch"] < row["plain"]["p50_ms"]
        assert 0 < row["host_share"]["p50"] < 1
        assert row["boxes_from"] == "own"
        assert row["boxes"]["images"] == 4 * row["batch"]
        assert min(row["load_s"], row["first_ms"], row["plain"]["load_s"], row["plain"]["first_ms"]) > 0
        for found in (row, row["plain"], row["engines"], row["plain"]["engine"], *row["stages"].values()):
            assert found["p50_ms_ci"][0] <= found["p50_ms"] <= found["p50_ms_ci"][1]
    for row in report["results"][::3]:
        assert row["to_first"] == {"p10": 1, "p50": 1, "p90": 1, "p50_ci": [1, 1]}
    assert report["benchmark"] == "latency"
    assert report["model"]["files"] == exported.manifest.files
    assert report["machine"]["packages"]["onnxruntime"]
    assert report["skipped"] == []
    json.dumps(report, allow_nan=False)


def test_ratios_are_of_the_same_round(exported, monkeypatch):
    """The second half of the rounds is ten times as slow; the ratios do not see it."""

    def slower(calls, rounds):
        for _ in range(3 + rounds):
            for call in calls.values():
                call()
        slow = np.array([1.0, 1.0, 10.0, 10.0])
        return {name: slow * (300 if name.endswith("own") else 200) for name in calls}

    monkeypatch.setattr(latency, "alternate", slower)
    report = bench_latency(exported.path, ["onnxruntime"], ["fp32", "int8"], rounds=4, batches=(1,), threads=1)
    for row in report["results"]:
        assert row["ratio"] == {"p10": 1.5, "p50": 1.5, "p90": 1.5, "p50_ci": [1.5, 1.5]}
        assert row["to_first"]["p90"] == 1
        assert row["host_share"]["p50"] > 0.5  # of 300 ms and more, the engines took the little that they really took


def test_boxes_are_those_that_were_asked_for(exported, tmp_path, monkeypatch):
    taken = []
    run = OnnxRuntimeEngines.run_local

    def watched(self, outputs, boxes, counts):
        taken.append((boxes, counts))
        return run(self, outputs, boxes, counts)

    monkeypatch.setattr(OnnxRuntimeEngines, "run_local", watched)
    other = write_bundle(
        tmp_path / "trained",
        {name: exported.read(name) for name in exported.manifest.files if name.startswith("fp32/")},
        **exported.manifest.model_dump(exclude={"files", "schema_version", "thresholds", "verification", "metrics"})
        | {
            "thresholds": {"fp32": exported.manifest.thresholds["fp32"]},
            "selector": exported.manifest.selector.model_copy(update={"k_s": 1, "k_e": 1}).model_dump(),
        },
    )
    kinds = ["own", "7", str(other.path)]
    report = bench_latency(exported.path, ["onnxruntime"], ["fp32"], rounds=8, batches=(1,), boxes=kinds, threads=1)
    rows = {row["boxes_from"]: row for row in report["results"]}
    assert list(rows) == ["own", "7", "trained"]  # no path of this machine
    assert str(tmp_path) not in json.dumps(report)
    assert report["boxes_from"] == {"trained": record.model_facts(other)}
    assert rows["7"]["boxes"] == {"mean": 7, "median": 7, "p95": 7, "images": 8}
    seven, counts = taken[-2]  # the last round: own, 7, trained
    assert (seven.shape, len(np.unique(seven[0], axis=0)), counts.tolist()) == ((1, 7, 4), 7, [[1] * 7])
    with pictures(None) as (paths, _):
        regions = boxes_of(other.path, paths, 1)
    sizes = [int(one.n[0]) for one in regions]
    assert max(sizes) <= 3
    assert rows["trained"]["boxes"]["mean"] == round(np.mean(sizes), 2)  # 8 rounds of 8 images: each once
    last = taken[-1 - len(paths)][0]  # boxes_of ran the images once more since
    assert any(np.array_equal(one.normalised()[0], last) for one in regions)
    assert rows["trained"]["ratio"] != rows["own"]["ratio"]


def test_prepared_regions_take_the_place_of_what_was_found(exported):
    engines = open_engines(exported, "onnxruntime", "fp32", 1)
    called = []

    def selector(class_maps, logits):
        called.append(len(logits))
        return different_boxes(1)

    replacing = ReplacingSelector(selector)
    with Pipeline(exported.manifest, "fp32", engines, replacing) as pipeline:
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (own,) = pipeline.predict([image])
        replacing.prepared = [different_boxes(5), different_boxes(5)]
        replaced = pipeline.predict([image, image])
    assert called == [1, 2]
    assert [len(one.regions) for one in (own, *replaced)] == [1, 5, 5]
    assert not np.array_equal(own.local_scores, replaced[0].local_scores)
    for region in replaced[0].regions:
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 40
    assert len(np.unique(different_boxes(1024).boxes[0], axis=0)) == 1024


def test_a_plain_backbone_that_cannot_be_cut_out_is_told(tiny_bundle):
    with pytest.raises(GlocalError, match="classifier that could be found") as caught:
        bench_latency(tiny_bundle, ["onnxruntime"], rounds=1)
    assert "fp32" in str(caught.value)


def test_what_cannot_run_is_skipped_with_its_reason(exported, monkeypatch):
    def only_one(bundle, backend, precision, threads):
        if backend == "other":
            if precision == "int8":
                raise OSError("libother.so.1")  # not an error of ours
            raise UsageError("other is not installed.", fix="pip install other")
        return open_engines(bundle, backend, precision, threads)

    monkeypatch.setattr(latency, "BACKENDS", ("other", "onnxruntime"))
    monkeypatch.setattr(latency, "open_engines", only_one)
    backends, precisions = ["other", "onnxruntime"], ["fp32", "int8"]
    report = bench_latency(exported.path, backends, precisions, rounds=2, batches=(1,))
    assert [(row["backend"], row["precision"]) for row in report["results"]] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]
    skipped = {(row["backend"], row["precision"]): row for row in report["skipped"]}
    assert set(skipped) == {("other", "fp32"), ("other", "int8")}
    assert skipped["other", "fp32"]["reason"] == "other is not installed."
    assert skipped["other", "fp32"]["fix"] == "pip install other"
    assert skipped["other", "int8"]["reason"] == "OSError: libother.so.1"
    with pytest.raises(GlocalError, match="other is not installed"):
        bench_latency(exported.path, ["other"], rounds=1)


def test_a_batch_that_does_not_fit_is_skipped_alone(exported, monkeypatch):
    run = Pipeline._run

    def short_of_memory(self, items):
        if len(items) > 2:
            raise MemoryError("out of memory")
        return run(self, items)

    monkeypatch.setattr(Pipeline, "_run", short_of_memory)
    report = bench_latency(exported.path, ["onnxruntime"], ["fp32"], rounds=2, batches=(1, 4))
    assert [row["batch"] for row in report["results"]] == [1]
    assert [(row["batch"], row["reason"]) for row in report["skipped"]] == [(4, "MemoryError: out of memory")]


def test_an_image_that_cannot_be_read_is_not_timed(exported, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for boxes in ("own", str(exported.path)):
        with pytest.raises(GlocalError, match=r"broken\.jpg"):
            bench_latency(exported.path, ["onnxruntime"], rounds=1, images=tmp_path / "broken.jpg", boxes=(boxes,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"backends": ["onnxruntme"]},
        {"backends": []},
        {"precisions": ("fp8",)},
        {"batches": (0,)},
        {"batches": ()},
        {"boxes": ()},
        {"boxes": ("0",)},
        {"boxes": ("5000",)},
        {"boxes": ("seven",)},
        {"boxes": ("own", "own")},
    ],
)
def test_wrong_names_and_batches_are_refused(wrong, exported):
    with pytest.raises(UsageError):
        bench_latency(exported.path, **{"backends": BACKENDS, **wrong})


@pytest.mark.parametrize(("busy", "loaded"), [(0.5, True), (0.01, False), (None, False)])
def test_a_loaded_machine_is_marked(busy, loaded, exported, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "busy_share", lambda: busy)
    file = tmp_path / "out" / "latency.json"
    arguments = ["--backend", "onnxruntime", "--precision", "fp32", "int8", "--rounds", "2", "--batch", "1"]
    arguments += ["--boxes", "own", "--boxes", "3", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["glocal", "bench", "latency", str(exported.path), *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    report, out = json.loads(file.read_text()), capsys.readouterr().out
    assert report["loaded"] == loaded
    assert ("LOADED MACHINE" in out) == loaded
    assert len(report["results"]) == 4
    for row in report["results"]:
        assert f"{row['p50_ms']:.2f}" in out
        assert f"{row['ratio']['p50']:.3f}" in out
        assert f"{row['engines']['p50_ms']:.2f}" in out
        assert f"{row['stages']['global']['p50_ms']:.2f}" in out


def test_a_jetson_is_recorded_with_its_gpu_and_power_mode(tmp_path):
    from fake_host import ORIN_ANSWERS, make_host

    files = {
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.4\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release\n",
        "/usr/sbin/nvpmodel": "",
    }
    facts = machine.machine_facts(make_host(tmp_path, files, ORIN_ANSWERS))
    assert facts["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (facts["jetpack"], facts["power_mode"]) == ("6.2.1", "MAXN_SUPER")
    assert (facts["driver"], facts["driver_cuda"]) == ("540.4.0", 12060)
    assert facts["gpus"][0]["compute_capability"] == "8.7"
    assert "gpus" not in machine.machine_facts(make_host(tmp_path / "bare", {}, {}))


def test_the_share_of_other_programs_is_read_from_the_kernel(monkeypatch):
    ticks = iter([(100, 200), (150, 300), None, None])
    monkeypatch.setattr(machine, "_cpu_times", lambda: next(ticks))
    assert machine.busy_share(0) == 0.5
    assert machine.busy_share(0) is None
