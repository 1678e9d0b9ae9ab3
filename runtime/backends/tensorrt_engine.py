"""One TensorRT engine on its stream: deserialised, described, enqueued, or launched as a CUDA graph."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import EngineError
from .contract import Binding
from .cuda_graph import CudaGraph, capture
from .device import Device
from .tensorrt_api import Library, Log

_KINDS = {"UINT8": "uint8", "HALF": "float16", "FLOAT": "float32"}
_FIX = "Build the plans again on this machine: glocal export BUNDLE --backend {}."
_MOST_GRAPHS = 32  # of one engine: each holds an execution context, whose work memory they all share


class TensorRTEngine:
    """An engine with its own stream. The device's context must be current whenever one of its methods is called.

    Only calls that TensorRT has from 8.6 to 11 are used, except where a version's own are looked up: work memory that
    contexts share, and the CUDA graphs that TensorRT-RTX manages itself because it exchanges its kernels at run time.

    Args:
        library: TensorRT or TensorRT-RTX.
        log: Its log.
        runtime: Its ``Runtime``.
        device: Where the engine runs.
        plan: The serialised engine.
        name: What to call it in errors.
        cuda_graphs: Whether repeated calls become CUDA graphs.

    Attributes:
        inputs: Name, type and shape of each input.
        outputs: Likewise of each output.
        shortest: Each input's smallest shape in the plan's profile.
        longest: Each input's largest shape.
        stream: The engine's stream.

    Raises:
        EngineError: The plan cannot be loaded.
    """

    def __init__(
        self, library: Library, log: Log, runtime: Any, device: Device, plan: bytes, name: str, cuda_graphs: bool
    ) -> None:
        self._trt, self._log, self._name = library.module, log, name
        self._fix = _FIX.format(library.name)
        self._graphs: dict[tuple[int, ...], tuple[CudaGraph, Any]] = {}  # each with the context it was captured from
        self._seen: set[tuple[int, ...]] = set()
        self._own_graphs = cuda_graphs and not hasattr(self._trt, "CudaGraphStrategy")
        self.stream: Any = None
        self._context: Any = None
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._error(f"{library.name} {library.version} cannot load the {name} plan.")
        try:
            self._describe(device, self._own_graphs or not cuda_graphs)
        except BaseException:
            self._forget()  # here, while the context is current
            raise

    def _describe(self, device: Device, plain: bool) -> None:
        self.stream = device.stream()
        newer = hasattr(self._engine, "device_memory_size_v2")
        self._work_size = self._engine.device_memory_size_v2 if newer else self._engine.device_memory_size
        self._work = device.memory(self._work_size)
        self._context = self._new_context() if plain else self._new_rtx_context()

        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        ranges = {name: self._engine.get_tensor_profile_shape(name, 0) for name in inputs}
        self.shortest = {name: tuple(shapes[0]) for name, shapes in ranges.items()}
        self.longest = {name: tuple(shapes[2]) for name, shapes in ranges.items()}
        self.inputs = {name: self._binding(name, tuple(self._engine.get_tensor_shape(name))) for name in inputs}
        self.outputs = {name: self._binding(name, self._output_shape(name)) for name in names if name not in inputs}

    def enqueue(self, key: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, int]) -> None:
        """Run the engine in the order of its stream.

        Args:
            key: Equal for calls of equal shapes and addresses. The second such call is captured as a CUDA graph and
                further ones launch it, unless there are too many.
            shapes: Shape of each input.
            tensors: Device address of each input and output.

        Raises:
            EngineError: TensorRT refused.
        """
        if key in self._graphs:
            self._graphs[key][0].launch(self.stream.handle)
            return
        self._prepare(self._context, shapes, tensors)
        self._execute(self._context)
        if self._own_graphs and key in self._seen and len(self._graphs) < _MOST_GRAPHS:
            self._capture(key, shapes, tensors)
        self._seen.add(key)

    def close(self) -> None:
        """Wait for the stream, then free graphs, contexts and the engine."""
        with contextlib.ExitStack() as steps:  # the last step comes first, and each is done
            steps.callback(self._forget)
            for graph, _ in self._graphs.values():
                steps.callback(graph.destroy)
            steps.callback(self.stream.synchronize)

    def _forget(self) -> None:
        self._graphs.clear()  # and their contexts
        self._context = None
        self._engine = None
        self.stream = None

    def _capture(self, key: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, int]) -> None:
        """Capture the call that was just enqueued, from a context of its own, since others change their shapes."""
        try:
            context = self._new_context()
            self._prepare(context, shapes, tensors)
            self._execute(context)  # the first call of a context allocates, which a capture would not survive
            self.stream.synchronize()
            graph = capture(self.stream.handle, lambda: context.execute_async_v3(self.stream.handle))
        except EngineError as error:
            self._own_graphs = False
            text = f"The {self._name} engine runs without CUDA graphs, which is slower: {error.what} {error.found}"
            warnings.warn(text.strip(), RuntimeWarning, stacklevel=2)
        else:
            self._graphs[key] = (graph, context)

    def _new_context(self) -> Any:
        if hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._made(self._engine.create_execution_context(strategy))
            context.set_device_memory(self._work, self._work_size)
        else:  # 8.6
            context = self._made(self._engine.create_execution_context_without_device_memory())
            context.device_memory = self._work
        return context

    def _new_rtx_context(self) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = self._made(self._engine.create_execution_context(config))
        context.set_device_memory(self._work, self._work_size)
        return context

    def _made(self, context: Any) -> Any:
        if context is None:
            raise self._error(f"TensorRT cannot make an execution context for the {self._name} engine.")
        return context

    def _prepare(self, context: Any, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, int]) -> None:
        self._shape(context, shapes)
        for name, address in tensors.items():
            if not context.set_tensor_address(name, address):
                raise self._error(f"The {self._name} engine does not take an address for {name}.")

    def _shape(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._error(f"The {self._name} engine does not take {name} of shape {shape}.")

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream.handle):
            raise self._error(f"The {self._name} engine failed.")

    def _binding(self, name: str, shape: tuple[int | None, ...]) -> Binding:
        kind = str(self._engine.get_tensor_dtype(name)).split(".")[-1]
        axes = tuple(None if length is None or length < 0 else length for length in shape)
        return Binding(_KINDS.get(kind, kind), axes)

    def _output_shape(self, name: str) -> tuple[int | None, ...]:
        """The axes of an output that stay the same from the smallest to the largest inputs."""
        found = []
        for shapes in (self.shortest, self.longest):
            self._shape(self._context, shapes)
            found.append(tuple(self._context.get_tensor_shape(name)))
        small, large = found
        fits_in = [shape[0] for shape in self.longest.values()]
        if len(small) != len(large) or min(large) < 0 or large[0] not in fits_in:
            raise self._error(f"The {self._name} engine does not say the shape of {name}, or it has no batch axis.")
        axes = zip(small[1:], large[1:], strict=True)
        return (None, *(length if length == other else None for length, other in axes))

    def _error(self, what: str) -> EngineError:
        return EngineError(what, found=self._log.quote(), fix=self._fix)


def size_of(binding: Binding, batch: int) -> int:
    """Bytes of a tensor whose only dynamic axis is the batch."""
    return np.dtype(binding.kind).itemsize * batch * math.prod(length for length in binding.shape if length is not None)
