"""How long a fresh process takes until its first prediction: ``glocal bench startup BUNDLE``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError
from ..runtime.progress import progressed
from . import record
from .options import JsonFile, show_loaded

# Run in a process of its own; time starts before anything but the interpreter is loaded.
_PROGRAM = """
import time
times = [time.perf_counter()]
import glocal.runtime
times.append(time.perf_counter())
import json, sys
import numpy as np
pipeline = glocal.runtime.Pipeline.load(sys.argv[1])
times.append(time.perf_counter())
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
for _ in range(2):
    (prediction,) = pipeline.predict([image])
    assert prediction.error is None, prediction.error
    times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""
STEPS = ("import glocal.runtime", "Pipeline.load", "first prediction", "second prediction")


def startup(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes to measure, after one that fills caches.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Seconds from a fresh process to its first prediction."""
    report = record.begin("startup", Bundle.load(bundle))  # a damaged bundle is told apart from a failing process
    runs = [_measure(bundle) for _ in progressed(range(processes + 1), "starting processes")][1:]
    seconds = {step: [run[i] for run in runs] for i, step in enumerate(STEPS)}
    table = Table("step", "median s", "lowest", "highest", title=f"{processes} fresh processes")
    for step, values in seconds.items():
        table.add_row(step, *(f"{value:.3f}" for value in (statistics.median(values), min(values), max(values))))
    report |= {"seconds": seconds}
    record.finish(report)
    console = Console(highlight=False)
    console.print(table)
    show_loaded(console, report)
    record.save(report, json_file)


def _measure(bundle: Path) -> list[float]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(bundle)], capture_output=True, text=True)
    if done.returncode:
        found = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise GlocalError("a fresh process could not predict", found=found, fix="try `glocal run` on the bundle")
    return [float(value) for value in json.loads(done.stdout)]
