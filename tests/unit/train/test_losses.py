import math

import pytest
import torch
from glocal.train.losses import classification_loss, weak_loss


def test_weak_loss_by_hand():
    """Eq. 2 for one image, three categories, the first present."""
    maps = torch.tensor([[[[5.0, -5.0]], [[0.0, 2.0]], [[-1.0, 0.0]]]])
    targets = torch.tensor([[1.0, 0.0, 0.0]])

    def term(p: float) -> float:
        return -math.log(1 - 1 / (1 + math.exp(-p)))

    cells = [(term(0.0) + term(-1.0)) / 2, (term(2.0) + term(0.0)) / 2]
    assert weak_loss(maps, targets).item() == pytest.approx(sum(cells) / 2, rel=1e-4)


def test_weak_loss_pushes_only_absent_categories():
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    weak_loss(maps, torch.tensor([[1.0, 0, 0], [1, 1, 1]])).backward()
    pushed = maps.grad.abs().sum((2, 3)) > 0
    assert pushed.tolist() == [[False, True, True], [False, False, False]]


def test_an_image_with_every_category_adds_nothing_and_large_maps_stay_finite():
    maps = torch.full((1, 2, 3, 3), 1e4)
    assert weak_loss(maps, torch.ones(1, 2)).item() == 0
    assert torch.isfinite(weak_loss(maps, torch.zeros(1, 2)))


def test_classification_loss_sums_categories_and_averages_images():
    logits = torch.zeros(4, 5)
    assert classification_loss(logits, torch.ones(4, 5)).item() == pytest.approx(5 * math.log(2))


@pytest.mark.parametrize("kind", ["bce", "asl"])
def test_an_ignored_target_adds_nothing(kind):
    logits = torch.randn(3, 4, requires_grad=True)
    targets = torch.tensor([[1.0, 0, -1, 0], [0, -1, 1, 1], [-1, 0, 0, 1]])
    classification_loss(logits, targets, kind).backward()
    assert ((logits.grad == 0) == (targets == -1)).all()


def test_asymmetric_loss_by_hand():
    """Ridnik et al., eq. 7 with gamma- 4, gamma+ 0 and a margin of 0.05."""
    logits, targets = torch.tensor([[2.0, -1.0, -4.0]]), torch.tensor([[1.0, 0, 0]])
    p = logits.sigmoid()[0].tolist()
    shifted = max(p[1] - 0.05, 0)
    expected = -math.log(p[0]) - shifted**4 * math.log(1 - shifted)  # the third is below the margin
    assert classification_loss(logits, targets, "asl").item() == pytest.approx(expected, rel=1e-5)
