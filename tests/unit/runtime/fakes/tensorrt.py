"""A stand-in for tensorrt and tensorrt_rtx on a `Gpu`, with the names that one version of the real module has.

A fake plan holds an ONNX graph, which ONNX Runtime runs on the bytes in the fake device memory when the stream does
its work.
"""

from __future__ import annotations

import base64
import json
import weakref
from typing import Any

import numpy as np
import onnxruntime as ort
from tensorrt_names import Names

from .gpu import CudaError, Gpu

_KINDS = {"tensor(uint8)": "UINT8", "tensor(float16)": "HALF", "tensor(float)": "FLOAT"}
_NUMPY = {"UINT8": np.uint8, "HALF": np.float16, "FLOAT": np.float32}
WORK_SIZE = 4096
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def make_plan(graph: bytes, profile: Shapes) -> bytes:
    """A plan for the fake: the graph, with the smallest and largest shape of each input."""
    return json.dumps({"graph": base64.b64encode(graph).decode(), "profile": profile}).encode()


class Value:
    """A member of an enum, which prints as pybind11's do."""

    def __init__(self, kind: str, name: str) -> None:
        self._text = f"{kind}.{name}"

    def __str__(self) -> str:
        return self._text


class Enum:
    """An enum of the real module, with the members of its version."""

    def __init__(self, kind: str, members: frozenset[str]) -> None:
        for name in members:
            setattr(self, name, Value(kind, name))


def make_tensorrt(names: Names, gpu: Gpu) -> Any:
    """The module of one version."""

    def named(kind: type) -> type:
        """Leave to a class what the version's class of the same name has; anything else is an AttributeError."""
        allowed = names.classes.get(kind.__name__)

        class Named(kind):  # type: ignore[misc, valid-type]
            def __getattribute__(self, name: str) -> Any:
                check(name)
                return super().__getattribute__(name)

            def __setattr__(self, name: str, value: Any) -> None:
                check(name)
                super().__setattr__(name, value)

        def check(name: str) -> None:
            if not name.startswith("_") and (allowed is None or name not in allowed):
                raise AttributeError(f"{names.library} {names.version}: {kind.__name__} has no {name}")

        Named.__name__ = kind.__name__
        return Named

    @named
    class ILogger:
        def __init__(self) -> None:
            self._made = True

    @named
    class Runtime:
        def __init__(self, logger: Any) -> None:
            if not gpu.stack:
                gpu.violations.append("a Runtime was made before the driver was asked")
            assert logger._made, "a logger whose class did not call ILogger.__init__ crashes"
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            gpu.call("deserialize_cuda_engine")
            try:
                document = json.loads(plan)
            except ValueError:
                self._logger.log(severity.ERROR, "Serialization assertion magicTagRead == magicTag failed.")
                return None
            return module._engine(document, self._logger)

    @named
    class ICudaEngine:
        def __init__(self, document: dict[str, Any], logger: Any) -> None:
            self._logger = logger
            graph = base64.b64decode(document["graph"])
            self._session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
            self._inputs = {tensor.name: tensor for tensor in self._session.get_inputs()}
            self._outputs = {tensor.name: tensor for tensor in self._session.get_outputs()}
            self._tensors = {**self._inputs, **self._outputs}
            self._profile = {name: tuple(map(tuple, shapes)) for name, shapes in document["profile"].items()}

        def __del__(self) -> None:
            if not gpu.stack:
                gpu.violations.append("an engine was destroyed without a context")

        num_io_tensors = property(lambda self: len(self._tensors))
        device_memory_size = device_memory_size_v2 = property(lambda self: WORK_SIZE)

        def get_tensor_name(self, index: int) -> str:
            return list(self._tensors)[index]

        def get_tensor_mode(self, name: str) -> Value:
            return module.TensorIOMode.INPUT if name in self._inputs else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Value:
            return getattr(module.DataType, _KINDS.get(self._tensors[name].type, "INT32"))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(length if isinstance(length, int) else -1 for length in self._tensors[name].shape)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            assert profile_index == 0
            smallest, largest = self._profile[name]
            return [smallest, largest, largest]

        def create_runtime_config(self) -> Any:
            return module._config()

        def create_execution_context(self, how: Any = None) -> Any:
            if names.version.startswith("8.") and how is not None:
                raise TypeError("create_execution_context(): incompatible function arguments")
            if isinstance(how, IRuntimeConfig):
                gpu.calls.append(f"cuda_graph_strategy {how._strategy}")
                how = how._allocation
            return self._new_context(how is module.ExecutionContextAllocationStrategy.USER_MANAGED if how else False)

        def create_execution_context_without_device_memory(self) -> Any:
            return self._new_context(True)

        def _new_context(self, user_managed: bool) -> Any:
            gpu.call("create_execution_context")
            gpu.forbid_in_capture("create_execution_context")
            return None if "create_execution_context" in gpu.failures else module._context(self, user_managed)

    @named
    class IRuntimeConfig:
        def __init__(self) -> None:
            self._allocation: Any = None
            self._strategy: Any = None

        def set_execution_context_allocation_strategy(self, strategy: Value) -> None:
            self._allocation = strategy

        cuda_graph_strategy = property(
            lambda self: self._strategy, lambda self, strategy: setattr(self, "_strategy", strategy)
        )

    @named
    class IExecutionContext:
        def __init__(self, engine: Any, user_managed: bool) -> None:
            self._engine = engine
            self._needs_memory = user_managed
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._changes = 0
            self._ran = False

        def __del__(self) -> None:
            if not gpu.stack:
                gpu.violations.append("an execution context was destroyed without a context")

        def _set_device_memory(self, memory: int, size: int) -> None:
            gpu.bytes_at(memory, max(size, WORK_SIZE))
            self._needs_memory = False

        set_device_memory = _set_device_memory

        device_memory = property(None, lambda self, memory: self._set_device_memory(memory, WORK_SIZE))

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            smallest, largest = self._engine._profile[name]
            fits = len(shape) == len(smallest) and all(
                low <= length <= high for low, length, high in zip(smallest, shape, largest, strict=True)
            )
            if not fits:
                self._complain(f"Static dimension or profile mismatch for tensor {name}.")
                return False
            if self._shapes.get(name) != tuple(shape):
                self._changes += 1
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            """Shapes of outputs: found by running the graph on zeros."""
            if name in self._shapes or name in self._engine._inputs:
                return self._shapes.get(name, self._engine.get_tensor_shape(name))
            if set(self._shapes) != set(self._engine._inputs):
                return self._engine.get_tensor_shape(name)
            (value,) = self._engine._session.run([name], {key: self._zeros(key) for key in self._shapes})
            return tuple(value.shape)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self._engine._tensors:
                self._complain(f"Given invalid tensor name: {name}.")
                return False
            if self._addresses.get(name) != memory:
                self._changes += 1
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            gpu.call("execute_async_v3")
            missing = set(self._engine._tensors) - set(self._addresses)
            if "execute_async_v3" in gpu.failures or missing or self._needs_memory:
                self._complain(f"No address for {missing}" if missing else "Error Code 1: Cask (convolution execution)")
                return False
            queue = gpu.queues[stream_handle]
            if queue.capture is not None and not self._ran:
                gpu.forbid_in_capture("cudaMalloc of the first execution")
            self._ran = True
            shapes, addresses, changes = dict(self._shapes), dict(self._addresses), self._changes
            context, engine = weakref.ref(self), self._engine
            captured = queue.capture is not None

            def work() -> None:
                if captured and ((now := context()) is None or now._changes != changes):
                    raise CudaError("a graph was launched whose execution context changed or is gone")
                inputs = {}
                for name in engine._inputs:
                    kind = _NUMPY[_KINDS[engine._tensors[name].type]]
                    size = int(np.prod(shapes[name])) * np.dtype(kind).itemsize
                    inputs[name] = gpu.bytes_at(addresses[name], size).view(kind).reshape(shapes[name])
                values = engine._session.run(list(engine._outputs), inputs)
                for name, value in zip(engine._outputs, values, strict=True):
                    gpu.bytes_at(addresses[name], value.nbytes)[:] = np.frombuffer(value.tobytes(), np.uint8)

            with gpu.lock:
                queue.put(work)
            return True

        def _zeros(self, name: str) -> np.ndarray:
            return np.zeros(self._shapes[name], _NUMPY[_KINDS[self._engine._tensors[name].type]])

        def _complain(self, text: str) -> None:
            self._engine._logger.log(severity.ERROR, text)

    class Module:
        """What `import tensorrt` gives."""

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"{names.library} {names.version} has no {name}")

    module: Any = Module()
    module.__version__, module.__name__ = names.version, names.library
    module._engine, module._context, module._config = ICudaEngine, IExecutionContext, IRuntimeConfig
    severity = Enum("Severity", frozenset({"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"}))
    for kind in (ILogger, Runtime):
        setattr(module, kind.__name__, kind)
    for name in ("TensorIOMode", "DataType", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"):
        if name in names.classes:
            setattr(module, name, Enum(name, names.classes[name]))
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        setattr(ILogger, name, getattr(severity, name))
    return module
