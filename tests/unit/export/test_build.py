import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from glocal.export.build import build_bundle
from glocal.export.compare import check, summary
from glocal.runtime import Pipeline
from glocal.runtime.errors import CheckpointError, GlocalError, UsageError
from glocal.runtime.images import resize
from glocal.train.checkpoint import save_model
from glocal.train.config import model_config
from glocal.train.digits import CLASSES
from glocal.train.model import GlocalNet
from sklearn.datasets import load_sample_images

SCRIPT = Path(__file__).parents[3] / "export" / "build_engines.py"


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model, {"data": "digits", "image_size": 96, "seed": 0}, {"mAP": 0.25})
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    build_bundle(checkpoint, out)
    return out


def test_the_runtime_computes_what_pytorch_computes(checkpoint, bundle):
    from glocal.train.checkpoint import load_model

    photos = load_sample_images().images
    model = load_model(checkpoint).model
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.stack([resize(photo, (96, 128)) for photo in photos])))
    with Pipeline.load(bundle) as pipeline:
        predictions = pipeline.predict(photos)
    np.testing.assert_allclose([p.scores for p in predictions], expected.scores, atol=1e-5)
    np.testing.assert_allclose([p.local_scores for p in predictions], expected.local_logits.sigmoid(), atol=1e-5)
    assert [len(p.regions) for p in predictions] == expected.regions.n.tolist()


def test_the_manifest_says_what_was_verified_and_where_it_comes_from(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["labels"] == list("abcde")
    assert manifest["metrics"] == {"fp32": {"val/mAP": 0.25}}
    assert manifest["verification"]["fp32"]["real/same_boxes"] == 1
    assert summary(manifest["verification"]["fp32"]).endswith("100% of the images have the same boxes")
    check(manifest["verification"]["fp32"], "fp32", "the graphs")
    assert manifest["provenance"]["verified_on"] == "8 validation images"
    assert len(manifest["provenance"]["checkpoint_sha256"]) == 64


def random_model(**switches) -> GlocalNet:
    torch.manual_seed(0)
    switches = {"backbone": "test_resnet", "classes": CLASSES, "image_size": (96, 128), **switches}
    model = GlocalNet(model_config("glocal", **switches)).eval()
    if model.local_branch is not None:
        for head in (model.global_branch.head, model.local_branch.head):
            torch.nn.init.normal_(head.weight, std=3)
        torch.nn.init.normal_(model.global_branch.map_norm.running_mean, std=0.3)
    return model


@pytest.mark.parametrize(
    "switches",
    [
        {"rank": "area", "fusion": "logit", "shift": "signed", "roi_features": "f16", "local_stride": 1},
        {"map_features": "f16", "fusion": "probability", "box_fusion": "sum", "cross_attention": False},
    ],
    ids=lambda switches: next(iter(switches)),
)
def test_switches_reach_the_runtime(switches, tmp_path):
    model = random_model(**switches)
    save_model(tmp_path / "model.safetensors", model, {"data": "digits", "image_size": 96, "seed": 0}, {})
    manifest = build_bundle(tmp_path, tmp_path / "bundle").manifest  # verifies both graphs
    config = model.config
    assert (manifest.selector.rank, manifest.fusion) == (config.rank, config.fusion)
    assert (min(manifest.selector.shift) == 0) == (config.shift == "signed")
    photos = load_sample_images().images
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.stack([resize(photo, (96, 128)) for photo in photos])))
    with Pipeline.load(tmp_path / "bundle") as pipeline:
        predictions = pipeline.predict(photos)
    np.testing.assert_allclose([p.scores for p in predictions], expected.scores, atol=1e-5)
    mean = (expected.global_logits.sigmoid() + expected.local_logits.sigmoid()) / 2
    assert ((expected.scores - mean).abs().max() > 1e-3) == (config.fusion == "logit")


def test_a_network_of_one_branch_becomes_no_bundle(tmp_path):
    save_model(tmp_path / "model.safetensors", random_model(head="csra"), {"data": "digits", "image_size": 96}, {})
    with pytest.raises(UsageError, match="two branches"):
        build_bundle(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_script_builds_the_other_form(checkpoint, bundle, tmp_path):
    out = tmp_path / "bundle"
    command = [sys.executable, str(SCRIPT), str(checkpoint), "--out", str(out), "--roi-align", "operator"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    photos = load_sample_images().images
    with Pipeline.load(bundle) as one, Pipeline.load(out) as other:
        for a, b in zip(one.predict(photos), other.predict(photos), strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_the_script_prints_errors_without_a_traceback(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"PK not a model")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pickles are never loaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("exported")
def test_nothing_is_written_when_a_graph_is_wrong(checkpoint, tmp_path, monkeypatch):
    report = {"real/local.logits": 0.5, "real/same_boxes": 1.0}
    monkeypatch.setattr("glocal.export.build.verify_graphs", lambda *_: report)
    with pytest.raises(GlocalError, match=r"local\.logits differs by 0\.5"):
        build_bundle(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_without_the_training_data_photos_of_scikit_learn_serve(checkpoint, tmp_path):
    from glocal.train.checkpoint import load_model

    model = load_model(checkpoint).model
    save_model(tmp_path / "m.safetensors", model, {"data": "/no/such/folder", "image_size": 96, "seed": 0}, {})
    built = build_bundle(tmp_path / "m.safetensors", tmp_path / "bundle")
    assert built.manifest.provenance["verified_on"] == "2 photos from scikit-learn"


@pytest.mark.usefixtures("exported")
def test_a_folder_that_is_no_bundle_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    with pytest.raises(UsageError):
        build_bundle(checkpoint, tmp_path / "precious")
    assert (tmp_path / "precious" / "file").read_text() == "keep"


def test_a_damaged_checkpoint(checkpoint, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        build_bundle(tmp_path, tmp_path / "bundle")
