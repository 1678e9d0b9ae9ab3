"""From a checkpoint to a bundle: export, verify, write."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..runtime import __version__
from ..runtime.bundle import Bundle, write_bundle
from ..runtime.errors import GlocalError
from ..runtime.manifest import MANIFEST
from ..runtime.progress import note
from ..train.checkpoint import Checkpoint, load_model
from ..train.data import open_data
from ..train.model import GlocalNet
from .compare import check, summary, worst
from .extend import VERIFY_IMAGES, real_images
from .graphs import RoiForm, check_exportable, export_global, export_local
from .overrides import NAMES, Overrides, override
from .products import convolutions_to_products
from .verify import verify_graphs


def build_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    roi_form: RoiForm = "matmul",
    overrides: Overrides | None = None,
    images: Path | None = None,
    allow: bool = False,
) -> Bundle:
    """Export a trained model as a bundle with fp32 graphs.

    The graphs are compared with the network on random and on real images first; nothing is written if they differ. A
    bundle at ``out`` that was made from the same checkpoint with the same options and versions is kept as it is.

    Args:
        checkpoint: A run folder or its ``model.safetensors``.
        out: The bundle to write. A bundle that stands there is replaced, anything else is refused.
        roi_form: RoIAlign as the ONNX operator or as a product of matrices; the results are equal. TensorRT, which has
            the operator as a plugin only, always takes the product.
        overrides: Settings to change. Weights and thresholds stay as they were trained and fitted with the others;
            metrics of the training no longer hold and are left out.
        images: A photo or a folder of photos to compare on. Default: validation images of the training data, or,
            where these are not at hand, the photos that come with scikit-learn.
        allow: Write the bundle even if a graph differs by more than the tolerance; the manifest says by how much. One
            that gives values that are not finite is refused all the same.

    Raises:
        UsageError: The checkpoint or the images do not exist, ``out`` is something else, the network has one branch,
            or the overrides do not fit it.
        CheckpointError: The checkpoint is unsafe or damaged.
        GlocalError: A graph differs from the network.
    """
    console = Console(stderr=True)
    loaded = load_model(checkpoint)
    check_exportable(loaded.model)
    changed = override(loaded.model, overrides or Overrides())
    origin = _origin(loaded, roi_form) | {name: str(after) for name, (_, after) in changed.items()}
    kept = _unchanged(Path(out), origin)
    if kept is not None:
        note(f"{out}: fp32 graphs kept, nothing changed")
        return kept
    if (Path(out) / MANIFEST).is_file():
        note(f"{out}: made from something else, or damaged; it will be replaced, with its other precisions and plans")
    real, real_name = verification_images(loaded, images)
    with console.status("exporting the global graph"):
        global_graph = export_global(loaded.model)
    with console.status("exporting the local graph"):
        local_graphs = _local_graphs(loaded.model, roi_form)
    with console.status(f"comparing both graphs with the network on {real_name}"):
        reports = [verify_graphs(loaded.model, global_graph, graph, real) for graph in local_graphs.values()]
    report = worst(reports)
    check(report, "fp32", "the exported fp32 graphs", allow=allow)
    bundle = write_bundle(
        out,
        {"fp32/global.onnx": global_graph, **local_graphs},
        **_fields(loaded, report, {**origin, "verified_on": real_name}),
    )
    note(f"{out}: fp32 graphs verified on {real_name}, {summary(report)}")
    if changed:
        text = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in changed.items())
        note(f"{out}: {text}; weights and thresholds were trained and fitted with other settings: see what it costs")
        note(f"  with glocal evaluate {out} --data DIR")
    return bundle


def _local_graphs(model: GlocalNet, roi_form: RoiForm) -> dict[str, bytes]:
    """The local graph, and beside it the form for TensorRT where that is another one."""
    graph = export_local(model, roi_form)
    files = {"fp32/local.onnx": convolutions_to_products(graph)}
    if roi_form != "matmul" or files["fp32/local.onnx"] != graph:
        files["fp32/local.tensorrt.onnx"] = graph if roi_form == "matmul" else export_local(model, "matmul")
    return files


def verification_images(checkpoint: Checkpoint, images: Path | None) -> tuple[Sequence[NDArray[np.uint8]], str]:
    """Images to compare on, and what to call them: those given, else of the training data's validation split."""
    if images is not None:
        return real_images(images)
    training = checkpoint.training
    try:
        data = open_data(
            training["data"], "val", length=VERIFY_IMAGES, size=training["image_size"], seed=training["seed"]
        )
    except (GlocalError, KeyError):  # it is not at hand, or the training did not say what it was
        return real_images(None)
    chosen = range(min(VERIFY_IMAGES, len(data)))
    return [data.load(index) for index in chosen], f"{len(chosen)} validation images"


def _unchanged(out: Path, origin: dict[str, str]) -> Bundle | None:
    """The bundle that stands at ``out``, if it is whole and what would be written."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        bundle = Bundle.load(out)
    except GlocalError:  # damaged, or of another version: it is written again
        return None
    # Neither Python nor the engine that verified decides what the graphs are.
    decides = ({*origin} - {"python", "onnxruntime"}) | {*NAMES}
    same = all(bundle.manifest.provenance.get(name) == origin.get(name) for name in decides)
    return bundle if same and "fp32" in bundle.manifest.precisions else None


def _origin(checkpoint: Checkpoint, roi_form: RoiForm) -> dict[str, str]:
    """Where the graphs come from."""
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "timm")
    return {
        "checkpoint_sha256": hashlib.sha256(checkpoint.path.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "glocal": __version__,
        **{name: version(name) for name in packages},
        "roi_align": roi_form,
    }


def _metrics(checkpoint: Checkpoint) -> dict[str, float]:
    return {f"val/{name}": value for name, value in checkpoint.metrics.items()}


def _fields(checkpoint: Checkpoint, report: dict[str, float], origin: dict[str, str]) -> dict[str, Any]:
    config = checkpoint.model.config
    return {
        "name": f"{config.backbone} {config.image_size[0]}x{config.image_size[1]}",
        "labels": config.classes,
        "input_size": config.image_size,
        "selector": {
            "k_s": config.k_s,
            "k_e": config.k_e,
            "zetas": config.zetas,
            "shift": tuple(checkpoint.model.selector().shift.tolist()),
            "rank": config.rank,
        },
        "fusion": config.fusion,
        "thresholds": {"fp32": checkpoint.thresholds or (0.5,) * len(config.classes)},
        "metrics": {"fp32": {} if {*NAMES} & {*origin} else _metrics(checkpoint)},
        "verification": {"fp32": report},
        "provenance": {**origin, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")},
    }
