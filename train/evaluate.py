"""Score a run or a bundle on a split, with the same code and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ..runtime.bundle import MANIFEST
from ..runtime.errors import DataError, GlocalError
from ..runtime.metrics import multilabel_metrics
from ..runtime.pipeline import Pipeline
from ..runtime.progress import progressed
from .checkpoint import load_model
from .data import LabeledImages, TrainImages, open_data
from .model import GlocalNet


class Scores(NamedTuple):
    """Scores of a data set, each (n, N) float32 in [0, 1]."""

    fused: NDArray[np.float32]
    global_: NDArray[np.float32]
    local: NDArray[np.float32]


def evaluate(
    target: Path, data: str, split: str = "test", *, length: int = 1000, batch: int = 16, workers: int = 2
) -> dict[str, Any]:
    """Metrics of a run (PyTorch) or of a bundle (its runtime).

    Args:
        target: A run folder, a ``model.safetensors``, or a bundle.
        data: ``digits`` or a data folder.
        split: ``train``, ``val`` or ``test``.
        length: Scenes, for built-in data.
        batch: Images at a time.
        workers: Processes that load images, for runs.

    Returns:
        ``multilabel_metrics`` of the fused scores, ``per_class_AP`` by label, and ``mAP_global``, ``mAP_local``.

    Raises:
        UsageError: The target does not exist.
        CheckpointError, BundleError: The target is damaged.
        DataError: The data do not follow their layout, or have other labels than the model.
    """
    if (target / MANIFEST).is_file():
        with Pipeline.load(target) as pipeline:
            images = _open(data, split, length, pipeline.input_size, pipeline.labels)
            scores = score_bundle(pipeline, images, batch)
            thresholds = pipeline.thresholds
    else:
        model = load_model(target).model
        images = _open(data, split, length, model.config.image_size, model.config.classes)
        scores = score_model(model, images, batch, workers)
        thresholds = np.full(len(images.classes), 0.5, np.float32)
    return summarise(scores, images, thresholds)


def summarise(scores: Scores, images: LabeledImages, thresholds: NDArray[np.float32]) -> dict[str, Any]:
    """Metrics of the fused scores, and the mAP of each branch."""
    metrics = multilabel_metrics(scores.fused, images.targets, thresholds)
    metrics["per_class_AP"] = dict(zip(images.classes, metrics["per_class_AP"], strict=True))
    branches = {"mAP_global": scores.global_, "mAP_local": scores.local}
    return metrics | {name: multilabel_metrics(kind, images.targets)["mAP"] for name, kind in branches.items()}


def score_model(model: GlocalNet, images: LabeledImages, batch: int = 16, workers: int = 2) -> Scores:
    """Scores of a PyTorch model."""
    device = next(model.parameters()).device
    dataset = TrainImages(images, model.config.image_size, augment=False, seed=0)
    parts = []
    with torch.inference_mode():
        for pixels, _ in progressed(DataLoader(dataset, batch, num_workers=workers), "scoring the model"):
            out = model.eval()(pixels.to(device))
            kinds = out.scores, out.global_logits.sigmoid(), out.local_logits.sigmoid()
            parts.append([kind.cpu().numpy() for kind in kinds])
    return Scores(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))


def score_bundle(pipeline: Pipeline, images: LabeledImages, batch: int = 16) -> Scores:
    """Scores of a bundle, by its own runtime.

    Raises:
        GlocalError: An image could not be predicted.
    """
    predictions = []
    for start in progressed(range(0, len(images), batch), "scoring the bundle"):
        pixels = [images.load(index) for index in range(start, min(start + batch, len(images)))]
        for index, prediction in enumerate(pipeline.predict(pixels, batch=batch), start):
            if prediction.error:
                raise GlocalError(f"image {index} of {images.name} could not be predicted", found=prediction.error)
            predictions.append(prediction)
    kinds = ("scores", "global_scores", "local_scores")
    return Scores(*(np.stack([getattr(prediction, kind) for prediction in predictions]) for kind in kinds))


def _open(data: str, split: str, length: int, size: tuple[int, int], labels: tuple[str, ...]) -> LabeledImages:
    images = open_data(data, split, length=length, size=size[0])
    if tuple(images.classes) != tuple(labels):
        missing = [label for label in labels if label not in images.classes]
        raise DataError(
            f"the labels of {images.name} are not the model's",
            found=f"{len(images.classes)} labels, the model has {len(labels)}"
            + (f"; not in the data: {', '.join(missing[:3])}" if missing else "; another order"),
            fix="evaluate on data with the same classes.txt as in training",
        )
    return images
