import csv
import math
import os
import subprocess
import sys

import lightning
import pytest
import torch
from glocal.runtime.errors import GlocalError, UsageError
from glocal.train.checkpoint import load_model
from glocal.train.digits import CLASSES
from glocal.train.fit import build_model, fit
from glocal.train.history import read_history
from glocal.train.schedule import falling_steps, warmup_cosine
from glocal.train.settings import RECIPES, TrainConfig

SMALL = {
    "data": "digits",
    "backbone": "test_resnet",
    "image_size": 64,
    "epochs": 2,
    "batch": 8,
    "train_images": 24,
    "val_images": 16,
    "workers": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(TrainConfig(**SMALL), tmp_path_factory.mktemp("fit") / "run", quiet=True)


def test_a_run_leaves_what_it_says(run):
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "last.safetensors",
        "metrics.csv",
        "model.safetensors",
        "tensorboard",
    }
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert any(path.name.startswith("events") for path in (run / "tensorboard").iterdir())
    loaded = load_model(run)
    assert loaded.training["data"] == "digits"
    best = max(float(row["mAP"]) for row in rows)
    assert loaded.metrics["mAP"] == pytest.approx(best, abs=1e-5)


def test_training_is_deterministic_and_resume_gives_the_same_curve(run, tmp_path):
    """One epoch, then a second process's worth of state from disk, equals two epochs in one go."""
    part = tmp_path / "run"
    fit_in_pieces = f"""
import sys
from pathlib import Path
import glocal.train.step as module
from glocal.train.fit import fit
from glocal.train.settings import TrainConfig

class Killed(BaseException): pass

original = module.Fit.on_train_epoch_end
count = 0
def end(self):
    global count
    if count == 1: raise Killed
    count += 1
    original(self)
module.Fit.on_train_epoch_end = end
try:
    fit(TrainConfig(**{SMALL!r}), Path({str(part)!r}), quiet=True)
except Killed:
    sys.exit(9)
"""
    done = subprocess.run([sys.executable, "-c", fit_in_pieces], env={**os.environ}, capture_output=True)
    assert done.returncode == 9, done.stderr.decode()[-2000:]
    assert len(read_history(part)) == 1
    fit(TrainConfig(**SMALL), part, resume=True, quiet=True)
    # The validation metrics are of 16 scenes; equal losses to all printed digits say that the weights are equal.
    assert (part / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    a, b = load_model(part).model.state_dict(), load_model(run).model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_another_run_is_not_overwritten(run):
    with pytest.raises(UsageError, match="not empty"):
        fit(TrainConfig(**SMALL), run)


def test_resume_with_other_settings_is_refused(run):
    with pytest.raises(UsageError, match=r"lr: 0\.001 then, 0\.5 now"):
        fit(TrainConfig(**{**SMALL, "lr": 0.5}), run, resume=True)


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(UsageError, match="24 training images do not fill a batch of 25"):
        fit(TrainConfig(**{**SMALL, "batch": 25}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        fit(TrainConfig(**SMALL), tmp_path, resume=True)


def test_divergence_stops_with_a_message(tmp_path):
    with pytest.raises(GlocalError, match="training diverged"):
        fit(TrainConfig(**{**SMALL, "lr": 1e30, "optimizer": "sgd", "epochs": 3}), tmp_path / "run", quiet=True)


def test_bf16_and_the_paper_preset_train(tmp_path):
    out = fit(
        TrainConfig(**{**SMALL, "precision": "bf16-mixed", "preset": "paper", "epochs": 1}),
        tmp_path / "run",
        quiet=True,
    )
    assert load_model(out).model.config.shared_local_head
    assert math.isnan(read_history(out)[0]["loss_region"])  # the paper has no loss on the regions alone


def test_a_time_limit_ends_after_a_whole_epoch(tmp_path):
    out = fit(TrainConfig(**{**SMALL, "epochs": 50, "max_minutes": 1e-4}), tmp_path / "run", quiet=True)
    assert len(read_history(out)) == 1


def test_validation_that_is_not_finite_stops_too(tmp_path, monkeypatch):
    """A network of one branch has no selector that would notice."""
    monkeypatch.setattr("glocal.train.step.torch.isfinite", lambda x: torch.zeros_like(x, dtype=torch.bool))
    config = TrainConfig(**{**SMALL, "switches": {"head": "average"}})
    with pytest.raises(GlocalError, match="training diverged in epoch 0"):
        fit(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_peer_trains_and_is_kept_with_its_thresholds(tmp_path):
    switches = {"head": "csra"}
    out = fit(TrainConfig(**{**SMALL, "epochs": 1, "switches": switches}), tmp_path / "run", quiet=True)
    (row,) = read_history(out)
    assert math.isfinite(row["mAP"])
    assert math.isnan(row["mAP_local"])
    assert math.isnan(row["loss_weak"])
    loaded = load_model(out)
    assert loaded.model.config.head == "csra"
    assert loaded.model.local_branch is None
    assert set(loaded.metrics) == {"epoch", "mAP"}
    assert len(loaded.thresholds) == 10
    assert all(0 <= value <= 1 for value in loaded.thresholds)


def test_the_average_of_the_weights_is_what_is_kept(run, tmp_path):
    averaged = fit(TrainConfig(**{**SMALL, "ema": 0.999}), tmp_path / "run", quiet=True)
    lightning.seed_everything(0, verbose=False)
    models = [build_model(TrainConfig(**SMALL), CLASSES), load_model(run).model, load_model(averaged).model]
    first, far, near = (model.state_dict()["global_branch.head.weight"] for model in models)
    # Six steps at 0.999 leave the average close to the start; the weights themselves went further.
    assert 0 < (near - first).abs().max() < 0.1 * (far - first).abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"switches": {"roi_sze": 3}}, "(?s)switch roi_sze: Extra inputs.*the switches are .*roi_size"),
        ({"switches": {"rank": "size"}}, "switch rank: .*'energy' or 'area'"),
        ({"weak_weight": 0}, "nothing would train the class maps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        fit(TrainConfig(**{**SMALL, **settings}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_paper():
    config = TrainConfig(data="voc", **RECIPES["paper"])
    assert (config.optimizer, config.batch, config.epochs, config.image_size) == ("sgd", 16, 50, 448)
    assert (config.lr, config.lr * config.backbone_lr) == (0.05, 0.0125)
    steps = [round(falling_steps(epoch / 50), 6) for epoch in (0, 29, 30, 39, 40, 49)]
    assert steps == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_schedule():
    assert warmup_cosine(0) < warmup_cosine(0.02) < warmup_cosine(0.05) == 1
    assert warmup_cosine(0.5) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.45 / 0.95)))
    assert warmup_cosine(1) == pytest.approx(0)
    assert warmup_cosine(1.5) == pytest.approx(0)
