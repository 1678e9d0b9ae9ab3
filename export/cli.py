"""Command of the export side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder, or the model.safetensors in it.")],
    out: Annotated[Path, typer.Option(help="The bundle to write; a bundle that stands there is replaced.")],
    roi_align: Annotated[
        Literal["operator", "matmul"], typer.Option(help="RoIAlign as the ONNX operator, or as a matrix product.")
    ] = "operator",
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to verify on. Default: validation images of the training data.")
    ] = None,
) -> None:
    """Split a trained model into its two graphs, verify them and write a bundle (ONNX Runtime, fp32)."""
    from .build import build_bundle

    build_bundle(checkpoint, out, roi_form=roi_align, images=images)
    print(f"wrote {out}")
