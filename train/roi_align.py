"""RoIAlign in two forms with equal results: the operator, and a product of matrices.

Both take boxes in [0, 1] and use two sampling points a bin in each direction and half-pixel coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

SAMPLES = 2


def roi_align_operator(features: Tensor, boxes: Tensor, image: Tensor, size: int) -> Tensor:
    """RoIAlign by torchvision's operator, exported as ONNX ``RoiAlign``.

    Args:
        features: (B, C, H, W).
        boxes: (R, 4) float32, x0, y0, x1, y1 in [0, 1].
        image: (R,) int64, which image of the batch each box belongs to.
        size: Side of the result in cells.

    Returns:
        (R, C, size, size).
    """
    height, width = features.shape[-2:]
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes * boxes.new_tensor([width, height, width, height])], 1)
    return roi_align(features, rois.to(features.dtype), size, sampling_ratio=SAMPLES, aligned=True)


def roi_align_matmul(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """RoIAlign as ``Ay . F . Ax^T``: bilinear sampling is separable, so each box has one matrix per axis.

    Only native operators: needs no plugin, and TensorRT builds it without a GPU.

    Args:
        features: (B, C, H, W).
        boxes: (B, K, 4) float32, x0, y0, x1, y1 in [0, 1].
        size: Side of the result in cells.

    Returns:
        (B * K, C, size, size), image by image.
    """
    batch, channels, height, width = features.shape
    boxes_each = boxes.shape[1]
    ax = _sampling_matrix(boxes[..., 0], boxes[..., 2], size, width).to(features.dtype)  # (B, K, size, W)
    ay = _sampling_matrix(boxes[..., 1], boxes[..., 3], size, height).to(features.dtype)  # (B, K, size, H)
    # First along x for all boxes in one product, then along y box by box. In this order nothing large is transposed:
    # with rows of features first, moving them to their boxes took longer than both products.
    rows = features.reshape(batch, channels * height, width).transpose(1, 2)
    along_x = ax.flatten(1, 2) @ rows  # (B, K * size, C * H)
    along_x = along_x.reshape(batch, boxes_each, size * channels, height)
    pooled = along_x @ ay.transpose(2, 3)  # (B, K, size along x * C, size along y)
    return pooled.reshape(-1, size, channels, size).permute(0, 2, 3, 1)


def _sampling_matrix(low: Tensor, high: Tensor, size: int, cells: int) -> Tensor:
    """Weights (..., size, cells) float32 that average ``SAMPLES`` bilinear samples in each of ``size`` bins."""
    steps = (torch.arange(size * SAMPLES, device=low.device, dtype=torch.float32) + 0.5) / (size * SAMPLES)
    points = (low[..., None] + (high - low)[..., None] * steps) * cells - 0.5
    distance = points.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device, dtype=torch.float32)
    weights = (1 - distance.abs()).clamp(min=0)
    return weights.unflatten(-2, (size, SAMPLES)).mean(-2)
