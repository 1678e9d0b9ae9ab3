"""The accuracy gate: what a precision loses against fp32, on labelled images, and whether that is too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import CalibrationError
from ..runtime.metrics import multilabel_metrics
from ..runtime.pipeline import Pipeline
from ..runtime.prediction import Prediction
from ..runtime.progress import progressed
from .photos import Photos

SHARE = 0.99


def predict(pipeline: Pipeline, photos: Photos, what: str, batch: int = 4) -> list[Prediction]:
    """Predictions of all images, in their order.

    Raises:
        CalibrationError: One cannot be predicted.
    """
    predictions: list[Prediction] = []
    for start in progressed(range(0, len(photos), batch), f"predicting with {what}"):
        chunk = range(start, min(start + batch, len(photos)))
        predictions += pipeline.predict([photos.load(i) for i in chunk], [f"image {i}" for i in chunk], batch)
    failed = next((prediction for prediction in predictions if prediction.error is not None), None)
    if failed is not None:
        fix = "Leave the image out; if it is sound, this precision cannot be used."
        raise CalibrationError(f"An image cannot be predicted with {what}.", found=str(failed.error), fix=fix)
    return predictions


def compare(reference: Sequence[Prediction], found: Sequence[Prediction], targets: ArrayLike) -> dict[str, float]:
    """What changes from one precision to another.

    Args:
        reference: Predictions in fp32.
        found: Predictions of the same images in another precision.
        targets: (n, N); 1 present, 0 absent, -1 ignored.

    Returns:
        ``mAP``, ``CF1``, ``OF1`` at a threshold of 0.5, each also as ``fp32/mAP`` and so on, and ``mAP_share``, the
        part of the fp32 mAP that is left;
        ``score_shift``: mean absolute difference of fused scores, ``score_shift_max`` the largest, and
        ``score_bias_max`` the mean difference, with its sign, of the class where it is farthest from 0;
        ``box_iou``: mean over the boxes of the reference of the best IoU with a box of the same image,
        ``same_boxes``: share of these boxes that are chosen again, and ``same_box_sets``: share of the images with
        exactly the same boxes.

    Raises:
        ValueError: Shapes disagree, or there is nothing to compare.
    """
    if len(reference) != len(found) or not reference:
        raise ValueError(f"{len(reference)} and {len(found)} predictions cannot be compared")
    scores = [np.stack([prediction.scores for prediction in side]) for side in (reference, found)]
    before, after = (multilabel_metrics(side, targets) for side in scores)
    shift = scores[1].astype(np.float64) - scores[0]
    bias = shift.mean(0)
    report = {name: after[name] for name in ("mAP", "CF1", "OF1")}
    report |= {f"fp32/{name}": before[name] for name in ("mAP", "CF1", "OF1")}
    report["mAP_share"] = after["mAP"] / before["mAP"] if before["mAP"] > 0 else 0.0
    report |= {
        "score_shift": float(np.abs(shift).mean()),
        "score_shift_max": float(np.abs(shift).max()),
        "score_bias_max": float(bias[np.abs(bias).argmax()]),
    }
    return report | _box_agreement(reference, found)


def class_shift(reference: Sequence[Prediction], found: Sequence[Prediction]) -> dict[str, float]:
    """By label, the mean difference of fused scores, with its sign."""
    shift = np.stack([b.scores for b in found]).astype(np.float64) - np.stack([a.scores for a in reference])
    return dict(zip(reference[0].classes, shift.mean(0).tolist(), strict=True))


def check(report: dict[str, float], precision: str, share: float = SHARE) -> None:
    """Refuse a precision that loses too much.

    Args:
        report: What ``compare`` gave.
        precision: What to call it.
        share: The part of the fp32 mAP that must be left.

    Raises:
        CalibrationError: Less is left; the message has the figures.
    """
    if report["mAP_share"] >= share:
        return
    raise CalibrationError(
        f"{precision} loses too much accuracy, so it is not added.",
        found=f"mAP {report['mAP']:.4f}, fp32 {report['fp32/mAP']:.4f}: {report['mAP_share']:.2%} is left, at least "
        f"{share:.2%} is asked for; {report['same_boxes']:.1%} of the boxes are the same, scores move by "
        f"{report['score_shift']:.4f} on average",
        fix="Try another --method or more --images; let --scan find the layers that lose it; or lower --share.",
    )


def _box_agreement(reference: Sequence[Prediction], found: Sequence[Prediction]) -> dict[str, float]:
    best, same, sets = [], [], []
    for expected, given in zip(reference, found, strict=True):
        ours, theirs = ([region.box for region in side.regions] for side in (expected, given))
        iou = _iou(np.array(ours), np.array(theirs))
        best += iou.max(1).tolist()
        same += [box in theirs for box in ours]
        sets.append(set(ours) == set(theirs))
    return {"box_iou": float(np.mean(best)), "same_boxes": float(np.mean(same)), "same_box_sets": float(np.mean(sets))}


def _iou(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 4) and (m, 4) boxes -> (n, m) intersection over union."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(2)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (ours, theirs)]
    return overlap / (area[0][:, None] + area[1][None, :] - overlap)
