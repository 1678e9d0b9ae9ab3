"""What of a bundle runs on this machine: its graphs, and which of its TensorRT plans fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Bundle
from .errors import GlocalError
from .plans import PLANS, find_plan, list_plans

if TYPE_CHECKING:
    from .backends.tensorrt_api import Backend
    from .doctor import Check

_LIBRARIES: tuple[Backend, ...] = ("tensorrt", "tensorrt_rtx")


def bundle_checks(path: Path, machine: Mapping[str, Check]) -> list[Check]:
    """The bundle, and per library that works here and precision the plan that fits, or the command to build it.

    Args:
        path: Folder of the bundle.
        machine: What was found on the machine, by the names of the checks.
    """
    from .doctor import Check

    try:
        bundle = Bundle.load(path)
    except GlocalError as error:
        return [Check("bundle", "broken", f"{error.what} {error.found}".strip(), error.fix)]
    manifest = bundle.manifest
    found = f"{manifest.name}, {len(manifest.labels)} labels, {', '.join(manifest.precisions)}; every file as written"
    checks = [Check("bundle", "ok", found, facts={"precisions": list(manifest.precisions)})]
    gpus = machine["gpu"].facts.get("gpus") if machine["gpu"].state == "ok" else None
    capability = _numbers(gpus[0]["compute_capability"]) if gpus else None
    for library in _LIBRARIES:
        if machine[library].state != "ok":
            continue
        for precision in manifest.precisions:
            name = f"{library} {precision} plan"
            try:
                plan = find_plan(bundle, library, machine[library].facts["version"], capability, precision)
                plan.read("global")
                plan.read("local")
                checks.append(Check(name, "ok", plan.path.name))
            except GlocalError as error:
                checks.append(Check(name, "missing", error.found or error.what, error.fix))
            except OSError as error:
                checks.append(Check(name, "broken", str(error), f"let this user read {bundle.path / PLANS}"))
    if len(checks) == 1:
        checks.append(Check("plans", "note", f"no TensorRT here to run a plan; there are: {_names(bundle)}"))
    return checks


def _names(bundle: Bundle) -> str:
    try:
        names = [plan.path.name for plan in list_plans(bundle) if not isinstance(plan, GlocalError)]
    except OSError as error:
        return str(error)
    return ", ".join(names) or "none"


def _numbers(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
