"""What the TensorRT runtime does on the GPU: CUDA graphs, memory, contexts, and what is missing; on stand-ins."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

import pytest
import tensorrt_names
from fakes.fixtures import BATCH, BOXES, PLANS, Open, compare
from fakes.gpu import Gpu
from fakes.pycuda_driver import NAMES, make_driver
from fakes.tensorrt import make_tensorrt
from glocal.runtime.backends import device
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.backends.tensorrt import TensorRTEngines
from glocal.runtime.backends.tensorrt_api import Library
from glocal.runtime.errors import EngineError, UsageError


def test_the_fake_has_only_names_of_pycuda(gpu: Gpu) -> None:
    driver = make_driver(gpu)
    public = {name for name in vars(driver) if not name.startswith("_")}
    assert public <= {*NAMES["classes"], *NAMES["others"]}
    assert {"Stream", "mem_alloc", "pagelocked_empty", "Error", "MemoryError"} <= public
    for name, members in NAMES["classes"].items():
        own = {member for member in vars(getattr(driver, name)) if not member.startswith("_")}
        assert own
        assert own <= set(members)


def test_the_fake_lacks_what_a_version_lacks(gpu: Gpu) -> None:
    old, new = (make_tensorrt(tensorrt_names.load(f"tensorrt-{name}"), gpu) for name in ("8.6.0", "11.4.0.106"))
    assert not hasattr(old, "ExecutionContextAllocationStrategy")
    assert not hasattr(new, "CudaGraphStrategy")
    with pytest.raises(AttributeError):
        new._engine.__new__(new._engine).device_memory_size  # noqa: B018
    with pytest.raises(AttributeError):
        old._context.__new__(old._context).set_device_memory(0, 0)
    gpu.violations.clear()  # of the two objects above


def test_shapes_that_come_again_become_graphs(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened()
    counted = []
    for call in range(8):
        before = len(gpu.calls)
        compare(engines, reference, call, 2, 5)
        counted.append({name: gpu.calls[before:].count(name) for name in ("execute_async_v3", "cuGraphLaunch")})
    # Two slots of features: each is enqueued once, then captured (a warm-up and the capture itself), then launched.
    assert [each["execute_async_v3"] for each in counted] == [2, 2, 6, 6, 0, 0, 0, 0]
    assert [each["cuGraphLaunch"] for each in counted] == [0, 0, 0, 0, 2, 2, 2, 2]
    assert len(gpu.graphs) == 4
    compare(engines, reference, 9, 2, 8)  # the same bucket as 5
    assert gpu.calls[-20:].count("execute_async_v3") == 0
    compare(engines, reference, 9, 2, 9)  # the next one
    assert gpu.calls[-20:].count("execute_async_v3") == 1


def test_graphs_are_bounded(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened(in_flight=5)
    for _ in range(3):
        for batch in range(1, BATCH + 1):
            for boxes in (8, 16, 20):
                for _ in range(5):
                    compare(engines, reference, batch, batch, boxes)
    assert len(gpu.graphs) == 20 + 32  # the local engine would have 60


def test_graphs_can_be_left_out(version: str, gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened(version, cuda_graphs=False)
    for call in range(5):
        compare(engines, reference, call, 1, 3)
    assert gpu.graphs == {}
    assert not any("graph" in name.lower() for name in gpu.calls)


def test_rtx_manages_its_graphs_itself(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    (rtx,) = (name for name in tensorrt_names.VERSIONS if name.startswith("tensorrt_rtx"))
    engines = opened(rtx)
    for call in range(5):
        compare(engines, reference, call, 1, 3)
    assert gpu.graphs == {}
    assert gpu.calls.count("cuda_graph_strategy CudaGraphStrategy.WHOLE_GRAPH_CAPTURE") == 2


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_without_graphs_it_goes_on_and_says_so_once(
    function: str, gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines
) -> None:
    engines = opened()
    gpu.failures[function] = 900
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(8):
            compare(engines, reference, call, 1, 3)
    assert len(caught) == 2  # one for each engine
    assert f"{function}: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900)" in str(caught[0].message)
    assert gpu.graphs == {}


def test_engines_are_closed_by_another_thread(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened()
    for call in range(5):
        compare(engines, reference, call, 1, 3)
    assert gpu.graphs
    thread = threading.Thread(target=engines.close)
    thread.start()
    thread.join()
    assert (gpu.memory, gpu.pinned, gpu.graphs) == ({}, [], {})


def test_what_fails_while_closing_keeps_nothing_else(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened()
    for call in range(5):
        compare(engines, reference, call, 1, 3)
    gpu.failures["cuGraphExecDestroy"] = 999
    with pytest.raises(EngineError, match="CUDA graph failed"):
        engines.close()
    assert (gpu.memory, gpu.pinned, gpu.queues) == ({}, [], {})
    gpu.graphs.clear()


def test_forgotten_engines_are_told_of(gpu: Gpu, opened: Open) -> None:
    names = tensorrt_names.load("tensorrt-10.3.0")
    engines = TensorRTEngines(Library("tensorrt", make_tensorrt(names, gpu), names.version), *PLANS, max_boxes=BOXES)
    before = len(gpu.calls)
    with pytest.warns(ResourceWarning, match="without close"):
        del engines
    assert gpu.calls[before:] == []  # no CUDA call of ours when an object is collected
    for leftovers in (gpu.memory, gpu.pinned, gpu.queues, gpu.violations):
        leftovers.clear()


def test_too_little_memory_is_told_and_nothing_is_kept(gpu: Gpu, opened: Open) -> None:
    gpu.limit = 60_000
    with pytest.raises(EngineError, match="out of memory") as caught:
        opened()
    assert "smaller batch" in caught.value.fix
    assert gpu.memory == {}
    gpu.limit = 1 << 30
    opened()


def broken(message: str, kind: type[ImportError] = ImportError) -> Any:
    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.startswith("pycuda"):
                raise kind(message)

    return Finder()


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (ModuleNotFoundError("No module named 'pycuda'"), "need PyCUDA", "pip install pycuda"),
        (ImportError("libcuda.so.1: cannot open shared object file"), "no NVIDIA driver", "--gpus all"),
        (ImportError("_driver.so: undefined symbol: cuCtxCreate_v4"), "built for another CUDA", "--no-binary"),
    ],
)
def test_a_missing_driver_or_pycuda_is_told_with_its_fix(
    error: ImportError, what: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [broken(str(error), type(error)), *sys.meta_path])
    with pytest.raises(UsageError, match=what) as caught:
        device.Device()
    assert fix in caught.value.fix
    assert str(error) in caught.value.found


def test_the_primary_context_is_given_back_when_the_process_ends(
    gpu: Gpu, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending: list[Any] = []
    monkeypatch.setattr(device.atexit, "register", ending.append)
    opened()
    opened()
    (detach,) = ending
    assert "Context.detach" not in gpu.calls
    detach()
    assert gpu.calls[-1] == "Context.detach"


def test_a_machine_without_gpus_is_told(gpu: Gpu) -> None:
    gpu.devices = 0
    with pytest.raises(UsageError, match="no GPU 0") as caught:
        device.Device()
    assert caught.value.found == "0 GPUs"
    gpu.failures["cuInit"] = 3
    with pytest.raises(UsageError, match="cannot be initialised") as caught:
        device.Device()
    assert "spawn" in caught.value.fix
