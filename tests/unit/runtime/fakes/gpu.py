"""A GPU whose streams put their work off, with the driver's functions for CUDA graphs."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

INVALID_CONTEXT, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 201, 900, 901


class CudaError(Exception):
    """pycuda.driver.Error"""


class CudaMemoryError(CudaError):
    """pycuda.driver.MemoryError"""


class Queue:
    """A stream: work that is still to be done, and how much of all its work is done."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.work: deque[Callable[[], None]] = deque()
        self.done = 0
        self.capture: list[Callable[[], None]] | None = None
        self.capture_broken = False

    @property
    def asked(self) -> int:
        return self.done + len(self.work)

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.capture is None else self.capture).append(work)

    def run(self, until: int) -> None:
        while self.done < until:
            self.work[0]()
            self.work.popleft()
            self.done += 1


class Gpu:
    """The state of the machine, for all fakes.

    Attributes:
        memory: Live device memory by address.
        pinned: Live page-locked memory.
        queues: Streams by handle.
        graphs: Graphs and their executables, by handle.
        calls: Names of the calls that were made, in order.
        failures: Error codes by name of a libcuda function that shall fail.
        limit: Bytes of device memory.
        violations: What a real GPU would have answered with a crash, or would have leaked.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: list[Any] = []
        self.queues: dict[int, Queue] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.failures: dict[str, int] = {}
        self.limit = 1 << 30
        self.violations: list[str] = []
        self.devices = 1
        self.pushes = 0
        self._local = threading.local()
        self._handles = itertools.count(0x1000)
        self._addresses = itertools.count(0x7F0000000000, 1 << 24)

    @property
    def stack(self) -> list[Any]:
        """The contexts of the calling thread."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Any] = self._local.stack
        return stack

    def handle(self) -> int:
        return next(self._handles)

    def call(self, name: str) -> None:
        """Note a call that needs a current context."""
        with self.lock:
            self.calls.append(name)
        if not self.stack:
            raise CudaError(f"{name} failed: invalid device context")

    def capturing_here(self) -> Queue | None:
        """The stream that the calling thread is capturing."""
        return getattr(self._local, "capturing", None)

    def forbid_in_capture(self, name: str) -> None:
        """Fail as unsafe calls do in a thread that captures; the capture is lost too."""
        if (queue := self.capturing_here()) is not None:
            queue.capture_broken = True
            raise CudaError(f"{name} failed: operation not permitted when stream is capturing")

    def allocate(self, size: int) -> int:
        self.call("mem_alloc")
        self.forbid_in_capture("mem_alloc")
        with self.lock:
            if sum(map(len, self.memory.values())) + size > self.limit:
                raise CudaMemoryError("cuMemAlloc failed: out of memory")
            address = next(self._addresses)
            self.memory[address] = np.full(size, 0xFF, np.uint8)
        return address

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Device memory; a read or write outside of what lives is a failure."""
        memory = self.memory.get(address)
        if memory is None or size > len(memory):
            raise CudaError(f"illegal address: {size} bytes at {address:#x}")
        return memory[:size]

    def holds_pinned(self, array: np.ndarray) -> bool:
        first = array.__array_interface__["data"][0]
        return any(
            start <= first and first + array.nbytes <= start + len(block.data)
            for block in self.pinned
            for start in [block.data.__array_interface__["data"][0]]
        )

    def synchronize(self, queue: Queue) -> None:
        self.forbid_in_capture("cuStreamSynchronize")
        with self.lock:
            queue.run(queue.asked)


class LibCuda:
    """The functions of libcuda for CUDA graphs, called as through ctypes."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: ctypes.c_int) -> int:  # noqa: N802
        def begin() -> int:
            queue = self._gpu.queues[stream.value or 0]
            assert mode.value == 1, "another mode would be spoilt by other threads"
            queue.capture, queue.capture_broken = [], False
            self._gpu._local.capturing = queue
            return 0

        return self._run("cuStreamBeginCapture_v2", begin)

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:  # noqa: N802
        def end() -> int:
            queue = self._gpu.queues[stream.value or 0]
            captured, queue.capture = queue.capture, None
            self._gpu._local.capturing = None
            if captured is None or queue.capture_broken:
                return CAPTURE_INVALIDATED
            graph._obj.value = self._gpu.handle()
            self._gpu.graphs[graph._obj.value] = captured
            return 0

        code = self._run("cuStreamEndCapture", end)
        if code:  # whatever the answer, the stream captures no more
            self._gpu.queues[stream.value or 0].capture = None
            self._gpu._local.capturing = None
        return code

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: ctypes.c_void_p, flags: Any) -> int:  # noqa: N802
        def instantiate() -> int:
            assert isinstance(flags, ctypes.c_ulonglong)
            executable._obj.value = self._gpu.handle()
            self._gpu.graphs[executable._obj.value] = list(self._gpu.graphs[graph.value or 0])
            return 0

        return self._run("cuGraphInstantiateWithFlags", instantiate)

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        def launch() -> int:
            for work in self._gpu.graphs[executable.value or 0]:
                self._gpu.queues[stream.value or 0].put(work)
            return 0

        return self._run("cuGraphLaunch", launch)

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:  # noqa: N802
        return self._destroy("cuGraphExecDestroy", executable)

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        return self._destroy("cuGraphDestroy", graph)

    def cuGetErrorName(self, code: ctypes.c_int, text: Any) -> int:  # noqa: N802
        text._obj.value = {900: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}.get(code.value, b"CUDA_ERROR_SOMETHING")
        return 0

    def _destroy(self, name: str, handle: ctypes.c_void_p) -> int:
        def destroy() -> int:
            del self._gpu.graphs[handle.value or 0]
            return 0

        return self._run(name, destroy)

    def _run(self, name: str, body: Callable[[], int]) -> int:
        with self._gpu.lock:
            self._gpu.calls.append(name)
            if not self._gpu.stack:
                return INVALID_CONTEXT
            return self._gpu.failures.get(name) or body()
