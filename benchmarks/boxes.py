"""Which boxes go through the local engine while it is timed: the selector's own, a number, or another model's.

The local engine's time depends on how many boxes an image has. A network whose weights nobody trained selects boxes
that mean nothing, so it is timed with as many as one wants to know about, or with those that a trained model gives on
the same images. The network's own selector runs all the same, and its time counts; only its result is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import open_engines
from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.pipeline import Pipeline, selector_of
from ..runtime.progress import progressed
from ..runtime.selector import Regions
from .scored import scored

Selector = Callable[[NDArray[np.float32], NDArray[np.float32]], Regions]
OWN = "own"
_CELLS = 32  # a side of the grid that numbered boxes stand on
_MOST = 1024


class ReplacingSelector:
    """Runs a selector and gives prepared regions in the place of what it found.

    Args:
        selector: The selector of the network that is timed.

    Attributes:
        prepared: Regions of one image each, for the images of the next call; None gives what the selector found.
    """

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self.prepared: Sequence[Regions] | None = None

    def __call__(self, class_maps: NDArray[np.float32], logits: NDArray[np.float32]) -> Regions:
        """As `RegionSelector`."""
        found = self._selector(class_maps, logits)
        if self.prepared is None:
            return found
        chosen = self.prepared[: len(logits)]
        categories = np.concatenate([one.categories for one in chosen])
        return Regions(
            np.concatenate([one.boxes for one in chosen]),
            np.concatenate([one.counts for one in chosen]),
            np.minimum(categories, logits.shape[1] - 1),  # the other model may have more labels
            np.concatenate([one.variants for one in chosen]),
            np.concatenate([one.energies for one in chosen]),
            np.concatenate([one.n for one in chosen]),
            chosen[0].grid,
        )


def prepare(boxes: str, paths: Sequence[Path], threads: int | None = None) -> list[Regions] | None:
    """The regions that ``--boxes`` asks for.

    Args:
        boxes: ``own``, a number of boxes, or the folder of a bundle.
        paths: The images.
        threads: Threads of that bundle's engines.

    Returns:
        Regions of each image, or None for the selector's own.

    Raises:
        UsageError: ``boxes`` is none of these.
        BundleError: The bundle is damaged.
        GlocalError: An image cannot be predicted.
    """
    if boxes == OWN:
        return None
    if boxes.isdecimal():
        return [different_boxes(int(boxes))] * len(paths)
    if not Path(boxes).is_dir():
        fix = f"Give {OWN}, a number, or the folder of a bundle whose boxes shall be taken."
        raise UsageError(f"--boxes cannot be {boxes!r}.", fix=fix)
    return boxes_of(Path(boxes), paths, threads)


def different_boxes(count: int) -> Regions:
    """Regions of one image: ``count`` different boxes of all sizes and places, each proposed once.

    Raises:
        UsageError: There are none, or more than 1024.
    """
    if not 1 <= count <= _MOST:
        raise UsageError(f"An image has 1 to {_MOST} boxes, not {count}.", fix="Give another number with --boxes.")
    first, last = np.triu_indices(_CELLS)  # the intervals of a side
    places = np.random.default_rng(0).choice(len(first) ** 2, count, replace=False)
    across, down = places % len(first), places // len(first)
    boxes = np.stack([first[across], first[down], last[across] + 1, last[down] + 1], axis=1)
    none, ones = np.zeros((1, count), np.int32), np.ones((1, count), np.int32)
    energies, n = np.ones((1, count), np.float32), np.array([count], np.int32)
    return Regions(boxes[None].astype(np.int32), ones, none, none, energies, n, (_CELLS, _CELLS))


def boxes_of(bundle: Path, paths: Sequence[Path], threads: int | None = None) -> list[Regions]:
    """Regions that a bundle's model gives on images, in fp32 with ONNX Runtime, one by one.

    Raises:
        UsageError: The bundle has no fp32 graphs.
        BundleError: The bundle is damaged.
        GlocalError: An image cannot be predicted.
    """
    opened = Bundle.load(bundle)
    selector, seen = selector_of(opened.manifest), list[Regions]()

    def record(class_maps: NDArray[np.float32], logits: NDArray[np.float32]) -> Regions:
        seen.append(selector(class_maps, logits))
        return seen[-1]

    engines = open_engines(opened, "onnxruntime", "fp32", threads)
    with Pipeline(opened.manifest, "fp32", engines, record) as pipeline:
        predictions = pipeline.predict_files(progressed(paths, f"boxes of {opened.manifest.name}"), batch=1)
        scored(predictions, f"{bundle} gives no boxes.", fix="Leave that image out.")
    return seen
