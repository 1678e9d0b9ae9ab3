"""What the commands do, step by step. PyTorch is imported only where a checkpoint is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import Backend
from ..runtime.backends.tensorrt_api import Backend as PlanBackend
from ..runtime.backends.tensorrt_api import gpu, load_library
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.manifest import MANIFEST, Precision
from ..runtime.plans import GRAPHS, Plan, PlanOptions, list_plans, record_verification, remove_plan
from ..runtime.progress import note
from .compare import check, summary
from .extend import Comparison, add_half, real_images, verify_bundle
from .overrides import Overrides, override, overrides_of
from .plans import build_plans
from .tensorrt import check_machine

if TYPE_CHECKING:
    from .graphs import RoiForm


def export_bundle(
    source: Path,
    out: Path | None,
    precisions: Sequence[Precision],
    plan_backends: Sequence[PlanBackend],
    *,
    roi_form: RoiForm | None = None,
    overrides: Overrides | None = None,
    images: Path | None = None,
    allow: bool = False,
    options: PlanOptions | None = None,
    timing_cache: Path | None = None,
) -> Bundle:
    """From a checkpoint, or from a bundle, to a bundle with these precisions and plans.

    Args:
        source: A run folder, a ``model.safetensors``, or a bundle, which is then added to.
        out: The bundle to write, for a checkpoint.
        precisions: Graphs to have, besides fp32. ``int8`` must be there already: it needs calibration.
        plan_backends: ``tensorrt`` and ``tensorrt_rtx``: which plans to build.
        roi_form: See `build.build_bundle`; a bundle keeps the form that it has.
        overrides: Likewise.
        images: See `build.build_bundle`.
        allow: Likewise.
        options: Sizes, limits and compatibility of plans.
        timing_cache: See `plans.build_plans`.

    Raises:
        UsageError: The arguments do not fit together, or int8 has not been calibrated.
        GlocalError: A graph or a plan differs from what it was made of, or cannot be made.
    """
    if not source.exists():
        raise UsageError(f"{source} does not exist", fix="name a run folder, a model.safetensors, or a bundle")
    is_bundle = (source / MANIFEST).is_file()
    if is_bundle == (out is not None):
        fix = "leave --out out: a bundle is added to where it is" if is_bundle else "name the bundle with --out"
        raise UsageError(f"{source} is {'a' if is_bundle else 'no'} bundle", fix=fix)
    if is_bundle and roi_form is not None:
        raise UsageError(
            f"{source} is a bundle, whose form of RoIAlign stays", fix="give --roi-align with a checkpoint"
        )
    if is_bundle and overrides not in (None, Overrides()):
        raise UsageError(
            f"{source} is a bundle, whose settings stay", fix="give --k-s, --k-e and --roi-size with a checkpoint"
        )
    if not plan_backends and (timing_cache is not None or options not in (None, PlanOptions())):
        fix = "add --backend tensorrt or tensorrt_rtx, or leave out the options of plans"
        raise UsageError("there are options of plans, and no plans to build", fix=fix)
    for backend in plan_backends:  # before any long work
        check_machine(load_library(backend), gpu())
    if is_bundle:
        bundle = Bundle.load(source)
    else:
        from .build import build_bundle

        assert out is not None  # for mypy: checked above
        form = roi_form or "matmul"
        bundle = build_bundle(source, out, roi_form=form, overrides=overrides, images=images, allow=allow)
    checkpoint = None if is_bundle else source
    if "fp16" in precisions and "fp16" not in bundle.manifest.precisions:
        real, origin = _images_for(checkpoint, images)
        bundle = add_half(bundle, real, allow=allow)
        note(f"{bundle.path}: fp16 graphs verified on {origin}, {summary(bundle.manifest.verification['fp16'])}")
    for precision, report in bundle.manifest.verification.items():  # some may be kept that --allow let in
        if precision in ("fp32", *precisions):
            check(report, precision, f"the {precision} graphs of {bundle.path}", allow=allow)
    if "int8" in precisions and "int8" not in bundle.manifest.precisions:
        raise UsageError(
            f"{bundle.path} has no int8 graphs, which need calibration",
            fix=f"run: glocal calibrate {bundle.path} --data DIR",
        )
    for backend in plan_backends:
        plans = build_plans(bundle, backend, precisions, options, timing_cache=timing_cache, allow=allow)
        _verify_plans(bundle, backend, plans, checkpoint, images, allow)
    return bundle


def verify_all(
    path: Path,
    checkpoint: Path | None,
    backends: Sequence[Backend] | None,
    precisions: Sequence[Precision] | None,
    images: Path | None,
) -> list[Comparison]:
    """Compare all that a bundle has.

    Args:
        path: The bundle.
        checkpoint: The run that it came from, to compare the fp32 graphs with PyTorch as well.
        backends: Which engines to compare with the fp32 graphs. None: ONNX Runtime, and those with plans.
        precisions: None: all.
        images: A photo or a folder of photos.

    Raises:
        UsageError: The bundle was not made from the checkpoint, or there are no images.
        BundleError: The bundle or one of its plans is damaged.
    """
    bundle = Bundle.load(path)
    plans = _whole_plans(bundle)
    real, _ = _images_for(checkpoint, images)
    found = [_verify_network(bundle, checkpoint, real)] if checkpoint is not None else []
    if backends is None:
        backends = ["onnxruntime", *dict.fromkeys(plan.info.library for plan in plans)]
    return found + verify_bundle(bundle, real, backends, precisions or bundle.manifest.precisions)


def _whole_plans(bundle: Bundle) -> list[Plan]:
    plans = []
    for plan in list_plans(bundle):
        if isinstance(plan, GlocalError):
            raise plan
        for graph in GRAPHS:
            plan.read(graph)
        plans.append(plan)
    return plans


def _verify_network(bundle: Bundle, checkpoint: Path, images: Sequence[NDArray[np.uint8]]) -> Comparison:
    """Compare the fp32 graphs with the network that they came from."""
    from ..train.checkpoint import load_model
    from .verify import verify_graphs

    loaded = load_model(checkpoint)
    digest = hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    if digest != bundle.manifest.provenance.get("checkpoint_sha256"):
        raise UsageError(f"{bundle.path} was not made from {checkpoint}", fix="name the run that it came from")
    override(loaded.model, overrides_of(bundle))
    report = verify_graphs(loaded.model, bundle.read("fp32/global.onnx"), bundle.read("fp32/local.onnx"), images)
    return Comparison("fp32", "onnx against PyTorch", report)


def _images_for(checkpoint: Path | None, images: Path | None) -> tuple[Sequence[NDArray[np.uint8]], str]:
    if checkpoint is None:
        return real_images(images)
    from ..train.checkpoint import load_model
    from .build import verification_images

    return verification_images(load_model(checkpoint), images)


def _verify_plans(
    bundle: Bundle,
    backend: PlanBackend,
    plans: Sequence[Plan],
    checkpoint: Path | None,
    images: Path | None,
    allow: bool,
) -> None:
    """Where there is a GPU, run plans against the fp32 graphs; note the result in ``plan.json``, or remove the plan."""
    if gpu() is None:
        note(f"{backend}: not run, there is no GPU here; glocal verify {bundle.path} compares it on one")
        return
    try:
        real, _ = _images_for(checkpoint, images)
    except UsageError:
        if images is not None:
            raise
        # A device has no photos of its own, and need not have scikit-learn's.
        note(f"{backend}: not compared; glocal verify {bundle.path} --images PHOTOS does it")
        return
    precisions = [plan.info.precision for plan in plans]
    for plan, comparison in zip(plans, verify_bundle(bundle, real, [backend], precisions), strict=True):
        if comparison.skipped:
            raise GlocalError(f"{plan.path} cannot be run", found=comparison.skipped)
        try:
            check(comparison.report, comparison.precision, str(plan.path), allow=allow)
        except GlocalError:
            remove_plan(plan)  # else the next run would take it
            raise
        record_verification(plan, comparison.report)
