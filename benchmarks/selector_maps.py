"""Where the class maps come from that the selector is timed on: a trained model, a file, or smoothed noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError, UsageError
from ..runtime.images import read_image, resize
from ..runtime.progress import progressed

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """Parameters of the selector."""

    k_s: int
    k_e: int
    zetas: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Maps:
    """Class maps to select from.

    Attributes:
        maps: (B, N, h, w) float32.
        logits: (B, N) float32.
        shift: (N,) float32, as ``RegionSelector`` takes it.
        source: Where they come from, in words.
        facts: What else a report says of the source.
    """

    maps: FloatArray
    logits: FloatArray
    shift: FloatArray
    source: str
    facts: dict[str, Any]

    def batch(self, size: int) -> list[tuple[FloatArray, FloatArray]]:
        """All images, in batches; the last one is filled up from the first image on."""
        number = -(-len(self.maps) // size)
        rows = np.arange(number * size).reshape(number, size) % len(self.maps)
        return [(self.maps[row], self.logits[row]) for row in rows]

    def describe(self) -> dict[str, Any]:
        """Facts for a report: ``maps`` (their shape), ``images``, ``source``, and how active the maps are.

        ``active_cells`` is the share of cells above 0, ``regions_per_map`` the mean number of 8-connected regions.
        """
        active = (self.maps > 0).view(np.uint8)
        planes = active.reshape(-1, *active.shape[2:])
        regions = [cv2.connectedComponents(plane, connectivity=8)[0] - 1 for plane in planes]
        return {
            "maps": "x".join(str(side) for side in self.maps.shape[1:]),
            "images": len(self.maps),
            "source": self.source,
            **self.facts,
            "active_cells": round(float(active.mean()), 4),
            "regions_per_map": round(float(np.mean(regions)), 3),
        }


def noise_maps(categories: int, size: int, images: int = 128, seed: int = 0) -> Maps:
    """Class maps of smoothed noise (standard deviation of the filter 1.5 cells), their logits, and a shift.

    There are many images, or the processor's branch predictor would learn them: at 14x14 a call takes a quarter less
    with 16 images in turn than with 1000.
    """
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((images, categories, size, size), np.float32)
    for plane in maps.reshape(-1, size, size):
        plane[:] = cv2.GaussianBlur(plane, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT) * 4 - 0.3
    logits = rng.standard_normal((images, categories), np.float32)
    shift = np.abs(rng.standard_normal(categories, np.float32)) * np.float32(0.6)
    return Maps(maps, logits, shift, "smoothed noise", {"seed": seed})


def load_maps(path: Path) -> Maps:
    """Maps from an .npz file with float32 ``maps`` (B, N, h, w), ``logits`` (B, N) and ``shift`` (N,).

    Raises:
        DataError: The file is not such a file.
    """
    fix = "Save it with numpy.savez(file, maps=..., logits=..., shift=...), float32 (B, N, h, w), (B, N), (N,)."
    try:
        with np.load(path) as file:
            maps, logits, shift = file["maps"], file["logits"], file["shift"]
    except Exception as error:  # NumPy, zipfile and zlib each have errors of their own for a file that is none
        raise DataError(f"{path} holds no class maps.", found=str(error), fix=fix) from error
    if maps.ndim != 4 or 0 in maps.shape or logits.shape != maps.shape[:2]:
        raise DataError(f"{path} holds no class maps.", found=f"maps {maps.shape}, logits {logits.shape}", fix=fix)
    return Maps(maps, logits, shift, "a file", {"file": path.name})


def model_maps(run: Path, paths: Sequence[Path], sizes: Sequence[int]) -> list[Maps]:
    """Class maps that a trained model gives for photos, of all its categories.

    The network is convolutional, so the photos are resized to whatever makes maps of the wanted size, also where it
    was trained at another.

    Args:
        run: A run folder or its checkpoint.
        paths: Photos.
        sizes: Cells along a side of the maps.

    Returns:
        Maps of each size.

    Raises:
        UsageError: There is no checkpoint, or its model has no class maps.
        CheckpointError: The checkpoint is damaged.
        ImageError: A photo cannot be read.
    """
    import torch

    from ..train.checkpoint import load_model

    checkpoint = load_model(run)
    model, config = checkpoint.model, checkpoint.model.config
    branch = model.global_branch
    if branch.map_head is None:
        raise UsageError(
            f"the model of {run} has no class maps.", found=f"head {config.head!r}", fix="give a model of head 'glocal'"
        )
    photos, found = [read_image(path) for path in paths], []
    digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    for size in sizes:
        side = size * (16 if config.map_features == "f16" else 32)  # pixels of a cell
        outputs = []
        for photo in progressed(photos, f"running the model at {side} px"):
            with torch.inference_mode():
                outputs.append(branch(torch.from_numpy(resize(photo, (side, side)))[None]))
        facts = {
            "checkpoint_sha256": digest,
            "backbone": config.backbone,
            "labels": len(config.classes),
            "trained_at_px": list(config.image_size),
            "input_px": side,
        }
        maps, logits = (torch.cat(parts).numpy() for parts in list(zip(*outputs, strict=True))[1::-1])
        found.append(Maps(maps, logits, model.selector().shift, f"a trained {config.backbone}", facts))
    return found
