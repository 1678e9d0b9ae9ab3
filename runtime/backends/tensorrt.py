"""Both engines as TensorRT plans on one GPU, with the features left there in between."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UsageError
from . import GlobalOutputs
from .contract import FEATURES, check_graphs
from .device import Device
from .tensorrt_api import Library, log_of
from .tensorrt_engine import TensorRTEngine, size_of

_STEP = 8  # boxes per image are padded to a multiple of this, so that few shapes occur


@dataclass(eq=False)
class _Slot:
    """Device memory for the features of one `run_global`: one set of tensors for each part of its batch."""

    written: Any
    read: Any
    parts: list[dict[str, int]] = field(default_factory=list)
    serial: int = 0  # how often it was written
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, eq=False)
class OnDevice:
    """Features that lie on the device, for `TensorRTEngines.run_local`.

    Attributes:
        owner: The engines that hold them.
        slot: Where.
        serial: The slot's serial when they were written; with another one they are gone.
        batch: How many images.
    """

    owner: TensorRTEngines
    slot: _Slot
    serial: int
    batch: int


class TensorRTEngines:
    """The global and the local engine as TensorRT plans.

    What `run_global` leaves on the device can be used until it was called ``in_flight`` times again, and is refused
    afterwards. One thread may call `run_global` while another calls `run_local`; the engines have a stream each, and
    calls of the same engine wait for one another. A batch larger than the plans take runs in parts. Close the engines,
    or use them in a ``with`` statement: nothing is freed when they are merely forgotten.

    Args:
        library: TensorRT or TensorRT-RTX.
        global_plan: The plan of the global graph.
        local_plan: The plan of the local graph.
        max_boxes: The most boxes of one image.
        in_flight: How many outputs of `run_global` stay on the device.
        cuda_graphs: Whether shapes that come again are launched as CUDA graphs.
        host_code: Whether the plans may hold code for the host, as version-compatible ones do.

    Attributes:
        input_size: (height, width) of the images, pixels.
        labels: How many labels the engines score.
        max_batch: The most images that run at once.

    Raises:
        UsageError: PyCUDA, the driver or a GPU is missing.
        EngineError: A plan cannot be loaded, takes too few boxes, or the GPU has too little memory.
        BundleError: The inputs and outputs of a plan are not those of the contract.
    """

    def __init__(
        self,
        library: Library,
        global_plan: bytes,
        local_plan: bytes,
        *,
        max_boxes: int,
        in_flight: int = 2,
        cuda_graphs: bool = True,
        host_code: bool = False,
    ) -> None:
        if max_boxes < 1 or in_flight < 1:
            raise UsageError(f"max_boxes and in_flight must be at least 1, not {max_boxes} and {in_flight}.")
        self._device = Device()  # before TensorRT, which may end the process where there is no driver
        self._closed = False
        self._max_boxes = max_boxes
        self._global_lock, self._local_lock = threading.Lock(), threading.Lock()
        self._engines: list[TensorRTEngine] = []
        self._slots: list[_Slot] = []
        self._marks: list[Any] = []  # around the copies and the engine's work
        self._calls = 0
        try:
            with self._device.current():
                self._runtime = library.module.Runtime(log_of(library).logger)
                if host_code:
                    self._runtime.engine_host_code_allowed = True
                self._open(library, global_plan, local_plan, in_flight, cuda_graphs)
        except BaseException:
            self.close()
            raise
        self._unclosed = weakref.finalize(self, _warn_unclosed)
        self._unclosed.atexit = False

    def _open(self, library: Library, global_plan: bytes, local_plan: bytes, in_flight: int, cuda_graphs: bool) -> None:
        log, device = log_of(library), self._device
        for name, plan in (("global", global_plan), ("local", local_plan)):
            engine = TensorRTEngine(library, log, self._runtime, device, plan, name, cuda_graphs)
            self._engines.append(engine)
        first, second = self._engines
        fix = f"Build the plans again: glocal export BUNDLE --backend {library.name}."
        self.input_size, self.labels = check_graphs(first.inputs, first.outputs, second.inputs, second.outputs, fix)

        smallest = max(shape[0] for engine in self._engines for shape in engine.shortest.values())
        self.max_batch = min(shape[0] for engine in self._engines for shape in engine.longest.values())
        fewest = max(second.shortest[name][1] for name in ("boxes", "counts"))
        most = min(second.longest[name][1] for name in ("boxes", "counts"))
        narrowest = min(_STEP, self._max_boxes)
        if smallest > 1 or fewest > narrowest or most < self._max_boxes:
            what = f"The plans must take single images, and {narrowest} to {self._max_boxes} boxes of each."
            found = f"plans for {smallest} to {self.max_batch} images of {fewest} to {most} boxes"
            raise EngineError(what, found=found, fix=fix)

        batch, slots = self.max_batch, {"boxes": 4 * 4 * self._max_boxes, "counts": 4 * self._max_boxes}
        sizes = {"image": size_of(first.inputs["image"], batch), "scores": size_of(second.outputs["logits"], batch)}
        sizes |= {name: size_of(first.outputs[name], batch) for name in ("logits", "class_maps")}
        sizes |= {name: size * batch for name, size in slots.items()}
        self._pinned = {name: device.pinned(size) for name, size in sizes.items()}
        self._memory = {name: device.memory(size) for name, size in sizes.items()}
        self._sizes = {name: size_of(first.outputs[name], batch) for name in FEATURES}
        self._maps = tuple(length or 0 for length in first.outputs["class_maps"].shape[1:])  # none is 0: it was checked
        self._slots = [_Slot(device.event(), device.event()) for _ in range(in_flight)]
        self._marks = [device.event(timed=True) for _ in range(4)]
        for slot in self._slots:
            self._reserve(slot, 1)

    def __enter__(self) -> TensorRTEngines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global engine.

        Args:
            images: (B, H, W, 3) uint8 RGB, already resized.

        Returns:
            Arrays that are the caller's, and an `OnDevice`.

        Raises:
            UsageError: The images are of another shape or type, or the engines are closed.
            EngineError: TensorRT or CUDA failed.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.input_size, 3) or not len(images):
            wanted = f"uint8 (B, {', '.join(map(str, self.input_size))}, 3)"
            raise UsageError(f"The global engine takes images {wanted}.", found=f"{images.dtype} {images.shape}")
        total = len(images)
        logits = np.empty((total, self.labels), np.float32)
        class_maps = np.empty((total, *self._maps), np.float32)
        with self._using(self._global_lock):
            engine = self._engines[0]  # whose stream no variable may hold: an error would keep it beyond close()
            index = self._calls % len(self._slots)
            self._calls += 1
            slot = self._slots[index]
            with slot.lock:  # a run_local that is reading has recorded its event, one that comes later is refused
                slot.serial += 1
                serial = slot.serial
                engine.stream.wait_for_event(slot.read)
            self._reserve(slot, math.ceil(total / self.max_batch))
            copies = np.zeros(2)
            for part, chosen in self._parts(total):
                batch = chosen.stop - chosen.start
                self._marks[0].record(engine.stream)
                self._upload("image", images[chosen], engine.stream)
                self._marks[1].record(engine.stream)
                tensors = {name: self._memory[name] for name in ("image", "logits", "class_maps")}
                shapes = {"image": (batch, *images.shape[1:])}
                engine.enqueue((index, part, batch), shapes, {**tensors, **slot.parts[part]})
                slot.written.record(engine.stream)
                self._marks[2].record(engine.stream)
                found = [self._download(name, out[chosen], engine.stream) for name, out in _named(logits, class_maps)]
                self._marks[3].record(engine.stream)
                engine.stream.synchronize()
                logits[chosen], class_maps[chosen] = found
                copies += [self._marks[at].time_till(self._marks[at + 1]) for at in (0, 2)]
        return GlobalOutputs(logits, class_maps, OnDevice(self, slot, serial, total), *copies.tolist())

    def run_local(
        self, outputs: GlobalOutputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Run the local engine.

        Args:
            outputs: What `run_global` gave for the same B images, at most ``in_flight`` calls ago.
            boxes: (B, K, 4) float32 (x0, y0, x1, y1) in [0, 1], K at most ``max_boxes``.
            counts: (B, K) float32, how often each box was proposed; 0 for a slot without box.

        Returns:
            (B, N) float32 logits.

        Raises:
            UsageError: The outputs are of other engines or no longer on the device, the arrays do not fit, or the
                engines are closed.
            EngineError: TensorRT or CUDA failed.
        """
        features = outputs.on_device
        if not isinstance(features, OnDevice) or features.owner is not self:
            raise UsageError("These outputs are not from the global engine of the same engines.")
        total, slots = features.batch, counts.shape[-1]
        if boxes.shape != (total, slots, 4) or counts.shape != (total, slots) or not 1 <= slots <= self._max_boxes:
            what = f"The local engine takes {total} x K boxes and counts, K from 1 to {self._max_boxes}."
            raise UsageError(what, found=f"boxes {boxes.shape}, counts {counts.shape}")
        width = min(-(-slots // _STEP) * _STEP, self._max_boxes)
        logits = np.empty((total, self.labels), np.float32)
        with self._using(self._local_lock):
            engine = self._engines[1]
            tensors = {name: self._memory[name] for name in ("boxes", "counts")} | {"logits": self._memory["scores"]}
            index = self._slots.index(features.slot)
            for part, chosen in self._parts(total):
                batch = chosen.stop - chosen.start
                self._upload("boxes", _padded(boxes[chosen], width), engine.stream)
                self._upload("counts", _padded(counts[chosen], width), engine.stream)
                with features.slot.lock:
                    self._refuse_stale(features)
                    lying = features.slot.parts[part]
                    engine.stream.wait_for_event(features.slot.written)
                    engine.enqueue((index, part, batch, width), self._local_shapes(batch, width), {**tensors, **lying})
                    features.slot.read.record(engine.stream)
                found = self._download("scores", logits[chosen], engine.stream)
                engine.stream.synchronize()
                logits[chosen] = found
        return logits

    def close(self) -> None:
        """Wait for the GPU and free all that the engines hold. Closing twice is fine.

        Raises:
            EngineError: A CUDA call failed; the rest was freed all the same.
        """
        with self._global_lock, self._local_lock, contextlib.ExitStack() as steps:
            if self._closed:
                return
            self._closed = True
            if hasattr(self, "_unclosed"):
                self._unclosed.detach()
            steps.callback(self._device.close)
            steps.enter_context(self._device.current())
            steps.callback(self._forget)
            for engine in self._engines:
                steps.callback(engine.close)

    def _forget(self) -> None:
        self._engines = []
        for slot in self._slots:
            slot.written = slot.read = None
        self._marks = []
        self._pinned = {}
        self._runtime = None

    @contextlib.contextmanager
    def _using(self, lock: threading.Lock) -> Iterator[None]:
        with lock:
            if self._closed:
                raise UsageError("The engines are closed.", fix="Open them again, or run them before closing.")
            with self._device.current():
                yield

    def _parts(self, total: int) -> Iterator[tuple[int, slice]]:
        for part, start in enumerate(range(0, total, self.max_batch)):
            yield part, slice(start, min(start + self.max_batch, total))

    def _reserve(self, slot: _Slot, parts: int) -> None:
        while len(slot.parts) < parts:
            slot.parts.append({name: self._device.memory(size) for name, size in self._sizes.items()})

    def _local_shapes(self, batch: int, width: int) -> dict[str, tuple[int, ...]]:
        longest = self._engines[1].longest
        features = {name: (batch, *longest[name][1:]) for name in FEATURES}
        return {**features, "boxes": (batch, width, 4), "counts": (batch, width)}

    def _refuse_stale(self, features: OnDevice) -> None:
        if features.slot.serial != features.serial:
            raise UsageError(
                "The features of these outputs are no longer on the device.",
                found=f"run_global was called {len(self._slots)} times or more since",
                fix="Run the local engine sooner, or open the engines with a larger in_flight.",
            )

    def _upload(self, name: str, array: NDArray[Any], stream: Any) -> None:
        pinned = self._pinned[name][: array.nbytes].view(array.dtype)
        np.copyto(pinned.reshape(array.shape), array)
        self._device.upload(self._memory[name], pinned, stream)

    def _download(self, name: str, like: NDArray[np.float32], stream: Any) -> NDArray[np.float32]:
        """A view of pinned memory of the shape of ``like``, which holds the values once the stream is synchronised."""
        pinned = self._pinned[name][: like.nbytes].view(np.float32)
        self._device.download(pinned, self._memory[name], stream)
        return pinned.reshape(like.shape)


def _named(logits: NDArray[np.float32], class_maps: NDArray[np.float32]) -> tuple[tuple[str, NDArray[np.float32]], ...]:
    return ("logits", logits), ("class_maps", class_maps)


def _padded(array: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The array with axis 1 filled up with zeros, as float32: slots of count 0 take no part."""
    padded = np.zeros((len(array), width, *array.shape[2:]), np.float32)
    padded[:, : array.shape[1]] = array
    return padded


def _warn_unclosed() -> None:
    text = "TensorRT engines were forgotten without close(); their GPU memory may stay taken."
    warnings.warn(text, ResourceWarning, stacklevel=2)
