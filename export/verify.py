"""Do the graphs compute what the network computes? Output by output, then end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ..runtime.errors import GlocalError
from ..runtime.images import resize
from ..train.model import GlocalNet, Output
from .graphs import check_exportable

GLOBAL_OUTPUTS = ("logits", "class_maps", "features", "global_feature")
# Largest difference allowed, relative to the largest value of the output. Two fp32 implementations of a deep
# network that sum in another order stay well below it; a wrong graph does not.
TOLERANCE = {"fp32": 1e-3}


def verify(
    model: GlocalNet,
    global_graph: bytes,
    local_graph: bytes,
    images: Sequence[NDArray[np.uint8]],
    seed: int = 0,
) -> dict[str, float]:
    """Compare both graphs with PyTorch on random and on real images.

    Every graph gets the inputs that PyTorch had, so that one difference does not hide another; the scores at the
    end come from the chain of graphs, with the boxes that its own class maps give.

    Args:
        model: The network.
        global_graph: Global graph, ONNX.
        local_graph: Local graph, ONNX.
        images: Real images, (H, W, 3) uint8 RGB of any size.
        seed: Of the random images, boxes and counts.

    Returns:
        Largest difference by name: ``random/global.logits`` (relative to the largest value of that output), ...,
        ``real/scores`` (absolute, of fused scores), and ``real/same_boxes``, the share of images with equal boxes.
    """
    model.eval()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(graph, options) for graph in (global_graph, local_graph)]
    height, width = model.config.image_size
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    boxes = np.sort(rng.random((3, 5, 2, 2), dtype=np.float32), axis=2).reshape(3, 5, 4)
    counts = rng.integers(0, 4, (3, 5)).astype(np.float32)
    counts[:, 0] = 1
    report = _compare("random", model, sessions, random, boxes, counts)
    if images:
        real = np.stack([resize(image, (height, width)) for image in images])
        with torch.inference_mode():
            expected = model(torch.from_numpy(real))
        boxes, counts = expected.regions.normalised()
        report |= _compare("real", model, sessions, real, boxes, counts)
        report |= _end_to_end(model, sessions, real, expected)
    return report


def check(report: dict[str, float], precision: str) -> None:
    """Refuse graphs that differ from the network.

    Raises:
        GlocalError: A difference is over the tolerance.
    """
    limit = TOLERANCE[precision]
    over = {name: value for name, value in report.items() if not name.endswith("same_boxes") and not value <= limit}
    if over:
        raise GlocalError(
            f"the exported {precision} graphs do not compute what the network computes",
            found=", ".join(f"{name} differs by {value:.2g}" for name, value in over.items()) + f"; allowed {limit:g}",
            fix="try another version of torch or onnxscript, and report the versions; nothing was written",
        )


def _compare(
    kind: str,
    model: GlocalNet,
    sessions: Sequence[Any],
    images: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    counts: NDArray[np.float32],
) -> dict[str, float]:
    branch = check_exportable(model)
    with torch.inference_mode():
        out = model.global_branch(torch.from_numpy(images))
        local = branch(out.features, out.global_feature, torch.from_numpy(boxes), torch.from_numpy(counts)).numpy()
    expected = {name: value.numpy() for name, value in zip(GLOBAL_OUTPUTS, out, strict=True)}
    found = sessions[0].run(list(GLOBAL_OUTPUTS), {"image": images})
    report = {
        f"{kind}/global.{name}": _difference(value, other)
        for (name, value), other in zip(expected.items(), found, strict=True)
    }
    feeds = {name: expected[name] for name in ("features", "global_feature")} | {
        "boxes": boxes,
        "counts": counts,
    }
    report[f"{kind}/local.logits"] = _difference(local, sessions[1].run(["logits"], feeds)[0])
    return report


def _end_to_end(
    model: GlocalNet, sessions: Sequence[Any], images: NDArray[np.uint8], expected: Output
) -> dict[str, float]:
    assert expected.regions is not None  # a network of two branches has them
    logits, maps, features, global_feature = sessions[0].run(list(GLOBAL_OUTPUTS), {"image": images})
    regions = model.selector()(maps, logits)
    boxes, counts = regions.normalised()
    feeds = {"features": features, "global_feature": global_feature, "boxes": boxes, "counts": counts}
    local = sessions[1].run(["logits"], feeds)[0]
    same = np.array([np.array_equal(a, b) for a, b in zip(regions.boxes, expected.regions.boxes, strict=True)])
    scores = model.fuse(torch.from_numpy(logits), torch.from_numpy(local)).numpy()
    # Where a cell lies within rounding of zero the boxes may differ, and with them, rightly, the scores.
    gap = float(np.abs(scores - expected.scores.numpy())[same].max(initial=0.0))
    return {"real/scores": gap, "real/same_boxes": float(same.mean())}


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest expected value; infinite where shapes or finiteness disagree."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-6))
