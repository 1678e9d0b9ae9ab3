"""The three losses of section 3.6, each summed over categories and averaged over images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, targets: Tensor, kind: Literal["bce", "asl"] = "bce") -> Tensor:
    """Loss of (B, N) logits against (B, N) float targets, summed over categories. A target of -1 is ignored.

    Args:
        logits: Of one branch.
        targets: 1 present, 0 absent, -1 ignored.
        kind: Binary cross-entropy, or the asymmetric loss (Ridnik et al., ICCV 2021) with its defaults for COCO:
            negatives weigh p^4, where the probability p is first lowered by 0.05.
    """
    counted = (targets >= 0).to(logits.dtype)
    if kind == "asl":
        shifted = (logits.sigmoid() - 0.05).clamp(min=0)
        absent = shifted**4 * torch.log((1 - shifted).clamp(min=1e-8))
        loss = -torch.where(targets > 0, F.logsigmoid(logits), absent)
    else:
        loss = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return (loss * counted).sum() / len(logits)


def weak_loss(class_maps: Tensor, targets: Tensor, delta: float = 1e-6) -> Tensor:
    """Category-aware weak supervision (eq. 2): the class maps of absent categories are pushed below zero.

    ``-mean_ij (1 / |absent|) sum_absent log(1 - sigmoid(p_ij) + delta)``. An image with every category present adds 0.

    Args:
        class_maps: (B, N, h, w) float32, after batch norm.
        targets: (B, N), 1 for a present category, 0 for an absent one, -1 for one that is ignored.
        delta: Keeps the logarithm finite.
    """
    absent = (targets == 0).to(class_maps.dtype)
    per_category = -torch.log(torch.sigmoid(-class_maps) + delta).mean((2, 3))
    return ((per_category * absent).sum(1) / absent.sum(1).clamp(min=1)).mean()
