import importlib
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from glocal.benchmarks import peers
from glocal.benchmarks.cli import main
from glocal.benchmarks.random_model import write_random_model
from glocal.runtime.errors import GlocalError, UsageError
from glocal.runtime.images import encode_jpeg


def no_compiler(*_, **__):
    raise RuntimeError("No C++ compiler was found.\nmore lines")


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile takes a minute: one test runs it, the others go without."""
    monkeypatch.setattr(torch, "compile", no_compiler)


@pytest.fixture
def without_openvino(monkeypatch):
    load = importlib.import_module

    def load_other(name, *arguments):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name=name)
        return load(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", load_other)


def test_peers_take_turns_and_the_absent_are_skipped(exported, random_run, uncompiled, without_openvino):
    before = torch.get_num_threads()
    report = peers.bench_peers(exported.path, random_run, rounds=3, batches=(1, 2), threads=1)
    assert torch.get_num_threads() == before
    names = ["glocal", "PyTorch eager", "one ONNX graph, all 24 boxes"]
    assert [(row["peer"], row["batch"]) for row in report["results"]] == [(n, b) for b in (1, 2) for n in names]
    assert {row["peer"]: row["reason"] for row in report["skipped"]} == {
        "torch.compile": "RuntimeError: No C++ compiler was found.",
        "OpenVINO": "ModuleNotFoundError: No module named 'openvino'",
    }
    for row in report["results"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["calls"] == 3
    assert report["results"][0]["ratio"]["p50_ci"] == [1, 1]
    facts = report["peers"]
    assert facts["PyTorch eager"]["max_score_difference"] < 1e-4
    assert facts["PyTorch eager"]["computes_the_same"]
    assert not facts[names[2]]["computes_the_same"]
    assert facts[names[2]]["max_score_difference"] > 1e-4  # its boxes are others
    assert (report["benchmark"], report["threads"]) == ("peers", 1)
    json.dumps(report, allow_nan=False)


def test_one_graph_takes_all_boxes_of_every_image(exported):
    peer = peers._one_graph(exported, 1)
    images = [np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in range(2)]
    both = peer.predict(images)
    assert both.shape == (2, len(exported.manifest.labels))
    for image, scores in zip(images, both, strict=True):
        np.testing.assert_allclose(peer.predict([image])[0], scores, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_gives_the_same_scores(exported, random_run, uncompiled):
    report = peers.bench_peers(exported.path, random_run, rounds=1, threads=1)
    assert report["peers"]["OpenVINO"]["max_score_difference"] < 1e-3
    assert report["machine"]["packages"]["openvino"]
    assert [row["peer"] for row in report["skipped"]] == ["torch.compile"]


@pytest.mark.slow
def test_compiled_branches_give_the_same_scores(exported, random_run, without_openvino):
    report = peers.bench_peers(exported.path, random_run, rounds=1, threads=1)
    assert report["peers"]["torch.compile"]["max_score_difference"] < 1e-3
    assert report["peers"]["torch.compile"]["compile_s"] > 0.1


def test_another_checkpoint_is_refused(exported, random_run, uncompiled, tmp_path):
    for seed, labels, message in ((1, 5, "gives other scores"), (0, 4, "not that of the bundle")):
        write_random_model(tmp_path / "model.safetensors", "test_resnet", 96, labels, seed=seed)
        with pytest.raises(GlocalError, match=message):
            peers.bench_peers(exported.path, tmp_path, rounds=1, threads=1)


def test_bad_arguments_are_refused(exported, random_run, tmp_path):
    with pytest.raises(UsageError, match="at least one image"):
        peers.bench_peers(exported.path, random_run, batches=(0,))
    with pytest.raises(UsageError, match="no checkpoint"):
        peers.bench_peers(exported.path, tmp_path / "none")


def test_the_command_prints_and_writes_what_was_measured(
    exported, random_run, without_openvino, monkeypatch, tmp_path, capsys
):
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(np.full((60, 90, 3), 100, np.uint8)))
    file = tmp_path / "peers.json"
    arguments = [str(exported.path), "--checkpoint", str(random_run), "--rounds", "2", "--threads", "1", "--no-compile"]
    arguments += ["--images", str(tmp_path / "a.jpg"), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["glocal", "bench", "peers", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    report, out = json.loads(file.read_text()), capsys.readouterr().out
    assert report["images"] == "1 given"
    for row in report["results"]:
        assert f"{row['p50_ms']:.2f}" in out
    assert "skipped OpenVINO: ModuleNotFoundError" in out
    assert "torch.compile" not in out
