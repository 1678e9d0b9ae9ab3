import numpy as np
import pytest
import torch
from glocal.runtime.errors import UsageError
from glocal.runtime.metrics import multilabel_metrics
from glocal.runtime.selector import RegionSelector
from glocal.train.backbone import Backbone
from glocal.train.config import model_config
from glocal.train.controls import GRID, box_controls
from glocal.train.data import TrainImages, open_data
from glocal.train.digits import CLASSES
from glocal.train.evaluate import score_model
from glocal.train.model import GlocalNet
from glocal.train.probe import probe
from torch import nn
from torch.utils.data import TensorDataset

N, GRID_SIDE, MARK = 4, 8, 4  # classes, cells, and the channel of a mark in one corner


def placed_evidence(n=60, seed=0):
    """Features (n, 10, 8, 8) in which each present class marks two by two cells of its channel, among faint noise."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, N)) < 0.4).astype(np.float32)
    features = np.zeros((n, 2 * (N + 1), GRID_SIDE, GRID_SIDE), np.float32)
    features[:, :N] = rng.uniform(0, 0.3, (n, N, GRID_SIDE, GRID_SIDE))
    features[:, MARK, 0, 0] = 1
    for image, category in np.argwhere(targets):
        x, y = rng.integers(1, GRID_SIDE - 1, 2)
        features[image, category, y : y + 2, x : x + 2] = rng.uniform(0.5, 1)
    return TensorDataset(torch.from_numpy(features), torch.from_numpy(targets))


@torch.no_grad()
def hand_made(reads_regions: bool) -> GlocalNet:
    """A model whose weights are set so that its local logits are the evidence in its regions, or that in F_g."""
    channels = 2 * (N + 1)
    backbone = Backbone(nn.Sequential(), nn.Sequential(nn.Identity()), channels, channels)
    config = model_config(
        "paper",
        backbone="by hand",
        classes=tuple("abcd"),
        image_size=(128, 128),
        roi_size=2,
        global_attention=False,
        shared_map_head=False,
        zetas=(),
        k_e=1,
    )
    model = GlocalNet(config, backbone)
    evidence = torch.eye(N, channels)
    branch, local = model.global_branch, model.local_branch
    branch.head.weight.copy_(evidence)
    branch.head.bias.zero_()
    branch.map_head.weight.copy_(evidence)
    branch.map_head.bias.fill_(-0.4)  # above it lies evidence, below it noise
    attention = local.attention
    if not reads_regions:
        # Every query meets one key that is large: that of F_g, whose maximum has the corner's mark in full.
        attention.query.weight.zero_()
        attention.query.bias.fill_(1)
        attention.key.weight.zero_()
        attention.key.weight[0, MARK] = 1000
        attention.value.weight.copy_(torch.eye(N + 1, channels))
        attention.value.bias.zero_()
        attention.out.weight.copy_(10 * torch.eye(channels, N + 1))
    return model.eval()


def test_random_boxes_cost_a_model_that_reads_its_regions():
    found = probe(hand_made(reads_regions=True), placed_evidence(), workers=0)
    assert found["mAP"]["local"] > 0.95
    assert found["controls"]["random"]["local"] < 0.8
    assert found["controls"]["other_image"]["local"] < 0.8
    assert found["intervals"]["local_minus_random"]["low"] > 0.1
    # Its cross attention adds nothing, as in a model that has just begun to train.
    assert found["controls"]["other_global"]["local"] == found["mAP"]["local"]


def test_random_boxes_cost_nothing_where_only_the_global_feature_is_read():
    found = probe(hand_made(reads_regions=False), placed_evidence(), workers=0)
    controls, local = found["controls"], found["mAP"]["local"]
    assert found["attention_on_global"] > 0.99
    assert local > 0.95
    for name in ("random", "other_image", "grid", "whole"):
        assert controls[name]["local"] == pytest.approx(local, abs=0.02)
    assert abs(found["intervals"]["local_minus_random"]["difference"]) < 0.02
    # F_g is what it reads; without it the regions still tell, and their places matter again.
    assert controls["other_global"]["local"] < 0.7
    assert controls["selected"]["local_alone"] > 0.95
    assert found["intervals"]["alone_minus_random"]["low"] > 0.1
    assert found["logit_correlation"] > 0.95


@pytest.fixture(scope="module")
def digits():
    return TrainImages(open_data("digits", "test", length=17, size=64), (64, 64), augment=False, seed=0)


def digits_model(build_model, **switches):
    return build_model("glocal", classes=CLASSES, image_size=(64, 64), **switches)


@pytest.mark.parametrize("switches", [{}, {"cross_attention": False}, {"fusion": "logit", "roi_features": "f32"}])
def test_its_scores_are_those_of_the_model(build_model, digits, switches):
    model = digits_model(build_model, **switches)
    found = probe(model, digits, batch=16, workers=0)  # two batches: of 9 and 8
    scores = score_model(model, digits, workers=0)
    for name, kind in zip(("fused", "global", "local"), scores, strict=True):
        assert found["mAP"][name] == pytest.approx(multilabel_metrics(kind, digits.data.targets)["mAP"], abs=1e-6)
    assert found["controls"]["selected"]["local"] == found["mAP"]["local"]
    assert found["images"] == 17
    has_attention = model.config.cross_attention
    assert ("attention_on_global" in found) == has_attention
    assert ("other_global" in found["controls"]) == has_attention
    assert ("local_alone" in found["controls"]["grid"]) == has_attention
    assert ("alone_minus_random" in found["intervals"]) == has_attention
    with torch.inference_mode():
        out = model(torch.stack([digits[i][0] for i in range(17)]))
    regions = found["regions"]
    assert regions["unique"] == pytest.approx(out.regions.n.mean())
    assert regions["proposals"] == pytest.approx(out.regions.counts.sum(1).mean())
    assert regions["unique_p95"] == pytest.approx(np.percentile(out.regions.n, 95))
    assert regions["fallback"] == pytest.approx((out.regions.categories[:, 0] == -1).mean())


def test_attention_on_the_global_feature_is_that_of_the_paper_formula(build_model, digits):
    model = digits_model(build_model)
    found = probe(model, digits, batch=5, workers=0)
    shares = []
    attention = model.local_branch.attention
    with torch.inference_mode():
        for index in range(17):  # image by image, and each box as often as it was proposed
            out = model.global_branch(digits[index][0][None])
            regions = model.select(out.class_maps, out.logits)
            boxes, counts = (torch.from_numpy(a) for a in regions.normalised())
            tokens = model.local_branch.tokens(out.features, boxes, counts)[0]
            x = attention.norm(torch.cat([out.global_feature, tokens.repeat_interleave(counts[0].long(), dim=0)]))
            weights = torch.softmax(attention.query(attention.norm(tokens)) * attention.scale @ attention.key(x).T, 1)
            shares += weights[:, 0].tolist()
    assert found["attention_on_global"] == pytest.approx(np.mean(shares), abs=1e-5)


def test_the_seed_decides(build_model, digits):
    model = digits_model(build_model, cross_attention=False)
    one, same, other = (probe(model, digits, batch=6, workers=0, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one["controls"]["random"] != other["controls"]["random"]
    assert one["controls"]["grid"] == other["controls"]["grid"]


def test_what_cannot_be_probed_is_refused(build_model, digits):
    with pytest.raises(UsageError, match="one branch"):
        probe(GlocalNet(model_config("glocal", backbone="test_resnet", classes=CLASSES, head="csra")), digits)
    model = digits_model(build_model)
    with pytest.raises(UsageError, match="at least 2"):
        probe(model, digits, batch=1)
    with pytest.raises(UsageError, match="at least 2"):
        probe(model, torch.utils.data.Subset(digits, [0]))


@pytest.fixture(scope="module")
def regions():
    rng = np.random.default_rng(0)
    maps = rng.normal(-0.5, 1, (6, 5, 9, 12)).astype(np.float32)
    maps[2] = -1  # an image without any region
    return RegionSelector(np.full(5, 0.2))(maps, rng.normal(size=(6, 5)).astype(np.float32))


def test_random_boxes_have_the_sizes_of_other_images_and_any_place(regions):
    scale = np.array((12, 9, 12, 9))
    places = []
    for seed in range(200):
        boxes, counts = box_controls(regions, np.random.default_rng(seed))["random"]
        selected, selected_counts = regions.normalised()
        assert boxes.shape == selected.shape
        np.testing.assert_array_equal(counts, selected_counts)
        cells = np.round(boxes * scale).astype(int)
        np.testing.assert_allclose(cells / scale, boxes, atol=1e-6)
        for image, n in enumerate(regions.n):
            mine = cells[image, :n]
            assert (mine[:, :2] >= 0).all()
            assert (mine[:, 2:] <= scale[:2]).all()
            assert not boxes[image, n:].any()
            others = {
                tuple(box[2:] - box[:2])
                for other, many in enumerate(regions.n)
                if other != image
                for box in regions.boxes[other, :many]
            }
            assert {tuple(box[2:] - box[:2]) for box in mine} <= others
            places += [tuple(box[:2]) for box in mine if tuple(box[2:] - box[:2]) == (2, 2)]
    assert len(set(places)) == 11 * 8  # every place of a box of 2 x 2 cells


def test_the_other_controls(regions):
    controls = box_controls(regions, np.random.default_rng(0))
    selected, counts = regions.normalised()
    np.testing.assert_array_equal(controls["other_image"][0][1:], selected[:-1])
    np.testing.assert_array_equal(controls["other_image"][1][0], counts[-1])
    assert controls["grid"][0].shape == (6, 8, 4)
    sides = GRID[:, 2:] - GRID[:, :2]
    assert sorted(sides.prod(1)) == [0.25] * 4 + [0.5] * 4
    assert len(np.unique(GRID, axis=0)) == 8
    np.testing.assert_array_equal(controls["whole"][0], np.tile([0, 0, 1, 1], (6, 1, 1)))
    np.testing.assert_array_equal(controls["whole"][1], np.ones((6, 1)))
