"""CUDA graphs through the driver's own functions, because PyCUDA has none for them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from ..errors import EngineError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads call does not spoil a capture


class CudaGraph:
    """Work that was captured from a stream, to be launched with one call.

    Addresses and shapes are part of it: what it reads and writes must stay where it is.
    """

    def __init__(self, executable: ctypes.c_void_p) -> None:
        self._executable: ctypes.c_void_p | None = executable

    def launch(self, stream: int) -> None:
        """Launch it on a stream, given as its handle; the graph's context must be current.

        Raises:
            EngineError: CUDA refused, or the graph was destroyed.
        """
        if self._executable is None:
            raise EngineError("The CUDA graph was destroyed.")
        _call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def destroy(self) -> None:
        """Free it. No stream may still run it. Destroying twice is fine."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            _call("cuGraphExecDestroy", executable)


def capture(stream: int, enqueue: Callable[[], bool]) -> CudaGraph:
    """Capture what a function enqueues. It is not run, and it must have run on the stream before.

    Args:
        stream: Handle of the stream, whose context must be current.
        enqueue: Enqueues the work on that stream and returns whether it could.

    Raises:
        EngineError: The work cannot be captured. The stream is as before.
    """
    handle, graph, executable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuStreamBeginCapture_v2", handle, ctypes.c_int(_THREAD_LOCAL))
    done = False
    try:
        done = enqueue()
    finally:
        ended = _cuda().cuStreamEndCapture(handle, ctypes.byref(graph))  # whatever happened, the capture must end
        if graph and (ended or not done):
            _cuda().cuGraphDestroy(graph)
    _check("cuStreamEndCapture", ended)
    if not done:
        raise EngineError("Work that was to be captured could not be enqueued.")
    try:
        _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    finally:
        _call("cuGraphDestroy", graph)  # the executable is independent of it
    return CudaGraph(executable)


@functools.cache
def _cuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    _check(name, getattr(_cuda(), name)(*arguments))


def _check(name: str, result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorName(ctypes.c_int(result), ctypes.byref(text))
        found = f"{name}: {text.value.decode() if text.value else 'error'} ({result})"
        raise EngineError("A CUDA graph failed.", found=found)
