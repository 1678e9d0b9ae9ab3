"""The Q/DQ graph for ONNX Runtime on a CPU: U8 asymmetric activations, S8 weights per channel, int32 bias.

Measured on a CPU with VNNI, this form is three times as fast as fp32, where S8 symmetric activations are no faster.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from ..runtime.errors import CalibrationError
from .graph import CARRIED, WEIGHTED, Graph


def quantize_for_onnxruntime(
    graph: Graph, ranges: Mapping[str, tuple[float, float]], exclude: Iterable[str] = ()
) -> bytes:
    """Put Q/DQ around every node that is to be quantised; ONNX Runtime turns them into integer kernels when it loads.

    Args:
        graph: An fp32 graph.
        ranges: (low, high) by tensor.
        exclude: ``graph/node`` names that stay in fp32.

    Returns:
        The ONNX model. Without a node to quantise it computes what the fp32 graph computes.

    Raises:
        CalibrationError: A range is missing, or onnxruntime.quantization failed.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = graph.quantised(exclude)
    if not nodes:  # an empty list means "all" to QDQQuantizer
        return model.SerializeToString()
    missing = set(graph.activations()) - set(ranges)
    if missing:
        found = f"no range for {len(missing)} tensors, such as {min(missing)}"
        fix = "Calibrate again with this version."
        raise CalibrationError(f"The table does not cover the {graph.name} graph.", found=found, fix=fix)
    data = {
        tensor: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for tensor, (low, high) in ranges.items()
    }
    # The library asks for the tensor between a node and its activation too, and then does as below.
    data |= {node.input[0]: data[node.output[0]] for node, _ in graph.joined()}
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=list(nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=[*WEIGHTED, *CARRIED],
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
    except Exception as error:  # the library raises what it likes
        raise CalibrationError(
            f"onnxruntime.quantization cannot quantise the {graph.name} graph.",
            found=f"{type(error).__name__}: {error}",
            fix="Exclude the node that it names, or try another version of onnxruntime.",
        ) from error
    finally:
        logging.getLogger().setLevel(level)
    quantizer.model.topological_sort()
    return _finished(quantizer.model.model)


def _finished(model: onnx.ModelProto) -> bytes:
    del model.graph.value_info[:]  # types of tensors that are gone, or changed
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
