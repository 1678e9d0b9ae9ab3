"""A small network of two branches with random weights: a residual block, a stage for boxes, heads as products.

And bundles of it, and images for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from glocal.runtime.bundle import Bundle, write_bundle
from glocal.runtime.pipeline import Pipeline
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
CHANNELS = 8


class Writer:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def constant(self, name: str, value) -> str:
        if all(weight.name != name for weight in self.weights):
            self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, source: str, module: str, cin: int, size: int, stride: int = 1, relu: bool = True) -> str:
        weight = self.rng.normal(size=(CHANNELS, cin, size, size), scale=(cin * size**2) ** -0.5)
        names = [
            self.constant(f"{module}.weight", weight.astype(np.float32)),
            self.constant(f"{module}.bias", self.rng.normal(size=CHANNELS, scale=0.2).astype(np.float32)),
        ]
        pads = [0 if stride > 1 else size // 2] * 4
        out = self.node("Conv", [source, *names], module, strides=[stride] * 2, pads=pads)
        return self.node("Relu", [out], f"{module}.relu") if relu else out

    def graph(self, name: str, inputs: dict, outputs: dict) -> bytes:
        values = [
            [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in side.items()]
            for side in (inputs, outputs)
        ]
        model = helper.make_model(
            helper.make_graph(self.nodes, name, *values, self.weights), opset_imports=[helper.make_opsetid("", 18)]
        )
        model.ir_version = 9
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


FLOAT = TensorProto.FLOAT
FEATURES = {"features": (FLOAT, ["B", CHANNELS, 4, 4]), "global_feature": (FLOAT, ["B", CHANNELS])}


def global_graph(labels: int, seed: int = 0) -> bytes:
    w = Writer(seed)
    x = w.node("Cast", ["image"], "single", to=FLOAT)
    x = w.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    x = w.node("Sub", [x, w.constant("mean", np.full((1, 3, 1, 1), 110, np.float32))], "centred")
    x = w.node("Mul", [x, w.constant("scale", np.full((1, 3, 1, 1), 1 / 60, np.float32))], "scaled")
    x = w.conv(x, "trunk.0", 3, 4, 4)
    y = w.conv(x, "trunk.1.conv1", CHANNELS, 3)
    y = w.conv(y, "trunk.1.conv2", CHANNELS, 3, relu=False)
    x = w.node("Add", [y, x], "trunk.1.sum")
    x = w.node("Relu", [x], "trunk.1.out")
    y = w.conv(x, "trunk.2.conv1", CHANNELS, 4, 4, relu=False)
    z = w.conv(x, "trunk.2.downsample.0", CHANNELS, 4, 4, relu=False)
    x = w.node("Add", [y, z], "trunk.2.sum")
    x = w.node("Relu", [x], "features")
    flat = w.node("Reshape", [x, w.constant("flat", np.array([0, CHANNELS, 16]))], "cells")
    flat = w.node("Transpose", [flat], "positions", perm=[0, 2, 1])
    head = w.rng.normal(size=(CHANNELS, labels)).astype(np.float32)
    scores = w.node("MatMul", [flat, w.constant("head.weight", head - head.mean(0))], "head")
    w.node("ReduceMax", [scores, w.constant("one", np.array([1]))], "logits", keepdims=0)
    maps = w.node("Transpose", [scores], "planes_of_maps", perm=[0, 2, 1])
    w.node("Reshape", [maps, w.constant("grid", np.array([0, labels, 4, 4]))], "class_maps")
    w.node("ReduceMean", [flat, "one"], "global_feature", keepdims=0)
    outputs = {"logits": (FLOAT, ["B", labels]), "class_maps": (FLOAT, ["B", labels, 4, 4]), **FEATURES}
    return w.graph("global", {"image": (TensorProto.UINT8, ["B", SIZE, SIZE, 3])}, outputs)


def local_graph(labels: int, seed: int = 1, first: str = "pooled") -> bytes:
    """RoiAlign of 2x2, a convolution, a head. ``first`` names a tensor, as another form of the graph would."""
    w = Writer(seed)
    w.node("Shape", ["counts"], "shape")
    w.node("Gather", ["shape", w.constant("zero", np.array(0))], "images")
    w.node("Range", ["zero", "images", w.constant("unit", np.array(1))], "range")
    w.node("Unsqueeze", ["range", w.constant("slots", np.array([1]))], "column")
    w.node("Expand", ["column", "shape"], "table")
    w.node("Reshape", ["table", w.constant("all", np.array([-1]))], "owners")
    w.node("Mul", ["boxes", w.constant("extent", np.full(4, 4, np.float32))], "cells")
    w.node("Reshape", ["cells", w.constant("fours", np.array([-1, 4]))], "rois")
    w.node("RoiAlign", ["features", "rois", "owners"], first, output_height=2, output_width=2, sampling_ratio=2)
    x = w.conv(first, "stage.0.conv1", CHANNELS, 1)
    x = w.node("ReduceMean", [x, w.constant("space", np.array([2, 3]))], "means", keepdims=0)
    w.node("Concat", ["shape", w.constant("width", np.array([CHANNELS]))], "sizes", axis=0)
    x = w.node("Reshape", [x, "sizes"], "tokens")
    head = w.rng.normal(size=(CHANNELS, labels)).astype(np.float32)
    x = w.node("MatMul", [x, w.constant("head.weight", head)], "head")
    w.node("Equal", ["counts", w.constant("none", np.float32(0))], "empty")
    w.node("Unsqueeze", ["empty", w.constant("last", np.array([2]))], "mask")
    x = w.node("Where", ["mask", w.constant("lowest", np.float32(-1e4)), x], "kept")
    x = w.node("ReduceMax", [x, "slots"], "peak", keepdims=0)
    total = w.node("ReduceMean", ["global_feature", "slots"], "silent", keepdims=1)
    w.node("Add", [x, total], "logits")
    inputs = {**FEATURES, "boxes": (FLOAT, ["B", "K", 4]), "counts": (FLOAT, ["B", "K"])}
    return w.graph("local", inputs, {"logits": (FLOAT, ["B", labels])})


def fields(labels: tuple[str, ...]) -> dict:
    return {
        "name": "small",
        "labels": labels,
        "input_size": (SIZE, SIZE),
        "selector": {"k_s": 2, "k_e": 2, "zetas": (0.5,), "shift": (0.2,) * len(labels)},
        "thresholds": {"fp32": (0.5,) * len(labels)},
    }


LABELS = tuple("abcde")


class Images:
    """Blobs on noise, each image its own, with targets that random weights can be scored against."""

    def __init__(self, count: int, seed: int = 0, labels: int = len(LABELS)) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 90, (count, SIZE, SIZE, 3), dtype=np.uint8)
        for image in self.pixels:
            y, x = rng.integers(0, SIZE - 24, 2)
            image[y : y + 24, x : x + 24] = rng.integers(0, 256, 3)
        self.targets = rng.integers(0, 2, (count, labels))

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> np.ndarray:
        return self.pixels[index]


def make_bundle(path: Path, seed: int = 0, labels: tuple[str, ...] = LABELS, **changes) -> Bundle:
    files = {
        "fp32/global.onnx": global_graph(len(labels), seed),
        "fp32/local.onnx": local_graph(len(labels)),
        "fp32/local.tensorrt.onnx": local_graph(len(labels), first="other_name"),
    }
    return write_bundle(path, files, **{**fields(labels), **changes})


class Answered(Images):
    """Images whose targets are what the fp32 network says: its mAP is 1, and what int8 changes costs mAP."""

    def __init__(self, bundle: Bundle, count: int, seed: int) -> None:
        super().__init__(count, seed)
        with Pipeline.load(bundle.path, threads=1) as pipeline:
            scores = np.stack([prediction.scores for prediction in pipeline.predict(list(self.pixels))])
        self.targets = (scores > np.median(scores, axis=0)).astype(np.int8)
