"""From a checkpoint to a bundle: export, verify, write."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..runtime import __version__
from ..runtime.bundle import Bundle, write_bundle
from ..runtime.errors import GlocalError
from ..runtime.images import list_images, read_image
from ..train.checkpoint import Checkpoint, load_model
from ..train.data import open_data
from .graphs import RoiForm, check_exportable, export_global, export_local
from .verify import check, verify

VERIFY_IMAGES = 8


def build_bundle(
    checkpoint: str | Path, out: str | Path, *, roi_form: RoiForm = "operator", images: Path | None = None
) -> Bundle:
    """Export a trained model as a bundle for ONNX Runtime, fp32.

    The graphs are compared with the network on random and on real images first; nothing is written if they differ.

    Args:
        checkpoint: A run folder or its ``model.safetensors``.
        out: The bundle to write. A bundle that stands there is replaced, anything else is refused.
        roi_form: RoIAlign as the ONNX operator or as a product of matrices; the results are equal.
        images: A photo or a folder of photos to compare on. Default: validation images of the training data, or,
            where these are not at hand, the photos that come with scikit-learn.

    Raises:
        UsageError: The checkpoint or the images do not exist, ``out`` is something else, or the network has one branch.
        CheckpointError: The checkpoint is unsafe or damaged.
        GlocalError: A graph differs from the network.
    """
    console = Console(stderr=True)
    loaded = load_model(checkpoint)
    check_exportable(loaded.model)
    real, origin = _real_images(loaded, images)
    with console.status("exporting the global graph"):
        global_graph = export_global(loaded.model)
    with console.status("exporting the local graph"):
        local_graph = export_local(loaded.model, roi_form)
    with console.status(f"comparing both graphs with the network on {origin}"):
        report = verify(loaded.model, global_graph, local_graph, real)
    check(report, "fp32")
    config = loaded.model.config
    bundle = write_bundle(
        out,
        {"fp32/global.onnx": global_graph, "fp32/local.onnx": local_graph},
        name=f"{config.backbone} {config.image_size[0]}x{config.image_size[1]}",
        labels=config.classes,
        input_size=config.image_size,
        selector={
            "k_s": config.k_s,
            "k_e": config.k_e,
            "zetas": config.zetas,
            "shift": tuple(loaded.model.selector().shift.tolist()),
            "rank": config.rank,
        },
        fusion=config.fusion,
        thresholds={"fp32": loaded.thresholds or (0.5,) * len(config.classes)},
        metrics={"fp32": {f"val/{name}": value for name, value in loaded.metrics.items()}},
        verification={"fp32": report},
        provenance=_provenance(loaded, roi_form, origin),
    )
    worst = max(value for name, value in report.items() if not name.endswith("same_boxes"))
    console.print(f"{out}: verified on {origin}, largest difference {worst:.1e}", highlight=False)
    return bundle


def _real_images(checkpoint: Checkpoint, images: Path | None) -> tuple[Sequence[NDArray[np.uint8]], str]:
    """Images to compare on, and what to call them."""
    if images is not None:
        paths = list_images(images)[:VERIFY_IMAGES]
        return [read_image(path) for path in paths], f"{len(paths)} given images"
    training = checkpoint.training
    try:
        data = open_data(
            training["data"], "val", length=VERIFY_IMAGES, size=training["image_size"], seed=training["seed"]
        )
        chosen = range(min(VERIFY_IMAGES, len(data)))
        return [data.load(index) for index in chosen], f"{len(chosen)} validation images"
    except GlocalError:
        from sklearn.datasets import load_sample_images

        return load_sample_images().images, "2 photos from scikit-learn"


def _provenance(checkpoint: Checkpoint, roi_form: RoiForm, origin: str) -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "timm")
    return {
        "checkpoint_sha256": hashlib.sha256(checkpoint.path.read_bytes()).hexdigest(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "glocal": __version__,
        **{name: version(name) for name in packages},
        "roi_align": roi_form,
        "verified_on": origin,
    }
