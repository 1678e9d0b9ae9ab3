"""TensorRT and TensorRT-RTX as they are installed: the module, its messages, and the GPU it would use."""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UsageError

Backend = Literal["tensorrt", "tensorrt_rtx"]

OLDEST = (8, 6)
_LIBCUDA = "libcuda.so.1"
_INSTALL = {
    "tensorrt": "On a Jetson: apt install python3-libnvinfer, and create the environment with --system-site-packages. "
    "Elsewhere: pip install tensorrt-cu12 or tensorrt-cu13, from NVIDIA's index.",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
# Attributes of CUdevice in cuda.h
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Library:
    """An imported TensorRT.

    Attributes:
        name: Which of the two libraries.
        module: The Python module.
        version: Its version, such as ``10.3.0``.
    """

    name: Backend
    module: Any
    version: str


@dataclass(frozen=True)
class Gpu:
    """The GPU that CUDA lists first.

    Attributes:
        name: As the driver calls it.
        compute_capability: (major, minor), such as (8, 7) for Orin.
        driver: Newest CUDA version that the driver serves, such as 12060 for 12.6.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: int


@dataclass(frozen=True)
class Log:
    """TensorRT's logger, and the last warnings and errors that it was given.

    Attributes:
        logger: What to hand to TensorRT.
        messages: (severity, text), oldest first; severity is ``WARNING``, ``ERROR`` or ``INTERNAL_ERROR``.
    """

    logger: Any
    messages: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=100))

    def quote(self, limit: int = 3) -> str:
        """The last errors, or the last warnings where there is no error; for the ``found`` of an exception."""
        told = self.messages.copy()  # a build in another thread may append
        errors = [text for severity, text in told if severity != "WARNING"]
        chosen = errors or [text for _, text in told]
        return "; ".join(" ".join(text.split()) for text in chosen[-limit:]) or "TensorRT gave no message"


def load_library(name: Backend) -> Library:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        UsageError: It is not installed, its libraries are missing, or it is older than 8.6.
    """
    fix = _INSTALL[name]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} is not installed.", found=str(error), fix=fix) from error
    except Exception as error:  # a package without its libraries: OSError, ImportError, or what its own code raises
        raise UsageError(f"{name} is installed, but cannot be imported.", found=str(error), fix=fix) from error
    version = getattr(module, "__version__", None)
    if version is None or not hasattr(module, "Runtime"):  # a stray folder of this name, or a package without bindings
        place = getattr(module, "__file__", None) or list(getattr(module, "__path__", []))
        raise UsageError(f"The module {name} is not NVIDIA's.", found=f"no Runtime in {place}", fix=fix)
    if name == "tensorrt" and parse_version(version)[:2] < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UsageError(f"TensorRT {version} is too old.", found=version, fix=f"Use TensorRT {wanted} or newer.")
    return Library(name, module, version)


def parse_version(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``10.3.0.post1`` is (10, 3, 0)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def gpu() -> Gpu | None:
    """The first GPU, asked of the driver without TensorRT; None without a driver or a GPU.

    Ask before TensorRT's first Builder or Runtime: without a driver TensorRT 8.6 ends the process.
    """
    try:
        cuda = ctypes.CDLL(_LIBCUDA)
        count, device, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        failed = (
            cuda.cuInit(0)
            or cuda.cuDeviceGetCount(ctypes.byref(count))
            or count.value == 0
            or cuda.cuDeviceGet(ctypes.byref(device), 0)
            or cuda.cuDeviceGetName(name, len(name), device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
            or cuda.cuDriverGetVersion(ctypes.byref(driver))
        )
    except (OSError, AttributeError):  # no driver, or not NVIDIA's
        return None
    if failed:
        return None
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), driver.value)


def log_of(library: Library) -> Log:
    """The one log of a library: TensorRT keeps the first logger that it gets for the whole process."""
    return _make_log(library.module)


@functools.cache
def _make_log(module: Any) -> Log:
    messages: deque[tuple[str, str]] = deque(maxlen=100)
    kept = {getattr(module.ILogger, name): name for name in ("WARNING", "ERROR", "INTERNAL_ERROR")}

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:  # information would fill the memory of a long build
                messages.append((kept[severity], msg))

    return Log(Logger(), messages)
