"""Engines that run the two graphs of a bundle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, GlocalError, UsageError
from ..manifest import Precision

Backend = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PLAN_BACKENDS: tuple[Literal["tensorrt", "tensorrt_rtx"], ...] = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, eq=False)
class GlobalOutputs:
    """What the global engine gives for B images and N labels.

    Attributes:
        logits: (B, N) float32.
        class_maps: (B, N, h, w) float32, after batch normalisation, before ReLU.
        on_device: The feature map and the global feature, where the local engine takes them: never copied.
        to_device_ms: Milliseconds in which the images went to the device; 0 where the engine does not say.
        to_host_ms: Milliseconds in which logits and class maps came back; 0 likewise.
    """

    logits: NDArray[np.float32]
    class_maps: NDArray[np.float32]
    on_device: Any
    to_device_ms: float = 0.0
    to_host_ms: float = 0.0


class Engines(Protocol):
    """The global and the local engine of one model at one precision.

    Attributes:
        input_size: (height, width) of the images, pixels.
        labels: How many labels the engines score.
    """

    input_size: tuple[int, int]
    labels: int

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global engine on images (B, H, W, 3) uint8 RGB, already resized."""

    def run_local(
        self, outputs: GlobalOutputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Run the local engine on boxes (B, K, 4) in [0, 1] and counts (B, K); gives logits (B, N)."""

    def close(self) -> None:
        """Free what the engines hold."""


def choose(bundle: Bundle, backend: str, precision: str) -> tuple[Backend, Precision]:
    """Resolve ``auto``, and check that the bundle has the precision.

    Args:
        bundle: The bundle.
        backend: One of `BACKENDS`. ``auto`` takes TensorRT where the bundle has a plan that fits this machine, else
            ONNX Runtime on the CPU.
        precision: ``fp32``, ``fp16`` or ``int8``. ``auto`` is that of a plan that fits, fp16 before fp32, where
            TensorRT runs, else fp32.

    Raises:
        UsageError: There is no such backend, or the bundle has no such precision.
    """
    for known in BACKENDS:
        if backend == known and precision != "auto":
            return known, _checked_precision(bundle, precision)
    if backend not in ("auto", *BACKENDS):
        fix = f"Choose one that this version has: {', '.join(BACKENDS)}."
        raise UsageError(f"There is no backend {backend!r}.", fix=fix)
    wanted: tuple[Precision, ...] = ("fp16", "fp32")
    if precision != "auto":
        wanted = (_checked_precision(bundle, precision),)
    for library, kind in itertools.product(PLAN_BACKENDS, wanted):
        if backend in ("auto", library) and _has_plan(bundle, library, kind):
            return library, kind
    fallback = _checked_precision(bundle, "fp32" if precision == "auto" else precision)
    return ("onnxruntime" if backend == "auto" else next(name for name in BACKENDS if name == backend)), fallback


def open_engines(bundle: Bundle, backend: Backend, precision: Precision, threads: int | None) -> Engines:
    """Open the engines of a bundle; the engine library is imported here.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.
        precision: The precision.
        threads: Threads of one engine on the CPU; None leaves the choice to the engine library.

    Raises:
        UsageError: The library is not installed, or the bundle has no such precision.
        BundleError: A graph or a plan cannot be loaded, does not fit this machine, or does not fit the manifest.
        EngineError: There is no GPU that it could run on.
    """
    _checked_precision(bundle, precision)
    engines = _open(bundle, backend, precision, threads)
    manifest = bundle.manifest
    fitting = (*manifest.input_size, len(manifest.labels))
    found = (*engines.input_size, engines.labels)
    if found != fitting:
        engines.close()
        raise BundleError(
            f"The {precision} graphs of {bundle.path} do not fit its manifest.",
            found=f"height, width, labels {found}, the manifest says {fitting}",
            fix="Export the bundle again.",
        )
    return engines


def _open(bundle: Bundle, backend: Backend, precision: Precision, threads: int | None) -> Engines:
    if backend == "tensorrt" or backend == "tensorrt_rtx":
        from ..plans import find_plan
        from .tensorrt import TensorRTEngines
        from .tensorrt_api import gpu, load_library

        library, device = load_library(backend), gpu()
        capability = device.compute_capability if device else None
        plan = find_plan(bundle, backend, library.version, capability, precision)
        return TensorRTEngines(
            library,
            plan.read("global"),
            plan.read("local"),
            max_boxes=plan.info.options.max_boxes,
            host_code=plan.info.options.version_compatible,
        )

    from .onnxruntime import OnnxRuntimeEngines

    return OnnxRuntimeEngines(
        bundle.read(f"{precision}/global.onnx"), bundle.read(f"{precision}/local.onnx"), threads, backend
    )


def _has_plan(bundle: Bundle, backend: Literal["tensorrt", "tensorrt_rtx"], precision: Precision) -> bool:
    """Whether TensorRT is installed, there is a GPU, and the bundle has a plan for them."""
    from ..plans import PLANS, find_plan
    from .tensorrt_api import gpu, load_library

    if not (bundle.path / PLANS).is_dir():
        return False
    device = gpu()
    try:
        return device is not None and bool(
            find_plan(bundle, backend, load_library(backend).version, device.compute_capability, precision)
        )
    except (GlocalError, OSError):
        return False


def _checked_precision(bundle: Bundle, precision: str) -> Precision:
    for known in bundle.manifest.precisions:
        if known == precision:
            return known
    fix = f"Choose one that it has: {', '.join(bundle.manifest.precisions)}."
    raise UsageError(f"{bundle.path} has no precision {precision!r}.", fix=fix)
