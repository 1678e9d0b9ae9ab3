"""What the commands do, step by step. PyTorch is imported only where a checkpoint is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.manifest import MANIFEST, Precision
from ..runtime.plans import list_plans
from .extend import Comparison, add_half, real_images, verify_bundle


def export_bundle(
    source: Path,
    out: Path | None,
    precisions: Sequence[Precision],
    plan_backends: Sequence[str],
    *,
    roi_form: str = "matmul",
    images: Path | None = None,
    allow: bool = False,
    options: dict[str, Any] | None = None,
    timing_cache: Path | None = None,
) -> Bundle:
    """From a checkpoint, or from a bundle, to a bundle with these precisions and plans.

    Args:
        source: A run folder, a ``model.safetensors``, or a bundle, which is then added to.
        out: The bundle to write, for a checkpoint.
        precisions: Graphs to have, besides fp32. ``int8`` must be there already: it needs calibration.
        plan_backends: ``tensorrt`` and ``tensorrt_rtx``: which plans to build.
        roi_form: See `build.build_bundle`.
        images: Likewise.
        allow: Likewise.
        options: Fields of `glocal.runtime.plans.PlanOptions`.
        timing_cache: See `plans.build_plans`.

    Raises:
        UsageError: The arguments do not fit together, or int8 has not been calibrated.
        GlocalError: A graph or a plan differs from what it was made of, or cannot be made.
    """
    is_bundle = (source / MANIFEST).is_file()
    if is_bundle == (out is not None):
        fix = "leave --out out: a bundle is added to where it is" if is_bundle else "name the bundle with --out"
        raise UsageError(f"{source} is {'a' if is_bundle else 'no'} bundle", fix=fix)
    if is_bundle:
        bundle = Bundle.load(source)
    else:
        from .build import build_bundle

        assert out is not None  # checked above
        bundle = build_bundle(source, out, roi_form=roi_form, images=images, allow=allow)
    if "fp16" in precisions and "fp16" not in bundle.manifest.precisions:
        real, origin = _images_for(source if not is_bundle else None, images)
        bundle = add_half(bundle, real, allow=allow)
        Console(stderr=True).print(f"{bundle.path}: fp16 graphs verified on {origin}", highlight=False)
    if "int8" in precisions and "int8" not in bundle.manifest.precisions:
        raise UsageError(
            f"{bundle.path} has no int8 graphs, which need calibration",
            fix=f"run: glocal calibrate {bundle.path} --data DIR",
        )
    for backend in plan_backends:
        _build_and_verify_plans(bundle, backend, precisions, images, allow, options or {}, timing_cache)
    return bundle


def verify_all(
    path: Path,
    checkpoint: Path | None,
    backends: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    images: Path | None,
) -> list[Comparison]:
    """Compare all that a bundle has: PyTorch with the fp32 graphs if the checkpoint is given, and these with each engine."""
    bundle = Bundle.load(path)
    real, _ = _images_for(checkpoint, images)
    found = [_verify_network(bundle, checkpoint, real)] if checkpoint is not None else []
    if backends is None:
        with_plans = dict.fromkeys(plan.info.library for plan in list_plans(bundle) if not isinstance(plan, Exception))
        backends = ["onnxruntime", *with_plans]
    return found + verify_bundle(bundle, real, backends, precisions or bundle.manifest.precisions)
