import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from glocal.export.build import build_bundle
from glocal.runtime.bundle import Bundle, add_to_bundle
from glocal.runtime.errors import DataError, GlocalError, UsageError
from glocal.runtime.metrics import multilabel_metrics
from glocal.train.checkpoint import load_model, save_model
from glocal.train.cli import evaluate as evaluate_command
from glocal.train.config import model_config
from glocal.train.data import TrainImages, open_data
from glocal.train.digits import CLASSES, write_data_folder
from glocal.train.evaluate import Scores, evaluate, score_model, summarise
from glocal.train.model import GlocalNet
from torch.utils.data import TensorDataset

LENGTH = 20
THRESHOLDS = np.linspace(0.3, 0.6, 10).astype(np.float32)
FIGURES = ("CP", "CR", "CF1", "OP", "OR", "OF1")


def save_run(folder, head="glocal", thresholds=THRESHOLDS):
    torch.manual_seed(0)
    config = model_config("glocal", backbone="test_resnet", classes=CLASSES, image_size=(64, 64), head=head)
    path = folder / "model.safetensors"
    save_model(path, GlocalNet(config), {"data": "digits", "image_size": 64, "seed": 0}, {}, thresholds)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return build_bundle(run, tmp_path_factory.mktemp("exported") / "bundle").path


def scenes():
    return open_data("digits", "test", length=LENGTH, size=64)


def scored(run):
    return score_model(load_model(run).model, TrainImages(scenes(), (64, 64), augment=False, seed=0), workers=0)


def test_a_run_and_its_bundle_have_the_same_numbers(run, bundle, tmp_path):
    write_data_folder(tmp_path / "data", {"test": LENGTH}, size=64)
    of_run = evaluate(run, str(tmp_path / "data"), workers=0)
    of_bundle = evaluate(bundle, str(tmp_path / "data"))
    assert of_run["images"] == LENGTH
    assert set(of_run["per_class_AP"]) == set(CLASSES)
    assert set(of_run) == set(of_bundle)
    for name in ("mAP", "mAP_global", "mAP_local", *FIGURES):
        assert of_run[name] == pytest.approx(of_bundle[name], abs=1e-4)
    for kind in ("top3", "fitted"):
        assert of_run[kind] == pytest.approx(of_bundle[kind], abs=1e-4)
    # A folder of scenes is the scenes: PNG keeps every pixel.
    assert evaluate(run, "digits", length=LENGTH, workers=0) == of_run


def test_figures_are_taken_at_one_half_and_at_the_models_thresholds(run):
    found = evaluate(run, "digits", length=LENGTH, workers=0)
    fused = scored(run).fused
    half, fitted = (multilabel_metrics(fused, scenes().targets, at) for at in (0.5, THRESHOLDS))
    assert {name: found[name] for name in ("mAP", *FIGURES, "top3")} == {
        name: half[name] for name in ("mAP", *FIGURES, "top3")
    }
    assert found["fitted"] == {name: fitted[name] for name in FIGURES}
    assert found["fitted"] != {name: half[name] for name in FIGURES}


def test_a_run_without_fitted_thresholds_has_one_half(tmp_path):
    found = evaluate(save_run(tmp_path, thresholds=None), "digits", length=LENGTH, workers=0)
    assert found["fitted"] == {name: found[name] for name in FIGURES}


@pytest.mark.parametrize("head", ["csra", "global"])
def test_a_model_of_one_branch_has_no_figures_of_branches(tmp_path, head):
    run = save_run(tmp_path, head)
    scores = scored(run)
    assert scores.fused.shape == (LENGTH, 10)
    assert (scores.global_, scores.local) == (None, None)
    found = evaluate(run, "digits", length=LENGTH, workers=0)
    assert not {"mAP_global", "mAP_local"} & set(found)
    with pytest.raises(UsageError, match="one branch"):
        evaluate(run, "digits", length=LENGTH, workers=0, probe=True)


def test_features_are_scored_as_their_images_are(run):
    model = load_model(run).model
    images = TrainImages(scenes(), (64, 64), augment=False, seed=0)
    pixels = torch.stack([images[i][0] for i in range(LENGTH)])
    with torch.inference_mode():
        features = model.global_branch.trunk_features(pixels)
    of_features = score_model(model, TensorDataset(features.clone(), torch.zeros(LENGTH, 10)), batch=7, workers=0)
    for one, other in zip(of_features, score_model(model, images, batch=7, workers=0), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_ignored_targets_do_not_count():
    images = scenes()
    images.targets[3:9, 2] = -1
    rng = np.random.default_rng(0)
    scores = rng.random((LENGTH, 10))
    changed = scores.copy()
    changed[3:9, 2] = rng.random(6)
    one, other = (summarise(Scores(fused), images, THRESHOLDS) for fused in (scores, changed))
    one["top3"] = other["top3"] = None  # scores of ignored targets may take a place there
    assert one == other


def test_other_labels_are_refused(run, tmp_path):
    write_data_folder(tmp_path / "data", {"test": 2}, size=64)
    (tmp_path / "data" / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(DataError, match="another order"):
        evaluate(run, str(tmp_path / "data"), workers=0)


def test_scores_that_are_not_finite_are_refused(tmp_path):
    model = load_model(save_run(tmp_path, "csra")).model
    torch.nn.init.constant_(model.global_branch.head.bias, float("nan"))
    with pytest.raises(GlocalError, match="not finite"):
        score_model(model, TrainImages(scenes(), (64, 64), augment=False, seed=0), workers=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(run):
    with pytest.raises(UsageError, match="no GPU"):
        evaluate(run, "digits", length=LENGTH, workers=0, device="cuda")


def test_the_command_prints_and_writes_what_it_found(run, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    evaluate_command(run, "digits", "test", file, per_class=True, probe=True, length=LENGTH, batch=8, workers=0)
    found = json.loads(file.read_text())
    shown = capsys.readouterr().out
    assert found["images"] == found["probe"]["images"] == LENGTH
    figures = [found["mAP"], found["fitted"]["OF1"], found["top3"]["CP"], found["per_class_AP"]["7"]]
    figures += [found["probe"]["controls"][name]["local"] for name in ("random", "grid", "other_global")]
    for figure in figures:
        assert f"{100 * figure:.2f}" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert found["probe"]["mAP"]["fused"] == pytest.approx(found["mAP"], abs=1e-6)


def test_a_bundle_cannot_be_probed(bundle):
    with pytest.raises(UsageError, match="only a run"):
        evaluate(bundle, "digits", probe=True)


def test_an_early_exit_gives_its_share_and_no_map_of_the_hard_images_alone(bundle, run, tmp_path):
    leaving = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    plain = evaluate(leaving, "digits", length=LENGTH)
    with pytest.raises(UsageError, match="glocal early-exit"):
        evaluate(leaving, "digits", length=LENGTH, early_exit=True)
    with pytest.raises(UsageError, match="a run has no early exit"):
        evaluate(run, "digits", length=LENGTH, early_exit=True)

    add_to_bundle(Bundle.load(leaving), {}, early_exit={"fp32": (0.0, 1.0)})
    nobody = evaluate(leaving, "digits", length=LENGTH, early_exit=True)
    assert nobody == plain | {"exits": 0}

    add_to_bundle(Bundle.load(leaving), {}, early_exit={"fp32": (0.5, 0.5)})
    all_ = evaluate(leaving, "digits", length=LENGTH, early_exit=True)
    assert (all_["exits"], all_["mAP"]) == (1, plain["mAP_global"])
    assert set(plain) - set(all_) == {"mAP_local"}
    assert evaluate(leaving, "digits", length=LENGTH) == plain


def test_the_command_shows_the_share_of_exits(bundle, tmp_path, capsys):
    leaving = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    add_to_bundle(Bundle.load(leaving), {}, early_exit={"fp32": (0.5, 0.5)})
    evaluate_command(leaving, "digits", length=LENGTH, early_exit=True)
    assert "100.00 of the images exited early" in capsys.readouterr().out
