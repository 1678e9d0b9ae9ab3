"""Both graphs in ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, UsageError
from . import GlobalOutputs
from .contract import FEATURES, Binding, check_graphs

_KINDS = {"tensor(uint8)": "uint8", "tensor(float16)": "float16", "tensor(float)": "float32"}
_FIX = "Export the bundle again."


class _Provider(NamedTuple):
    """An execution provider: its name, what takes over the operators that it lacks, and where its tensors lie."""

    name: str
    others: tuple[str, ...]
    device: str


_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {
    "onnxruntime": _Provider(_CPU, (), "cpu"),
    "onnxruntime-cuda": _Provider(_CUDA, (_CPU,), "cuda"),
    "onnxruntime-tensorrt": _Provider("TensorrtExecutionProvider", (_CUDA, _CPU), "cuda"),
}


class OnnxRuntimeEngines:
    """The global and the local graph as two ONNX Runtime sessions.

    Args:
        global_graph: The global graph, a serialised ONNX model without external data.
        local_graph: The local graph, likewise.
        threads: Threads within one operator on the CPU; None leaves the choice to ONNX Runtime.
        backend: ``onnxruntime`` for the CPU, ``onnxruntime-cuda`` or ``onnxruntime-tensorrt`` for ONNX Runtime's GPU
            providers, which leave the features on the device.
        spinning: As for `open_session`; to measure with.

    Attributes:
        input_size: (height, width) of the images, pixels.
        labels: How many labels the graphs score.

    Raises:
        UsageError: ONNX Runtime has no such provider here.
        BundleError: A graph cannot be loaded, or its inputs and outputs are not those of the contract.
    """

    def __init__(
        self,
        global_graph: bytes,
        local_graph: bytes,
        threads: int | None = None,
        backend: str = "onnxruntime",
        spinning: bool = False,
    ) -> None:
        device = _available(backend).device
        self._run = _run if device == "cpu" else _Bound(device)
        self._global = open_session(global_graph, "global", threads, backend, spinning)
        self._local = open_session(local_graph, "local", threads, backend, spinning)
        self.input_size, self.labels = check_graphs(
            _bindings(self._global.get_inputs()),
            _bindings(self._global.get_outputs()),
            _bindings(self._local.get_inputs()),
            _bindings(self._local.get_outputs()),
            _FIX,
        )

    def run_global(self, images: NDArray[np.uint8]) -> GlobalOutputs:
        """Run the global graph.

        Args:
            images: (B, H, W, 3) uint8 RGB, already resized.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        outputs = self._run(self._global, {"image": _value(images)}, ("logits", "class_maps", *FEATURES), "global")
        logits, class_maps, *features = outputs
        return GlobalOutputs(logits.numpy(), class_maps.numpy(), dict(zip(FEATURES, features, strict=True)))

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
        return self._run(self._local, inputs, ("logits",), "local")[0].numpy()

    def close(self) -> None:
        """Free both sessions."""
        del self._global, self._local


def _available(backend: str) -> _Provider:
    provider = PROVIDERS.get(backend)
    if provider is None:
        raise UsageError(f"ONNX Runtime has no backend {backend!r}.", fix=f"Choose one of {', '.join(PROVIDERS)}.")
    there = ort.get_available_providers()
    if provider.name not in there:
        raise UsageError(
            f"This ONNX Runtime has no {provider.name}, which the backend {backend} needs.",
            found=", ".join(there),
            fix="pip uninstall onnxruntime, then pip install onnxruntime-gpu; on a Jetson, NVIDIA's wheel of it.",
        )
    return provider


def open_session(
    graph: bytes, name: str, threads: int | None = None, backend: str = "onnxruntime", spinning: bool = False
) -> ort.InferenceSession:
    """A session with the options that both graphs run with.

    Args:
        graph: A serialised ONNX model without external data.
        name: What to call the graph in errors.
        threads: Threads within one operator on the CPU; None leaves the choice to ONNX Runtime.
        backend: One of `PROVIDERS`.
        spinning: Let the session's idle threads spin on when a run has ended, which is ONNX Runtime's default.

    Raises:
        UsageError: ONNX Runtime has no such provider here.
        BundleError: The graph cannot be loaded.
    """
    provider = _available(backend)
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # every error is also raised
    # Threads that spin on take the cores from the other session, whose turn it is: the pair of a ResNet-101 was a
    # sixth slower, and its local graph took 1.7 times as long (`glocal bench threads`).
    options.add_session_config_entry("session.force_spinning_stop", "0" if spinning else "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(graph, options, providers=[provider.name, *provider.others])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        found = str(error)
        raise BundleError(f"ONNX Runtime cannot load the {name} graph.", found=found, fix=_FIX) from error
    used = session.get_providers()
    if provider.name not in used:  # it only warns where the provider's libraries cannot be loaded
        raise UsageError(
            f"ONNX Runtime could not start {provider.name} and would have run on other providers.",
            found=", ".join(used),
            fix="Install the CUDA, cuDNN and TensorRT versions that this onnxruntime-gpu was built for, and see that "
            "nvidia-smi shows the GPU.",
        )
    return session


def _bindings(tensors: Sequence[Any]) -> dict[str, Binding]:
    return {
        tensor.name: Binding(
            _KINDS.get(tensor.type, tensor.type),
            tuple(length if isinstance(length, int) else None for length in tensor.shape),
        )
        for tensor in tensors
    }


def _value(array: NDArray[Any]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))  # on the CPU it is not copied


def _run(
    session: ort.InferenceSession, inputs: Mapping[str, ort.OrtValue], outputs: Sequence[str], name: str
) -> Sequence[ort.OrtValue]:
    try:
        # Values in and out stay where they are: what is not asked for as an array is not copied.
        return session.run_with_ort_values(outputs, inputs)
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise _failed(name, error) from error


class _Bound(NamedTuple):
    """Runs a session with the features left on a device, which plain runs would copy to the host."""

    device: str

    def __call__(
        self, session: ort.InferenceSession, inputs: Mapping[str, ort.OrtValue], outputs: Sequence[str], name: str
    ) -> Sequence[ort.OrtValue]:
        try:
            binding = session.io_binding()
            for key, value in inputs.items():
                binding.bind_ortvalue_input(key, value)
            for key in outputs:
                binding.bind_output(key, self.device if key in FEATURES else "cpu")
            session.run_with_iobinding(binding)
            values: Sequence[ort.OrtValue] = binding.get_outputs()
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise _failed(name, error) from error
        return values


def _failed(name: str, error: Exception) -> EngineError:
    fix = "Use a smaller batch if memory is short; else export the bundle again."
    return EngineError(f"The {name} engine failed.", found=str(error), fix=fix)
