"""Who should get how many threads: ``glocal bench threads BUNDLE``. What it shows stands in `runtime.threads`.

Two questions, each with all ways in turn:

- **throughput**: images a second of a stream, by workers and threads of one engine, up to as many as there are cores,
  and once with too many.
- **latency**: milliseconds of single images when one library's threads get in another's way: with idle threads of an
  engine that spin on, and with OpenCV's threads left at its own choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..runtime.backends.onnxruntime import OnnxRuntimeEngines
from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.manifest import Precision
from ..runtime.pipeline import Pipeline, selector_of
from ..runtime.threads import usable_cores
from . import record
from .options import BundleFolder, Images, JsonFile, show_loaded
from .pictures import pictures
from .scored import scored
from .timing import alternate, opencv_threads, ratio, summary

AS_IT_IS = "as it is"
_BLOCKS = 5
_FAILED = "A photo could not be predicted."


def bench_threads(
    bundle: Path,
    images: Path | None = None,
    *,
    precision: Precision = "fp32",
    length: int = 32,
    rounds: int = 10,
    calls: int = 50,
) -> record.Report:
    """Measure how threads should be shared out, with ONNX Runtime on the CPU.

    Args:
        bundle: The bundle's folder.
        images: A photo or a folder of photos; by default generated JPEG files.
        precision: One of the bundle's.
        length: Files of one pass of a stream.
        rounds: Passes of each stream.
        calls: Timed single images of each way.

    Returns:
        The report that ``--json`` writes. ``results``: by ``workers`` and ``threads`` of one engine the
        ``images_per_s`` of a stream with its interval, and its ``ratio`` to one worker that has all cores.
        ``latency``: by ``name`` the milliseconds of a call, and their ``ratio`` to the first, which is what a pipeline
        does.

    Raises:
        UsageError: The bundle has no such precision.
        GlocalError: A photo could not be predicted.
    """
    opened, cores = Bundle.load(bundle), usable_cores()
    if precision not in opened.manifest.precisions:
        fix = f"Choose one that it has: {', '.join(opened.manifest.precisions)}."
        raise UsageError(f"{bundle} has no precision {precision!r}.", fix=fix)
    report = record.begin("threads", opened) | {"precision": precision, "cores": cores}
    with ExitStack() as stack:
        files, report["images"] = stack.enter_context(pictures(images))
        paths = list(itertools.islice(itertools.cycle(files), length))

        def load(threads: int | None, spinning: bool = False) -> Pipeline:
            first, second = (opened.read(f"{precision}/{name}.onnx") for name in ("global", "local"))
            engines = OnnxRuntimeEngines(first, second, threads, spinning=spinning)
            return Pipeline(opened.manifest, precision, engines, selector_of(opened.manifest))

        with opencv_threads(1):
            report["results"] = _throughput(load, paths, cores, rounds)
        report["latency"] = _latency(load, files, calls)
    return record.finish(report)


def shares(cores: int) -> list[tuple[int, int]]:
    """(workers, threads of one engine): one worker with more and more threads, all cores shared out, and too many."""
    counts = sorted({1, cores} | {2**power for power in range(cores.bit_length()) if 2**power <= cores})
    alone = [(1, threads) for threads in counts]
    shared = [(cores // threads, threads) for threads in counts if cores // threads > 1]
    return [*alone, *shared, *([(cores, cores)] if cores > 1 else [])]


def _throughput(load: Callable[[int], Pipeline], paths: list[Path], cores: int, rounds: int) -> list[dict[str, Any]]:
    pairs = shares(cores)
    with ExitStack() as stack:
        pipelines = {threads: stack.enter_context(load(threads)) for threads in sorted({pair[1] for pair in pairs})}

        def passing(workers: int, threads: int) -> Callable[[], None]:
            def run() -> None:
                with pipelines[threads].stream(paths, workers=workers) as predictions:
                    scored(predictions, _FAILED)

            return run

        times = alternate({str(pair): passing(*pair) for pair in pairs}, rounds, warmup=1)
    rates = {pair: len(paths) * 1e3 / times[str(pair)] for pair in pairs}
    rows = []
    for (workers, threads), values in rates.items():
        found = summary(values, "rate")
        row = {"workers": workers, "threads": threads, "images_per_s": found["p50_rate"]}
        rows.append({**row, "images_per_s_ci": found["p50_rate_ci"], "ratio": ratio(values, rates[1, cores])})
    return rows


def _latency(load: Callable[[None, bool], Pipeline], files: list[Path], calls: int) -> list[dict[str, Any]]:
    """In turn by blocks of calls, each with engines of its own.

    Threads that spin on do so for longer than a pause between two calls would be: while their engines are open, they
    slow the other ways too.
    """
    import cv2

    own = cv2.getNumThreads()
    ways = {AS_IT_IS: (False, 1), "idle threads spin": (True, 1), "OpenCV's own choice of threads": (False, own)}
    times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ways}
    for _ in range(_BLOCKS):
        for name, (spinning, opencv) in ways.items():
            with load(None, spinning) as pipeline, opencv_threads(opencv):
                call = _single(pipeline, itertools.cycle(files))
                times[name].append(alternate({name: call}, -(-calls // _BLOCKS))[name])
    middles = {name: np.array([np.median(block) for block in blocks]) for name, blocks in times.items()}
    return [
        {"name": name, **summary(np.concatenate(blocks)), "ratio": ratio(middles[name], middles[AS_IT_IS])}
        for name, blocks in times.items()
    ]


def _single(pipeline: Pipeline, paths: Iterator[Path]) -> Callable[[], None]:
    def run() -> None:
        scored(pipeline.predict_files([next(paths)]), _FAILED)

    return run


def print_report(report: record.Report) -> None:
    """Print the report as two tables."""
    console = Console(highlight=False)
    streams = Table("workers", "threads an engine", box=None, pad_edge=False, header_style="bold")
    for name in ("images/s", "95 % interval", "of one worker with all cores"):
        streams.add_column(name, justify="right")
    for row in report["results"]:
        low, high = row["images_per_s_ci"]
        rate = (f"{row['images_per_s']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['ratio']['p50']:.3f}")
        streams.add_row(str(row["workers"]), str(row["threads"]), *rate)
    single = Table("single images", box=None, pad_edge=False, header_style="bold")
    for name in ("p50 ms", "p90", "p99", "ratio"):
        single.add_column(name, justify="right")
    for row in report["latency"]:
        values = (f"{row[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))
        single.add_row(row["name"], *values, f"{row['ratio']['p50']:.3f}")
    console.print(streams, "", single)
    show_loaded(console, report)


def threads(
    bundle: BundleFolder,
    images: Images = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8.")] = "fp32",
    length: Annotated[int, typer.Option(min=1, help="Files of one pass of a stream.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Passes of each stream.")] = 10,
    calls: Annotated[int, typer.Option(min=1, help="Timed single images of each way.")] = 50,
    json_file: JsonFile = None,
) -> None:
    """How threads are best shared out between workers, engines and OpenCV (ONNX Runtime on the CPU)."""
    report = bench_threads(bundle, images, precision=precision, length=length, rounds=rounds, calls=calls)  # type: ignore[arg-type]
    print_report(report)
    record.save(report, json_file)
