"""What a measurement must be read with: the machine, the versions, and how busy it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from ..runtime.doctor_host import Host
from ..runtime.doctor_machine import machine
from ..runtime.threads import usable_cores

_PACKAGES = ("numpy", "numba", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "pycuda")
# Under these names the libraries report their version; JetPack's TensorRT is "tensorrt".
_TENSORRT = ("tensorrt", *(f"tensorrt-{kind}cu{cuda}" for kind in ("", "rtx-") for cuda in (12, 13)))
# From this share of all cores, taken by other programs before or after a run, its figures are marked.
BUSY = 0.1
_ROOT = Path(__file__).resolve().parents[1]


def machine_facts(host: Host | None = None) -> dict[str, Any]:
    """Processor, cores, GPUs, versions, commit, date and load, ready for JSON; no host name and no path.

    A Jetson adds its board, JetPack and power mode. What cannot be found out is left out.
    """
    host = host or Host()
    this = machine(host)
    cuda = host.probe("cuda").facts if this.nvidia_device or this.libcuda else {}
    facts = {
        "cpu": _cpu_model(),
        "board": this.board,
        "jetpack": this.jetpack,
        "power_mode": this.power_mode,
        "gpus": cuda.get("gpus"),
        "driver": this.driver,
        "driver_cuda": cuda.get("driver"),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in (*_PACKAGES, *_TENSORRT) if (version := _version(name))},
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


def busy_share(seconds: float = 0.5) -> float | None:
    """Share of all cores' time that other programs took while this process slept; None where it cannot be read.

    The load average would also tell of what this process itself did in the last minute.
    """
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    if not before or not after or after[1] <= before[1]:
        return None
    return round(1 - (after[0] - before[0]) / (after[1] - before[1]), 3)


def _cpu_times() -> tuple[int, int] | None:
    """(idle, total) ticks of all cores."""
    fields = _read(Path("/proc/stat")).split("\n", 1)[0].split()[1:9]  # the guests' time is in the users' too
    if len(fields) < 5:
        return None
    ticks = [int(field) for field in fields]
    return ticks[3] + ticks[4], sum(ticks)


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
