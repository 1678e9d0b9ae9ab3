"""In what precision does a plan compute? A precision that was asked for and silently not used is an error.

Looked at are the layers that do the work: convolutions and matrix products. What a layer was asked for stands in the
network as TensorRT parsed it: half tensors, or Q/DQ pairs before both of its inputs. What it became stands in the
engine, which only a GPU can open; there the types of weights and the kernel's name tell, for where shapes are dynamic
the inspector does not say the types of tensors.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..runtime.backends.tensorrt_api import Library, log_of
from ..runtime.errors import EngineError, GlocalError
from ..runtime.manifest import Precision
from ..runtime.progress import note

_SHOWN = 5  # layers that an error names
_WORKING = ("CONVOLUTION", "DECONVOLUTION", "FULLY_CONNECTED", "MATRIX_MULTIPLY")
_CONVOLUTIONS = ("CONVOLUTION", "DECONVOLUTION")
_RENAMED = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8"}
# How the inspector writes types of weights and tensors, and how kernels are named (sm80_xmma_fprop_..._f16f16_f32).
_TYPES: tuple[tuple[Precision, re.Pattern[str]], ...] = (
    ("int8", re.compile(r"int8", re.I)),
    ("fp16", re.compile(r"half|fp16", re.I)),
    ("fp32", re.compile(r"float|fp32", re.I)),
)
_KERNELS: tuple[tuple[Precision, re.Pattern[str]], ...] = (
    ("int8", re.compile(r"i8i8|i8816|imma|int8", re.I)),
    ("fp16", re.compile(r"f16f16|h16816|h884|hmma|fp16|half", re.I)),
    ("fp32", re.compile(r"f32f32|sgemm|scudnn|ffma|tf32|fp32", re.I)),
)


@dataclass(frozen=True)
class Inspection:
    """What layers compute in.

    Attributes:
        asked: Precision of each working layer by its name, as the network says.
        precisions: How many working layers compute in each precision; ``unknown`` where the engine does not say.
        source: Whether ``precisions`` were read from the engine or from the network.
        strongly_typed: Whether TensorRT had to follow the network.
    """

    asked: dict[str, Precision]
    precisions: dict[str, int]
    source: Literal["engine", "network"]
    strongly_typed: bool = True


def inspect_network(
    trt: Any, network: Any, name: str, precision: Precision, *, strongly_typed: bool = True, allow: bool = False
) -> Inspection:
    """What the parsed network asks for, layer by layer.

    Args:
        trt: The TensorRT module.
        network: The parsed network.
        name: What to call the graph in messages.
        precision: What the graph was made for.
        strongly_typed: Whether the types in the network are binding; else fp16 is asked of all convolutions.
        allow: Print what would be refused.

    Raises:
        GlocalError: The graph is not of the precision, or a layer has Q/DQ on one input only, so that it cannot compute
            in INT8.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantized = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
    kinds = {getattr(trt.LayerType, kind): kind for kind in _WORKING if hasattr(trt.LayerType, kind)}
    asked: dict[str, Precision] = {}
    convolutions, lopsided = [], []
    for layer in layers:
        if layer.type not in kinds:
            continue
        inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
        quantized = [tensor is not None and tensor.name in dequantized for tensor in inputs]
        if len(quantized) == 2 and all(quantized):
            asked[layer.name] = "int8"
        elif any(quantized):
            lopsided.append(layer.name)
        elif not strongly_typed and precision == "fp16" and kinds[layer.type] in _CONVOLUTIONS:
            asked[layer.name] = "fp16"
        elif (kind := _RENAMED.get(layer.get_output(0).dtype.name)) is not None:
            asked[layer.name] = kind  # type: ignore[assignment]
        if kinds[layer.type] in _CONVOLUTIONS:
            convolutions.append(layer.name)
    if lopsided:
        what = f"{name} quantises one input of a layer and not the other, so TensorRT does not compute it in INT8."
        _refuse(what, lopsided, "Calibrate and export the bundle again.", allow)
    others, allowed = _others(asked, convolutions, precision)
    if len(others) > allowed:
        what = f"{name} was asked for in {precision}, but has layers that are not."
        listed = [f"{layer} ({asked.get(layer, 'of another type')})" for layer in others]
        _refuse(what, listed, "Export the bundle again with this precision.", allow)
    return Inspection(asked, dict(Counter(asked.values())), "network", strongly_typed)


def inspect_engine(library: Library, plan: bytes, name: str, asked: Inspection, *, allow: bool = False) -> Inspection:
    """What the engine computes in, layer by layer.

    Args:
        library: TensorRT.
        plan: The serialised engine.
        name: What to call the graph in messages.
        asked: What the network asked for.
        allow: Print what would be refused.

    Raises:
        EngineError: TensorRT cannot open the plan that it has just built.
        GlocalError: A layer computes in a wider type than it was asked for.
    """
    trt, log = library.module, log_of(library)
    runtime = trt.Runtime(log.logger)
    runtime.engine_host_code_allowed = True  # a version-compatible plan holds code; this one was built here
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{library.name} cannot open the plan of {name} that it built.", found=log.quote())
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return check_engine(text, name, asked, allow=allow)


def check_engine(text: str, name: str, asked: Inspection, *, allow: bool = False) -> Inspection:
    """Compare the inspector's JSON with what the network asked for.

    Args:
        text: What ``EngineInspector.get_engine_information`` gave.
        name: What to call the graph in messages.
        asked: What the network asked for.
        allow: Print what would be refused.

    Raises:
        GlocalError: A layer computes in a wider type than it was asked for. Where the network was not strongly typed
            and TensorRT could choose: most layers do.
    """
    try:
        layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    except (ValueError, KeyError, TypeError):
        layers = []  # nothing to learn: all layers are unknown
    found: dict[str, Precision | None] = dict.fromkeys(asked.asked)
    for entry in layers:
        precision = layer_precision(entry)
        told = f"{entry.get('Name', '')} {entry.get('Metadata', '')}"
        if precision is None or entry.get("LayerType") in ("Reformat", "Constant"):
            continue
        for layer in found:
            if _mentions(told, layer):
                found[layer] = precision
    order = ("int8", "fp16", "fp32")
    wider = [
        f"{layer} ({precision} instead of {asked.asked[layer]})"
        for layer, precision in found.items()
        if precision is not None and order.index(precision) > order.index(asked.asked[layer])
    ]
    if len(wider) > (0 if asked.strongly_typed else len(found) // 2):
        fix = "Use another precision, a newer TensorRT, or leave these layers out of the quantisation."
        _refuse(f"TensorRT built layers of {name} in a wider type than was asked for.", wider, fix, allow)
    precisions: dict[str, int] = dict(Counter(value or "unknown" for value in found.values()))
    return Inspection(asked.asked, precisions, "engine", asked.strongly_typed)


def layer_precision(entry: dict[str, Any]) -> Precision | None:
    """The precision of one layer of the inspector's JSON, or None where it does not say."""
    weights = entry.get("Weights")
    if isinstance(weights, dict) and (found := _first(_TYPES, [str(weights.get("Type", ""))])):
        return found
    if found := _first(_KERNELS, [str(entry.get("TacticName", ""))]):
        return found
    inputs = [entry for entry in entry.get("Inputs") or [] if isinstance(entry, dict)]
    return _first(_TYPES, [str(each.get("Format/Datatype", "")) for each in inputs])


def _first(patterns: Iterable[tuple[Precision, re.Pattern[str]]], texts: list[str]) -> Precision | None:
    for precision, pattern in patterns:
        if any(pattern.search(text) for text in texts):
            return precision
    return None


def _mentions(text: str, layer: str) -> bool:
    return re.search(rf"(?<![\w./]){re.escape(layer)}(?![\w./])", text) is not None


def _others(asked: dict[str, Precision], convolutions: list[str], precision: Precision) -> tuple[list[str], int]:
    """The layers that should be of the precision and are not, and how many of them are allowed.

    All convolutions of an fp16 graph are half; products may be wider on purpose, as those of classifiers are. Of an
    int8 graph's convolutions most are quantised: calibration may leave some out, and products, of which there are few.
    """
    watched = convolutions if convolutions or precision == "int8" else list(asked)
    others = [layer for layer in watched if asked.get(layer) != precision]
    if precision == "fp32":
        return others, len(watched)
    if precision == "int8":
        return others, len(watched) // 2
    return others, 0 if convolutions else max(len(watched) - 1, 0)


def _refuse(what: str, layers: list[str], fix: str, allow: bool) -> None:
    more = len(layers) - _SHOWN
    found = ", ".join(layers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if not allow:
        raise GlocalError(what, found=found, fix=fix)
    note(f"allowed: {what} {found}")
