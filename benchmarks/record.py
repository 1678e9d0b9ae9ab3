"""What every measurement is written with: which benchmark, which machine and model, and whether others used the cores.

A report is a plain dictionary, ready for JSON. ``begin`` starts it, ``finish`` closes it, ``save`` writes it;
``glocal bench report`` reads a folder of such files.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError
from ..runtime.files import write_atomically
from ..runtime.manifest import MANIFEST
from .machine import BUSY, busy_share, load_average, machine_facts

Report = dict[str, Any]


def begin(benchmark: str, bundle: Bundle | None = None) -> Report:
    """Start a report.

    Args:
        benchmark: Its name, as in ``glocal bench NAME``.
        bundle: What is measured, where that is a bundle.

    Returns:
        ``benchmark``, ``command`` (without the folders that paths lie in), ``machine`` (see `machine_facts`), ``model``
        (see `model_facts`), ``busy_before``.
    """
    report: Report = {"benchmark": benchmark, "command": _command(), "machine": machine_facts()}
    if bundle is not None:
        report["model"] = model_facts(bundle)
    return report | {"busy_before": busy_share()}


def finish(report: Report) -> Report:
    """Close a report: adds ``busy_after``, ``load_average_after`` and ``loaded``.

    ``loaded`` says that other programs took more than a tenth of the cores before or after.
    """
    report |= {"busy_after": busy_share(), "load_average_after": load_average()}
    report["loaded"] = any((report[name] or 0) > BUSY for name in ("busy_before", "busy_after"))
    return report


def loaded_text(report: Report) -> str:
    """The warning that a loaded machine's figures are shown with; empty for a quiet machine."""
    if not report.get("loaded"):
        return ""
    shares = f"{report.get('busy_before')} before, {report.get('busy_after')} after"
    return f"LOADED MACHINE: other programs took {shares} of the cores; the figures are too high"


def save(report: Report, path: Path | None) -> None:
    """Write a report as JSON; with None nothing is written.

    Raises:
        GlocalError: The file cannot be written.
    """
    if path is None:
        return
    try:
        write_atomically(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        fix = "Name another file with --json."
        raise GlocalError(f"{path} cannot be written.", found=str(error), fix=fix) from error


def _command() -> str:
    """The command that this process runs; of paths only the last part, as folders are a machine's own."""
    return shlex.join(Path(argument).name if "/" in argument else argument for argument in sys.argv)


def model_facts(bundle: Bundle) -> dict[str, Any]:
    """Name, labels, input size, and the hashes that tell one model from another."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "labels": len(manifest.labels),
        "input_size": list(manifest.input_size),
        "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256", ""),
        "manifest_sha256": hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest(),
        "files": dict(manifest.files),
    }
