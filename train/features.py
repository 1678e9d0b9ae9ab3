"""Features of a frozen trunk, computed once and kept on disk: what makes many small trainings affordable on a CPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runtime.errors import DataError
from ..runtime.progress import progressed
from .data import LabeledImages, TrainImages
from .model import GlobalBranch


class FeatureImages(Dataset[tuple[Tensor, Tensor]]):
    """Kept features for a DataLoader: (F16 float32 (C16, H/16, W/16), target float32 (N,)).

    Args:
        views: Files of (n, C16, H/16, W/16) float16, one for each augmented view.
        targets: (n, N) int8.
    """

    def __init__(self, views: list[Path], targets: NDArray[np.int8]) -> None:
        self.views, self.targets, self.epoch = views, targets, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's view."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # Mapped anew each time: a mapping cannot be handed to a worker process, and opening one takes microseconds.
        rows = np.load(self.views[self.epoch % len(self.views)], mmap_mode="r")
        return (
            torch.from_numpy(rows[index].astype(np.float32)),
            torch.from_numpy(self.targets[index].astype(np.float32)),
        )


def keep_features(
    branch: GlobalBranch,
    images: LabeledImages,
    size: tuple[int, int],
    folder: Path,
    *,
    views: int = 1,
    augment: bool = False,
    batch: int = 32,
    workers: int = 2,
) -> FeatureImages:
    """Compute F16 of every image in ``views`` views, or find it in ``folder``.

    View v is what augmentation (of seed 0, whatever the run's) makes of an image in epoch v.

    Args:
        branch: A global branch whose trunk will not be trained.
        images: One split.
        size: (H, W) of the input in pixels.
        folder: Where the features are kept, a file a view (2 bytes a value), named by a hash of the trunk's weights,
            the list of images with their sizes in bytes, and the input size. A view is there whole or not at all.
        views: Views of each image.
        augment: Vary the views as in training.
        batch: Images at a time.
        workers: Processes that load images.

    Raises:
        DataError: The images cannot be kept or read.
    """
    key = _key(branch, images, size, augment)
    device = next(branch.parameters()).device
    files = [folder / f"{images.split}-{key}-{view}.npy" for view in range(views)]
    branch.trunk.eval()
    for view, file in enumerate(files):
        if os.path.isfile(file):
            continue
        dataset = TrainImages(images, size, augment, seed=0)
        dataset.set_epoch(view)
        loader = DataLoader(dataset, batch, num_workers=workers)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        rows = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with torch.inference_mode():
                for step, (pixels, _) in enumerate(progressed(loader, f"features of {images.split}, view {view + 1}")):
                    features = branch.trunk_features(pixels.to(device)).half().cpu().numpy()
                    if not np.isfinite(features).all():
                        raise DataError(
                            "features do not fit into 16 bits", found="a value above 65504", fix="train with views 0"
                        )
                    if rows is None:
                        shape = (len(images), *features.shape[1:])
                        rows = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                    rows[step * batch : step * batch + len(features)] = features
            assert rows is not None  # a split has at least one image
            rows.flush()
            del rows
            os.replace(partial, file)
        except OSError as error:
            what = f"features cannot be kept in {folder}"
            raise DataError(what, found=str(error), fix="give another folder with --cache") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    return FeatureImages(files, images.targets)


def _key(branch: GlobalBranch, images: LabeledImages, size: tuple[int, int], augment: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in branch.trunk.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for tensor in (branch.mean, branch.inverse_std):
        digest.update(tensor.cpu().numpy().tobytes())
    if images.paths is None:
        content: list[object] = [repr(images.source), images.targets.tolist()]
    else:
        content = [(path.name, path.stat().st_size) for path in images.paths]
    digest.update(json.dumps([content, size, augment]).encode())
    return digest.hexdigest()[:16]
