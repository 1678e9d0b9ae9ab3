"""Engines that run the two graphs of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, UsageError
from ..manifest import Precision

BACKENDS = ("onnxruntime",)


@dataclass(frozen=True, eq=False)
class GlobalOutputs:
    """What the global engine gives for B images and N labels.

    Attributes:
        logits: (B, N) float32.
        class_maps: (B, N, h, w) float32, after batch normalisation, before ReLU.
        on_device: The feature map and the global feature, where the local engine takes them: never copied.
    """

    logits: NDArray[np.float32]
    class_maps: NDArray[np.float32]
    on_device: Any


class Engines(Protocol):
    """The global and the local engine of one model at one precision."""

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global engine on images (B, H, W, 3) uint8 RGB, already resized."""

    def run_local(
        self, outputs: GlobalOutputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Run the local engine on boxes (B, K, 4) in [0, 1] and counts (B, K); gives logits (B, N)."""

    def close(self) -> None:
        """Free what the engines hold."""


def choose_precision(bundle: Bundle, precision: str) -> Precision:
    """Resolve ``auto`` and check that the bundle has the precision.

    Raises:
        UsageError: It has not.
    """
    wanted = "fp32" if precision == "auto" else precision
    for known in bundle.manifest.precisions:
        if known == wanted:
            return known
    fix = f"Choose one that it has: {', '.join(bundle.manifest.precisions)}."
    raise UsageError(f"{bundle.path} has no precision {wanted!r}.", fix=fix)


def open_engines(bundle: Bundle, backend: str, precision: str, threads: int | None) -> Engines:
    """Open the engines of a bundle.

    Args:
        bundle: The bundle.
        backend: ``onnxruntime``, or ``auto`` for the same.
        precision: ``fp32``, ``fp16``, ``int8``, or ``auto`` for ``fp32``.
        threads: Threads of one engine; None leaves the choice to the engine library.

    Raises:
        UsageError: This version has no such backend, or the bundle no such precision.
        BundleError: A graph cannot be loaded, or does not fit the manifest.
    """
    if backend not in ("auto", *BACKENDS):
        fix = f"Choose one that this version has: {', '.join(BACKENDS)}."
        raise UsageError(f"There is no backend {backend!r}.", fix=fix)
    chosen = choose_precision(bundle, precision)
    global_graph = bundle.read(f"{chosen}/global.onnx")
    local_graph = bundle.read(f"{chosen}/local.onnx")

    from .onnxruntime import OnnxRuntimeEngines  # the engine library is loaded by need only

    engines = OnnxRuntimeEngines(global_graph, local_graph, threads)
    manifest = bundle.manifest
    fitting = (*manifest.input_size, len(manifest.labels))
    found = (*engines.input_size, engines.labels)
    if found != fitting:
        engines.close()
        raise BundleError(
            f"The {chosen} graphs of {bundle.path} do not fit its manifest.",
            found=f"height, width, labels {found}, the manifest says {fitting}",
            fix="Export the bundle again.",
        )
    return engines
