"""Kill -9 at any moment, then --resume: the same curve and the same weights as an unbroken run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from glocal.train.checkpoint import load_model
from glocal.train.history import read_history

GLOCAL = str(Path(sys.executable).parent / "glocal")
SETTINGS = "--data digits --backbone test_resnet --image-size 64 --epochs 6 --batch 4 --train-images 64 --val-images 16"
OPTIONS = [*SETTINGS.split(), "--workers", "0", "--ema", "0.9"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(out: Path, *more: str) -> subprocess.Popen:
    command = [GLOCAL, "train", *OPTIONS, "--out", str(out), *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def epochs(out: Path) -> int:
    return len(read_history(out)) if (out / "last.safetensors").is_file() else 0


@pytest.mark.slow
def test_killed_twice_and_resumed_equals_unbroken(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    unbroken = start(whole)
    more: tuple[str, ...] = ()
    for done, wait in ((1, 0.0), (3, 0.15)):  # after an epoch's files appeared, and somewhere inside an epoch
        process = start(part, *more)
        deadline = time.monotonic() + 200
        while epochs(part) < done and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        load_model(part)  # what is there can be read
        more = ("--resume",)
    finish(start(part, "--resume"))
    finish(unbroken)
    assert len(read_history(whole)) == 6
    assert (part / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    a, b = load_model(part).model.state_dict(), load_model(whole).model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
