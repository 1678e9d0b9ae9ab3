"""Two processes (gloo, CPU) train together; real processes, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime.errors import UsageError
from glocal.runtime.metrics import multilabel_metrics
from glocal.train.checkpoint import load_model
from glocal.train.data import TrainImages, open_data
from glocal.train.evaluate import score_model
from glocal.train.fit import fit
from glocal.train.history import read_history
from glocal.train.sampler import EpochSampler, ShareSampler
from glocal.train.settings import TrainConfig

GLOCAL = str(Path(sys.executable).parent / "glocal")
SETTINGS = "--data digits --backbone test_resnet --image-size 64 --epochs 1 --batch 4 --train-images 17 --val-images 21"
OPTIONS = [*SETTINGS.split(), "--workers", "0", "--devices", "2"]


@pytest.mark.parametrize("launcher", [[], ["torchrun"]], ids=["by Lightning", "by torchrun"])
def test_two_processes_train_one_model(launcher, tmp_path):
    out = tmp_path / "run"
    start = [GLOCAL]
    if launcher:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", GLOCAL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PL_DISABLE_FORK": "1"}
    command = [*start, "train", *OPTIONS, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = read_history(out)
    model = load_model(out).model
    assert int(model.global_branch.map_norm.num_batches_tracked) == 2  # 17 images: 8 a process, 4 a step
    # The metric of the run is over the images of both processes: the same as one process computes on all of them.
    val = open_data("digits", "val", length=21, size=64)
    scores = score_model(model, TrainImages(val, (64, 64), augment=False, seed=0), workers=0)
    metrics = multilabel_metrics(scores.fused, val.targets)
    assert row["mAP"] == pytest.approx(metrics["mAP"], abs=1e-4)


@pytest.mark.parametrize(("length", "world"), [(16, 2), (17, 2), (17, 3), (3, 3)])
def test_the_processes_share_the_images(length, world, monkeypatch):
    class Data:
        def set_epoch(self, epoch):
            pass

        def __len__(self):
            return length

    def shares(sampler):
        drawn = []
        for rank in range(world):
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            drawn.append(list(sampler))
        return drawn

    training = shares(EpochSampler(Data(), 0, world))
    assert {len(share) for share in training} == {length // world}
    assert len(set(np.concatenate(training).tolist())) == length // world * world  # none twice
    validation = shares(ShareSampler(length, world))
    assert {len(share) for share in validation} == {-(-length // world)}
    in_order = np.stack(validation, 1).ravel()
    assert in_order[:length].tolist() == list(range(length))


def test_a_time_limit_is_refused_for_several_processes(tmp_path):
    config = TrainConfig(data="digits", train_images=64, val_images=4, image_size=64, devices=2, max_minutes=1.0)
    with pytest.raises(UsageError, match="one process only"):
        fit(config, tmp_path / "run", quiet=True)
