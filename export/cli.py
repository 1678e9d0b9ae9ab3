"""Commands of the export side: ``export`` (also ``export/build_engines.py``) and ``verify``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer
from rich.console import Console
from typer.core import TyperCommand

from ..runtime.backends import BACKENDS, PLAN_BACKENDS
from ..runtime.errors import GlocalError, UsageError
from ..runtime.files import write_atomically
from ..runtime.manifest import Precision

T = TypeVar("T", bound=str)


class ListCommand(TyperCommand):
    """A command whose options take several values: ``--precision fp32 fp16`` as well as giving the option again."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the option again before each further value of it."""
        choices = {"--precision": get_args(Precision), "--backend": BACKENDS}
        spread: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-"):
                option = arg if arg in choices else ""
            elif option and spread[-1] != option and arg in choices[option]:
                spread.append(option)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def export(
    source: Annotated[Path, typer.Argument(help="A run folder, the model.safetensors in it, or a bundle to add to.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The bundle to write; one that stands there is replaced.", show_default=False),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime, tensorrt, tensorrt_rtx; several are fine.", show_default="onnxruntime"),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16, int8; several are fine. A bundle always has fp32.", show_default="fp32"),
    ] = None,
    roi_align: Annotated[
        Literal["matmul", "operator"] | None,
        typer.Option(help="RoIAlign as a matrix product, or as the ONNX operator.", show_default="matmul"),
    ] = None,
    k_s: Annotated[
        int | None,
        typer.Option(min=1, help="Categories whose regions are looked at, per image.", show_default="as trained"),
    ] = None,
    k_e: Annotated[int | None, typer.Option(min=1, help="Regions per category.", show_default="as trained")] = None,
    roi_size: Annotated[
        int | None, typer.Option(min=1, help="Side of a pooled region in cells.", show_default="as trained")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Photo or folder to verify on.", show_default="the training's validation images, or 2 photos"
        ),
    ] = None,
    allow: Annotated[bool, typer.Option("--allow", help="Write also what differs by more than the tolerance.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Plans: most images at once.")] = 8,
    opt_batch: Annotated[int, typer.Option(min=1, help="Plans: images at once that they are tuned for.")] = 1,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Plans: TensorRT's timings of earlier builds, read and written.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans: also for later versions of the same major.")
    ] = False,
    hardware_compatible: Annotated[
        Literal["none", "same_compute_capability", "ampere_plus"],
        typer.Option(help="Plans: also for other GPUs of the same compute capability, or of all from Ampere on."),
    ] = "none",
) -> None:
    """Turn a trained model into a verified bundle; with --backend tensorrt also into TensorRT plans.

    Run again, it goes on where it was: what is finished and unchanged is kept.
    On the device that will run it, give the bundle itself: plans are built there, without PyTorch.
    """
    from ..runtime.plans import PlanOptions
    from .overrides import Overrides
    from .steps import export_bundle

    if opt_batch > max_batch:
        raise UsageError(
            f"--opt-batch {opt_batch} is more than --max-batch {max_batch}", fix="tune for a size it takes"
        )
    backends = chosen("--backend", backend or ["onnxruntime"], ("onnxruntime", *PLAN_BACKENDS))
    plans = [name for name in PLAN_BACKENDS if name in backends]
    options = PlanOptions(
        max_batch=max_batch,
        opt_batch=opt_batch,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    bundle = export_bundle(
        source,
        out,
        chosen("--precision", precision or ["fp32"], get_args(Precision)),
        plans,
        roi_form=roi_align,
        overrides=Overrides(k_s, k_e, roi_size),
        images=images,
        allow=allow,
        options=options,
        timing_cache=timing_cache,
    )
    print(f"wrote {bundle.path if out is None else out}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The run that it came from: also compare the fp32 graphs with PyTorch.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(BACKENDS)}; several are fine.", show_default="onnxruntime, and its plans"),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; several are fine.", show_default="all that it has")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Photo or folder to compare on.",
            show_default="the --checkpoint's validation images, or 2 photos from scikit-learn",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Does each engine of a bundle compute what its fp32 graphs, and the network they came from, compute?

    Exit code 1 if a difference is over its tolerance, or a named backend, or every one, cannot run here.
    """
    from .report import print_comparisons
    from .steps import verify_all

    backends = chosen("--backend", backend, BACKENDS) if backend else None
    precisions = chosen("--precision", precision, get_args(Precision)) if precision else None
    found = verify_all(bundle, checkpoint, backends, precisions, images)
    print_comparisons(Console(), str(bundle), found)
    if json_file:
        rows = [{**vars(one), "report": _finite(one.report), "over_tolerance": _finite(one.over)} for one in found]
        write_atomically(json_file, (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())
    wrong = [f"{one.precision} on {one.backend} differs in {', '.join(one.over)}" for one in found if one.over]
    skipped = [f"{one.precision} on {one.backend} could not be compared" for one in found if one.skipped]
    if wrong or (skipped and (backends is not None or len(skipped) == len(found))):
        raise GlocalError(f"{bundle} is not verified", found="; ".join(wrong + skipped), fix="see above")


def _finite(report: dict[str, float]) -> dict[str, float | None]:
    """Figures for JSON, which has no infinity: null stands for it."""
    return {name: value if math.isfinite(value) else None for name, value in report.items()}


def chosen(option: str, values: list[str], allowed: tuple[T, ...]) -> list[T]:
    """The values of an option, in the order of what it allows: typer has no lists of choices."""
    for value in values:
        if value not in allowed:
            raise UsageError(f"{option} {value}: there is no such choice", fix=f"choose from {', '.join(allowed)}")
    return [value for value in allowed if value in values]
