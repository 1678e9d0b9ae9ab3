"""From an ONNX graph to a TensorRT plan: TensorRT 8.6 to 11 and TensorRT-RTX, by what each offers.

Calls that all versions have come first; what only some have is asked for with ``hasattr``. A precision is in the graph
(half weights, Q/DQ), and where networks can be strongly typed (from 10 on) TensorRT follows it. TensorRT 8.6 needs a
flag for it and may then choose among the precisions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.backends.tensorrt_api import Gpu, Library, Log, log_of
from ..runtime.errors import EngineError, GlocalError, UsageError
from ..runtime.files import write_atomically
from ..runtime.manifest import Precision
from ..runtime.plans import PlanOptions
from ..runtime.progress import note
from .tensorrt_layers import Inspection, inspect_engine, inspect_network
from .tensorrt_progress import run_with_progress

# Axes of a graph's inputs that may differ from run to run (design: "The two graphs").
_BATCH, _BOXES = 0, 1
_WITH_BOXES = ("boxes", "counts")


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine and how it came about.

    Attributes:
        data: The plan.
        seconds: How long TensorRT built.
        layers: Layers of the network as TensorRT parsed it.
        strongly_typed: Whether the types of the graph bound TensorRT.
        inspection: In what precisions it computes.
    """

    data: bytes
    seconds: float
    layers: int
    strongly_typed: bool
    inspection: Inspection


def build_plan(
    library: Library,
    graph: bytes,
    name: str,
    precision: Precision,
    options: PlanOptions,
    *,
    gpu: Gpu | None,
    timing_cache: Path | None = None,
    allow: bool = False,
) -> BuiltPlan:
    """Build a plan from an ONNX graph.

    Args:
        library: TensorRT or TensorRT-RTX.
        graph: Serialised ONNX without external data; its dynamic axes are batch and boxes.
        name: What to call the graph in messages, such as ``fp16/global.onnx``.
        precision: The precision that the graph was made for.
        options: Sizes, limits and compatibility.
        gpu: The GPU of this machine, as `tensorrt_api.gpu` found it. TensorRT-RTX builds without one.
        timing_cache: A file with TensorRT's timings of earlier builds, read if it is there, and written. One that
            TensorRT refuses is replaced, with a message.
        allow: Accept layers that compute in a wider type than was asked for, with a message.

    Raises:
        UsageError: There is no GPU, or this version does not offer an option.
        GlocalError: TensorRT cannot parse the graph, or the precision is not used where it was asked for.
        EngineError: The build failed.
        KeyboardInterrupt: Ctrl-C; TensorRT was told to stop.
    """
    check_machine(library, gpu)
    trt, log = library.module, log_of(library)
    log.messages.clear()
    try:
        builder = trt.Builder(log.logger)
    except Exception as error:  # pybind's, where the constructor gives nothing
        raise EngineError(f"{library.name} cannot start a build.", found=f"{error}; {log.quote()}") from error
    network, strongly_typed = _network(library, builder)
    log.messages.clear()  # without a GPU TensorRT-RTX complains of it here, and builds all the same
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(graph):
        raise GlocalError(
            f"{library.name} {library.version} does not parse {name}.",
            found=_parser_errors(parser) or log.quote(),
            fix=_parser_fix(parser),
        )
    inspection = inspect_network(trt, network, name, precision, strongly_typed=strongly_typed, allow=allow)
    config = builder.create_builder_config()
    _configure(library, config, precision, options, strongly_typed)
    _set_profile(builder, network, config, name, options)
    cache = _attach_timing_cache(library, config, timing_cache)
    log.messages.clear()
    started = time.perf_counter()
    built = run_with_progress(
        trt, config, lambda: builder.build_serialized_network(network, config), f"building {name}"
    )
    seconds = time.perf_counter() - started
    if built is None:
        raise EngineError(
            f"{library.name} {library.version} could not build {name}.",
            found=log.quote(),
            fix="Close what else uses the GPU if memory is short; else try the other form of RoIAlign (--roi-align).",
        )
    if cache is not None:
        write_atomically(cache, bytes(config.get_timing_cache().serialize()))
    data = bytes(built)
    if gpu is not None and _runs_on(gpu, options):
        inspection = inspect_engine(library, data, name, inspection, allow=allow)
    return BuiltPlan(data, seconds, network.num_layers, strongly_typed, inspection)


def check_machine(library: Library, gpu: Gpu | None) -> None:
    """Refuse a machine on which TensorRT would end the process.

    Raises:
        UsageError: TensorRT needs a GPU to build, and there is none.
    """
    if gpu is None and library.name == "tensorrt":
        raise UsageError(
            "TensorRT builds plans on the GPU that runs them.",
            found="no NVIDIA driver, or no GPU",
            fix="Copy the bundle to the machine with the GPU and build there, or use --backend tensorrt_rtx.",
        )


def _runs_on(gpu: Gpu, options: PlanOptions) -> bool:
    own = "{}.{}".format(*gpu.compute_capability)
    return not options.compute_capabilities or own in options.compute_capabilities


def _network(library: Library, builder: Any) -> tuple[Any, bool]:
    """An empty network, and whether it is strongly typed."""
    trt, flags = library.module, 0
    kinds = trt.NetworkDefinitionCreationFlag
    strongly_typed = hasattr(kinds, "STRONGLY_TYPED")
    if strongly_typed:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    elif hasattr(kinds, "EXPLICIT_BATCH"):  # 10 still has it, without a meaning
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if library.name == "tensorrt" and hasattr(trt, "init_libnvinfer_plugins"):  # RoiAlign is a plugin
        trt.init_libnvinfer_plugins(log_of(library).logger, "")
    return builder.create_network(flags), strongly_typed


def _configure(library: Library, config: Any, precision: Precision, options: PlanOptions, strongly_typed: bool) -> None:
    trt = library.module
    flags = trt.BuilderFlag
    # Without this the inspector tells layers' names and nothing of their types.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if not options.tf32:
        config.clear_flag(flags.TF32)
    if not strongly_typed and precision != "fp32":
        wanted = {"fp16": "FP16", "int8": "INT8"}[precision]
        if not hasattr(flags, wanted):
            raise UsageError(f"TensorRT {library.version} has neither strongly typed networks nor {wanted}.")
        config.set_flag(getattr(flags, wanted))
    if options.version_compatible:
        if library.name == "tensorrt_rtx":
            raise UsageError("TensorRT-RTX has no version-compatible plans.", fix="Leave out --version-compatible.")
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        level = options.hardware_compatible.upper()
        if library.name == "tensorrt_rtx" or not hasattr(trt.HardwareCompatibilityLevel, level):
            fix = "Leave out --hardware-compatible: a plan of TensorRT-RTX is for any GPU."
            if library.name == "tensorrt":
                fix = "Take ampere_plus, or leave out --hardware-compatible."
            raise UsageError(f"{library.name} {library.version} has no hardware compatibility {level}.", fix=fix)
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.compute_capabilities:
        _set_compute_capabilities(library, config, options.compute_capabilities)


def _set_compute_capabilities(library: Library, config: Any, wanted: tuple[str, ...]) -> None:
    trt = library.module
    if not hasattr(trt, "ComputeCapability"):
        fix = "Build on the GPU itself, or use --backend tensorrt_rtx."
        raise UsageError(f"{library.name} {library.version} builds for its own GPU only.", fix=fix)
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    names = [f"SM{capability.replace('.', '')}" for capability in wanted]
    if missing := [name for name in names if name not in known]:
        raise UsageError(
            f"{library.name} {library.version} does not build for {', '.join(missing)}.",
            found=f"it knows {', '.join(known)}",
            fix="Leave out compute_capabilities for a plan for any GPU.",
        )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name], index)


def _set_profile(builder: Any, network: Any, config: Any, name: str, options: PlanOptions) -> None:
    """The range of batch sizes and numbers of boxes that the plan takes."""
    profile, dynamic = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        fixed = tuple(tensor.shape)
        free = [axis for axis, length in enumerate(fixed) if length < 0]
        allowed = (_BATCH, _BOXES) if tensor.name in _WITH_BOXES else (_BATCH,)
        if not set(free) <= set(allowed):
            raise GlocalError(
                f"{tensor.name} of {name} has a dynamic axis that is neither batch nor boxes.",
                found=str(fixed),
                fix="Export the bundle again.",
            )
        if free:
            dynamic = True
            shapes = [
                tuple({_BATCH: batch, _BOXES: boxes}[axis] if axis in free else n for axis, n in enumerate(fixed))
                for batch, boxes in (
                    (1, 1),
                    (min(options.opt_batch, options.max_batch), min(options.opt_boxes, options.max_boxes)),
                    (options.max_batch, options.max_boxes),
                )
            ]
            profile.set_shape(tensor.name, *shapes)
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the ranges of sizes of {name}.", found=str(options))


def _attach_timing_cache(library: Library, config: Any, path: Path | None) -> Path | None:
    """Attach the cache in a file, or an empty one where TensorRT refuses it; returns where to write it afterwards."""
    if path is None:
        return None
    log = log_of(library)
    if library.name == "tensorrt_rtx":
        note(f"{path} is not used: TensorRT-RTX has no timing cache.")
        return None
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read.", found=str(error), fix="Name a file, or a new one.") from error
    if content and not _accepts(log, config, content):
        note(f"{path} is dropped: {log.quote(1)}")
        content = b""
    if not content:
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _accepts(log: Log, config: Any, content: bytes) -> bool:
    """Whether TensorRT takes a timing cache: it may say so, give nothing, or only log that it starts an empty one."""
    log.messages.clear()
    try:
        cache = config.create_timing_cache(content)
        taken = cache is not None and config.set_timing_cache(cache, False)
    except Exception:  # pybind's, where the factory gives nothing
        return False
    return bool(taken) and not log.messages


def _parser_errors(parser: Any) -> str:
    lines = []
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        if hasattr(error, "node_name"):  # from 10 on
            place = f"{error.node_name()} ({error.node_operator()})" if error.node_name() else "the file"
        else:
            place = f"node {error.node()}"
        lines.append(f"{place}: {' '.join(error.desc().split())}")
    return "; ".join(lines)


def _parser_fix(parser: Any) -> str:
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if any("ROIAlign" in text or "RoiAlign" in text for text in errors):
        return "Export RoIAlign as a product of matrices: glocal export CHECKPOINT --roi-align matmul"
    return "Export the bundle again; if it persists, report the versions of TensorRT and onnx."
