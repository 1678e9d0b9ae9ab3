"""Machines that are not at hand: a root folder, and answers of commands and of probes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.runtime.doctor_host import PROGRAM, Host, Ran
from glocal.runtime.doctor_probes import MARK


def answer(state: str = "ok", why: str = "", **facts: Any) -> Ran:
    """What a probe prints."""
    return Ran(0, f"noise of a library\n{MARK}{json.dumps({'state': state, 'facts': facts, 'why': why})}\n")


def missing(name: str) -> Ran:
    return answer("missing", f"No module named '{name}'")


def gpu(name: str, capability: str, driver: int) -> Ran:
    gpus = [{"name": name, "compute_capability": capability, "mib": 8000, "integrated": False}]
    return answer(driver=driver, gpus=gpus)


WORKING = {
    "module numpy": answer(version="2.4.6"),
    "module pydantic": answer(version="2.14.4"),
    "images": answer(version="5.0.0", pillow="13.0.0"),
    "selector": answer(version="0.68.1", cached=True, cache="/home/user/.cache"),
    "onnxruntime": answer(version="1.32.0", providers=["CPUExecutionProvider"]),
}
BARE = {
    **WORKING,
    "cuda": answer(error="absent", reason="libcuda.so.1: cannot open shared object file"),
    "tensorrt tensorrt no-gpu": missing("tensorrt"),
    "tensorrt tensorrt_rtx no-gpu": missing("tensorrt_rtx"),
    "pycuda no-gpu": missing("pycuda"),
}
WITH_GPU = {
    **WORKING,
    "tensorrt tensorrt gpu": missing("tensorrt"),
    "tensorrt tensorrt_rtx gpu": missing("tensorrt_rtx"),
    "pycuda gpu": missing("pycuda"),
}
ORIN_ANSWERS = {
    **WITH_GPU,
    "cuda": gpu("Orin", "8.7", 12060),
    "/usr/sbin/nvpmodel -q": Ran(0, "NV Power Mode: MAXN_SUPER\n2\n"),
}


def make_host(root: Path, files: dict[str, str], answers: dict[str, Ran], **settings: Any) -> Host:
    """A host with these files, whose commands and probes give these answers and no others."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(command: Sequence[str], seconds: float) -> Ran:
        assert seconds > 0
        return answers[" ".join(word for word in command if word not in ("python", "-c", PROGRAM))]

    defaults = {"environ": {"PATH": "/usr/local/bin:/usr/bin"}, "architecture": "x86_64", "venv": "closed"}
    return Host(root=root, **{"run": run, **defaults, "python": "python", "python_version": (3, 11), **settings})
