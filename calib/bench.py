"""Trials of a sensitivity scan: how good and how fast the network is with some of its blocks left in fp32."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..runtime.bundle import Bundle
from ..runtime.images import resize
from ..runtime.pipeline import Pipeline
from ..runtime.prediction import Prediction
from .gate import compare, predict
from .graph import Graph, groups_of
from .methods import Method
from .photos import Labelled
from .qdq_onnxruntime import quantize_for_onnxruntime
from .table import Table
from .trial import open_pipeline, time_by_turns


class Point(BaseModel):
    """How good and how fast the network is with some blocks left in fp32.

    Attributes:
        mAP: On the scan's images.
        score_shift: Mean absolute difference of fused scores to fp32.
        same_boxes: Share of the fp32 network's boxes that are chosen again.
        ms: For one image, in ONNX Runtime on this machine.
        ms_again: A second timing, of points that were about to be chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mAP: float  # noqa: N815
    score_shift: float
    same_boxes: float
    ms: float
    ms_again: float | None = None

    @property
    def slower_ms(self) -> float:
        """The slower of the timings."""
        return max(self.ms, self.ms_again or 0)


class Bench:
    """Builds, scores and times one choice of blocks after the other, with the same images."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Graph],
        table: Table,
        method: Method,
        exclude: Sequence[str],
        data: Labelled,
        threads: int | None,
    ) -> None:
        self._bundle, self._table, self._method = bundle, table, method
        self._graphs = {name: graphs[name] for name in ("global", "local")}
        self._exclude, self._threads, self._targets = tuple(exclude), threads, data.targets
        self._groups = groups_of(self._graphs.values(), exclude)
        self._photos = _InMemory([resize(data.load(index), bundle.manifest.input_size) for index in range(len(data))])
        digest = hashlib.sha256(table.sha256.encode())
        for part in (method, *sorted(exclude), *self._groups):
            digest.update(f"{part}\n".encode())
        for image in self._photos.images:
            digest.update(image.tobytes())
        digest.update(np.ascontiguousarray(data.targets).tobytes())
        self.key = digest.hexdigest()
        self.blocks = tuple(self._groups)
        self._fp32 = {f"fp32/{name}.onnx": bundle.read(f"fp32/{name}.onnx") for name in self._graphs}
        self._reference: list[Prediction] = []

    def start(self) -> tuple[Point, Point]:
        """Points of fp32 and of int8 throughout."""
        with self._open(()) as base, open_pipeline(self._bundle.manifest, self._fp32, "fp32", self._threads) as fp32:
            ms = time_by_turns({"fp32": fp32, "int8": base}, self._photos.images[0])
            same = compare(self._fp32_predictions(), self._fp32_predictions(), self._targets)
            report = compare(self._fp32_predictions(), predict(base, self._photos, "int8"), self._targets)
        return _point(same, ms["fp32"]), _point(report, ms["int8"])

    def point(self, blocks: tuple[str, ...], base_ms: float) -> Point:
        """The point with some blocks in fp32; its time is ``base_ms`` times the ratio to int8 throughout."""
        with self._open(blocks) as pipeline:
            report = compare(self._fp32_predictions(), predict(pipeline, self._photos, "int8"), self._targets)
        return _point(report, self.ms(blocks, base_ms))

    def ms(self, blocks: tuple[str, ...], base_ms: float) -> float:
        """Only the time of a point."""
        with self._open(()) as base, self._open(blocks) as pipeline:
            times = time_by_turns({"base": base, "trial": pipeline}, self._photos.images[0])
        return base_ms * times["trial"] / times["base"]

    def _fp32_predictions(self) -> list[Prediction]:
        if not self._reference:
            with open_pipeline(self._bundle.manifest, self._fp32, "fp32", self._threads) as fp32:
                self._reference = predict(fp32, self._photos, "fp32")
        return self._reference

    def _open(self, blocks: tuple[str, ...]) -> Pipeline:
        exclude = {*self._exclude, *(node for block in blocks for node in self._groups[block])}
        files = {
            f"int8/{name}.onnx": quantize_for_onnxruntime(graph, self._table.of(name, self._method), exclude)
            for name, graph in self._graphs.items()
        }
        return open_pipeline(self._bundle.manifest, files, "int8", self._threads)


@dataclass(frozen=True, eq=False)
class _InMemory:
    images: list[NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]


def _point(report: Mapping[str, float], ms: float) -> Point:
    return Point(mAP=report["mAP"], score_shift=report["score_shift"], same_boxes=report["same_boxes"], ms=ms)
