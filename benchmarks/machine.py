"""What a measurement must be read with: the machine, the versions, and how busy it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "numba", "opencv-python", "onnxruntime", "torch")
_ROOT = Path(__file__).resolve().parents[1]


def machine_facts() -> dict[str, Any]:
    """Processor, cores, versions, commit, date and load, ready for JSON; no host name and no path.

    What cannot be found out is left out.
    """
    facts = {
        "cpu": _cpu_model(),
        "board": _read(Path("/proc/device-tree/model")).strip("\0\n "),  # a Jetson names itself here
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "load_average": load_average(),
    }
    return {name: value for name, value in facts.items() if value}


def load_average() -> list[float]:
    """Processes that wanted to run in the last 1, 5 and 15 minutes; empty where the system does not tell."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):
        return []


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Commit of the checkout that this module stands in, marked when files differ from it."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != _ROOT:  # installed below some other project's checkout
            return ""
        return _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
