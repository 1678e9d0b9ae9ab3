"""TensorRT plans for the graphs of a bundle, built on the machine that will run them. Needs no PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from ..runtime.backends.tensorrt_api import Backend, Gpu, Library, gpu, load_library
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError
from ..runtime.manifest import Precision
from ..runtime.plans import (
    ANY_GPU,
    GRAPHS,
    Graph,
    GraphPlan,
    Plan,
    PlanInfo,
    PlanOptions,
    graph_path,
    list_plans,
    sources,
    write_plan,
)
from ..runtime.progress import note
from .tensorrt import BuiltPlan, build_plan, check_machine


def build_plans(
    bundle: Bundle,
    backend: Backend,
    precisions: Sequence[Precision],
    options: PlanOptions | None = None,
    *,
    timing_cache: Path | None = None,
    allow: bool = False,
) -> list[Plan]:
    """Build the plans of a bundle, both graphs of each precision.

    A plan that is there already, from the same graphs, version, GPU and options, is kept. Each precision is written
    when both of its graphs are built, so that a build that was interrupted goes on where it was.

    Args:
        bundle: The bundle; plans are written into its ``plans`` folder.
        backend: ``tensorrt``, or ``tensorrt_rtx``, which can build without a GPU.
        precisions: Which precisions.
        options: Sizes, limits and compatibility. Plans take as many boxes as the bundle's selector proposes, or
            ``max_boxes`` where that is given and more.
        timing_cache: See `glocal.export.tensorrt.build_plan`.
        allow: Likewise.

    Returns:
        One plan for each precision.

    Raises:
        UsageError: The library is missing, there is no GPU to build on, or this version does not offer an option.
        BundleError: The bundle has no such precision, or a graph has changed.
        GlocalError: TensorRT cannot parse a graph, or does not use its precision.
        EngineError: A build failed.
        OSError: The bundle cannot be written.
    """
    options = options or PlanOptions()
    selector = bundle.manifest.selector
    most = selector.k_s * selector.k_e * (1 + len(selector.zetas))  # what the runtime may ask for
    asked = options.max_boxes if "max_boxes" in options.model_fields_set else 0
    options = options.model_copy(update={"max_boxes": max(asked, most)})
    for precision in precisions:
        sources(bundle, precision)  # before any long work
    library, device = load_library(backend), gpu()
    check_machine(library, device)
    return [_build(bundle, library, device, precision, options, timing_cache, allow) for precision in precisions]


def _build(
    bundle: Bundle,
    library: Library,
    device: Gpu | None,
    precision: Precision,
    options: PlanOptions,
    timing_cache: Path | None,
    allow: bool,
) -> Plan:
    wanted: dict[str, object] = {
        "library": library.name,
        "version": library.version,
        "compute_capability": _target(library, device, options),
        "precision": precision,
        "options": options,
    }
    if library.name == "tensorrt" and options.hardware_compatible == "none":
        wanted["gpu"] = device.name if device else ""  # such a plan is for one model of GPU
    digests = sources(bundle, precision)
    kept = _unchanged(bundle, wanted, digests)
    if kept is not None:
        note(f"{kept.path}: kept, nothing changed")
        return kept
    built: dict[str, BuiltPlan] = {}
    for graph in GRAPHS:
        name = graph_path(bundle.manifest, precision, graph)
        built[graph] = build_plan(
            library, bundle.read(name), name, precision, options, gpu=device, timing_cache=timing_cache, allow=allow
        )
    info = PlanInfo.model_validate(
        {
            **wanted,
            "gpu": device.name if device else "",
            "strongly_typed": all(plan.strongly_typed for plan in built.values()),
            "graphs": {graph: _facts(built[graph], digests[graph]) for graph in GRAPHS},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
    )
    plan = write_plan(bundle, info, {graph: built[graph].data for graph in GRAPHS})
    seconds, size = (sum(getattr(facts, name) for facts in info.graphs.values()) for name in ("seconds", "size"))
    note(f"{plan.path}: built in {seconds:.1f} s, {size / 1e6:.1f} MB")
    return plan


def _target(library: Library, device: Gpu | None, options: PlanOptions) -> str:
    """What the plan will run on, as `PlanInfo.compute_capability` says it."""
    if options.compute_capabilities:
        return "+".join(options.compute_capabilities)
    if library.name == "tensorrt_rtx" or device is None:
        return ANY_GPU
    return "{}.{}".format(*device.compute_capability)


def _unchanged(bundle: Bundle, wanted: dict[str, object], digests: dict[Graph, str]) -> Plan | None:
    """The plan that is there, if it is whole and what would be built."""
    for plan in list_plans(bundle):
        if isinstance(plan, GlocalError):
            continue
        same = all(getattr(plan.info, name) == value for name, value in wanted.items())
        if same and {graph: facts.source for graph, facts in plan.info.graphs.items()} == digests:
            try:
                for graph in GRAPHS:
                    plan.read(graph)
            except GlocalError:  # damaged: it is built again
                continue
            return plan
    return None


def _facts(plan: BuiltPlan, source: str) -> GraphPlan:
    return GraphPlan(
        source=source,
        sha256=hashlib.sha256(plan.data).hexdigest(),
        size=len(plan.data),
        seconds=round(plan.seconds, 3),
        layers=plan.layers,
        precisions=dict(plan.inspection.precisions),
        inspected=plan.inspection.source,
    )
