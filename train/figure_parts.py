"""What the figures share: the photos to look at, what a model gives for them, and how both are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.ops import box_iou

from ..runtime.errors import GlocalError
from ..runtime.images import resize
from ..runtime.progress import progressed
from ..runtime.selector import Regions
from .checkpoint import Checkpoint
from .config import ModelConfig
from .data import LabeledImages, TrainImages, open_data
from .labeled import check_labels
from .model import GlocalNet

BATCH = 16
PHOTO_SIDE = 360  # longest side of a drawn photo, pixels
SMALL = 8  # font size of what is written at a photo
# As in the drawings of predictions: bright, well apart from one another.
COLOURS = ("#d62750", "#00806e", "#de6e00", "#6a4cc8", "#0078be", "#966e14")
GREY = "#5a6068"
RETRAIN = "train again with a lower --lr"


class Sample(NamedTuple):
    """The photos that a figure looks at."""

    images: LabeledImages
    rows: NDArray[np.int64]  # (n,) ascending: which of the images

    @property
    def targets(self) -> NDArray[np.int8]:
        """(n, N), as in ``LabeledImages``."""
        return self.images.targets[self.rows]

    def name(self, index: int) -> str:
        """What to call photo ``index`` of the sample."""
        row, paths = self.rows[index], self.images.paths
        return f"scene {row}" if paths is None else paths[row].name

    def photo(self, index: int) -> NDArray[np.uint8]:
        """Photo ``index`` of the sample, (H, W, 3) uint8 RGB, no side longer than ``PHOTO_SIDE``.

        Raises:
            UnreadableImageError: If the file cannot be read.
        """
        image = self.images.load(int(self.rows[index]))
        height, width = image.shape[:2]
        scale = min(1.0, PHOTO_SIDE / max(height, width))
        return resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))


class Seen(NamedTuple):
    """What a model gives for the n photos of a sample, in their order."""

    fused: NDArray[np.float32]  # (n, N) scores
    global_: NDArray[np.float32]  # (n, N) scores
    local: NDArray[np.float32]  # (n, N) scores
    logits: NDArray[np.float32]  # (n, N) of the global branch
    class_maps: NDArray[np.float32]  # (n, N, h, w)
    regions: Regions

    def boxes(self, index: int) -> NDArray[np.int32]:
        """The unique boxes of a photo, (K, 4) in cells."""
        return self.regions.boxes[index, : self.regions.n[index]]


class Drawn(NamedTuple):
    """A figure with its numbers."""

    figure: Figure
    table: list[dict[str, Any]]  # rows of the CSV file, all with the same columns
    notes: list[str]  # sentences that a reader of the figure needs


Draw = Callable[[Sequence[Checkpoint], Sample, int], Drawn]  # (runs, sample, seed)


def open_sample(data: str, split: str, config: ModelConfig, count: int, seed: int) -> Sample:
    """Draw photos from a split without looking at them: ``count`` at random, or all where there are fewer.

    Raises:
        DataError: The data do not follow their layout, or have other labels than the model.
        UsageError: The built-in digits have no such split.
    """
    images = open_data(data, split, length=count, size=config.image_size[0])
    check_labels(images, config.classes)
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return Sample(images, np.sort(chosen))


def batches(model: GlocalNet, sample: Sample, description: str) -> Iterator[Tensor]:
    """The sample at the network's input size, (B, H, W, 3) uint8 on the model's device, with progress."""
    dataset = TrainImages(sample.images, model.config.image_size, augment=False, seed=0)
    loader = DataLoader(Subset(dataset, sample.rows.tolist()), BATCH)
    device = next(model.parameters()).device
    for images, _ in progressed(loader, description):
        yield images.to(device)


def look(model: GlocalNet, sample: Sample) -> Seen:
    """Run a model of two branches over a sample.

    Raises:
        SelectorError: Class maps or logits are not finite.
        GlocalError: Scores are not finite.
    """
    parts: list[tuple[Tensor, ...]] = []
    regions: list[Regions] = []
    for images in batches(model, sample, "running the model"):
        with torch.inference_mode():
            out = model(images)
        kinds = (out.scores, out.global_logits.sigmoid(), out.local_logits.sigmoid(), out.global_logits, out.class_maps)
        parts.append(tuple(kind.float().cpu() for kind in kinds))
        regions.append(out.regions)
    fused, global_, local, logits, maps = (torch.cat(kind).numpy() for kind in zip(*parts, strict=True))
    if not np.isfinite(fused).all():
        raise GlocalError("the model gives scores that are not finite", fix=RETRAIN)
    return Seen(fused, global_, local, logits, maps, _joined(regions))


def _joined(parts: Sequence[Regions]) -> Regions:
    names = ("boxes", "counts", "categories", "variants", "energies", "n")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Regions(**arrays, grid=parts[0].grid)


def leading(logits: NDArray[np.float32], k_s: int) -> NDArray[np.int64]:
    """The categories of highest logit of one photo (N,), as the selector ranks them."""
    return np.argsort(-logits, kind="stable")[:k_s]


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of each of (K, 4) boxes with each of (M, 4), as (K, M)."""
    return box_iou(*(torch.from_numpy(np.asarray(boxes, np.float64)) for boxes in (one, other))).numpy()


def run_name(run: Checkpoint) -> str:
    """What to call a run: its folder."""
    return run.path.resolve().parent.name


def plain(text: str, length: int = 28) -> str:
    """Text for a drawing: not too long, and no mathematics between dollars."""
    return (text if len(text) <= length else text[: length - 3] + "...").replace("$", r"\$")


def show_photo(axes: Axes, photo: NDArray[np.uint8], title: str, colour: str = "black") -> None:
    """Draw a photo in its own pixels, so that a box at 0 lies on its edge."""
    height, width = photo.shape[:2]
    axes.imshow(photo, extent=(0, width, height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=SMALL, color=colour)


def show_map(axes: Axes, photo: NDArray[np.uint8], plane: NDArray[np.float32], title: str, colour: str) -> None:
    """Draw what is positive of a class map (h, w) as heat over a photo, relative to its maximum."""
    height, width = photo.shape[:2]
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    show_photo(axes, np.asarray(grey // 2 + 96, np.uint8), title, colour)
    peak = float(plane.max())
    if peak > 0:
        heat = np.clip(cv2.resize(plane / peak, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
        axes.imshow(heat, extent=(0, width, height, 0), cmap="YlOrRd", vmin=0, vmax=1, alpha=0.8 * np.sqrt(heat))


def show_boxes(
    axes: Axes,
    boxes: NDArray[Any],
    size: tuple[int, int],
    grid: tuple[float, float],
    colour: str,
    *,
    width: float = 2.0,
    dashed: bool = False,
) -> None:
    """Draw boxes (K, 4) over a photo.

    Args:
        axes: Where the photo is drawn.
        boxes: x0, y0, x1, y1.
        size: Height and width of the photo in pixels.
        grid: Height and width of the photo in the boxes' unit.
        colour: Of the lines.
        width: Of the lines in points.
        dashed: Whether they are dashed.
    """
    x0, y0, x1, y1 = (boxes * np.array([size[1] / grid[1], size[0] / grid[0]] * 2)).T
    corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], 1).reshape(-1, 4, 2)
    outlines = PolyCollection(list(corners), facecolors="none", edgecolors=colour, lw=width, ls="--" if dashed else "-")
    outlines.set(clip_on=False, in_layout=False)
    axes.add_collection(outlines, autolim=False)


def data_name(sample: Sample) -> str:
    """The data and the split, for a title."""
    name = sample.images.name
    return f"{name if sample.images.paths is None else Path(name).resolve().name} {sample.images.split}"
