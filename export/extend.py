"""Further precisions and engines for a bundle that is there, and their comparison with it. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..runtime.backends import Backend, open_engines
from ..runtime.bundle import Bundle, add_to_bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.images import list_images, read_image, resize
from ..runtime.manifest import Precision
from ..runtime.pipeline import selector_of
from .compare import EngineSubject, OnnxSubject, check, compare, over_tolerance, worst

VERIFY_IMAGES = 8


@dataclass(frozen=True)
class Comparison:
    """How one engine of a bundle compares with the fp32 graphs.

    Attributes:
        precision: Of the engine.
        backend: What ran it.
        report: What `compare.compare` gave; empty where it could not run.
        skipped: Why it could not.
    """

    precision: Precision
    backend: str
    report: dict[str, float]
    skipped: str = ""

    @property
    def over(self) -> dict[str, float]:
        """What is over the precision's tolerance."""
        return over_tolerance(self.report, self.precision)


def add_half(bundle: Bundle, images: Sequence[NDArray[np.uint8]], *, allow: bool = False) -> Bundle:
    """Add fp16 graphs to a bundle; where they are there already, nothing changes.

    Args:
        bundle: A bundle with fp32 graphs.
        images: Real images to compare them on, (H, W, 3) uint8 RGB of any size.
        allow: Add them even if they differ by more than the tolerance; the manifest says by how much. Ones that give
            values that are not finite are refused all the same.

    Raises:
        GlocalError: They differ, or a weight is too large for half precision.
        OSError: The bundle cannot be written.
    """
    if "fp16" in bundle.manifest.precisions:
        return bundle
    from .half import to_half  # needs onnx, which a device does without

    single = read_graphs(bundle, "fp32")
    half = {name.replace("fp32/", "fp16/"): to_half(content) for name, content in single.items()}
    reports = []
    for form in (name.removeprefix("fp32/") for name in single if name.startswith("fp32/local")):
        sides = [(f"{kind}/global.onnx", f"{kind}/{form}") for kind in ("fp32", "fp16")]
        subjects = [OnnxSubject(*((single | half)[name] for name in side)) for side in sides]
        reports.append(_compare(bundle, subjects[0], subjects[1], images))
    report = worst(reports)
    check(report, "fp16", f"the fp16 graphs of {bundle.path}", allow=allow)
    return add_to_bundle(
        bundle,
        half,
        thresholds={"fp16": bundle.manifest.thresholds["fp32"]},
        verification={"fp16": report},
    )


def read_graphs(bundle: Bundle, precision: Precision) -> dict[str, bytes]:
    """The graphs of a precision by their path in the bundle, those for TensorRT among them.

    Raises:
        BundleError: A file is missing or changed.
    """
    names = (name for name in bundle.manifest.files if name.startswith(f"{precision}/") and name.endswith(".onnx"))
    return {name: bundle.read(name) for name in names}


def verify_bundle(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    backends: Sequence[Backend],
    precisions: Sequence[Precision],
) -> list[Comparison]:
    """Compare engines of a bundle with its fp32 graphs in ONNX Runtime.

    Args:
        bundle: The bundle.
        images: Real images, (H, W, 3) uint8 RGB of any size.
        backends: Which engines.
        precisions: Which precisions.

    Returns:
        One for each backend and precision; an engine that cannot run here is skipped with the reason.

    Raises:
        BundleError: The fp32 graphs are missing or changed.
    """
    console, found = Console(stderr=True), []
    reference = OnnxSubject(bundle.read("fp32/global.onnx"), bundle.read("fp32/local.onnx"))
    for backend in backends:
        for precision in precisions:
            with console.status(f"comparing {precision} on {backend} with the fp32 graphs"):
                try:
                    engines = open_engines(bundle, backend, precision, None)
                except GlocalError as error:
                    found.append(Comparison(precision, backend, {}, str(error)))
                    continue
                try:
                    report = _compare(bundle, reference, EngineSubject(engines), images)
                finally:
                    engines.close()
            found.append(Comparison(precision, backend, report))
    return found


def _compare(
    bundle: Bundle, reference: OnnxSubject, subject: OnnxSubject | EngineSubject, images: Sequence[NDArray[np.uint8]]
) -> dict[str, float]:
    manifest = bundle.manifest
    real = np.stack([resize(image, manifest.input_size) for image in images])
    thresholds = manifest.thresholds["fp32"]
    found = compare(reference, subject, real, selector_of(manifest), manifest.fusion, thresholds)
    return {f"real/{name}": value for name, value in found.items()}


def real_images(images: Path | None) -> tuple[Sequence[NDArray[np.uint8]], str]:
    """Photos to compare on, and what to call them.

    Args:
        images: A photo or a folder of photos. None: the two that come with scikit-learn.

    Raises:
        UsageError: There are none.
        ImageError: One cannot be read.
    """
    if images is not None:
        paths = list_images(images)[:VERIFY_IMAGES]
        return [read_image(path) for path in paths], f"{len(paths)} given images"
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UsageError("there are no images to compare on", fix="name a photo or a folder with --images") from error
    return load_sample_images().images, "2 photos from scikit-learn"
