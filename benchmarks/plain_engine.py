"""The plain backbone on the same engine as the two branches, from an image to scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import Backend
from ..runtime.bundle import Bundle
from ..runtime.fusion import sigmoid
from ..runtime.images import read_image, resize
from ..runtime.manifest import Precision
from ..runtime.plans import graph_path
from .plain_graph import plain_graph


class PlainEngine(Protocol):
    """Runs the plain graph."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (B, H, W, 3) uint8 RGB, already resized -> logits (B, N)."""

    def close(self) -> None:
        """Free what the engine holds."""


class OnnxRuntimePlain:
    """The plain graph in ONNX Runtime, with the options of the pipeline's sessions.

    Args:
        graph: From `plain_graph`.
        threads: Threads within one operator on the CPU; None leaves the choice to ONNX Runtime.
        backend: One of ONNX Runtime's backends.

    Raises:
        UsageError: ONNX Runtime has no such provider here.
        BundleError: The graph cannot be loaded.
    """

    def __init__(self, graph: bytes, threads: int | None = None, backend: str = "onnxruntime") -> None:
        from ..runtime.backends.onnxruntime import open_session

        self._session = open_session(graph, "plain", threads, backend)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (B, H, W, 3) uint8 RGB, already resized -> logits (B, N) float32."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {"image": images})[0]
        return logits

    def close(self) -> None:
        """Free the session."""
        del self._session


class PlainPipeline:
    """From images to the plain backbone's scores, with the steps of `Pipeline`: decode, resize, engine, sigmoid.

    Args:
        engine: The engine; the pipeline's user closes it.
        size: (height, width) of its images.
    """

    def __init__(self, engine: PlainEngine, size: tuple[int, int]) -> None:
        self._engine, self._size = engine, size

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB images of any size -> (B, N) probabilities."""
        return sigmoid(self._engine.run(np.stack([resize(image, self._size) for image in images])))

    def predict_files(self, paths: Sequence[Path]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Image files -> (B, N) probabilities, and milliseconds of the engine and of decoding, for all files together.

        Raises:
            ImageError: A file cannot be read.
            EngineError: The engine failed.
        """
        pixels, decode = [], 0.0
        for path in paths:  # one after the other, as the pipeline does: fewer large images lie in memory
            start = time.perf_counter()
            image = read_image(path)
            decode += time.perf_counter() - start
            pixels.append(resize(image, self._size))
        start = time.perf_counter()
        logits = self._engine.run(np.stack(pixels))
        end = time.perf_counter()
        return sigmoid(logits), {"decode": decode * 1e3, "engine": (end - start) * 1e3}


def open_plain(bundle: Bundle, backend: Backend, precision: Precision, threads: int | None = None) -> PlainEngine:
    """The plain backbone of a bundle on a backend.

    For TensorRT a plan is built, with the options of the bundle's own plan, and kept in memory only.

    Args:
        bundle: The bundle.
        backend: What runs it.
        precision: Its precision.
        threads: Threads of the engine on the CPU; None leaves the choice to the engine library.

    Raises:
        UsageError: The backend is not installed.
        BundleError: The graph is not named as `plain_graph` wants it, or the bundle has no such precision or plan.
        EngineError: There is no GPU, or a build failed.
        GlocalError: TensorRT does not take the graph.
    """
    if backend == "tensorrt" or backend == "tensorrt_rtx":
        from .plain_tensorrt import open_plain_plan

        name = graph_path(bundle.manifest, precision, "global")
        return open_plain_plan(bundle, backend, precision, plain_graph(bundle.read(name)))
    return OnnxRuntimePlain(plain_graph(bundle.read(f"{precision}/global.onnx")), threads, backend)
