"""A long stream: is memory flat, the order right, nothing lost? ``glocal bench soak BUNDLE --frames 20000``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.pipeline import Pipeline
from ..runtime.progress import progressed
from ..runtime.threads import decide_threads
from . import record
from .options import BundleFolder, Images, JsonFile, show_loaded
from .pictures import pictures
from .timing import opencv_threads

_STATM = Path("/proc/self/statm")
# What malloc's heaps may still take in steps while images of other sizes meet in several threads; a leak of 100 bytes a
# frame is as much in 10,000 frames.
_STEP_MIB = 1.0
_BLOCKS = 20  # means of so many parts of the run are taken for independent


def soak(
    bundle: Path,
    images: Path | None = None,
    *,
    frames: int = 20_000,
    backend: str = "auto",
    precision: str = "auto",
    batch: int = 1,
    every: int = 100,
) -> record.Report:
    """Stream many frames, and keep account of order, losses and memory.

    Args:
        bundle: The bundle's folder.
        images: A photo or a folder of photos, taken again and again; by default generated JPEG files. Two or more.
        frames: How many frames.
        backend: As for `Pipeline.load`.
        precision: Likewise.
        batch: Frames per batch.
        every: Frames from one reading of the memory to the next.

    Returns:
        The report that ``--json`` writes: ``frames``, ``predicted``, ``failed``, ``lost``, ``out_of_order``,
        ``images_per_s``, ``memory`` ([frame, MiB resident] readings), and ``slope``: of the second half of the run, in
        MiB per 1,000 frames with its 95 % interval, from the means of 20 blocks; ``grown_mib``: that slope
        times the second half; ``flat``: whether the interval reaches 0, or less than 1 MiB was grown.

    Raises:
        UsageError: The system does not tell a process's memory, or there is one photo only, or too few frames.
        GlocalError: The bundle cannot run here.
    """
    if not _STATM.is_file():
        raise UsageError("A soak reads its memory from /proc/self/statm, which this system does not have.")
    if frames < 2 * _BLOCKS * every:
        raise UsageError(f"{frames} frames are too few.", fix=f"Take {2 * _BLOCKS * every} or a smaller every.")
    report = record.begin("soak", Bundle.load(bundle))
    use = decide_threads("throughput", backend)
    memory, counts = [], {"predicted": 0, "failed": 0, "out_of_order": 0}
    with ExitStack() as stack:
        stack.enter_context(opencv_threads(1))
        files, report["images"] = stack.enter_context(pictures(images))
        if len(files) < 2:
            raise UsageError("With one photo the order cannot be seen.", fix="Give a folder with more photos.")
        pipeline = stack.enter_context(Pipeline.load(bundle, backend, precision, use.engine))
        start = time.perf_counter()
        predictions = stack.enter_context(pipeline.stream(_repeated(files, frames), batch=batch, workers=use.workers))
        due = itertools.cycle(files)
        for index, prediction in enumerate(progressed(predictions, "streaming", frames)):
            counts["out_of_order"] += prediction.source != str(next(due))
            counts["failed" if prediction.error is not None else "predicted"] += 1
            if index % every == 0:
                memory.append((index, _resident_mib()))
        seconds = time.perf_counter() - start
        report |= {"backend": pipeline.backend, "precision": pipeline.precision, "batch": batch}
    got = counts["predicted"] + counts["failed"]
    report |= {"workers": use.workers, "frames": frames, **counts, "lost": frames - got}
    report |= {"images_per_s": round(got / seconds, 2), "memory": [[index, round(mib, 2)] for index, mib in memory]}
    report["slope"] = slope(np.array(memory[len(memory) // 2 :]))
    grown = report["slope"]["mib_per_1000"] * frames / 2000
    report["grown_mib"] = round(grown, 3)
    report["flat"] = report["slope"]["ci"][0] <= 0 or grown < _STEP_MIB
    return record.finish(report)


def slope(readings: NDArray[np.float64]) -> dict[str, Any]:
    """Least-squares slope of memory over frames.

    Neighbouring readings depend on one another, so the means of 20 blocks stand for them.

    Args:
        readings: (n, 2), frame and MiB; n at least 20.

    Returns:
        ``mib_per_1000`` and ``ci``, its 95 % interval (Student, 18 degrees of freedom).
    """
    blocks = np.array([block.mean(0) for block in np.array_split(readings, _BLOCKS)])
    x, y = blocks[:, 0] / 1e3, blocks[:, 1]
    away = x - x.mean()
    value = float(away @ (y - y.mean()) / (away @ away))
    residuals = y - y.mean() - value * away
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (away @ away)))
    low, high = value - 2.101 * error, value + 2.101 * error
    return {"mib_per_1000": round(value, 5), "ci": [round(low, 5), round(high, 5)]}


def _repeated(files: list[Path], frames: int) -> Iterator[Path]:
    return itertools.islice(itertools.cycle(files), frames)


def _resident_mib() -> float:
    import resource

    return int(_STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def print_report(report: record.Report) -> None:
    """Print the report in a few lines."""
    console = Console(highlight=False)
    memory, slope_ = report["memory"], report["slope"]
    console.print(
        f"{report['frames']} frames, {report['images_per_s']} a second: {report['failed']} failed, "
        f"{report['lost']} lost, {report['out_of_order']} out of order"
    )
    console.print(
        f"memory in MiB: {memory[0][1]} at first, {memory[len(memory) // 2][1]} half way, {memory[-1][1]} at the end; "
        f"slope of the second half {slope_['mib_per_1000']:+.4f} MiB per 1,000 frames "
        f"({slope_['ci'][0]:+.4f} to {slope_['ci'][1]:+.4f})"
    )
    show_loaded(console, report)


def main(
    bundle: BundleFolder,
    images: Images = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames.")] = 20_000,
    backend: Annotated[str, typer.Option(help="As for `glocal run`.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames per batch.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Frames from one reading of the memory to the next.")] = 100,
    json_file: JsonFile = None,
) -> None:
    """Stream many frames: is memory flat, the order right, nothing lost? Exit code 1 if not."""
    report = soak(bundle, images, frames=frames, backend=backend, precision=precision, batch=batch, every=every)
    print_report(report)
    record.save(report, json_file)
    wrong = {name: report[name] for name in ("failed", "lost", "out_of_order") if report[name]}
    if wrong or not report["flat"]:
        found = ", ".join(f"{count} {name}" for name, count in wrong.items()) or "memory grows"
        raise GlocalError("The stream did not hold.", found=found, fix="Report it as a defect, with the JSON.")
