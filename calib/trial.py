"""Graphs on trial: a pipeline of graphs in memory, and how fast they are beside others."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..runtime.manifest import Manifest
from ..runtime.pipeline import Pipeline, selector_of


def open_pipeline(manifest: Manifest, files: Mapping[str, bytes], precision: str, threads: int | None) -> Pipeline:
    """A pipeline of graphs that are in no bundle yet, with the thresholds of fp32.

    Args:
        manifest: Of the bundle that they belong to.
        files: ONNX models by path, such as ``int8/global.onnx``.
        precision: The folder of these paths.
        threads: Of ONNX Runtime; None leaves the choice to it.
    """
    from ..runtime.backends.onnxruntime import OnnxRuntimeEngines

    engines = OnnxRuntimeEngines(files[f"{precision}/global.onnx"], files[f"{precision}/local.onnx"], threads)
    return Pipeline(manifest, "fp32", engines, selector_of(manifest))


def time_by_turns(pipelines: Mapping[str, Pipeline], image: NDArray[np.uint8], rounds: int = 41) -> dict[str, float]:
    """Milliseconds that each pipeline takes for one image, without decoding it.

    One call of each a round, so that whatever slows the machine slows them alike. The figure is the first pipeline's
    median times the median ratio of a round, which a busy machine disturbs less than a median of its own.
    """
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_ in range(-2, rounds):
        for name, pipeline in pipelines.items():
            start = time.perf_counter()
            pipeline.predict([image])
            if round_ >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    first = np.array(next(iter(times.values())))
    return {name: float(np.median(first) * np.median(np.array(values) / first)) for name, values in times.items()}
