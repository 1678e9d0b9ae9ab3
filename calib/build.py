"""From a bundle and its table to the Q/DQ graphs of both engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..runtime.bundle import Bundle
from .graph import Graph
from .methods import Method
from .qdq_onnxruntime import quantize_for_onnxruntime
from .qdq_tensorrt import quantize_for_tensorrt
from .table import Table, check_table


def quantize(
    bundle: Bundle, graphs: Mapping[str, Graph], table: Table, method: Method, exclude: Iterable[str]
) -> dict[str, bytes]:
    """Both pairs of int8 graphs, from one table.

    Args:
        bundle: The bundle that ``graphs`` were read from.
        graphs: See ``collect.source_graphs``.
        table: Its calibration table.
        method: Which ranges of the table.
        exclude: ``graph/node`` names that stay in higher precision, see ``graph.expand``.

    Returns:
        ONNX models by path in the bundle: ``int8/global.onnx`` and ``int8/local.onnx`` for ONNX Runtime,
        ``int8/global.tensorrt.onnx`` and ``int8/local.tensorrt.onnx`` for TensorRT.

    Raises:
        CalibrationError: The table belongs to another model, or lacks the method.
    """
    check_table(table, bundle.manifest, tuple(f"fp32/{name}.onnx" for name in graphs))
    exclude = tuple(exclude)
    files = {}
    for name in ("global", "local"):
        files[f"int8/{name}.onnx"] = quantize_for_onnxruntime(graphs[name], table.of(name, method), exclude)
        source = graphs.get(f"{name}.tensorrt", graphs[name])
        ranges = table.of(source.name, method)
        files[f"int8/{name}.tensorrt.onnx"] = quantize_for_tensorrt(source, ranges, exclude)
    return files
