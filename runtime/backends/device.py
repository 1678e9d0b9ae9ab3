"""The GPU: its context, streams, events, pinned and device memory, and copies, through PyCUDA.

PyCUDA is imported when the first device is opened. The device's primary context is used, which is also that of PyTorch
and of every other library that goes through the CUDA runtime; it is made current for the length of a ``with`` block
only, in the thread that needs it, so that nothing is left behind in a thread that others use too.

A process keeps the primary context until it ends: in PyCUDA 2026.1 ``detach`` releases it only in the thread that
retained it, and leaves it on that thread's stack; and the destructor of a context that was not detached calls
``cuCtxDetach`` on it, which is not for primary contexts (``src/cpp/cuda.hpp``). Everything else is freed by
`Device.close`, and nothing is done when an object is collected.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UsageError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for the default stream, which other libraries use
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_MEMORY_FIX = "Use a smaller batch, or close other programs and pipelines that hold GPU memory."

_contexts: dict[int, Any] = {}  # the primary context of each device, one object for all threads
_opening = threading.Lock()


class Device:
    """A GPU, and what one user of it allocated there.

    Its methods need the context to be current (`current`), except `current` and `close`. Several threads may use one
    device, and several devices may stand for one GPU.

    Args:
        ordinal: Which GPU, among those that ``CUDA_VISIBLE_DEVICES`` leaves.

    Raises:
        UsageError: PyCUDA is missing or broken, or there is no driver or GPU.
        EngineError: The GPU cannot be used.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._driver = load_driver()
        with _opening:
            if ordinal not in _contexts:
                _contexts[ordinal] = _retain(self._driver, ordinal)
                atexit.register(_contexts[ordinal].detach)
        self._context = _contexts[ordinal]
        self._memory: list[Any] = []
        self._pinned: list[Any] = []
        self._streams: list[Any] = []
        self._events: list[Any] = []

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in the calling thread, until the block ends.

        Raises:
            EngineError: A CUDA call in the block failed.
        """
        with self._translated():
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def stream(self) -> Any:
        """A new stream, with ``handle`` and ``synchronize()``, that does not wait for the default stream."""
        stream = self._driver.Stream(_NON_BLOCKING)
        self._streams.append(stream)
        return stream

    def event(self, timed: bool = False) -> Any:
        """A new event, for ``record(stream)`` and ``stream.wait_for_event(event)``.

        Args:
            timed: Whether ``time_till(event)`` gives the milliseconds to another timed event once both have passed.
        """
        event = self._driver.Event(0 if timed else _NO_TIMING)
        self._events.append(event)
        return event

    def memory(self, size: int) -> int:
        """The address of new device memory of ``size`` bytes, aligned to at least 256 bytes."""
        allocation = self._driver.mem_alloc(max(size, 1))
        self._memory.append(allocation)
        return int(allocation)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """New page-locked host memory: (size,) uint8. Nothing may refer to it after `close`."""
        array: NDArray[np.uint8] = self._driver.pagelocked_empty(max(size, 1), np.uint8)
        self._pinned.append(array.base)
        return array

    def upload(self, address: int, pinned: NDArray[Any], stream: Any) -> None:
        """Copy a contiguous part of pinned memory to the device, in the order of the stream."""
        self._driver.memcpy_htod_async(address, pinned, stream)

    def download(self, pinned: NDArray[Any], address: int, stream: Any) -> None:
        """Copy from the device into a contiguous part of pinned memory, in the order of the stream."""
        self._driver.memcpy_dtoh_async(pinned, address, stream)

    def close(self) -> None:
        """Wait for all streams, then free all that was allocated. Closing twice is fine.

        Raises:
            EngineError: A CUDA call failed; the rest was freed all the same.
        """
        with self._translated(), contextlib.ExitStack() as steps:  # the last step comes first, and each is done
            self._context.push()
            steps.callback(self._context.pop)
            steps.callback(self._streams.clear)  # PyCUDA destroys what nothing refers to, so no variable may
            steps.callback(self._events.clear)
            while self._pinned:
                steps.callback(self._pinned.pop().free)
            while self._memory:
                steps.callback(self._memory.pop().free)
            for index in range(len(self._streams)):
                steps.callback(self._streams[index].synchronize)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            short = isinstance(error, self._driver.MemoryError)
            what = "The GPU is out of memory." if short else "A CUDA call failed."
            fix = _MEMORY_FIX if short else "Start the program again. If it happens again, build the plans again."
            raise EngineError(what, found=str(error), fix=fix) from error


def load_driver() -> Any:
    """Import ``pycuda.driver`` and initialise CUDA.

    Raises:
        UsageError: PyCUDA is missing, built for another CUDA, or there is no driver or GPU.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        fix = "pip install pycuda, with CUDA_ROOT and PATH pointing to the CUDA toolkit; `glocal doctor` says more."
        raise UsageError("TensorRT plans need PyCUDA.", found=str(error), fix=fix) from error
    except ImportError as error:
        if "libcuda.so" in str(error):
            fix = "Install NVIDIA's driver, or run where there is a GPU; in a container, pass the GPU in (--gpus all)."
            raise UsageError("There is no NVIDIA driver on this machine.", found=str(error), fix=fix) from error
        fix = "Build it for this CUDA: pip install --no-cache-dir --no-binary pycuda --force-reinstall pycuda."
        raise UsageError("PyCUDA was built for another CUDA or Python.", found=str(error), fix=fix) from error
    try:
        driver.init()
    except driver.Error as error:
        fix = "See that nvidia-smi shows the GPU. A forked process cannot use CUDA that its parent used: spawn it."
        raise UsageError("CUDA cannot be initialised.", found=str(error), fix=fix) from error
    return driver


def _retain(driver: Any, ordinal: int) -> Any:
    count = driver.Device.count()
    if not 0 <= ordinal < count:
        fix = "Choose one that there is; CUDA_VISIBLE_DEVICES may hide some."
        raise UsageError(f"There is no GPU {ordinal}.", found=f"{count} GPUs", fix=fix)
    try:
        return driver.Device(ordinal).retain_primary_context()
    except driver.Error as error:
        fix = "See with nvidia-smi whether another program holds all of its memory, or owns it exclusively."
        raise EngineError(f"GPU {ordinal} cannot be used.", found=str(error), fix=fix) from error
