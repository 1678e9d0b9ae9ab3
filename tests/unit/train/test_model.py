import numpy as np
import pytest
import torch
from glocal.runtime.errors import UsageError
from glocal.train.config import model_config
from glocal.train.model import GlocalNet


def million(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(("attention", "expected"), [(False, 57.63), (True, 74.42)])
def test_parameters_are_those_of_table_8(attention, expected):
    classes = tuple(str(index) for index in range(80))
    switches = {"global_attention": attention, "cross_attention": attention}
    config = model_config("paper", backbone="resnet101", classes=classes, **switches)
    assert million(GlocalNet(config)) == pytest.approx(expected, abs=0.01)


def test_merged_boxes_equal_all_boxes_repeated(model, images):
    """Unique boxes with counts give what the paper's k_o boxes give, repeats included."""
    out = model.global_branch(images)
    unique = torch.tensor([[0, 0, 0.5, 0.6], [0.2, 0.1, 0.9, 0.4], [0.4, 0.4, 1, 1], [0, 0, 1, 1]])
    counts = torch.tensor([[3.0, 1, 2, 0], [1, 5, 0, 0], [6, 0, 0, 0]])
    repeated = torch.stack([unique.repeat_interleave(row.long(), 0) for row in counts])
    assert repeated.shape == (3, 6, 4)
    boxes = unique.expand(3, 4, 4)
    with torch.inference_mode():
        merged = model.local_branch(out.features, out.global_feature, boxes, counts)
        tokens = model.local_branch.tokens(out.features, boxes, counts)
        packed = model.local_branch.classify(tokens, out.global_feature, counts)
        literal = model.local_branch(out.features, out.global_feature, repeated, torch.ones(3, 6))
        uncounted = model.local_branch(out.features, out.global_feature, boxes, (counts > 0).float())
    torch.testing.assert_close(merged, literal, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed, literal, atol=1e-5, rtol=1e-5)
    assert (uncounted - literal).abs().max() > 1e-3  # the counts matter here, so the comparison can fail


def test_the_network_selects_with_the_runtime_selector(model, images):
    with torch.inference_mode():
        out = model(images)
    assert out.scores.shape == (3, 7)
    assert out.class_maps.shape == (3, 7, 3, 4)
    assert (out.regions.n >= 1).all()
    if model.config.fusion == "logit":
        expected = ((out.global_logits + out.local_logits) / 2).sigmoid()
    else:
        expected = (out.global_logits.sigmoid() + out.local_logits.sigmoid()) / 2
    torch.testing.assert_close(out.scores, expected)
    np.testing.assert_array_equal(out.regions.counts.sum(1) <= model.config.k_o, True)


def test_regions_decide_local_scores(build_model, images):
    """Other boxes give other local logits: the branch sees the pixels of its boxes."""
    model = build_model("glocal", cross_attention=False)
    out = model.global_branch(images)
    left, right = torch.tensor([0.0, 0, 0.3, 1]), torch.tensor([0.7, 0, 1.0, 1])
    with torch.inference_mode():
        a, b = (
            model.local_branch(out.features, out.global_feature, box.expand(3, 1, 4), torch.ones(3, 1))
            for box in (left, right)
        )
    assert (a - b).abs().max() > 1e-3


def test_gradients_reach_both_branches(build_model, images):
    model = build_model("glocal", roi_features="f16").train()
    out = model(images)
    out.local_logits.sum().backward()
    assert model.local_branch.stage[0].conv1.weight.grad.abs().sum() > 0
    assert model.global_branch.trunk[0].weight.grad.abs().sum() > 0
    assert model.global_branch.map_norm.weight.grad is None  # selection carries no gradient


def test_shift_is_mean_over_sigma(model):
    norm = model.global_branch.map_norm
    expected = norm.running_mean.abs() / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(model.global_branch.shift(), expected)


def test_maps_that_are_not_finite_are_refused(build_model, images):
    model = build_model("paper")
    torch.nn.init.constant_(model.global_branch.map_norm.weight, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        model(images)


@pytest.mark.parametrize("head", ["global", "average", "max", "csra"])
def test_a_network_of_one_branch(build_model, images, head):
    model = build_model("glocal", head=head)
    with torch.inference_mode():
        out = model(images)
        last = model.global_branch.tail(model.global_branch.trunk_features(images))
        cells = model.global_branch.head(last.flatten(2).transpose(1, 2))
    assert (out.local_logits, out.class_maps, out.regions) == (None, None, None)
    torch.testing.assert_close(out.scores, out.global_logits.sigmoid())
    by_hand = {"average": cells.mean(1), "max": cells.amax(1), "csra": cells.mean(1) + cells.amax(1) / 2}
    if head == "global":  # pooled like csra, but with attention before
        assert (out.global_logits - by_hand["csra"]).abs().max() > 1e-3
    else:
        torch.testing.assert_close(out.global_logits, by_hand[head], atol=1e-4, rtol=1e-4)


def test_where_maps_and_regions_come_from(build_model, images):
    with torch.inference_mode():
        fine = build_model("paper", map_features="f16")(images)
        coarse = build_model("paper", roi_features="f32").global_branch(images)
    assert fine.class_maps.shape == (3, 7, 6, 8)
    assert fine.regions.grid == (6, 8)
    assert coarse.features.shape[-2:] == (3, 4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "resnet18d"])
def test_a_local_stage_of_stride_1_keeps_every_cell(build_model, backbone):
    both = [build_model("paper", backbone=backbone, local_stride=stride).local_branch for stride in (1, 2)]
    x = torch.rand(2, next(p.shape[1] for p in both[0].stage.parameters() if p.ndim == 4), 6, 6)
    with torch.inference_mode():
        sizes = [branch.stage(x).shape[-2:] for branch in both]
    assert sizes == [(6, 6), (3, 3)]
    assert [p.shape for p in both[0].parameters()] == [p.shape for p in both[1].parameters()]


def test_fusions_over_boxes_count_repeats(build_model, images):
    model = build_model("paper", box_fusion="sum", cross_attention=False)
    with torch.inference_mode():
        out = model.global_branch(images)
        boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0.2, 1, 1]]).expand(3, 2, 4)
        one, other = (
            model.local_branch(out.features, out.global_feature, boxes[:, i : i + 1], torch.ones(3, 1)) for i in (0, 1)
        )
        both = model.local_branch(out.features, out.global_feature, boxes, torch.tensor([[2.0, 1]]).expand(3, 2))
        model.local_branch.box_fusion = "average_max"
        pooled = model.local_branch(out.features, out.global_feature, boxes, torch.tensor([[2.0, 1]]).expand(3, 2))
    torch.testing.assert_close(both, 2 * one + other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled, (2 * one + other) / 3 + torch.maximum(one, other) / 2, atol=1e-4, rtol=1e-4)


def test_a_signed_shift_takes_negative_means_as_0(build_model):
    model = build_model("paper", shift="signed")
    mean = model.global_branch.map_norm.running_mean
    assert (mean < 0).any()
    assert (mean > 0).any()
    shift = torch.tensor(model.selector().shift)
    assert (shift[mean < 0] == 0).all()
    torch.testing.assert_close(shift[mean > 0], model.global_branch.shift()[mean > 0])


def test_region_logits_are_those_without_cross_attention(build_model, images):
    model = build_model("paper")
    with torch.inference_mode():
        out = model(images)
        model.local_branch.attention = None
        alone = model(images)
    torch.testing.assert_close(out.region_logits, alone.local_logits)
    assert (out.local_logits - out.region_logits).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(100, 128), (0, 32)])
def test_image_size_that_does_not_fit(build_model, size):
    with pytest.raises(UsageError, match="multiples of 32"):
        build_model("paper", image_size=size)
