"""Activation ranges from the real chain: photos -> global graph -> selector -> local graph."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ..runtime import __version__
from ..runtime.backends import GlobalOutputs
from ..runtime.bundle import Bundle
from ..runtime.errors import CalibrationError
from ..runtime.manifest import Manifest
from ..runtime.pipeline import Pipeline, selector_of
from ..runtime.progress import progressed
from .graph import Graph, read_graph
from .histogram import Histogram
from .methods import METHODS, RANGES, Method
from .photos import Photos
from .table import MINIMUM, Table

_FEATURES = ("features", "global_feature")


def source_graphs(bundle: Bundle) -> dict[str, Graph]:
    """The fp32 graphs of a bundle by name: ``global``, ``local``, and ``local.tensorrt`` where TensorRT has its own.

    Raises:
        BundleError: The bundle has no fp32 graphs, or they are damaged.
        CalibrationError: A graph is no valid ONNX.
    """
    names = [
        name
        for name in ("global", "local", "local.tensorrt")
        if name != "local.tensorrt" or _path(name) in bundle.manifest.files
    ]
    return {name: read_graph(name, bundle.read(_path(name))) for name in names}


def collect(bundle: Bundle, photos: Photos, methods: Sequence[Method] = METHODS, threads: int | None = None) -> Table:
    """Run the fp32 chain over calibration images and compute ranges of its activations.

    Images are resized by the runtime's own rule, the boxes of the local graph are those that the selector chooses, and
    both graphs are run image by image, so that no padding slot enters the statistics. One image's activations are in
    memory at a time; what stays of them is a histogram for each tensor.

    Args:
        bundle: The bundle with its fp32 graphs.
        photos: At least ``MINIMUM`` images, no two alike.
        methods: How to compute ranges.
        threads: Of ONNX Runtime; None leaves the choice to it.

    Raises:
        CalibrationError: There are too few images, two are identical once resized, one cannot be predicted, or an
            activation is not finite.
    """
    if len(photos) < MINIMUM:
        raise CalibrationError(
            f"{len(photos)} images are too few to calibrate with.",
            found=f"{len(photos)} images, at least {MINIMUM} are needed",
            fix="Give 128 to 512 images like those of the field; fewer leave the ranges to chance.",
        )
    graphs = source_graphs(bundle)
    recorder = _Recorder(graphs, bundle.manifest, threads)
    with Pipeline(bundle.manifest, "fp32", recorder, selector_of(bundle.manifest)) as pipeline:
        for index in progressed(range(len(photos)), "calibrating"):
            prediction = pipeline.predict([photos.load(index)], [f"calibration image {index}"])[0]
            if prediction.error is not None:
                raise CalibrationError(
                    "An image cannot be used to calibrate.", found=prediction.error, fix="Leave it out."
                )
    return Table(
        graphs={_path(name): bundle.manifest.files[_path(name)] for name in graphs},
        data_sha256=recorder.digest.hexdigest(),
        images=len(photos),
        input_size=bundle.manifest.input_size,
        resize=bundle.manifest.resize,
        selector=bundle.manifest.selector,
        methods=tuple(methods),
        ranges={
            name: {
                tensor: {method: RANGES[method](histogram) for method in methods}
                for tensor, histogram in progressed(histograms.items(), f"ranges of the {name} graph")
            }
            for name, histograms in recorder.histograms.items()
        },
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={
            "glocal": __version__,
            "onnxruntime": version("onnxruntime"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
    )


class _Recorder:
    """The engines of a pipeline that count every activation which could be quantised."""

    def __init__(self, graphs: Mapping[str, Graph], manifest: Manifest, threads: int | None) -> None:
        self.input_size, self.labels = manifest.input_size, len(manifest.labels)
        self.digest = hashlib.sha256()
        self.histograms = {name: {tensor: Histogram() for tensor in g.activations()} for name, g in graphs.items()}
        self._sessions = {name: _session(graph, threads) for name, graph in graphs.items()}
        self._seen: dict[bytes, int] = {}
        self._images = 0

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global graph on one image (1, H, W, 3)."""
        pixels = images.tobytes()
        self.digest.update(pixels)
        first = self._seen.setdefault(hashlib.sha256(pixels).digest(), self._images)
        if first != self._images:
            raise CalibrationError(
                "Two calibration images are identical once resized.",
                found=f"image {self._images} is image {first} again",
                fix="Leave copies out: they add nothing to the ranges, and hide that there are too few images.",
            )
        self._images += 1
        values = self._run("global", {"image": images})
        return GlobalOutputs(values["logits"], values["class_maps"], {name: values[name] for name in _FEATURES})

    def run_local(
        self, outputs: GlobalOutputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Run every form of the local graph on the boxes of one image."""
        inputs = {**outputs.on_device, "boxes": boxes, "counts": counts}
        values = {name: self._run(name, inputs) for name in self._sessions if name != "global"}
        return values["local"]["logits"]

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()

    def _run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        try:
            values = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            fix = "Free memory, or use a smaller input size: all activations of one image must fit."
            raise CalibrationError(f"The {name} graph failed.", found=str(error), fix=fix) from error
        for tensor, histogram in self.histograms[name].items():
            try:
                histogram.add(values[tensor] if tensor in values else inputs[tensor])
            except ValueError as error:
                raise CalibrationError(
                    f"{tensor} of the {name} graph is not finite for calibration image {self._images - 1}.",
                    fix="Leave the image out, or train the model again: its fp32 graphs overflow.",
                ) from error
        return values


def _session(graph: Graph, threads: int | None) -> ort.InferenceSession:
    """The graph with every activation that could be quantised as a further output."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    given = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
        for tensor in graph.activations()
        if tensor not in given
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        fix = "Export the bundle again."
        raise CalibrationError(
            f"ONNX Runtime cannot load the {graph.name} graph.", found=str(error), fix=fix
        ) from error


def _path(name: str) -> str:
    return f"fp32/{name}.onnx"
