"""Does a bundle compute what the trained network computes? PyTorch, then ONNX, then each engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.images import resize
from ..train.model import GlocalNet
from .compare import GLOBAL_OUTPUTS, OnnxSubject, Outputs, compare, difference
from .graphs import check_exportable


class TorchSubject:
    """The network itself, see `compare.Subject`."""

    def __init__(self, model: GlocalNet) -> None:
        self._global, self._local = model.eval().global_branch, check_exportable(model)

    @torch.inference_mode()
    def run_global(self, images: NDArray[np.uint8]) -> Outputs:
        """See `compare.Subject`."""
        values = self._global(torch.from_numpy(images))
        return Outputs({name: value.numpy() for name, value in zip(GLOBAL_OUTPUTS, values, strict=True)})

    @torch.inference_mode()
    def run_local(
        self, outputs: Outputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See `compare.Subject`."""
        inputs = (outputs.values["features"], outputs.values["global_feature"], boxes, counts)
        return self._local(*(torch.from_numpy(array) for array in inputs)).numpy()


def verify_graphs(
    model: GlocalNet, global_graph: bytes, local_graph: bytes, images: Sequence[NDArray[np.uint8]], seed: int = 0
) -> dict[str, float]:
    """Compare both graphs with PyTorch on random and on real images.

    Args:
        model: The network.
        global_graph: Global graph, ONNX.
        local_graph: Local graph, ONNX.
        images: Real images, (H, W, 3) uint8 RGB of any size.
        seed: Of the random images, boxes and counts.

    Returns:
        ``random/global.logits`` to ``random/local.logits``, and under ``real/`` what `compare.compare` gives.
    """
    size = model.config.image_size
    network, graphs = TorchSubject(model), OnnxSubject(global_graph, local_graph)
    report = _compare_on_random(network, graphs, size, np.random.default_rng(seed))
    if images:
        real = np.stack([resize(image, size) for image in images])
        found = compare(network, graphs, real, model.selector(), model.config.fusion)
        report |= {f"real/{name}": value for name, value in found.items()}
    return report


def _compare_on_random(
    network: TorchSubject, graphs: OnnxSubject, size: tuple[int, int], rng: np.random.Generator
) -> dict[str, float]:
    """Noise and boxes of any place and size, padding among them: what photos may not show."""
    images = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    boxes = np.sort(rng.random((3, 5, 2, 2), dtype=np.float32), axis=2).reshape(3, 5, 4)
    counts = rng.integers(0, 4, (3, 5)).astype(np.float32)
    counts[:, 0] = 1
    expected, found = network.run_global(images), graphs.run_global(images)
    report = {f"random/global.{name}": difference(expected.values[name], found.values[name]) for name in found.values}
    local = network.run_local(expected, boxes, counts), graphs.run_local(expected, boxes, counts)
    return report | {"random/local.logits": difference(*local)}
