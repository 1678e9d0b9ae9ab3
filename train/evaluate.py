"""Score a run or a bundle on a split, with the same code and the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runtime.bundle import MANIFEST
from ..runtime.errors import GlocalError, UsageError
from ..runtime.metrics import multilabel_metrics
from ..runtime.pipeline import Pipeline
from ..runtime.prediction import Prediction
from ..runtime.progress import progressed
from ..runtime.thresholds import DEFAULT
from .checkpoint import load_model
from .data import LabeledImages, TrainImages, open_data
from .labeled import check_labels
from .model import GlocalNet
from .probe import probe as probe_model

Device = Literal["auto", "cpu", "cuda"]


class Scores(NamedTuple):
    """Scores of a data set, each (n, N) float32 in [0, 1].

    Those of the branches are None for a model of one, and the local ones where some images exited without any.
    """

    fused: NDArray[np.float32]
    global_: NDArray[np.float32] | None = None
    local: NDArray[np.float32] | None = None


def evaluate(
    target: Path,
    data: str,
    split: str = "test",
    *,
    length: int = 1000,
    batch: int = 16,
    workers: int = 2,
    device: Device = "auto",
    probe: bool = False,
    backend: str = "auto",
    precision: str = "auto",
    early_exit: bool = False,
) -> dict[str, Any]:
    """Metrics of a run (PyTorch) or of a bundle (its runtime).

    Args:
        target: A run folder, a ``model.safetensors``, or a bundle.
        data: ``digits``, ``digits-hard`` or a data folder.
        split: Of the data, such as ``train``, ``val`` or ``test``.
        length: Scenes, for built-in data.
        batch: Images at a time.
        workers: Processes that load images, for runs.
        device: Where a run is scored; ``auto`` takes a GPU if there is one.
        probe: Also look at what the model's regions do (see ``probe.probe``), for runs.
        backend: What runs a bundle (see ``Pipeline.load``).
        precision: Which of a bundle's precisions, likewise.
        early_exit: Skip a bundle's local branch where the global scores settle an image, likewise.

    Returns:
        What ``summarise`` gives, the probe's figures under ``probe``, and with an early exit the share of images that
        took it under ``exits``.

    Raises:
        UsageError: The target does not exist, there is no such device, the target cannot be probed, or the bundle has
            no thresholds for an early exit.
        CheckpointError, BundleError: The target is damaged.
        DataError: The data do not follow their layout, or have other labels than the model.
        GlocalError: The model gives scores that are not finite.
    """
    if (target / MANIFEST).is_file():
        if probe:
            raise UsageError("only a run can be probed", found=f"the bundle {target}", fix="give the run it came from")
        with Pipeline.load(target, backend, precision, early_exit=early_exit) as pipeline:
            images = _open(data, split, length, pipeline.input_size, pipeline.labels)
            predictions = predict_images(pipeline, images, batch)
        metrics = summarise(scores_of(predictions), images, pipeline.thresholds)
        return metrics | ({"exits": _share_of_exits(predictions)} if early_exit else {})
    if early_exit:
        raise UsageError("a run has no early exit", found=f"the run {target}", fix="export it, and give the bundle")
    if (backend, precision) != ("auto", "auto"):
        raise UsageError(
            "a run has no engines", found=f"--backend {backend} --precision {precision}", fix="give a bundle"
        )
    checkpoint = load_model(target)
    model = checkpoint.model.to(_device(device))
    images = _open(data, split, length, model.config.image_size, model.config.classes)
    dataset = TrainImages(images, model.config.image_size, augment=False, seed=0)
    scores = score_model(model, dataset, batch, workers)
    thresholds = np.array(checkpoint.thresholds or [DEFAULT] * len(images.classes), np.float32)
    metrics = summarise(scores, images, thresholds)
    return metrics | {"probe": probe_model(model, dataset, batch, workers)} if probe else metrics


def summarise(scores: Scores, images: LabeledImages, thresholds: NDArray[np.float32]) -> dict[str, Any]:
    """Metrics of a data set.

    Args:
        scores: Of ``images``, in their order.
        images: The images with their targets.
        thresholds: (N,) stored with the model: fitted on its validation split, or 0.5 where none were.

    Returns:
        ``multilabel_metrics`` of the fused scores at a threshold of 0.5, with ``per_class_AP`` by label; ``fitted``:
        CP to OF1 at the given thresholds; and ``mAP_global``, ``mAP_local`` of a model with two branches. The last is
        left out where images exited: it would be that of the hard ones alone.
    """
    metrics = multilabel_metrics(scores.fused, images.targets, DEFAULT)
    metrics["per_class_AP"] = dict(zip(images.classes, metrics["per_class_AP"], strict=True))
    at_thresholds = multilabel_metrics(scores.fused, images.targets, thresholds)
    metrics["fitted"] = {name: at_thresholds[name] for name in metrics["top3"]}
    branches = {"mAP_global": scores.global_, "mAP_local": scores.local}
    return metrics | {
        name: multilabel_metrics(kind, images.targets)["mAP"] for name, kind in branches.items() if kind is not None
    }


def score_model(model: GlocalNet, dataset: Dataset[tuple[Tensor, Tensor]], batch: int = 16, workers: int = 2) -> Scores:
    """Scores of a PyTorch model, on the device that it is on.

    Args:
        model: The model.
        dataset: What the model takes, images or features, each with its target.
        batch: Images at a time.
        workers: Processes that load images.

    Raises:
        GlocalError: Class maps or scores are not finite.
    """
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for inputs, _ in progressed(DataLoader(dataset, batch, num_workers=workers), "scoring the model"):
            out = model.eval()(inputs.to(device))
            kinds = [out.scores]
            if out.local_logits is not None:
                kinds += [out.global_logits.sigmoid(), out.local_logits.sigmoid()]
            parts.append([kind.float().cpu().numpy() for kind in kinds])
    scores = Scores(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))
    if not all(np.isfinite(kind).all() for kind in scores if kind is not None):
        raise GlocalError("the model gives scores that are not finite", fix="train again with a lower --lr")
    return scores


def score_bundle(pipeline: Pipeline, images: LabeledImages, batch: int = 16) -> Scores:
    """Scores of a bundle, by its own runtime.

    Raises:
        GlocalError: An image could not be predicted.
    """
    return scores_of(predict_images(pipeline, images, batch))


def predict_images(pipeline: Pipeline, images: LabeledImages, batch: int = 16) -> list[Prediction]:
    """Predictions of all images, in their order.

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
    return predictions


def scores_of(predictions: Sequence[Prediction]) -> Scores:
    """The scores of predictions without an error."""
    fused, alone = (np.stack([getattr(one, kind) for one in predictions]) for kind in ("scores", "global_scores"))
    if any(one.exited for one in predictions):
        return Scores(fused, alone)
    return Scores(fused, alone, np.stack([one.local_scores for one in predictions]))


def _share_of_exits(predictions: Sequence[Prediction]) -> float:
    return sum(one.exited for one in predictions) / len(predictions)


def _device(name: Device) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("there is no GPU that PyTorch can use", fix="use --device cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _open(data: str, split: str, length: int, size: tuple[int, int], labels: tuple[str, ...]) -> LabeledImages:
    images = open_data(data, split, length=length, size=size[0])
    check_labels(images, labels)
    return images
