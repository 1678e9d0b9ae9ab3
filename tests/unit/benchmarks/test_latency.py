import json
import sys

import pytest
from glocal.benchmarks import engines, machine
from glocal.benchmarks.cli import main
from glocal.runtime.backends import BACKENDS
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.pipeline import Pipeline

STAGES = ["decode", "resize", "to_device", "global", "to_host", "select", "local", "fuse", "total"]


def test_every_case_is_timed_by_stage(tiny_bundle):
    report = engines.bench_engines(tiny_bundle, ["onnxruntime"], rounds=4, batches=(1, 3))
    assert [(row["backend"], row["precision"], row["batch"]) for row in report["results"]] == [
        ("onnxruntime", "fp32", 1),
        ("onnxruntime", "fp32", 3),
    ]
    for row in report["results"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert list(row["stages"]) == STAGES
        assert row["stages"]["total"]["p50_ms"] <= row["p99_ms"]
        assert row["ratio"] == {"p10": 1, "p50": 1, "p90": 1}
        assert row["boxes"] > 0
    assert report["model"]["files"] == Bundle.load(tiny_bundle).manifest.files
    assert report["machine"]["packages"]["onnxruntime"]
    assert report["skipped"] == []
    json.dumps(report, allow_nan=False)


def test_what_cannot_run_is_skipped_with_its_reason(tiny_bundle, monkeypatch):
    load = Pipeline.load

    def only_one(path, backend, precision, threads):
        if backend == "other":
            if precision == "int8":
                raise OSError("libother.so.1")  # not an error of ours
            raise UsageError("other is not installed.", fix="pip install other")
        return load(path, backend, precision, threads)

    monkeypatch.setattr(engines, "BACKENDS", ("other", "onnxruntime"))
    monkeypatch.setattr(Pipeline, "load", only_one)
    report = engines.bench_engines(tiny_bundle, ["other", "onnxruntime"], ["fp32", "int8"], rounds=2, batches=(1,))
    assert [(row["backend"], row["precision"]) for row in report["results"]] == [("onnxruntime", "fp32")]
    skipped = {(row["backend"], row["precision"]): row for row in report["skipped"]}
    assert set(skipped) == {("other", "fp32"), ("other", "int8"), ("onnxruntime", "int8")}
    assert skipped["other", "fp32"]["reason"] == "other is not installed."
    assert skipped["other", "fp32"]["fix"] == "pip install other"
    assert skipped["other", "int8"]["reason"] == "OSError: libother.so.1"
    with pytest.raises(GlocalError, match="other is not installed"):
        engines.bench_engines(tiny_bundle, ["other"], rounds=1)


def test_a_batch_that_does_not_fit_is_skipped_alone(tiny_bundle, monkeypatch):
    run = Pipeline._run

    def short_of_memory(self, items):
        if len(items) > 2:
            raise MemoryError("out of memory")
        return run(self, items)

    monkeypatch.setattr(Pipeline, "_run", short_of_memory)
    report = engines.bench_engines(tiny_bundle, ["onnxruntime"], rounds=2, batches=(1, 4))
    assert [row["batch"] for row in report["results"]] == [1]
    assert [(row["batch"], row["reason"]) for row in report["skipped"]] == [(4, "MemoryError: out of memory")]


def test_an_engine_that_fails_is_not_timed(tiny_bundle, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(GlocalError, match="could not predict"):
        engines.bench_engines(tiny_bundle, ["onnxruntime"], rounds=1, images=tmp_path / "broken.jpg")


@pytest.mark.parametrize(
    ("backends", "precisions", "batches"),
    [
        (["onnxruntme"], (), (1,)),
        ([], (), (1,)),
        (BACKENDS, ("fp8",), (1,)),
        (BACKENDS, (), (0,)),
        (BACKENDS, (), ()),
    ],
)
def test_wrong_names_and_batches_are_refused(backends, precisions, batches, tiny_bundle):
    with pytest.raises(UsageError):
        engines.bench_engines(tiny_bundle, backends, precisions, batches=batches)


@pytest.mark.parametrize(("busy", "loaded"), [(0.5, True), (0.01, False), (None, False)])
def test_a_loaded_machine_is_marked(busy, loaded, tiny_bundle, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engines, "busy_share", lambda: busy)
    file = tmp_path / "out" / "engines.json"
    arguments = ["bench", "engines", str(tiny_bundle), "--backend", "onnxruntime", "--rounds", "2", "--batch", "1"]
    monkeypatch.setattr(sys, "argv", ["glocal", *arguments, "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert json.loads(file.read_text())["loaded"] == loaded
    assert ("LOADED MACHINE" in capsys.readouterr().out) == loaded


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
