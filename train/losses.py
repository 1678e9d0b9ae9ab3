"""The three losses of section 3.6, each summed over categories and averaged over images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of (B, N) logits against (B, N) float targets, summed over categories."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def weak_loss(class_maps: Tensor, targets: Tensor, delta: float = 1e-6) -> Tensor:
    """Category-aware weak supervision (eq. 2): the class maps of absent categories are pushed below zero.

    ``-mean_ij (1 / |absent|) sum_absent log(1 - sigmoid(p_ij) + delta)``. An image with every category present adds 0.

    Args:
        class_maps: (B, N, h, w) float32, after batch norm.
        targets: (B, N), 1 for a present category and 0 for an absent one.
        delta: Keeps the logarithm finite.
    """
    absent = (targets == 0).to(class_maps.dtype)
    per_category = -torch.log(torch.sigmoid(-class_maps) + delta).mean((2, 3))
    return ((per_category * absent).sum(1) / absent.sum(1).clamp(min=1)).mean()
