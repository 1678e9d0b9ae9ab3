"""Images a second of a stream, against the serial loop and against bounds: ``glocal bench stream BUNDLE``.

Three bounds, because on a CPU all stages share the same cores:

- **slowest stage of the serial loop**: a pipeline of the serial loop's stages cannot be faster than its slowest stage,
  timed where each stage has all cores.
- **global engine alone**: what the workers' threads reach when they do nothing but run the global engine.
- **all work on all cores**: the processor time of an image (decode to fusion, one thread), shared out evenly over the
  cores. Nothing on these cores can be faster, but for what engines save by sharing a core's caches.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..runtime.backends import open_engines
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError
from ..runtime.images import read_image, resize
from ..runtime.pipeline import Pipeline
from ..runtime.prediction import Prediction
from ..runtime.threads import decide_threads, usable_cores
from . import record
from .options import BundleFolder, Images, JsonFile, show_loaded
from .pictures import pictures
from .scored import scored
from .timing import alternate, opencv_threads, ratio, summary


def bench_stream(
    bundle: Path,
    images: Path | None = None,
    *,
    backend: str = "auto",
    precision: str = "auto",
    batch: int = 1,
    length: int = 64,
    rounds: int = 15,
    workers: int | None = None,
    threads: int | None = None,
) -> record.Report:
    """Time a stream and the serial loop over the same files, in turn.

    Args:
        bundle: The bundle's folder.
        images: A photo or a folder of photos; by default generated JPEG files.
        backend: As for `Pipeline.load`.
        precision: Likewise.
        batch: Frames per batch, of both.
        length: Files in one timed pass; those given are repeated.
        rounds: Timed passes of each.
        workers: The stream's workers; by default as `decide_threads` says for throughput.
        threads: Threads of one engine of the stream, likewise. The serial loop has the engine's choice: all cores.

    Returns:
        The report that ``--json`` writes. ``results``: images a second of each way (``images_per_s``, and their
        interval). ``ratio``: stream to serial loop, of images a second. ``bounds``: images a second by bound.
        ``share_of_bound``: the stream's images a second over each bound.

    Raises:
        GlocalError: An image could not be predicted, or the bundle cannot run here.
    """
    opened = Bundle.load(bundle)
    use = decide_threads("throughput", backend, threads, workers)
    report = record.begin("stream", opened)
    with ExitStack() as stack:
        stack.enter_context(opencv_threads(1))
        files, report["images"] = stack.enter_context(pictures(images))
        paths = list(itertools.islice(itertools.cycle(files), length))
        serial = stack.enter_context(Pipeline.load(bundle, backend, precision))
        streaming = stack.enter_context(Pipeline.load(bundle, backend, precision, use.engine))
        alone = _GlobalAlone(opened, serial, use.engine, use.workers, batch, paths)
        stack.callback(alone.close)
        stages: list[dict[str, float]] = []

        def serial_loop() -> None:
            stages.extend(one.timings for one in _checked(list(serial.predict_files(paths, batch)), paths))

        def stream() -> None:
            with streaming.stream(paths, batch=batch, workers=use.workers) as frames:
                _checked(list(frames), paths)

        ways = {"serial loop": serial_loop, "stream": stream, "global engine alone": alone.run}
        times = alternate(ways, rounds, warmup=1)
        report |= {"backend": serial.backend, "precision": serial.precision, "batch": batch, "files": length}
        work_ms = _work(bundle, backend, precision, batch, paths)
    rates = {name: length * 1e3 / values for name, values in times.items()}
    slowest = _slowest(stages)
    bounds = {
        f"slowest stage of the serial loop ({slowest[0]})": 1e3 / slowest[1],
        "global engine alone": float(np.median(rates.pop("global engine alone"))),
        "all work on all cores": usable_cores() * 1e3 / work_ms,
    }
    report |= {"rounds": rounds, "workers": use.workers, "threads": use.engine, "work_ms": round(work_ms, 3)}
    report["results"] = [{"name": name, **_rate(values)} for name, values in rates.items()]
    report["ratio"] = ratio(rates["stream"], rates["serial loop"])
    report["bounds"] = {name: round(value, 3) for name, value in bounds.items()}
    reached = float(np.median(rates["stream"]))
    report["share_of_bound"] = {name: round(reached / value, 4) for name, value in bounds.items()}
    return record.finish(report)


class _GlobalAlone:
    """The stream's workers with nothing to do but run the global engine on resized images."""

    def __init__(
        self, bundle: Bundle, pipeline: Pipeline, threads: int | None, workers: int, batch: int, paths: Sequence[Path]
    ) -> None:
        self._engines = open_engines(bundle, pipeline.backend, pipeline.precision, threads)
        self._workers, self._batches = workers, len(paths) // batch
        chosen = itertools.islice(itertools.cycle(paths), batch)
        self._images = np.stack([resize(read_image(path), pipeline.input_size) for path in chosen])

    def run(self) -> None:
        """As many batches as a pass over the files has."""
        left = iter(range(self._batches))
        crew = [threading.Thread(target=self._work, args=(left,)) for _ in range(self._workers)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    def _work(self, left: Any) -> None:
        for _ in left:
            self._engines.run_global(self._images)

    def close(self) -> None:
        self._engines.close()


def _checked(predictions: list[Prediction], paths: Sequence[Path]) -> list[Prediction]:
    for prediction, path in zip(scored(predictions, "A photo could not be predicted."), paths, strict=True):
        if prediction.source != str(path):
            found = f"{prediction.source} where {path} was due"
            raise GlocalError("The predictions are not in the order of the photos.", found=found)
    return predictions


def _work(bundle: Path, backend: str, precision: str, batch: int, paths: Sequence[Path]) -> float:
    """Milliseconds of processor time of one image, all stages, with one thread."""
    with Pipeline.load(bundle, backend, precision, threads=1) as pipeline:
        list(pipeline.predict_files(paths[: 2 * batch], batch))
        start = time.process_time()
        _checked(list(pipeline.predict_files(paths, batch)), paths)
        return (time.process_time() - start) * 1e3 / len(paths)


def _slowest(stages: Sequence[dict[str, float]]) -> tuple[str, float]:
    medians = {name: float(np.median([each[name] for each in stages])) for name in stages[0] if name != "total"}
    return max(medians.items(), key=lambda item: item[1])


def _rate(rates: NDArray[np.float64]) -> dict[str, Any]:
    found = summary(rates, "rate")
    return {
        "images_per_s": found["p50_rate"],
        "images_per_s_ci": found["p50_rate_ci"],
        "passes": found["calls"],
    }


def print_report(report: record.Report) -> None:
    """Print the report as tables."""
    console = Console(highlight=False)
    table = Table("way", box=None, pad_edge=False, header_style="bold")
    for name in ("images/s", "95 % interval"):
        table.add_column(name, justify="right")
    for row in report["results"]:
        low, high = row["images_per_s_ci"]
        table.add_row(row["name"], f"{row['images_per_s']:.2f}", f"{low:.2f}-{high:.2f}")
    console.print(table)
    low, high = report["ratio"]["p50_ci"]
    console.print(
        f"stream / serial loop: {report['ratio']['p50']:.3f} ({low:.3f}-{high:.3f}); "
        f"{report['workers']} workers, {report['threads'] or 'all'} threads an engine"
    )
    bounds = Table("bound", box=None, pad_edge=False, header_style="bold")
    for name in ("images/s", "stream reaches"):
        bounds.add_column(name, justify="right")
    for name, value in report["bounds"].items():
        bounds.add_row(name, f"{value:.2f}", f"{100 * report['share_of_bound'][name]:.1f} %")
    console.print(bounds)
    show_loaded(console, report)


def stream(
    bundle: BundleFolder,
    images: Images = None,
    backend: Annotated[str, typer.Option(help="As for `glocal run`.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Frames per batch.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Files of one timed pass.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each way.")] = 15,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of the stream.", show_default="as many as cores, up to 8")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one engine of the stream.", show_default="cores / workers")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Images a second of a stream, against the serial loop and against bounds."""
    report = bench_stream(
        bundle,
        images,
        backend=backend,
        precision=precision,
        batch=batch,
        length=length,
        rounds=rounds,
        workers=workers,
        threads=threads,
    )
    print_report(report)
    record.save(report, json_file)
