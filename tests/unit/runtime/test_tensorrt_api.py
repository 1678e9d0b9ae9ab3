import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from glocal.runtime.backends import tensorrt_api
from glocal.runtime.backends.tensorrt_api import Gpu, Library, gpu, load_library, log_of, parse_version
from glocal.runtime.errors import UsageError

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDeviceGetCount(int *count) { *count = %(count)d; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 5; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin (nvgpu)", length); return device != 5; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 8 : 7; return device != 5; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a module called tensorrt, with the given source, before all others."""

    def write(source: str) -> None:
        (tmp_path / "tensorrt").mkdir()
        (tmp_path / "tensorrt" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    yield write
    sys.modules.pop("tensorrt", None)


def driver(folder: Path, init: int, count: int) -> str:
    """Compile a driver with these answers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver with")
    (folder / "driver.c").write_text(DRIVER % {"init": init, "count": count})
    path = folder / f"libcuda-{init}-{count}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, folder / "driver.c"], check=True)
    return str(path)


def test_the_gpu_is_asked_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_api, "_LIBCUDA", driver(tmp_path, 0, 1))
    assert gpu() == Gpu("Orin (nvgpu)", (8, 7), 12060)


@pytest.mark.parametrize(("init", "count"), [(100, 1), (0, 0)])
def test_a_driver_without_a_gpu(tmp_path, monkeypatch, init, count):
    monkeypatch.setattr(tensorrt_api, "_LIBCUDA", driver(tmp_path, init, count))
    assert gpu() is None


@pytest.mark.parametrize("library", ["no-such-libcuda.so.1", "libm.so.6"])
def test_no_driver(monkeypatch, library):
    monkeypatch.setattr(tensorrt_api, "_LIBCUDA", library)
    assert gpu() is None


def test_a_library_that_is_there(package):
    package("__version__ = '10.3.0'\nclass Runtime: pass\n")
    library = load_library("tensorrt")
    assert (library.name, library.version, library.module.__name__) == ("tensorrt", "10.3.0", "tensorrt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "cannot be imported"),
        ("raise RuntimeError('do not install this wheel')", "cannot be imported"),
        ("", "not NVIDIA's"),
        ("__version__ = '8.5.3'\nclass Runtime: pass", "too old"),
    ],
)
def test_a_broken_library_is_refused(package, source, message):
    package(source)
    with pytest.raises(UsageError, match=message) as caught:
        load_library("tensorrt")
    assert caught.value.fix


def test_a_missing_library_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        load_library("tensorrt_rtx")
    assert caught.value.fix == "pip install tensorrt-rtx-cu13"


def test_versions_are_numbers():
    assert parse_version("10.13.3.9") == (10, 13, 3, 9)
    assert parse_version("11.4.0.dev1") == (11, 4, 0)
    assert parse_version("10.13") > parse_version("10.3")


def test_the_log_keeps_what_went_wrong():
    module = ModuleType("tensorrt")
    levels = {name: name for name in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR")}
    module.ILogger = type("ILogger", (), levels)
    library = Library("tensorrt", module, "10.3.0")
    log = log_of(library)
    assert log_of(library) is log
    assert log.quote() == "TensorRT gave no message"
    for level in ("VERBOSE", "WARNING", "INFO"):
        log.logger.log(level, f"a {level}")
    assert log.quote() == "a WARNING"
    for index in range(5):
        log.logger.log("ERROR", f"mistake\n {index}")
    assert log.quote(2) == "mistake 3; mistake 4"
    for _ in range(1000):
        log.logger.log("WARNING", "again")
    assert len(log.messages) == 100
