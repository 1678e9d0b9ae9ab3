"""ONNX Runtime's GPU providers on a real GPU, against its CPU provider."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from glocal.runtime.backends.onnxruntime import PROVIDERS, OnnxRuntimeEngines
from glocal.runtime.backends.tensorrt_api import Gpu
from glocal.runtime.bundle import Bundle
from test_tensorrt_gpu import close, run


@pytest.mark.parametrize("backend", [name for name in PROVIDERS if name != "onnxruntime"])
def test_gpu_providers_compute_what_the_cpu_does(
    backend: str, card: Gpu, bundle: Bundle, reference: OnnxRuntimeEngines, images: np.ndarray
) -> None:
    if PROVIDERS[backend].name not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {PROVIDERS[backend].name}")
    engines = OnnxRuntimeEngines(bundle.read("fp32/global.onnx"), bundle.read("fp32/local.onnx"), backend=backend)
    outputs = engines.run_global(images[:1])
    assert outputs.on_device["features"].device_name() == "cuda"
    for seed, (batch, boxes) in enumerate([(1, 1), (3, 9), (4, 24), (1, 8)]):
        chosen = images[seed : seed + batch]
        for found, expected in zip(run(engines, chosen, seed, boxes), run(reference, chosen, seed, boxes), strict=True):
            close(found, expected)
