"""The plain backbone as a TensorRT plan: built as the bundle's plans are, run as its global engine is.

Not run on a GPU yet: tested on the stand-ins of TensorRT and PyCUDA.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..export.tensorrt import build_plan
from ..runtime.backends.device import Device
from ..runtime.backends.tensorrt_api import Library, gpu, load_library, log_of
from ..runtime.backends.tensorrt_engine import TensorRTEngine, size_of
from ..runtime.bundle import Bundle
from ..runtime.errors import EngineError, UsageError
from ..runtime.manifest import Precision
from ..runtime.plans import find_plan


class TensorRTPlain:
    """A plain plan with its stream and buffers. Close it: nothing is freed when it is merely forgotten.

    A batch larger than the plan takes runs in parts, and shapes that come again run as CUDA graphs, as with
    `TensorRTEngines`. One thread at a time may use it.

    Args:
        library: TensorRT or TensorRT-RTX.
        plan: The plan of a plain graph.
        host_code: Whether the plan may hold code for the host, as version-compatible ones do.

    Raises:
        UsageError: PyCUDA, the driver or a GPU is missing.
        EngineError: The plan cannot be loaded, is not of a plain graph, or the GPU has too little memory.
    """

    def __init__(self, library: Library, plan: bytes, *, host_code: bool = False) -> None:
        self._device = Device()  # before TensorRT, which may end the process where there is no driver
        self._engine: TensorRTEngine | None = None
        try:
            with self._device.current():
                self._open(library, plan, host_code)
        except BaseException:
            self.close()
            raise

    def _open(self, library: Library, plan: bytes, host_code: bool) -> None:
        log, device = log_of(library), self._device
        self._runtime = library.module.Runtime(log.logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = engine = TensorRTEngine(library, log, self._runtime, device, plan, "plain", True)
        if set(engine.inputs) != {"image"} or set(engine.outputs) != {"logits"}:
            found = ", ".join((*engine.inputs, *engine.outputs))
            raise EngineError("The plan is not that of a plain graph.", found=found, fix="Build it from a plain graph.")
        self._batch = engine.longest["image"][0]
        self._labels = engine.outputs["logits"].shape[1] or 0
        sizes = {"image": size_of(engine.inputs["image"], self._batch)}
        sizes["logits"] = size_of(engine.outputs["logits"], self._batch)
        self._pinned = {name: device.pinned(size) for name, size in sizes.items()}
        self._memory = {name: device.memory(size) for name, size in sizes.items()}

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (B, H, W, 3) uint8 RGB, already resized -> logits (B, N) float32.

        Raises:
            UsageError: The engine is closed.
            EngineError: TensorRT or CUDA failed.
        """
        if self._engine is None:
            raise UsageError("The engine is closed.", fix="Open it again, or run it before closing.")
        logits = np.empty((len(images), self._labels), np.float32)
        with self._device.current():
            for start in range(0, len(images), self._batch):
                part = slice(start, start + self._batch)
                self._run_part(self._engine, images[part], logits[part])
        return logits

    def _run_part(self, engine: TensorRTEngine, images: NDArray[np.uint8], logits: NDArray[np.float32]) -> None:
        given = self._pinned["image"][: images.nbytes]
        np.copyto(given.reshape(images.shape), images)
        self._device.upload(self._memory["image"], given, engine.stream)
        engine.enqueue((len(images),), {"image": images.shape}, self._memory)
        taken = self._pinned["logits"][: logits.nbytes].view(np.float32)
        self._device.download(taken, self._memory["logits"], engine.stream)
        engine.stream.synchronize()
        logits[:] = taken.reshape(logits.shape)

    def close(self) -> None:
        """Wait for the GPU and free everything. Closing twice is fine."""
        with contextlib.ExitStack() as steps:  # the last step comes first, and each is done
            steps.callback(self._device.close)
            steps.enter_context(self._device.current())
            steps.callback(self._forget)
            if self._engine is not None:
                steps.callback(self._engine.close)

    def _forget(self) -> None:
        self._engine = self._runtime = None
        self._pinned = {}


def open_plain_plan(
    bundle: Bundle, backend: Literal["tensorrt", "tensorrt_rtx"], precision: Precision, graph: bytes
) -> TensorRTPlain:
    """Build a plain graph with the options of the bundle's plan of that precision, and open it.

    Raises:
        UsageError: The library, PyCUDA or a GPU is missing.
        BundleError: The bundle has no plan for this machine.
        EngineError: The build failed, or the plan cannot be opened.
        GlocalError: TensorRT cannot parse the graph, or does not use its precision.
    """
    library, device = load_library(backend), gpu()
    capability = device.compute_capability if device else None
    options = find_plan(bundle, backend, library.version, capability, precision).info.options
    built = build_plan(library, graph, f"{precision}/plain", precision, options, gpu=device)
    return TensorRTPlain(library, built.data, host_code=options.version_compatible)
