"""A backbone pretrained on built-in digits: what ImageNet weights are to photos, for machines without a network.

Labels of whole scenes say little to a network that has never seen a digit: from random weights the two-branch
network hardly leaves the base rate in ten thousand scenes. A minute on single digits first makes them enough.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..runtime.files import write_atomically
from .backbone import create_timm_model
from .digits import CLASSES, DigitCrops
from .schedule import warmup_cosine


def pretrain(
    backbone: str, out: Path, *, crops: int = 24_000, batch: int = 16, lr: float = 5e-3, workers: int = 2, seed: int = 0
) -> float:
    """Train a timm classifier on single digits and write its weights, to start from with ``--weights``.

    Args:
        backbone: A timm model name.
        out: The safetensors file to write; keys are timm's, the classifier is included.
        crops: Training crops, each seen once.
        batch: Crops a step.
        lr: Peak learning rate of AdamW.
        workers: Processes that make crops.
        seed: Of weights and crops.

    Returns:
        Accuracy on 1,000 validation crops.

    Raises:
        UsageError: timm does not know the name.
    """
    create_timm_model(backbone)  # an unknown name gets its message before anything else
    torch.manual_seed(seed)
    model = timm.create_model(backbone, num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    data = DigitCrops("train", crops, seed=seed)
    loader = DataLoader(data, batch, num_workers=workers, drop_last=True)
    cfg = cast("dict[str, Any]", model.pretrained_cfg)
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    def forward(images: torch.Tensor) -> torch.Tensor:
        return model((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)

    console = Console(stderr=True)
    model.train()
    for step, (images, digits) in enumerate(track(loader, "pretraining on digits", console=console, transient=True)):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, len(loader))
        loss = F.cross_entropy(forward(images), digits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    accuracy = _accuracy(model, forward)
    write_atomically(out, save({key: value.contiguous() for key, value in model.state_dict().items()}))
    console.print(f"pretrained {backbone}: {accuracy:.1%} of 1,000 held-out single digits are right", highlight=False)
    return accuracy


def _accuracy(model: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
    model.eval()
    held_out = DigitCrops("val", 1000)
    crops = [held_out[index] for index in range(len(held_out))]
    images = torch.from_numpy(np.stack([image for image, _ in crops]))
    digits = torch.tensor([digit for _, digit in crops])
    with torch.inference_mode():
        return float((forward(images).argmax(1) == digits).float().mean())
