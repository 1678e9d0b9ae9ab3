"""Fixtures and helpers of the tests that use the stand-ins."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorrt_names
from glocal.runtime.backends import cuda_graph, device
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.backends.tensorrt import TensorRTEngines
from glocal.runtime.backends.tensorrt_api import Library
from tiny_model import FILES

from .gpu import Gpu, LibCuda
from .pycuda_driver import make_driver
from .tensorrt import make_plan, make_tensorrt

BATCH, BOXES = 4, 20
GLOBAL_PROFILE = {"image": ((1, 64, 96, 3), (BATCH, 64, 96, 3))}
LOCAL_PROFILE = {
    "features": ((1, 3, 4, 6), (BATCH, 3, 4, 6)),
    "global_feature": ((1, 3), (BATCH, 3)),
    "boxes": ((1, 1, 4), (BATCH, BOXES, 4)),
    "counts": ((1, 1), (BATCH, BOXES)),
}
PLANS = (
    make_plan(FILES["fp32/global.onnx"], GLOBAL_PROFILE),
    make_plan(FILES["fp32/local.onnx"], LOCAL_PROFILE),
)

Open = Callable[..., TensorRTEngines]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """The fake GPU; afterwards nothing may be left on it, and no thread may have a context."""
    gpu = Gpu()
    package = types.ModuleType("pycuda")
    package.driver = make_driver(gpu)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    monkeypatch.setattr(device, "_contexts", {})
    monkeypatch.setattr(cuda_graph, "_cuda", lambda: LibCuda(gpu))
    yield gpu
    assert gpu.violations == []
    assert (gpu.memory, gpu.pinned, gpu.queues, gpu.graphs) == ({}, [], {}, {})
    assert gpu.stack == []


@pytest.fixture(params=tensorrt_names.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(gpu: Gpu) -> Iterator[Open]:
    """Opens engines, with TensorRT 10.3 unless another version is named, and closes them after the test."""
    engines: list[TensorRTEngines] = []

    def open_engines(version: str = "tensorrt-10.3.0", plans: Any = PLANS, **options: Any) -> TensorRTEngines:
        names = tensorrt_names.load(version)
        library = Library(names.library, make_tensorrt(names, gpu), names.version)  # type: ignore[arg-type]
        engines.append(TensorRTEngines(library, *plans, **{"max_boxes": BOXES, **options}))
        return engines[-1]

    yield open_engines
    for each in engines:
        each.close()


@pytest.fixture(scope="module")
def reference() -> OnnxRuntimeEngines:
    return OnnxRuntimeEngines(FILES["fp32/global.onnx"], FILES["fp32/local.onnx"], 1)


def pictures(seed: int, batch: int) -> np.ndarray:
    """Images of patches, so that class maps differ from cell to cell."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, 4, 6, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)


def proposals(seed: int, batch: int, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((batch, boxes, 2, 2), np.float32), axis=2)
    counts = rng.integers(1, 4, (batch, boxes)).astype(np.float32)
    counts[:, 1:] *= rng.random((batch, boxes - 1)) > 0.3
    return corners.reshape(batch, boxes, 4), counts


def compare(engines: TensorRTEngines, reference: OnnxRuntimeEngines, seed: int, batch: int, boxes: int) -> None:
    images, (corners, counts) = pictures(seed, batch), proposals(seed, batch, boxes)
    expected, found = reference.run_global(images), engines.run_global(images)
    for one, other in ((found.logits, expected.logits), (found.class_maps, expected.class_maps)):
        assert (one.dtype, one.shape, one.flags.owndata) == (np.float32, other.shape, True)
        np.testing.assert_allclose(one, other, rtol=1e-5)
    logits = engines.run_local(found, corners, counts)
    assert (logits.dtype, logits.flags.owndata) == (np.float32, True)
    np.testing.assert_allclose(logits, reference.run_local(expected, corners, counts), rtol=1e-5)
