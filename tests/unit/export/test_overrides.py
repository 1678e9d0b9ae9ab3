"""Cheaper settings, chosen at export."""

import json

import numpy as np
import pytest
import torch
from glocal.benchmarks.cli import app
from glocal.export.build import build_bundle
from glocal.export.overrides import Overrides, override, overrides_of
from glocal.runtime import Pipeline
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import BundleError, GlocalError, UsageError
from glocal.runtime.images import resize
from glocal.train.checkpoint import load_model, save_model
from glocal.train.config import ModelConfig, model_config
from glocal.train.model import GlocalNet
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

CHEAPER = {"k_s": 2, "k_e": 1, "roi_size": 2}


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training = {"data": "digits", "image_size": 96, "seed": 0}
    save_model(folder / "model.safetensors", model, training, {"mAP": 0.25}, (0.1, 0.2, 0.3, 0.4, 0.5))
    return folder


@pytest.fixture(scope="module")
def cheaper(run, graphs, tmp_path_factory):
    out = tmp_path_factory.mktemp("cheaper") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        # The settings have no part in the global graph, and exporting it takes seconds.
        patch.setattr("glocal.export.build.export_global", lambda _: graphs["global"])
        done = invoke("export", run, "--out", out, "--k-s", 2, "--k-e", 1, "--roi-size", 2)
    assert done.exit_code == 0, done.exception
    stderr = " ".join(done.stderr.split())
    assert "k_s 4 -> 2, k_e 2 -> 1, roi_size 4 -> 2; weights and thresholds were trained and fitted" in stderr
    assert "glocal evaluate" in stderr
    return out


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def changed_twin(model, **settings):
    """The same weights in a network that was configured so from the start."""
    twin = GlocalNet(ModelConfig(**{**model.config.model_dump(), **settings}))
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_the_bundle_computes_what_a_network_of_these_settings_does(model, cheaper):
    photos = load_sample_images().images
    inputs = torch.from_numpy(np.stack([resize(photo, (96, 128)) for photo in photos]))
    with torch.inference_mode():
        expected, trained = changed_twin(model, **CHEAPER)(inputs), model(inputs)
    with Pipeline.load(cheaper) as pipeline:
        predictions = pipeline.predict(photos)
    np.testing.assert_allclose([p.scores for p in predictions], expected.scores, atol=1e-5)
    assert [len(p.regions) for p in predictions] == expected.regions.n.tolist()
    assert (expected.local_logits - trained.local_logits).abs().max() > 1e-3


def test_the_manifest_says_what_was_changed_and_claims_no_figures_of_the_training(cheaper):
    bundle = Bundle.load(cheaper)
    assert (bundle.manifest.selector.k_s, bundle.manifest.selector.k_e) == (2, 1)
    assert {name: bundle.manifest.provenance[name] for name in CHEAPER} == {"k_s": "2", "k_e": "1", "roi_size": "2"}
    assert bundle.manifest.metrics["fp32"] == {}
    assert bundle.manifest.thresholds["fp32"] == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert overrides_of(bundle) == Overrides(**CHEAPER)


def test_verify_compares_with_the_network_of_the_same_settings(run, cheaper):
    done = invoke("verify", cheaper, "--checkpoint", run)
    assert done.exit_code == 0, done.output
    manifest = json.loads((cheaper / "manifest.json").read_text())
    try:
        forgotten = {name: text for name, text in manifest["provenance"].items() if name != "roi_size"}
        (cheaper / "manifest.json").write_text(json.dumps({**manifest, "provenance": forgotten}))
        assert isinstance(invoke("verify", cheaper, "--checkpoint", run).exception, GlocalError)
        strange = {**manifest["provenance"], "roi_size": "two"}
        (cheaper / "manifest.json").write_text(json.dumps({**manifest, "provenance": strange}))
        assert isinstance(invoke("verify", cheaper, "--checkpoint", run).exception, BundleError)
    finally:
        (cheaper / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_is_kept_only_for_the_same_settings(run, cheaper, monkeypatch):
    def fail(*_):
        raise AssertionError("exported again")

    monkeypatch.setattr("glocal.export.build.export_global", fail)
    assert build_bundle(run, cheaper, overrides=Overrides(**CHEAPER)) == Bundle.load(cheaper)
    for other in (None, Overrides(k_s=2), Overrides(**{**CHEAPER, "k_e": 3})):
        with pytest.raises(AssertionError, match="exported again"):
            build_bundle(run, cheaper, overrides=other)


@pytest.mark.usefixtures("exported")
def test_the_models_own_settings_change_nothing(run, tmp_path):
    built = build_bundle(run, tmp_path / "bundle", overrides=Overrides(k_s=4, k_e=2, roi_size=4))
    assert not set(CHEAPER) & set(built.manifest.provenance)
    assert built.manifest.metrics == {"fp32": {"val/mAP": 0.25}}
    assert overrides_of(built) == Overrides()


@pytest.mark.parametrize(
    "switches",
    [{"roi_features": "f32"}, {"roi_features": "f16", "local_stride": 1}, {"roi_features": "f16", "local_stride": 2}],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_kind_of_local_branch_takes_another_roi_size(switches, size):
    torch.manual_seed(0)
    config = model_config("glocal", backbone="test_resnet", classes=tuple("abcde"), image_size=(64, 64), **switches)
    model = GlocalNet(config).eval()
    twin = changed_twin(model, roi_size=size, k_s=9)  # more categories than labels: all of them
    assert override(model, Overrides(k_s=9, roi_size=size)) == {"k_s": (4, 9), "roi_size": (3, size)}
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        np.testing.assert_array_equal(model(images).scores, twin(images).scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k-s", "600"], "at most 1024 boxes"),
        (["--roi-size", "65"], "at most 64"),
    ],
)
def test_values_that_cannot_be_are_refused(options, message, run, tmp_path):
    done = invoke("export", run, "--out", tmp_path / "bundle", *options)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    assert invoke("export", run, "--out", tmp_path / "bundle", "--k-e", "0").exit_code == 2
    with pytest.raises(UsageError, match="--k-e must be at least 1"):
        Overrides(k_e=0)


def test_a_stage_that_needs_more_cells_is_told(run):
    model = load_model(run).model
    model.local_branch.stage = torch.nn.AvgPool2d(4)
    with pytest.raises(UsageError, match="--roi-size 2 does not fit"):
        override(model, Overrides(roi_size=2))


def test_a_bundle_keeps_its_settings(cheaper):
    for option in ("--k-s", "--k-e", "--roi-size"):
        done = invoke("export", cheaper, option, 2)
        assert isinstance(done.exception, UsageError)
        assert "with a checkpoint" in str(done.exception)
