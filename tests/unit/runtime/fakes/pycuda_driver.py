"""A stand-in for pycuda.driver on a `Gpu`, with the names that PyCUDA has."""

from __future__ import annotations

import json
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

from .gpu import CudaError, CudaMemoryError, Gpu, Queue

NAMES = json.loads((Path(__file__).parent / "pycuda_names.json").read_text())


def make_driver(gpu: Gpu) -> types.ModuleType:
    """The module ``pycuda.driver``."""

    class Context:
        def push(self) -> None:
            gpu.stack.append(self)
            gpu.pushes += 1

        @staticmethod
        def pop() -> None:
            if not gpu.stack:
                raise CudaError("m_stack::pop failed: invalid device context - cannot pop context from empty stack")
            gpu.stack.pop()

        def detach(self) -> None:
            gpu.calls.append("Context.detach")

    class Device:
        def __init__(self, ordinal: int) -> None:
            self._ordinal = ordinal

        @staticmethod
        def count() -> int:
            return gpu.devices

        def retain_primary_context(self) -> Context:
            gpu.calls.append("retain_primary_context")
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            gpu.call("Stream")
            self._flags = flags
            self._queue = Queue(gpu.handle())
            gpu.queues[self._queue.handle] = self._queue

        def __del__(self) -> None:
            if not gpu.stack:
                gpu.violations.append("a stream was destroyed without a context")
            if self._queue.work:
                gpu.violations.append("a stream was destroyed with work to do")
            gpu.queues.pop(self._queue.handle, None)

        @property
        def handle(self) -> int:
            return self._queue.handle

        def synchronize(self) -> None:
            gpu.call("Stream.synchronize")
            gpu.synchronize(self._queue)

        def wait_for_event(self, event: Event) -> None:
            gpu.call("Stream.wait_for_event")
            with gpu.lock:
                if event._recorded is not None:
                    queue, until = event._recorded
                    self._queue.put(lambda: queue.run(until))

    class Event:
        def __init__(self, flags: int = 0) -> None:
            gpu.call("Event")
            self._flags = flags
            self._recorded: tuple[Queue, int] | None = None
            self._passed: float | None = None

        def __del__(self) -> None:
            if not gpu.stack:
                gpu.violations.append("an event was destroyed without a context")

        def record(self, stream: Stream) -> Event:
            gpu.call("Event.record")
            with gpu.lock:
                if not self._flags & 2:  # CU_EVENT_DISABLE_TIMING
                    self._passed = None
                    stream._queue.put(self._pass)
                self._recorded = (stream._queue, stream._queue.asked)
            return self

        def _pass(self) -> None:
            self._passed = time.perf_counter()

        def time_till(self, other: Event) -> float:
            gpu.call("Event.time_till")
            if self._passed is None or other._passed is None:
                raise CudaError("cuEventElapsedTime failed: not ready, or made without timing")
            return (other._passed - self._passed) * 1e3

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        __index__ = __int__

        def free(self) -> None:
            gpu.call("DeviceAllocation.free")
            with gpu.lock:
                del gpu.memory[self._address]

    class PagelockedHostAllocation:
        def __init__(self, size: int) -> None:
            self.data = np.full(size, 0xFF, np.uint8)
            self.__array_interface__ = self.data.__array_interface__
            gpu.pinned.append(self)

        def free(self) -> None:
            gpu.call("PagelockedHostAllocation.free")
            gpu.pinned.remove(self)
            self.data[:] = 0xEE

    def init(flags: int = 0) -> None:
        gpu.calls.append("init")
        if "cuInit" in gpu.failures:
            raise CudaError(f"cuInit failed: error {gpu.failures['cuInit']}")

    def mem_alloc(size: int) -> DeviceAllocation:
        if size == 0:
            raise CudaError("cuMemAlloc failed: invalid argument")
        return DeviceAllocation(gpu.allocate(size))

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        gpu.call("pagelocked_empty")
        gpu.forbid_in_capture("pagelocked_empty")
        if shape == 0 or dtype is not np.uint8:
            raise CudaError("cuMemHostAlloc failed: invalid argument, or more than the fake can")
        return np.asarray(PagelockedHostAllocation(shape))

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        check_copy("memcpy_htod_async", src)

        def copy() -> None:
            gpu.bytes_at(dest, src.nbytes)[:] = src.view(np.uint8)

        stream._queue.put(copy)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        check_copy("memcpy_dtoh_async", dest)

        def copy() -> None:
            dest.view(np.uint8)[:] = gpu.bytes_at(src, dest.nbytes)

        stream._queue.put(copy)

    def check_copy(name: str, array: np.ndarray) -> None:
        gpu.call(name)
        if not array.flags.c_contiguous or array.ndim != 1:
            raise ValueError("the fake copies flat contiguous arrays")
        if not gpu.holds_pinned(array):
            gpu.violations.append(f"{name} of memory that is not page-locked")

    module = types.ModuleType("pycuda.driver")
    for name, value in list(locals().items()):
        if name in NAMES["classes"] or name in NAMES["others"]:
            setattr(module, name, value)
    module.Error, module.MemoryError = CudaError, CudaMemoryError  # type: ignore[attr-defined]
    return module
