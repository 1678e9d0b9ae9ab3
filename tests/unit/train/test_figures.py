"""The paper's figures on built-in scenes: the files, and the numbers in them against direct computation."""

from __future__ import annotations

import csv
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from glocal.runtime.errors import DataError, GlocalError, UsageError
from glocal.runtime.selector import RegionSelector
from glocal.train.checkpoint import load_model, save_model
from glocal.train.config import model_config
from glocal.train.data import open_data
from glocal.train.digits import CLASSES
from glocal.train.figure_cli import figure
from glocal.train.figure_parts import look, open_sample
from glocal.train.figure_photos import Pick, pick
from glocal.train.figure_regions import set_iou
from glocal.train.figure_tsne import Tokens, nearest_category, true_tokens
from glocal.train.figures import DPI, KINDS, Written, write_figure
from glocal.train.model import GlocalNet
from PIL import Image
from scipy import ndimage

SCENES = 24


@pytest.fixture(scope="module")
def build_active(build_model):
    """Builds models whose class maps are active in about half of their cells."""
    data = open_data("digits", "train", length=16, size=192)
    images = torch.from_numpy(np.stack([data.load(index) for index in range(16)]))

    def call(bias: float, **switches: str) -> GlocalNet:
        model = build_model("glocal", classes=CLASSES, image_size=(192, 192), zetas=(0.5, 1.0), **switches)
        norm = model.global_branch.map_norm
        with torch.no_grad():
            norm.running_mean.zero_()
            maps = model.global_branch(images).class_maps
            norm.running_mean.copy_(maps.mean((0, 2, 3)))
            norm.running_var.copy_(maps.var((0, 2, 3)))
            norm.bias.fill_(bias)
        return model

    return call


@pytest.fixture(scope="module")
def runs(build_active, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, weak_weight in (("with", 1.0), ("without", 0.0)):
        save_model(folder / name / "model.safetensors", build_active(weak_weight / 4), {"weak_weight": weak_weight}, {})
    return [folder / "with", folder / "without"]


@pytest.fixture(scope="module")
def sample(runs):
    return open_sample("digits", "test", load_model(runs[0]).model.config, SCENES, 0)


@pytest.fixture(scope="module")
def seen(runs, sample):
    return look(load_model(runs[0]).model, sample)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def write(runs, tmp_path_factory):
    """Writes a figure, each once."""
    folder = tmp_path_factory.mktemp("figures")

    @functools.cache
    def call(name: str) -> Written:
        return write_figure(name, runs[: KINDS[name].runs], "digits", folder / name / "new", images=SCENES)

    return call


@pytest.mark.parametrize("name", KINDS)
def test_every_figure_is_a_picture_with_its_numbers(write, name):
    written = write(name)
    assert sorted(path.name for path in written.csv.parent.iterdir()) == [f"{name}.csv", f"{name}.png"]
    with Image.open(written.picture) as picture:
        assert picture.size == pytest.approx(written.drawn.figure.get_size_inches() * DPI, abs=1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    table = rows(written.csv)
    assert len(table) == len(written.drawn.table) > 0
    for text, row in zip(table, written.drawn.table, strict=True):
        assert {key: str(value) for key, value in row.items()} == text


def iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared)


def test_energy_against_area(write, runs, seen):
    written = write("energy")
    config = load_model(runs[0]).model.config
    shift = load_model(runs[0]).model.selector().shift
    for row, (k_e, zetas) in zip(rows(written.csv), ((1, ()), (2, ()), (2, config.zetas)), strict=True):
        found = []
        for rank in ("energy", "area"):
            regions = RegionSelector(shift, config.k_s, k_e, zetas, rank)(seen.class_maps, seen.logits)
            found.append([[tuple(box) for box in boxes[:n]] for boxes, n in zip(regions.boxes, regions.n, strict=True)])
        agreement = []
        for one, other in zip(*found, strict=True):
            best = [max(iou(a, b) for b in other) for a in one] + [max(iou(a, b) for a in one) for b in other]
            agreement.append(sum(best) / len(best))
        differ = [set(one) != set(other) for one, other in zip(*found, strict=True)]
        assert float(row["differ"]) == pytest.approx(np.mean(differ))
        assert float(row["iou"]) == pytest.approx(np.mean(agreement))
        if any(differ):
            assert float(row["iou_differing"]) == pytest.approx(np.mean(np.array(agreement)[differ]))
        else:
            assert row["iou_differing"] == ""
    assert 0 < sum(differ) < SCENES  # else the test would show little


def test_set_iou_of_hand_made_boxes():
    whole, half, corner = [0, 0, 4, 4], [0, 0, 4, 2], [3, 3, 4, 4]
    assert set_iou(np.array([whole, half]), np.array([half, whole])) == 1
    assert set_iou(np.array([whole]), np.array([half])) == 0.5
    assert set_iou(np.array([whole]), np.array([half, corner])) == pytest.approx((0.5 + 0.5 + 1 / 16) / 3)


def strongest(plane: np.ndarray, count: int) -> list[tuple[int, int, int, int]]:
    """The boxes of highest energy of a class map, by SciPy."""
    labels, _ = ndimage.label(plane > 0, np.ones((3, 3)))
    places = ndimage.find_objects(labels)
    energies = [np.maximum(plane[place], 0).sum() for place in places]
    order = np.argsort(-np.array(energies), kind="stable")[:count]
    return [(x.start, y.start, x.stop, y.stop) for y, x in (places[index] for index in order)]


def test_variants_against_a_direct_computation(write, runs, seen):
    written = write("variants")
    model = load_model(runs[0]).model
    shift, zetas = model.selector().shift, model.config.zetas
    chains = []
    for maps, logits in zip(seen.class_maps, seen.logits, strict=True):
        for category in np.argsort(-logits)[:4]:
            for region in strongest(maps[category], 2):
                x0, y0, x1, y1 = region
                chain = [region]
                for zeta in zetas:
                    inside = strongest(maps[category, y0:y1, x0:x1] - np.float32(zeta) * shift[category], 1)
                    chain += [(a + x0, b + y0, c + x0, d + y0) for a, b, c, d in inside] or chain[-1:]
                chains.append(chain)
    areas = np.array([[(c - a) * (d - b) for a, b, c, d in chain] for chain in chains])
    for place, row in enumerate(rows(written.csv), 1):
        assert float(row["zeta"]) == zetas[place - 1]
        assert int(row["regions"]) == len(chains)
        assert float(row["mean_area"]) == pytest.approx((areas[:, place] / areas[:, 0]).mean())
        assert float(row["same"]) == pytest.approx(np.mean([chain[place] == chain[place - 1] for chain in chains]))
        assert float(row["same_as_region"]) == pytest.approx(np.mean([chain[place] == chain[0] for chain in chains]))
        assert 0 < float(row["same"]) < 1
    # Without repeats these are the boxes that the model's selector gives.
    total = sum(len(set(itertools.chain(*chains_of))) for chains_of in by_photo(chains, seen))
    assert total == int(seen.regions.n.sum())


def by_photo(chains, seen):
    """Chains in parts, one part a photo: as many chains as the photo's categories have regions."""
    chains = iter(chains)
    for maps, logits in zip(seen.class_maps, seen.logits, strict=True):
        count = sum(len(strongest(maps[category], 2)) for category in np.argsort(-logits)[:4])
        yield list(itertools.islice(chains, count))


def test_photos_are_of_three_kinds_and_have_the_models_scores(write, seen, sample):
    written = write("photos")
    table = rows(written.csv)
    gains = [
        (seen.fused[index] - seen.global_[index])[target == 1].mean() for index, target in enumerate(sample.targets)
    ]
    order = [f"scene {index}" for index in np.argsort(-np.array(gains))]
    names = list(dict.fromkeys(row["photo"] for row in table))
    assert names[:2] == order[:2]
    assert names[4:] == order[:-3:-1]
    assert len(set(names)) == 6
    for row in table:
        index, label = int(row["photo"].removeprefix("scene ")), CLASSES.index(row["label"])
        assert int(row["true"]) == sample.targets[index, label]
        for branch, scores in (("global", seen.global_), ("local", seen.local), ("fused", seen.fused)):
            assert float(row[branch]) == pytest.approx(scores[index, label], abs=1e-5)
    assert f"{np.mean(gains):+.4f}" in written.drawn.notes[0]


def test_few_photos_and_photos_without_labels():
    rng = np.random.default_rng(0)
    assert pick(np.array([np.nan, 0.5]), rng) == [Pick(1, "largest gain")]
    found = pick(np.array([0.1, np.nan, 0.4, -0.2]), rng)
    assert found == [Pick(2, "largest gain"), Pick(0, "largest gain"), Pick(3, "largest loss")]
    found = pick(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), rng)
    assert [chosen.photo for chosen in found] == [4, 3, 2, 0, 1]
    assert [chosen.kind.split()[-1] for chosen in found] == ["gain", "gain", "random", "loss", "loss"]
    assert pick(np.array([np.nan]), rng) == []


def test_tokens_are_those_of_regions_of_true_labels(runs, sample):
    model = load_model(runs[0]).model
    tokens = true_tokens(model, sample)
    expected = []
    with torch.inference_mode():
        for index, target in enumerate(sample.targets):
            out = model.global_branch(torch.from_numpy(sample.images.load(index))[None])
            regions = model.select(out.class_maps, out.logits)
            boxes, counts = (torch.from_numpy(array) for array in regions.normalised())
            for slot, token in enumerate(model.local_branch.tokens(out.features, boxes, counts)[0]):
                category, variant = regions.categories[0, slot], regions.variants[0, slot]
                if category >= 0 and variant == 0 and target[category] == 1:
                    expected.append((index, category, token.numpy()))
    photos, categories, values = zip(*expected, strict=True)
    np.testing.assert_array_equal(tokens.photos, photos)
    np.testing.assert_array_equal(tokens.categories, categories)
    np.testing.assert_allclose(tokens.values, np.stack(values), rtol=1e-3, atol=1e-4)


def test_nearest_tokens_are_those_of_other_photos():
    angles = np.concatenate([np.linspace(0, 0.1, 20), np.linspace(1, 1.1, 20)])
    values = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    categories = np.repeat([3, 1], 20)
    own = np.arange(40)
    values *= np.linspace(1, 9, 40)[:, None]  # lengths do not matter
    np.testing.assert_array_equal(nearest_category(Tokens(values, categories, own)), categories)
    # The first twenty in one photo have none but the others as neighbours.
    together = np.where(own < 20, 0, own)
    np.testing.assert_array_equal(nearest_category(Tokens(values, categories, together)), np.full(40, 1))


def test_wrong_use_is_refused(runs, build_model, tmp_path):
    for name, count in (("tsne", 1), ("photos", 2), ("energy", 0)):
        with pytest.raises(UsageError, match=f"figure {name} takes"):
            write_figure(name, runs[:count], "digits", tmp_path)
    with pytest.raises(UsageError, match="no figure 'nonsense'"):
        write_figure("nonsense", runs[:1], "digits", tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        write_figure("photos", [tmp_path / "none"], "digits", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a folder"):
        write_figure("photos", runs[:1], "digits", tmp_path / "file")
    with pytest.raises(GlocalError, match="too few regions"):
        write_figure("tsne", runs, "digits", tmp_path, images=1)
    other = build_model("glocal")
    save_model(tmp_path / "other" / "model.safetensors", other, {}, {})
    with pytest.raises(UsageError, match="different labels"):
        write_figure("tsne", [runs[0], tmp_path / "other"], "digits", tmp_path)
    with pytest.raises(DataError, match="are not the model's"):
        write_figure("photos", [tmp_path / "other"], "digits", tmp_path)
    save_model(tmp_path / "plain" / "model.safetensors", build_model("glocal", zetas=(), classes=CLASSES), {}, {})
    with pytest.raises(UsageError, match="has no variants"):
        write_figure("variants", [tmp_path / "plain"], "digits", tmp_path, images=2)
    assert not list(tmp_path.glob("*.png"))


def test_a_head_of_one_branch_is_refused(tmp_path):
    model = GlocalNet(model_config("glocal", backbone="test_resnet", classes=CLASSES, image_size=(64, 64), head="csra"))
    save_model(tmp_path / "model.safetensors", model, {}, {})
    with pytest.raises(UsageError, match=r"one branch(.|\n)*head csra"):
        write_figure("photos", [tmp_path], "digits", tmp_path)


def test_the_command_says_what_the_paper_shows(runs, tmp_path, capsys):
    figure("energy", runs[:1], "digits", tmp_path, images=4)
    shown = " ".join(capsys.readouterr().out.split())
    assert "iou_differing" in shown
    assert "The paper shows, fig. 6" in shown
    assert str(tmp_path / "energy.csv") in shown


def test_a_broken_model_is_refused(build_active, tmp_path):
    model = build_active(0.25, roi_features="f16")
    for parameter in model.local_branch.stage.parameters():
        parameter.data.fill_(float("nan"))
    save_model(tmp_path / "model.safetensors", model, {}, {})
    with pytest.raises(GlocalError, match=r"tokens of .* are not finite"):
        write_figure("tsne", [tmp_path] * 2, "digits", tmp_path, images=SCENES)
    with pytest.raises(GlocalError, match="scores that are not finite"):
        write_figure("photos", [tmp_path], "digits", tmp_path, images=2)
    assert not list(tmp_path.glob("*.png"))
