"""What the doctor tries with each library.

``main`` prints one marked line of JSON with ``state`` (ok, missing, broken), ``facts`` and ``why``. It is run in a
process of its own, because a broken library may end it or never return. Nothing heavy is imported at the top.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

MARK = "glocal-doctor "

# y = Identity(x) of one float, as onnx.parser.parse_model and SerializeToString give it (a test compares).
IDENTITY_ONNX = (
    b'\x08\x08:9\n\x12\n\x01x\x12\x01y"\x08Identity:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
# Of cuda.h.
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


class BrokenError(Exception):
    """The library is there and does not do what it should."""


def module(name: str) -> dict[str, Any]:
    """Import a module; facts: version."""
    return {"version": _version(importlib.import_module(name))}


def images() -> dict[str, Any]:
    """Decode and resize as the pipeline does; facts: version (OpenCV's), pillow."""
    import cv2
    import numpy as np
    import PIL

    from .images import resize

    if resize(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape != (2, 3, 3):
        raise BrokenError("OpenCV gave an image of another size than was asked for")
    return {"version": cv2.__version__, "pillow": PIL.__version__}


def selector() -> dict[str, Any]:
    """Compile the region selector and run it; facts: version (Numba's), cached, cache (its folder)."""
    import numba
    import numpy as np

    from ._components import compile_select
    from .selector import RegionSelector

    RegionSelector(np.zeros(1, np.float32))(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1), np.float32))
    folder = getattr(getattr(compile_select(), "stats", None), "cache_path", None)
    return {"version": numba.__version__, "cached": folder is not None, "cache": folder or ""}


def onnxruntime(provider: str = "CPUExecutionProvider") -> dict[str, Any]:
    """Run a graph of one operator with a provider; facts: version, providers (what it is built with)."""
    import numpy as np
    import onnxruntime as ort

    if not hasattr(ort, "InferenceSession"):  # two packages in one folder, one of them removed since
        raise BrokenError("the package is there, but has no InferenceSession: onnxruntime is installed in parts")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(IDENTITY_ONNX, options, providers=[provider])
    if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU without an error
        raise BrokenError(f"{provider} cannot be loaded, ONNX Runtime falls back to {session.get_providers()[0]}")
    if session.run(None, {"x": np.array([2], np.float32)})[0][0] != 2:
        raise BrokenError(f"{provider} gave a wrong result")
    return {"version": ort.__version__, "providers": ort.get_available_providers()}


def cuda() -> dict[str, Any]:
    """Ask libcuda, without any package.

    Facts: driver (13000 is CUDA 13.0), gpus (name, compute_capability, mib, integrated), and error where it does not
    start: a CUresult, or ``absent``.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"error": "absent", "reason": str(error)}
    driver, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(driver))
    result = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if result:
        return {"error": result, "driver": driver.value}
    gpus = []
    for index in range(count.value):
        device, name, size = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        numbers = []
        for attribute in (_MAJOR, _MINOR, _INTEGRATED):
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        gpus.append(
            {
                "name": name.value.decode(errors="replace"),
                "compute_capability": f"{numbers[0]}.{numbers[1]}",
                "mib": size.value >> 20,
                "integrated": bool(numbers[2]),
            }
        )
    return {"driver": driver.value, "gpus": gpus}


def tensorrt(name: str, gpu: str) -> dict[str, Any]:
    """Build a network of one layer, and read the plan where there is a GPU; facts: version, built, ran.

    Args:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        gpu: ``gpu`` or ``no-gpu``. TensorRT's builder needs one, and its runtime crashes after the builder failed;
            TensorRT-RTX builds without.
    """
    import numpy as np

    if not hasattr(np, "bool"):
        np.bool = np.bool_  # type: ignore[misc,assignment,unused-ignore]  # TensorRT 8.6 asks for it, NumPy 1.24 has none
    trt = importlib.import_module(name)
    facts = {"version": _version(trt), "built": False, "ran": False}
    if gpu != "gpu" and name == "tensorrt":
        return facts
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    layer = network.add_identity(network.add_input("x", trt.float32, (1, 4)))
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise BrokenError("the builder gave no plan for a network of one layer")
    facts["built"] = True
    if gpu == "gpu":
        if trt.Runtime(logger).deserialize_cuda_engine(plan) is None:
            raise BrokenError(
                "the runtime cannot read the plan that the builder has just built; is this GPU supported?"
            )
        facts["ran"] = True
    return facts


def pycuda(gpu: str) -> dict[str, Any]:
    """Import PyCUDA and allocate in the primary context; facts: version, cuda (what it was compiled with)."""
    package, driver = importlib.import_module("pycuda"), importlib.import_module("pycuda.driver")
    facts = {"version": package.VERSION_TEXT, "cuda": ".".join(str(part) for part in driver.get_version()[:2])}
    if gpu == "gpu":
        driver.init()
        context = driver.Device(0).retain_primary_context()
        context.push()
        try:
            driver.mem_alloc(16).free()
        finally:
            context.pop()
    return facts


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe for probe in (module, images, selector, onnxruntime, cuda, tensorrt, pycuda)
}

# The packages that a probe is about; for the others it is their first argument.
_PACKAGES = {"images": ["cv2", "PIL"], "selector": ["numba"], "onnxruntime": ["onnxruntime"], "pycuda": ["pycuda"]}


def _version(library: Any) -> str:
    version = getattr(library, "__version__", None)
    return str(version) if version else importlib.metadata.version(library.__name__)


def main(arguments: list[str]) -> None:
    """Run one probe and print what it found."""
    name, *rest = arguments
    found: dict[str, Any] = {"state": "ok", "facts": {}, "why": ""}
    try:
        found["facts"] = PROBES[name](*rest)
    except ModuleNotFoundError as error:
        absent = error.name in _PACKAGES.get(name, rest)  # else the library lacks something that it needs itself
        found |= {"state": "missing" if absent else "broken", "why": str(error)}
    except BrokenError as error:
        found |= {"state": "broken", "why": str(error)}
    except BaseException as error:  # whatever a library raises, it is a line in the report
        found |= {"state": "broken", "why": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(f"\n{MARK}{json.dumps(found)}", flush=True)
    os._exit(0)  # a library that crashes as the process ends would hide what was found
