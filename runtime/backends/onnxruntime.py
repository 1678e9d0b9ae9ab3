"""Both graphs in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import BundleError, EngineError
from . import GlobalOutputs

_HALF_OR_SINGLE = ("tensor(float16)", "tensor(float)")
_SINGLE = ("tensor(float)",)
_FIX = "Export the bundle again."


class _Tensor(NamedTuple):
    """What the contract says of an input or output: its types, and which axes may differ from run to run."""

    types: tuple[str, ...]
    dynamic: tuple[bool, ...]


_FEATURES = {
    "features": _Tensor(_HALF_OR_SINGLE, (True, False, False, False)),
    "global_feature": _Tensor(_HALF_OR_SINGLE, (True, False)),
}
_LOGITS = {"logits": _Tensor(_SINGLE, (True, False))}
_GLOBAL_INPUTS = {"image": _Tensor(("tensor(uint8)",), (True, False, False, False))}
_GLOBAL_OUTPUTS = {**_LOGITS, "class_maps": _Tensor(_SINGLE, (True, False, False, False)), **_FEATURES}
_LOCAL_INPUTS = {
    **_FEATURES,
    "boxes": _Tensor(_SINGLE, (True, True, False)),
    "counts": _Tensor(_SINGLE, (True, True)),
}


class OnnxRuntimeEngines:
    """The global and the local graph as two ONNX Runtime sessions on the CPU.

    Args:
        global_graph: The global graph, a serialised ONNX model without external data.
        local_graph: The local graph, likewise.
        threads: Threads within one operator; None leaves the choice to ONNX Runtime.

    Attributes:
        input_size: (height, width) of the images, pixels.
        labels: How many labels the graphs score.

    Raises:
        BundleError: A graph cannot be loaded, or its inputs and outputs are not those of the contract.
    """

    def __init__(self, global_graph: bytes, local_graph: bytes, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # every error is also raised
        if threads is not None:
            options.intra_op_num_threads = threads
        self._global = _open(global_graph, options, "global")
        self._local = _open(local_graph, options, "local")

        image = _check(self._global.get_inputs(), _GLOBAL_INPUTS, "inputs of the global graph")
        given = _check(self._global.get_outputs(), _GLOBAL_OUTPUTS, "outputs of the global graph")
        taken = _check(self._local.get_inputs(), _LOCAL_INPUTS, "inputs of the local graph")
        scores = _check(self._local.get_outputs(), _LOGITS, "outputs of the local graph")
        for name in _FEATURES:
            if given[name] != taken[name]:
                found = f"{given[name]} from the global graph, {taken[name]} into the local graph"
                raise BundleError(f"{name} does not fit between the graphs.", found=found, fix=_FIX)
        counted = {given["logits"][1][1], given["class_maps"][1][1], scores["logits"][1][1]}
        if len(counted) > 1:
            raise BundleError("The graphs differ in labels.", found=f"{sorted(counted)} labels", fix=_FIX)
        self.input_size: tuple[int, int] = image["image"][1][1:3]
        self.labels: int = counted.pop()

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global graph.

        Args:
            images: (B, H, W, 3) uint8 RGB, already resized.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        outputs = _run(self._global, {"image": _value(images)}, list(_GLOBAL_OUTPUTS), "global")
        logits, class_maps, *features = outputs
        return GlobalOutputs(logits.numpy(), class_maps.numpy(), dict(zip(_FEATURES, features, strict=True)))

    def run_local(
        self, outputs: GlobalOutputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Run the local graph.

        Args:
            outputs: What the global graph gave for the same B images.
            boxes: (B, K, 4) float32 (x0, y0, x1, y1) in [0, 1].
            counts: (B, K) float32, how often each box was proposed; 0 for a slot without box.

        Returns:
            (B, N) float32 logits.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        inputs = {**outputs.on_device, "boxes": _value(boxes), "counts": _value(counts)}
        return _run(self._local, inputs, ["logits"], "local")[0].numpy()

    def close(self) -> None:
        """Free both sessions."""
        del self._global, self._local


def _open(graph: bytes, options: ort.SessionOptions, name: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        found = str(error)
        raise BundleError(f"ONNX Runtime cannot load the {name} graph.", found=found, fix=_FIX) from error


def _value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))  # on the CPU it is not copied


def _run(
    session: ort.InferenceSession, inputs: Mapping[str, ort.OrtValue], outputs: Sequence[str], name: str
) -> Sequence[ort.OrtValue]:
    try:
        # Values in and out stay where they are: what is not asked for as an array is not copied.
        return session.run_with_ort_values(outputs, inputs)
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        fix = "Use a smaller batch if memory is short; else export the bundle again."
        raise EngineError(f"The {name} engine failed.", found=str(error), fix=fix) from error


def _check(tensors: Sequence[Any], contract: Mapping[str, _Tensor], what: str) -> dict[str, tuple[str, Any]]:
    """Check names, types and shapes; returns type and shape by name, with None for a dynamic axis."""
    found = {tensor.name: (tensor.type, tensor.shape) for tensor in tensors}
    if set(found) != set(contract):
        raise BundleError(
            f"The {what} are not those of a bundle's graph.",
            found=f"{', '.join(sorted(found))}, expected {', '.join(sorted(contract))}",
            fix=_FIX,
        )
    checked = {}
    for name, (kind, axes) in found.items():
        shape = tuple(length if isinstance(length, int) else None for length in axes)
        expected = contract[name]
        dynamic = tuple(length is None for length in shape)
        if kind not in expected.types or dynamic != expected.dynamic:
            wanted = ["dynamic" if free else "fixed" for free in expected.dynamic]
            raise BundleError(
                f"{name} has the wrong type or shape among the {what}.",
                found=f"{kind} {axes}, expected {' or '.join(expected.types)} [{', '.join(wanted)}]",
                fix=_FIX,
            )
        checked[name] = (kind, shape)
    return checked
