"""A backbone pretrained on built-in digits: what ImageNet weights are to photos, for machines without a network.

Labels of whole scenes say little to a network that has never seen a digit: from random weights the two-branch
network hardly leaves the base rate in eight thousand scenes. Less than a minute on single digits first changes that.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import timm
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.files import write_atomically
from ..runtime.progress import progressed
from .backbone import create_timm_model
from .digits import CLASSES, DigitCrops
from .schedule import warmup_cosine


def pretrain(
    backbone: str, out: Path, *, crops: int = 12_000, epochs: int = 3, batch: int = 32, lr: float = 7e-3, seed: int = 0
) -> float:
    """Train a timm classifier on single digits and write its weights, to start from with ``--weights``.

    Args:
        backbone: A timm model name.
        out: The safetensors file to write; keys are timm's, the classifier is included.
        crops: Training crops.
        epochs: How often each is seen, every time in other colours.
        batch: Crops a step.
        lr: Peak learning rate of AdamW.
        seed: Of weights, crops and order.

    Returns:
        Accuracy on 1,000 validation crops.

    Raises:
        UsageError: timm does not know the name.
    """
    create_timm_model(backbone)  # an unknown name gets its message before anything else
    images, digits = _crops("train", crops, seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = timm.create_model(backbone, num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02, fused=True)
    order = np.concatenate([rng.permutation(crops) for _ in range(epochs)])
    steps = len(order) // batch
    model.train()
    for step in progressed(range(steps), "pretraining on single digits"):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step / steps)
        chosen = torch.from_numpy(order[step * batch : (step + 1) * batch])
        loss = F.cross_entropy(_forward(model, _recolour(images[chosen], rng)), digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    model.eval()
    held_out, answers = _crops("val", 1000, seed)
    with torch.inference_mode():
        accuracy = float((_forward(model, held_out).argmax(1) == answers).float().mean())
    write_atomically(out, save({key: value.contiguous() for key, value in model.state_dict().items()}))
    Console(stderr=True).print(
        f"pretrained {backbone}: {accuracy:.1%} of {len(answers)} held-out single digits are right", highlight=False
    )
    return accuracy


def _crops(split: str, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 32, 32, 3) uint8 and digits (n,) int64."""
    data = DigitCrops(split, length, seed=seed)
    crops = [data[i] for i in progressed(range(length), f"making {split} crops")]
    return torch.from_numpy(np.stack([image for image, _ in crops])), torch.tensor([digit for _, digit in crops])


def _recolour(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch with its channels in another order and, half of the time, as a negative; digits stay digits."""
    images = images[..., rng.permutation(3)]
    return 255 - images if rng.random() < 0.5 else images


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    cfg = cast("dict[str, tuple[float, ...]]", model.pretrained_cfg)
    x = (images.float() / 255 - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"])
    return model(x.permute(0, 3, 1, 2))
