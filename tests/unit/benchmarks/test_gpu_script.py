"""benchmarks/gpu.sh on the CPU with a tiny bundle, and with steps that fail or are late."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from glocal.benchmarks.random_model import write_random_model
from glocal.train.checkpoint import load_model

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.sh"
# Stands in for Python: a step that never ends, one that fails, and the summary, which is real.
STUB = """#!/usr/bin/env bash
case "$*" in
    -c*) exit 0 ;;
    *" export "*) sleep 600 ;;
    "- "*) exec {python} "$@" ;;
    *) echo "cannot do $3 in {folder}" && exit 3 ;;
esac
"""


def run(out, **settings):
    environ = {**os.environ, "PYTHON": sys.executable, **settings}
    done = subprocess.run([SCRIPT, str(out)], env=environ, capture_output=True, text=True)
    return done, {row["step"]: row for row in json.loads((out / "steps.json").read_text())}


def test_a_given_bundle_on_the_cpu(exported, tmp_path):
    before = sorted(path.relative_to(exported.path) for path in exported.path.rglob("*"))
    done, steps = run(
        tmp_path / "out",
        BUNDLE=str(exported.path),
        BACKENDS="onnxruntime",
        PRECISIONS="fp32",
        ROUNDS="3",
        MAX_BATCH="2",
    )
    out = tmp_path / "out"
    assert [steps[name]["exit"] for name in ("doctor", "copy", "latency", "stream", "verify-onnxruntime")] == [0] * 5, (
        done
    )
    assert json.loads((out / "doctor.json").read_text())["backends"]["onnxruntime"]["ready"]
    results = json.loads((out / "latency.json").read_text())["results"]
    single = [(row["backend"], row["batch"]) for row in results if row["precision"] == "fp32"]
    assert single == [("onnxruntime", 1), ("onnxruntime", 2)]
    assert json.loads((out / "verify.json").read_text())["onnxruntime"]
    assert "onnxruntime fp32 batch 1: p50" in done.stdout
    assert "of the plain backbone's" in done.stdout
    assert sorted(path.relative_to(exported.path) for path in exported.path.rglob("*")) == before
    texts = [path.read_text() for path in out.iterdir()]
    assert len(texts) <= 9
    assert not any(str(tmp_path) in text or str(SCRIPT.parents[1]) in text for text in texts)


def test_late_and_failed_steps_do_not_stop_the_rest(tiny_bundle, tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=tmp_path))
    stub.chmod(0o755)
    done, steps = run(tmp_path / "out", PYTHON=str(stub), BUNDLE=str(tiny_bundle), BACKENDS="tensorrt", LIMIT="104")
    assert done.returncode == 1
    assert steps["copy"]["exit"] == 0
    assert [name for name in steps if name.startswith("plan")] == ["plan-tensorrt-fp32", "plan-tensorrt-fp16"]
    assert steps["plan-tensorrt-fp32"]["exit"] == 124
    assert steps["doctor"]["exit"] == steps["latency"]["exit"] == steps["verify-tensorrt"]["exit"] == 3
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "late" in summary
    assert "FAILED" in summary
    assert "cannot do" in (tmp_path / "out" / "log.txt").read_text()


def test_no_time_is_left(tiny_bundle, tmp_path):
    done, steps = run(tmp_path / "out", BUNDLE=str(tiny_bundle), LIMIT="0")
    assert done.returncode == 1
    assert {row["exit"] for row in steps.values()} == {124}
    assert "late" in (tmp_path / "out" / "summary.txt").read_text()


@pytest.mark.parametrize("preset", ["glocal", "paper"])
def test_random_weights_look_like_those_of_a_trained_network(preset, tmp_path):
    write_random_model(tmp_path / "model.safetensors", "test_resnet", 96, 5, preset)
    model = load_model(tmp_path).model
    assert len(model.config.classes) == 5
    assert [name for name, value in model.named_parameters() if name.endswith("weight") and not value.any()] == []
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(torch.equal(norm.running_var, torch.ones_like(norm.running_var)) for norm in norms)
    photo = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        out = model(photo)
    assert out.scores.isfinite().all()
    assert out.global_logits.abs().max() < 1e3
    other = torch.zeros_like(photo)
    with torch.inference_mode():
        assert not torch.allclose(model(other).global_logits, out.global_logits)
