"""ONNX Runtime's GPU providers as backends. Their code runs here on the CPU provider, under their names."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from fakes.fixtures import pictures, proposals
from glocal.runtime.backends import onnxruntime as backend
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.errors import EngineError, UsageError
from tiny_model import FILES, LOCAL, graph

GRAPHS = (FILES["fp32/global.onnx"], FILES["fp32/local.onnx"])


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend onnxruntime-cuda binds its tensors, but to the CPU."""
    provider = backend.PROVIDERS["onnxruntime-cuda"]._replace(name="CPUExecutionProvider", others=())
    monkeypatch.setitem(backend.PROVIDERS, "onnxruntime-cuda", provider)
    monkeypatch.setattr(backend, "_Bound", lambda device: CpuBound(device == "cuda"))


class CpuBound(backend._Bound):
    """Binds to the CPU what would be bound to CUDA."""

    def __new__(cls, cuda: bool) -> CpuBound:
        assert cuda
        return super().__new__(cls, "cpu")


def test_bound_runs_compute_the_same(bound: None) -> None:
    plain, tied = OnnxRuntimeEngines(*GRAPHS, 1), OnnxRuntimeEngines(*GRAPHS, 1, backend="onnxruntime-cuda")
    for seed, batch in enumerate((1, 3, 2)):
        images, (boxes, counts) = pictures(seed, batch), proposals(seed, batch, 5)
        expected, found = plain.run_global(images), tied.run_global(images)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.class_maps, expected.class_maps)
        assert list(found.on_device) == ["features", "global_feature"]
        assert isinstance(found.on_device["features"], ort.OrtValue)
        np.testing.assert_array_equal(
            tied.run_local(found, boxes, counts), plain.run_local(expected, boxes, counts), strict=True
        )


def test_bound_outputs_of_one_call_outlive_the_next(bound: None) -> None:
    plain, tied = OnnxRuntimeEngines(*GRAPHS, 1), OnnxRuntimeEngines(*GRAPHS, 1, backend="onnxruntime-cuda")
    boxes, counts = proposals(0, 1, 5)
    first = tied.run_global(pictures(1, 1))
    tied.run_global(pictures(2, 1))
    expected = plain.run_local(plain.run_global(pictures(1, 1)), boxes, counts)
    np.testing.assert_array_equal(tied.run_local(first, boxes, counts), expected)


def test_a_bound_run_that_fails_is_an_engine_error(bound: None) -> None:
    beyond = "far = Size (features)\n  there = Gather (shape, far)\n  value = Cast <to = 1> (there)\n"
    failing = LOCAL.replace("silent = Mul (global_feature, nothing)", beyond + "  silent = Mul (global_feature, value)")
    engines = OnnxRuntimeEngines(GRAPHS[0], graph(failing), 1, backend="onnxruntime-cuda")
    outputs = engines.run_global(pictures(0, 1))
    with pytest.raises(EngineError, match="local engine failed"):
        engines.run_local(outputs, *proposals(0, 1, 2))


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=backend.PROVIDERS[name].name) as caught:
        OnnxRuntimeEngines(*GRAPHS, 1, backend=name)
    assert "onnxruntime-gpu" in caught.value.fix
    with pytest.raises(UsageError, match="no backend 'onnxruntime-rocm'"):
        OnnxRuntimeEngines(*GRAPHS, 1, backend="onnxruntime-rocm")


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_session_that_fell_back_to_the_cpu_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = backend.PROVIDERS[name]
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider.name, "CPUExecutionProvider"])

    def quiet(graph: bytes, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        assert providers[0] == provider.name
        return real(graph, options, providers=["CPUExecutionProvider"])

    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", quiet)
    with pytest.raises(UsageError, match=f"could not start {provider.name}") as caught:
        OnnxRuntimeEngines(*GRAPHS, 1, backend=name)
    assert caught.value.found == "CPUExecutionProvider"
