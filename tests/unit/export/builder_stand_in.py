"""A stand-in for TensorRT's builder, for versions that do not run here.

It is generated from a version's name list: a class has the names that the list has and no others, so a call that the
version lacks fails. It records what it was told, and gives what a test says: layers, a plan, the inspector's text.
"""

from __future__ import annotations

import enum
import types
from typing import Any

import tensorrt_names


def stand_in(version: str, **behaviour: Any) -> Any:
    """A module with the names of a version.

    Args:
        version: One of `tensorrt_names.VERSIONS`.
        **behaviour: ``layers`` of the parsed network, ``errors`` of the parser, ``plan`` (None: the build fails),
            ``steps``, ``inspector`` (JSON text), ``cache`` (what a timing cache must hold to be accepted), ``refusal``
            (what happens else: ``raise``, ``log`` or ``false``).
    """
    names = tensorrt_names.load(version)
    module: Any = types.ModuleType(names.library)
    module.__version__, module.told = names.version, []
    for name, members in names.classes.items():
        if name in _ENUMS:
            setattr(module, name, enum.IntEnum(name, sorted(members - {"itemsize"}), start=0))
    module.ILogger = type("ILogger", (), {level: level for level in ("INFO", "WARNING", "ERROR", "INTERNAL_ERROR")})
    for name in names.others - {"__version__"}:
        setattr(module, name, lambda *arguments, name=name: module.told.append((name, *arguments[1:])))
    if "IProgressMonitor" in names.classes:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    for name, implementation in _IMPLEMENTATIONS.items():
        setattr(module, name, _restricted(name, implementation, names.classes[name], module, behaviour))
    return module


_ENUMS = {
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
}


class _Restricted:
    """Public attributes of a stand-in are those of the list, for reading and for writing."""

    allowed: frozenset[str]

    def __getattribute__(self, name: str) -> Any:
        allowed = object.__getattribute__(self, "allowed")
        if not name.startswith("_") and name not in allowed | {"allowed", "trt", "does"}:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.allowed:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        if not name.startswith("_"):
            self.trt.told.append((name, value))
        object.__setattr__(self, name, value)


def _restricted(name: str, implementation: type, allowed: frozenset[str], module: Any, behaviour: dict) -> type:
    return type(name, (implementation, _Restricted), {"allowed": allowed, "trt": module, "does": behaviour})


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class Layer:
    """A layer of the parsed network: kind, name, the tensors it takes, and the type it gives."""

    def __init__(self, kind: str, name: str, inputs: tuple[str, ...], dtype: str) -> None:
        self.kind, self.name, self.inputs, self.dtype = kind, name, inputs, dtype

    def bind(self, trt: Any) -> Any:
        tensors = [_Tensor(name, (), None) for name in self.inputs]
        out = _Tensor(self.name + ":0", (), trt.DataType[self.dtype])
        return types.SimpleNamespace(
            name=self.name,
            type=trt.LayerType[self.kind],
            num_inputs=len(tensors),
            get_input=tensors.__getitem__,
            get_output=[out].__getitem__,
        )


class _Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> Any:
        kinds = self.trt.NetworkDefinitionCreationFlag
        self.trt.told.append(("network", {kind.name for kind in kinds if flags >> kind & 1}))
        return self.trt.INetworkDefinition()

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> Any:
        return self.trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        if "progress_monitor" in self.trt.IBuilderConfig.allowed:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Tactics", "Building", 2)
            for step in self.does.get("steps", (0, 1)):
                if not monitor.step_complete("Tactics", step):
                    return None
            monitor.phase_finish("Tactics")
            monitor.phase_finish("Building")
        plan = self.does.get("plan", b"plan")
        if plan is None:
            self._logger.log(self.trt.ILogger.ERROR, "no memory")
        return plan


class _Network:
    num_inputs = 3
    shapes = (("image", (-1, 8, 8, 3)), ("boxes", (-1, -1, 4)), ("fixed", (1, 4)))

    @property
    def num_layers(self) -> int:
        return len(self.does["layers"])

    def get_layer(self, index: int) -> Any:
        return self.does["layers"][index].bind(self.trt)

    def get_input(self, index: int) -> Any:
        name, shape = object.__getattribute__(self, "shapes")[index]
        return _Tensor(name, shape, None)


class _Parser:
    def __init__(self, network: Any, logger: Any) -> None:
        pass

    @property
    def num_errors(self) -> int:
        return len(self.does.get("errors", ()))

    def parse(self, model: bytes) -> bool:
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return self.trt.ParserError(self.does["errors"][index])


class _Error:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "roi"

    def node_operator(self) -> str:
        return "RoiAlign"


class _Config:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def _tell(self, *what: Any) -> None:
        self.trt.told.append(what)

    def set_flag(self, flag: Any) -> None:
        self._tell("set_flag", flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._tell("clear_flag", flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._tell(pool.name, size)

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self._tell("set_compute_capability", capability.name, index)
        return True

    def create_timing_cache(self, content: bytes) -> Any:
        stale = content and content != self.does.get("cache")
        if stale and self.does["refusal"] == "raise":
            raise TypeError("factory function returned nullptr")
        if stale and self.does["refusal"] == "log":
            self._logger.log(self.trt.ILogger.WARNING, "[cache.cpp] stale, starting an empty one")
        self._refused = stale and self.does["refusal"] == "false"
        return self.trt.ITimingCache()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._tell("set_timing_cache", ignore_mismatch, "refused" if self._refused else "taken")
        return not self._refused

    def get_timing_cache(self) -> Any:
        return self.trt.ITimingCache()


class _Cache:
    def serialize(self) -> bytes:
        return b"timings"


class _Profile:
    def set_shape(self, name: str, low: tuple, best: tuple, high: tuple) -> None:
        self.trt.told.append(("shape", name, low, best, high))


class _Runtime:
    def __init__(self, logger: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self.trt.ICudaEngine()


class _Engine:
    def create_engine_inspector(self) -> Any:
        return self.trt.EngineInspector()


class _Inspector:
    def get_engine_information(self, form: Any) -> str:
        assert form is self.trt.LayerInformationFormat.JSON
        return self.does.get("inspector", '{"Layers": []}')


_IMPLEMENTATIONS = {
    "Builder": _Builder,
    "INetworkDefinition": _Network,
    "OnnxParser": _Parser,
    "ParserError": _Error,
    "IBuilderConfig": _Config,
    "ITimingCache": _Cache,
    "IOptimizationProfile": _Profile,
    "Runtime": _Runtime,
    "ICudaEngine": _Engine,
    "EngineInspector": _Inspector,
}
