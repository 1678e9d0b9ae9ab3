"""A checkpoint with random weights, to measure a network that nobody trained.

``python -m glocal.benchmarks.random_model OUT`` writes one for `glocal export`.

Its accuracy means nothing. Its activations are made to look like a trained network's, so that half precision meets
values of a usual size: nothing stays at zero by its initialisation, and batch norms get statistics of random images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..runtime.cli import run_app

IMAGES = 8


def write_random_model(
    path: Path,
    backbone: str,
    image_size: int,
    labels: int,
    preset: Literal["glocal", "paper"] = "glocal",
    seed: int = 0,
) -> None:
    """Write a checkpoint that ``glocal export`` takes.

    Args:
        path: The ``model.safetensors`` to write.
        backbone: A timm model name; its weights are not loaded.
        image_size: Side of the square input, pixels.
        labels: How many labels.
        preset: Switches of the network.
        seed: Of weights and images.
    """
    import torch
    from torch import nn

    from ..train.checkpoint import save_model
    from ..train.config import model_config
    from ..train.model import GlocalNet

    torch.manual_seed(seed)
    classes = tuple(f"label {index}" for index in range(labels))
    model = GlocalNet(model_config(preset, backbone=backbone, classes=classes, image_size=(image_size, image_size)))
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.any():  # attention's output, the last norm of a block
            nn.init.constant_(weight, 0.2) if weight.ndim == 1 else nn.init.normal_(weight, std=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.train()
    for norm in norms:
        norm.train()  # a model may keep them in evaluation mode
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for _ in range(IMAGES // 4):
            coarse = torch.rand(4, 3, image_size // 16, image_size // 16) * 255
            images = nn.functional.interpolate(coarse, size=(image_size, image_size), mode="bilinear")
            model(images.permute(0, 2, 3, 1).to(torch.uint8).contiguous())
    training = {"data": "none: random weights", "image_size": image_size, "seed": seed}
    save_model(path, model.eval(), training, {})


def main(
    out: Annotated[Path, typer.Argument(help="Folder for model.safetensors.")],
    backbone: Annotated[str, typer.Option(help="A timm model name.")] = "resnet101",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the input, pixels.")] = 448,
    labels: Annotated[int, typer.Option(min=1, help="How many labels.")] = 80,
    preset: Annotated[str, typer.Option(help="glocal or paper.")] = "glocal",
) -> None:
    """Write a checkpoint with random weights."""
    if preset not in ("glocal", "paper"):
        raise typer.BadParameter("glocal or paper", param_hint="--preset")
    write_random_model(
        out / "model.safetensors", backbone, image_size, labels, "paper" if preset == "paper" else "glocal"
    )
    print(f"wrote {out / 'model.safetensors'}")


if __name__ == "__main__":
    run_app(main)
