"""Commands of the export side: ``export`` (also ``export/build_engines.py``) and ``verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from typer.core import TyperCommand

from ..runtime.errors import GlocalError, UsageError
from ..runtime.files import write_atomically
from ..runtime.manifest import MANIFEST

PRECISIONS = ("fp32", "fp16", "int8")
BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx")
PLAN_BACKENDS = ("tensorrt", "tensorrt_rtx")


class ListCommand(TyperCommand):
    """A command whose options take several values: ``--precision fp32 fp16`` as well as giving the option again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give the option again before each further value of it."""
        choices = {"--precision": PRECISIONS, "--backend": BACKENDS}
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
        Path | None, typer.Option(help="The bundle to write; a bundle that stands there is replaced.", show_default=False)
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime, tensorrt, tensorrt_rtx; several are fine. [default: onnxruntime]"),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16, int8; several are fine. A bundle always has fp32. [default: fp32]"),
    ] = None,
    roi_align: Annotated[
        str, typer.Option(help="RoIAlign as a product of matrices (matmul), or as the ONNX operator (operator).")
    ] = "matmul",
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to verify on. Default: validation images of the training data.")
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
        str, typer.Option(help="Plans: none, same_compute_capability, or ampere_plus.")
    ] = "none",
) -> None:
    """Turn a trained model into a verified bundle; with --backend tensorrt also into TensorRT plans.

    Run again, it goes on where it was: what is finished and unchanged is kept. On the device that will run it, give the
    bundle itself as SOURCE: plans are built there, without PyTorch.
    """
    backends, precisions = backend or ["onnxruntime"], precision or ["fp32"]
    _check("--backend", backends, ("onnxruntime", *PLAN_BACKENDS))
    _check("--precision", precisions, PRECISIONS)
    _check("--roi-align", [roi_align], ("operator", "matmul"))
    _check("--hardware-compatible", [hardware_compatible], ("none", "same_compute_capability", "ampere_plus"))
    plans = [name for name in backends if name in PLAN_BACKENDS]
    if plans and roi_align == "operator":
        raise UsageError("TensorRT plans need --roi-align matmul", fix="leave --roi-align out")
    options = {
        "max_batch": max_batch,
        "opt_batch": min(opt_batch, max_batch),
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
    }
    from .steps import export_bundle

    bundle = export_bundle(
        source, out, precisions, plans, roi_form=roi_align, images=images, allow=allow,
        options=options, timing_cache=timing_cache,
    )  # fmt: skip
    print(f"wrote {bundle.path if out is None else out}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The run that it came from: also compare the fp32 graphs with PyTorch.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(BACKENDS)}; several are fine. [default: onnxruntime, and those with plans]"),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8. [default: all that the bundle has]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to compare on. Default: two photos from scikit-learn.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Does each engine of a bundle compute what its fp32 graphs, and the network they came from, compute?

    Prints a table; exit code 1 if a difference is over its tolerance, or if nothing could be compared.
    """
    _check("--backend", backend or [], BACKENDS)
    _check("--precision", precision or [], PRECISIONS)
    from .report import print_comparisons
    from .steps import verify_all

    found = verify_all(bundle, checkpoint, backend, precision, images)
    document = [{**vars(one), "over_tolerance": one.over} for one in found]
    if json_file:
        write_atomically(json_file, (json.dumps(document, indent=2) + "\n").encode())
    print_comparisons(Console(), str(bundle), found)
    over = [one for one in found if one.over]
    if over or all(one.skipped for one in found):
        found_text = ", ".join(f"{one.precision} on {one.backend}" for one in over) or "nothing could be compared"
        raise GlocalError(f"{bundle} is not verified", found=found_text, fix="see the table")


def _check(option: str, values: list[str], allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise UsageError(f"{option} {value}: there is no such choice", fix=f"choose from {', '.join(allowed)}")
