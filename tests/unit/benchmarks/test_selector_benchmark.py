import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from glocal.benchmarks import machine, selector, selector_ways
from glocal.benchmarks.machine import machine_facts
from glocal.benchmarks.selector_cli import selector as command
from glocal.benchmarks.selector_maps import load_maps, model_maps, noise_maps
from glocal.runtime.errors import DataError, GlocalError, UsageError
from glocal.runtime.images import encode_jpeg, read_image, resize
from glocal.train.checkpoint import save_model
from glocal.train.config import model_config
from glocal.train.model import GlocalNet
from typer import Typer
from typer.testing import CliRunner

FINDERS, SKIPPED = selector_ways.find_ways()
WAYS = ["glocal", *FINDERS, "OpenCV labels only"]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (folder / f"{index}.jpg").write_bytes(encode_jpeg(pixels))
    return folder


def save_run(folder, **overrides):
    torch.manual_seed(0)
    config = model_config("paper", backbone="test_resnet", classes=tuple("abcde"), image_size=(96, 128), **overrides)
    model = GlocalNet(config).eval()
    save_model(folder / "model.safetensors", model, {}, {})
    return model


def invoke(*arguments):
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_way_is_timed_and_compared_with_ours(batch):
    assert {"OpenCV components", "OpenCV contours", "SciPy", "cc3d"} == FINDERS.keys() | SKIPPED.keys()
    workload = noise_maps(categories=3, size=9, images=4)
    for setting in selector.SETTINGS:
        figures = selector.time_ways(workload, setting, batch, rounds=4, finders=FINDERS)
        assert list(figures) == WAYS
        for row in figures.values():
            assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
            assert row["us_per_image"] == pytest.approx(row["p50_us"] / batch, abs=1e-3)
            assert row["ratio"]["p10"] <= row["ratio"]["p50"] <= row["ratio"]["p90"]
            assert row["calls"] == (4 * 49 if batch == 1 else 2 * 15)
        assert figures["glocal"]["ratio"]["p50"] == 1


@pytest.mark.parametrize("name", FINDERS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_way_that_selects_other_regions_is_not_timed(name, batch):
    workload = noise_maps(categories=3, size=9, images=4)
    wrong = {name: lambda active: FINDERS[name](active)[1:]}
    with pytest.raises(GlocalError, match=f"{name} and glocal select different regions"):
        selector.time_ways(workload, selector.SETTINGS[0], batch, rounds=1, finders=wrong)


@pytest.mark.parametrize("name", FINDERS)
def test_a_component_inside_a_hole_is_found(name):
    ring = np.ones((5, 5), np.uint8)
    ring[1:4, 1:4] = 0
    ring[2, 2] = 1
    assert sorted(tuple(box) for box in FINDERS[name](ring)) == [(0, 0, 5, 5), (2, 2, 1, 1)]
    assert FINDERS[name](np.zeros((5, 5), np.uint8)) == []
    assert list(FINDERS[name](np.eye(5, dtype=np.uint8))[0]) == [0, 0, 5, 5]  # corners touch


def test_a_way_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "cc3d", None)
    ways, skipped = selector_ways.find_ways()
    assert "cc3d" not in ways
    assert "pip install connected-components-3d" in skipped["cc3d"]


def test_batches_hold_every_image_and_start_again_where_they_end():
    workload = noise_maps(categories=2, size=3, images=5)
    batches = workload.batch(3)
    np.testing.assert_array_equal(np.concatenate([maps for maps, _ in batches]), workload.maps[[0, 1, 2, 3, 4, 0]])
    assert [len(logits) for _, logits in workload.batch(12)] == [12]


def test_the_report_on_given_maps_is_written(tmp_path):
    noise = noise_maps(categories=5, size=7, images=16)
    np.savez(tmp_path / "maps.npz", maps=noise.maps, logits=noise.logits, shift=noise.shift)
    options = ("--rounds", 1, "--batch", 2, "--batch", 1, "--json", tmp_path / "report.json")
    result = invoke("--maps", tmp_path / "maps.npz", *options)
    assert result.exit_code == 0
    assert "5x7x7 maps of a file, 4 x 2 x 3 boxes" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["benchmark"] == "selector"
    assert report["machine"]["packages"]["numpy"] == np.__version__
    rows = [(row["images"], row["k_s"], row["zetas"], row["batch"]) for row in report["results"]]
    assert rows == [(16, 12, [], 1), (16, 12, [], 2), (16, 4, [0.5, 1], 1), (16, 4, [0.5, 1], 2)]
    assert [list(row["ways"]) for row in report["results"]] == [WAYS] * 4


@pytest.mark.parametrize(("features", "pixels"), [("f32", 32), ("f16", 16)])
def test_maps_of_a_trained_model_have_the_wanted_size(tmp_path, photos, features, pixels):
    model = save_run(tmp_path, map_features=features)
    paths = sorted(photos.iterdir())
    two, four = model_maps(tmp_path, paths, [2, 4])
    assert two.maps.shape == (3, 5, 2, 2)
    images = np.stack([resize(read_image(path), (4 * pixels, 4 * pixels)) for path in paths])
    with torch.inference_mode():
        outputs = model.global_branch(torch.from_numpy(images))
    np.testing.assert_allclose(four.maps, outputs.class_maps, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(four.logits, outputs.logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(four.shift, model.selector().shift)
    facts = four.describe()
    assert (facts["labels"], facts["input_px"], facts["maps"]) == (5, 4 * pixels, "5x4x4")
    assert facts["active_cells"] == pytest.approx((four.maps > 0).mean(), abs=1e-4)


def test_a_model_without_class_maps_is_refused(tmp_path, photos):
    save_run(tmp_path, head="max")
    with pytest.raises(UsageError, match="no class maps"):
        model_maps(tmp_path, [], [2])


def test_a_run_and_a_bundle_are_reported(photos, tiny_bundle, tmp_path):
    save_run(tmp_path)
    options = ("--images", photos, "--rounds", 1, "--batch", 1, "--json", tmp_path / "report.json")
    result = invoke(2, "--run", tmp_path, "--bundle", tiny_bundle, "--count", 2, *options)
    assert "in the pipeline of" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert {(row["images"], row["maps"], row["backbone"]) for row in report["results"]} == {(2, "5x2x2", "test_resnet")}
    share = report["pipeline"]
    assert share["total"]["calls"] == 2
    assert share["share"] == pytest.approx(share["select"]["p50_ms"] / share["total"]["p50_ms"], rel=1e-2)
    assert len(report["model"]["manifest_sha256"]) == 64


@pytest.mark.parametrize(
    "arguments", [("--run", "there"), ("--bundle", "there"), (14, "--maps", "a"), ("--maps", "a", "--run", "b")]
)
def test_options_that_do_not_fit_together_are_refused(arguments):
    with pytest.raises(UsageError):
        invoke(*arguments)


@pytest.mark.parametrize("content", [{"maps": np.zeros((1, 2, 3, 3))}, {"maps": 1, "logits": 1, "shift": 1}, None])
def test_a_file_without_class_maps_is_refused(tmp_path, content):
    path = tmp_path / "maps.npz"
    path.write_bytes(b"PK\3\4") if content is None else np.savez(path, **content)
    with pytest.raises(DataError, match="holds no class maps"):
        load_maps(path)


def test_the_commit_is_named_only_in_our_own_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(machine, "_ROOT", tmp_path.resolve())
    git("init")
    assert "commit" not in machine_facts()
    git("commit", "--allow-empty", "-m", "first")
    commit = machine_facts()["commit"]
    assert len(commit) == 40
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "file").touch()
    assert machine_facts()["commit"] == f"{commit} with changes"
    monkeypatch.setattr(machine, "_ROOT", tmp_path.resolve() / "installed")
    assert "commit" not in machine_facts()
