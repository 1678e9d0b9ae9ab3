"""TensorRT plans beside a bundle's graphs: for one version, one kind of GPU and the graphs that they were built from.

A plan is made on the machine that runs it, so it is not in the bundle's manifest. It stands in
``plans/<library>-<version>-<sm89 | any>-<precision>/`` as ``global.plan``, ``local.plan`` and ``plan.json``.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .backends.tensorrt_api import Backend, parse_version
from .bundle import Bundle
from .errors import BundleError, GlocalError
from .files import open_inside, stage_folder, write_atomically, write_through
from .manifest import Manifest, Precision

Graph = Literal["global", "local"]
GRAPHS: tuple[Graph, ...] = get_args(Graph)
PLANS, PLAN_JSON = "plans", "plan.json"
ANY_GPU = "any"

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlanOptions(_Model):
    """What a build was asked for; a plan is built again when one of these changes.

    Attributes:
        max_batch: Most images at once.
        opt_batch: Images at once that the plan is tuned for.
        max_boxes: Most boxes per image.
        opt_boxes: Boxes per image that the plan is tuned for.
        workspace_mb: Most memory for intermediate results, MiB; None for TensorRT's default.
        tf32: Whether float32 products may round their factors to 10 bits (from Ampere on). An fp32 plan would no
            longer agree with the other engines to 1e-3.
        version_compatible: Whether later versions of the same major can load the plan.
        hardware_compatible: ``ampere_plus`` for a plan that runs on any GPU from compute capability 8.0 on;
            ``same_compute_capability`` for any GPU of this compute capability; ``none`` for this model of GPU.
        compute_capabilities: TensorRT-RTX only: what to build for, such as ("8.9",). Empty: a plan for any GPU.
    """

    max_batch: _Count = 8
    opt_batch: _Count = 1
    max_boxes: _Count = 24
    opt_boxes: _Count = 8
    workspace_mb: _Count | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] = ()


class GraphPlan(_Model):
    """One of the two graphs of a plan.

    Attributes:
        source: sha256 of the ONNX graph.
        sha256: sha256 of the plan.
        size: Bytes of the plan.
        seconds: How long the build took.
        layers: Layers of the network as TensorRT parsed it.
        precisions: How many convolutions and matrix products compute in each precision.
        inspected: Whether ``precisions`` were read from the engine, or, without a GPU, from the parsed network.
    """

    source: _Sha256
    sha256: _Sha256
    size: _Count
    seconds: float = Field(ge=0)
    layers: _Count
    precisions: dict[str, int]
    inspected: Literal["engine", "network"]


class PlanInfo(_Model):
    """The content of ``plan.json``.

    Attributes:
        schema_version: Layout of the folder.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: The version of the library that built it.
        compute_capability: What it runs on: ``8.9``, several joined by ``+``, or ``any``.
        gpu: The GPU it was built on; empty for none.
        precision: The precision of its graphs.
        strongly_typed: Whether each layer has the type that the graph says (else TensorRT chose among the allowed).
        options: What the build was asked for.
        graphs: Facts of the global and the local plan.
        verification: Largest differences between this plan and the graphs, see ``glocal verify``.
        date: When it was built.
    """

    schema_version: Literal[1] = 1
    library: Backend
    version: str = Field(min_length=1)
    compute_capability: str = Field(pattern=r"^(any|\d+\.\d(\+\d+\.\d)*)$")
    gpu: str
    precision: Precision
    strongly_typed: bool
    options: PlanOptions
    graphs: dict[Graph, GraphPlan] = Field(min_length=2)
    verification: dict[str, float] = {}
    date: str

    @property
    def key(self) -> str:
        """The name of its folder."""
        gpus = self.compute_capability.replace(".", "").split("+")
        name = ANY_GPU if gpus == [ANY_GPU] else "+".join(f"sm{gpu}" for gpu in gpus)
        return f"{self.library}-{self.version}-{name}-{self.precision}"


@dataclass(frozen=True)
class Plan:
    """A plan on disk.

    Attributes:
        path: Its folder.
        info: The content of its ``plan.json``.
    """

    path: Path
    info: PlanInfo

    def read(self, graph: Graph) -> bytes:
        """The serialised engine of one graph; the bytes that are returned are the bytes that were checked.

        Raises:
            BundleError: The file is missing, or not the one that was built.
        """
        fix = rebuild(self.info.library, self.info.precision, self.path.parents[1])
        with open_inside(self.path, f"{graph}.plan", fix) as file:
            data = file.read()
        digest, expected = hashlib.sha256(data).hexdigest(), self.info.graphs[graph].sha256
        if digest != expected:
            raise BundleError(
                f"{self.path / graph}.plan is not the plan that was built.",
                found=f"sha256 {digest[:12]}..., expected {expected[:12]}...",
                fix=fix,
            )
        return data


def graph_path(manifest: Manifest, precision: str, graph: Graph) -> str:
    """The file that TensorRT builds a graph from: its own form of the graph where the bundle has one.

    Raises:
        BundleError: The bundle has no graph of this precision.
    """
    for name in (f"{precision}/{graph}.tensorrt.onnx", f"{precision}/{graph}.onnx"):
        if name in manifest.files:
            return name
    has = ", ".join(manifest.precisions)
    raise BundleError(
        f"The bundle has no {precision} graphs.", found=has, fix=f"Choose a precision that it has: {has}."
    )


def find_plan(
    bundle: Bundle, library: Backend, version: str, compute_capability: tuple[int, int] | None, precision: Precision
) -> Plan:
    """The plan of a bundle that fits this machine.

    Args:
        bundle: The bundle.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: The installed version of it.
        compute_capability: Of the GPU, such as (8, 9); None without one.
        precision: Which precision.

    Raises:
        BundleError: There is no such plan, or what there is was built for another version, GPU or graph; nothing of it
            was handed to TensorRT.
    """
    fitting, reasons = [], []
    for plan in list_plans(bundle):
        if isinstance(plan, GlocalError):
            reasons.append(f"{plan.what} {plan.found}")
        elif (plan.info.library, plan.info.precision) == (library, precision):
            reason = _unfit(plan.info, bundle, version, compute_capability)
            if reason is None:
                fitting.append(plan)
            reasons.append(f"{plan.path.name}: {reason}")
    if fitting:  # rather the one for this very version and GPU than a compatible one
        own = [_covers(plan.info, compute_capability, exactly=True) for plan in fitting]
        return max(zip(fitting, own, strict=True), key=lambda pair: (pair[0].info.version == version, pair[1]))[0]
    raise BundleError(
        f"{bundle.path} has no {precision} plan for {library} {version}{_on(compute_capability)}.",
        found="; ".join(reasons) or f"no {precision} plan of {library} at all",
        fix=rebuild(library, precision, bundle.path),
    )


def list_plans(bundle: Bundle) -> list[Plan | GlocalError]:
    """All plans of a bundle by name, with an error in the place of one that cannot be read."""
    folder = bundle.path / PLANS
    found: list[Plan | GlocalError] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):  # a dot: unfinished work of a build that was ended
            try:
                found.append(read_plan(path))
            except GlocalError as error:
                found.append(error)
    return found


def read_plan(folder: Path) -> Plan:
    """Read the ``plan.json`` of a plan.

    Raises:
        BundleError: It is missing, follows another schema, or tells of another folder.
    """
    fix = "Remove the folder and build the plan again: glocal export BUNDLE --backend tensorrt"
    with open_inside(folder, PLAN_JSON, fix) as file:
        text = file.read()
    try:
        info = PlanInfo.model_validate_json(text)
    except ValidationError as error:
        mistake = error.errors()[0]
        found = f"{'.'.join(str(part) for part in mistake['loc'])}: {mistake['msg']}"
        raise BundleError(f"{folder / PLAN_JSON} does not follow the schema.", found=found, fix=fix) from error
    if info.key != folder.name:
        raise BundleError(f"{folder / PLAN_JSON} belongs to another plan.", found=info.key, fix=fix)
    return Plan(folder, info)


def write_plan(bundle: Bundle, info: PlanInfo, plans: dict[Graph, bytes]) -> Plan:
    """Write a plan into a bundle, all of it or nothing; one of the same key is replaced.

    Raises:
        OSError: The folder cannot be written.
    """
    path = bundle.path / PLANS / info.key
    with stage_folder(path) as staging:
        for graph, data in plans.items():
            write_through(staging / f"{graph}.plan", data)
        write_through(staging / PLAN_JSON, (info.model_dump_json(indent=2) + "\n").encode())
    return Plan(path, info)


def record_verification(plan: Plan, figures: dict[str, float]) -> Plan:
    """Note in ``plan.json`` how far a plan is from its graphs."""
    info = plan.info.model_copy(update={"verification": dict(figures)})
    write_atomically(plan.path / PLAN_JSON, (info.model_dump_json(indent=2) + "\n").encode())
    return Plan(plan.path, info)


def remove_plan(plan: Plan) -> None:
    """Remove a plan, first out of sight, so that nobody meets half of it.

    Raises:
        OSError: The folder cannot be written.
    """
    hidden = plan.path.with_name(f".{plan.path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(plan.path.rename(hidden))


def sources(bundle: Bundle, precision: Precision) -> dict[Graph, str]:
    """sha256 of the graphs that a plan of this precision is built from."""
    return {graph: bundle.manifest.files[graph_path(bundle.manifest, precision, graph)] for graph in GRAPHS}


def rebuild(library: str, precision: str, bundle: Any = "BUNDLE") -> str:
    """The command that makes a plan."""
    return f"glocal export {bundle} --backend {library} --precision {precision}"


def _unfit(info: PlanInfo, bundle: Bundle, version: str, compute_capability: tuple[int, int] | None) -> str | None:
    """Why a plan cannot be used here, or None."""
    if info.version != version and not (info.options.version_compatible and _is_later(version, info.version)):
        return f"built by version {info.version}"
    if not _covers(info, compute_capability):
        return f"built for compute capability {info.compute_capability}{f' ({info.gpu})' if info.gpu else ''}"
    for graph, source in sources(bundle, info.precision).items():
        if info.graphs[graph].source != source:
            return f"built from another {graph} graph"
    return None


def _is_later(version: str, built: str) -> bool:
    here, there = parse_version(version), parse_version(built)
    return here[:1] == there[:1] and here >= there


def _covers(info: PlanInfo, compute_capability: tuple[int, int] | None, *, exactly: bool = False) -> bool:
    """Whether a plan runs on a GPU; with ``exactly``, whether it was built for its compute capability by name."""
    own = None if compute_capability is None else "{}.{}".format(*compute_capability)
    if own in info.compute_capability.split("+"):
        return True
    if exactly or info.compute_capability == ANY_GPU:
        return not exactly
    ampere_plus = info.options.hardware_compatible == "ampere_plus"
    return ampere_plus and compute_capability is not None and compute_capability >= (8, 0)


def _on(compute_capability: tuple[int, int] | None) -> str:
    return (
        " without a GPU" if compute_capability is None else " on compute capability {}.{}".format(*compute_capability)
    )
