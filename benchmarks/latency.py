"""Milliseconds of every backend and precision that a bundle and a machine have: ``glocal bench engines BUNDLE``.

All are loaded into one process and take turns, from the JPEG file to the prediction, so that whatever slows the machine
slows them alike. The headline is the wall time of a call; the stages beside it are those of `Prediction.timings`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..runtime.backends import BACKENDS
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.files import write_atomically
from ..runtime.images import encode_jpeg, list_images, resize
from ..runtime.manifest import MANIFEST, Precision
from ..runtime.pipeline import Pipeline
from .machine import BUSY, busy_share, load_average, machine_facts
from .timing import alternate

_IMAGES = 8  # generated ones, in turn
_SIZE = (480, 640)


@dataclass
class _Case:
    """One backend at one precision."""

    backend: str
    precision: str
    pipeline: Pipeline
    load_s: float
    first_ms: float = 0.0
    batches: list[int] = field(default_factory=list)  # those that it can run
    seen: list[tuple[dict[str, float], int]] = field(default_factory=list)  # of each call: its timings, its boxes

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    def predict(self, paths: Sequence[Path]) -> None:
        predictions = list(self.pipeline.predict_files(paths, batch=len(paths)))
        for prediction in predictions:
            if prediction.error is not None:
                raise GlocalError(f"{self.name} could not predict.", found=prediction.error, fix="see `glocal verify`")
        stages = predictions[0].timings
        mean = {stage: sum(one.timings[stage] for one in predictions) / len(predictions) for stage in stages}
        self.seen.append((mean, sum(len(one.regions) for one in predictions)))


def bench_engines(
    bundle: Path,
    backends: Sequence[str] = BACKENDS,
    precisions: Sequence[str] = (),
    *,
    rounds: int = 50,
    batches: Sequence[int] = (1, 8),
    images: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time backends and precisions of a bundle in turn.

    Args:
        bundle: The bundle's folder.
        backends: Which backends.
        precisions: Which precisions; by default all that the bundle has.
        rounds: Timed calls of each.
        batches: Images per call.
        images: A photo or a folder of photos; by default generated JPEG files of 640x480.
        threads: Threads of one engine on the CPU.

    Returns:
        The report that ``--json`` writes. ``results``: per case and batch the milliseconds of a call (``p50_ms``,
        ``p90_ms``, ``p99_ms``), ``images_per_s`` at the median, ``stages`` (ms of one image's share), ``boxes`` (mean
        per image), ``ratio`` to the first case (median of the rounds' ratios, with p10 and p90). ``skipped``: cases
        and batches that cannot run here, with the reason. ``loaded``: whether other programs took more than a tenth of
        the cores.

    Raises:
        UsageError: A backend or precision has no such name.
        BundleError: The bundle is damaged.
        GlocalError: No case can run, or one fails while it is timed.
    """
    _check_names(backends, precisions, batches)
    opened = Bundle.load(bundle)
    report: dict[str, Any] = {"machine": machine_facts(), "busy_before": busy_share(), "model": _model(opened)}
    report |= {"rounds": rounds, "threads": threads, "results": [], "skipped": []}
    wanted = list(itertools.product(backends, precisions or opened.manifest.precisions))
    with ExitStack() as stack:
        paths = list_images(images) if images else stack.enter_context(_generated())
        report["images"] = f"{len(paths)} given" if images else f"{len(paths)} generated JPEG, {_SIZE[1]}x{_SIZE[0]}"
        cases = []
        for backend, precision in wanted:
            name = {"backend": backend, "precision": precision}
            start = time.perf_counter()
            try:
                pipeline = stack.enter_context(Pipeline.load(bundle, backend, precision, threads))
            except Exception as error:  # what a broken library raises must not end the others' run
                report["skipped"] += [{**name, "batch": batch, **_reason(error)} for batch in batches]
                continue
            case = _Case(backend, precision, pipeline, time.perf_counter() - start)
            for batch in batches:
                start = time.perf_counter()
                try:
                    case.predict(next(_chunks(paths, batch)))
                except Exception as error:  # too little memory for this batch, say
                    report["skipped"].append({**name, "batch": batch, **_reason(error)})
                    continue
                case.first_ms = case.first_ms or (time.perf_counter() - start) * 1e3
                case.batches.append(batch)
            cases.append(case)
        for batch in batches:
            report["results"] += _time([case for case in cases if batch in case.batches], paths, batch, rounds)
        if not report["results"]:
            reasons = {f"{row['backend']} {row['precision']}: {row['reason']}": None for row in report["skipped"]}
            raise GlocalError(
                "No engine of the bundle can run here.", found="; ".join(reasons), fix="see `glocal doctor`"
            )
    report |= {"busy_after": busy_share(), "load_average_after": load_average()}
    report["loaded"] = any((report[name] or 0) > BUSY for name in ("busy_before", "busy_after"))
    return report


def _reason(error: Exception) -> dict[str, str]:
    if isinstance(error, GlocalError):
        return {"reason": " ".join(part for part in (error.what, error.found) if part), "fix": error.fix}
    return {"reason": f"{type(error).__name__}: {error}", "fix": "see `glocal doctor`"}


def _time(cases: Sequence[_Case], paths: Sequence[Path], batch: int, rounds: int) -> list[dict[str, Any]]:
    if not cases:
        return []
    calls: dict[str, Callable[[], None]] = {}
    for case in cases:
        case.seen.clear()
        calls[case.name] = _in_turn(case, _chunks(paths, batch))
    times = alternate(calls, rounds)
    first = times[cases[0].name]
    rows = []
    for case in cases:
        measured = case.seen[-rounds:]  # those before warmed up
        stages = {stage: _percentiles(np.array([one[stage] for one, _ in measured])) for stage in measured[0][0]}
        ratios = np.percentile(times[case.name] / first, (10, 50, 90)).round(4).tolist()
        p50 = float(np.percentile(times[case.name], 50))
        rows.append(
            {
                "backend": case.backend,
                "precision": case.precision,
                "batch": batch,
                **_percentiles(times[case.name]),
                "images_per_s": round(batch / p50 * 1e3, 2),
                "boxes": round(sum(boxes for _, boxes in measured) / (batch * len(measured)), 2),
                "load_s": round(case.load_s, 3),
                "first_ms": round(case.first_ms, 3),
                "ratio": dict(zip(("p10", "p50", "p90"), ratios, strict=True)),
                "stages": stages,
            }
        )
    return rows


def _in_turn(case: _Case, chunks: Iterator[Sequence[Path]]) -> Callable[[], None]:
    return lambda: case.predict(next(chunks))


def _chunks(paths: Sequence[Path], batch: int) -> Iterator[list[Path]]:
    endless = itertools.cycle(paths)
    while True:
        yield list(itertools.islice(endless, batch))


def _percentiles(times: NDArray[np.float64]) -> dict[str, float]:
    values = np.percentile(times, (50, 90, 99)).round(4).tolist()
    return dict(zip(("p50_ms", "p90_ms", "p99_ms"), values, strict=True))


@contextmanager
def _generated() -> Iterator[list[Path]]:
    """JPEG files of smooth colours: they cost what photos cost to decode, and are the same on every machine."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(_IMAGES)]
        for path in paths:
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            path.write_bytes(encode_jpeg(resize(coarse, _SIZE)))
        yield paths


def _model(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "labels": len(manifest.labels),
        "input_size": list(manifest.input_size),
        "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256", ""),
        "manifest_sha256": hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest(),
        "files": dict(manifest.files),
    }


def _check_names(backends: Sequence[str], precisions: Sequence[str], batches: Sequence[int]) -> None:
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown or not backends:
        fix = f"Choose among {', '.join(BACKENDS)}."
        raise UsageError(f"There is no backend {', '.join(unknown)}." if unknown else "No backend is named.", fix=fix)
    if strange := [name for name in precisions if name not in get_args(Precision)]:
        fix = f"Choose among {', '.join(get_args(Precision))}."
        raise UsageError(f"There is no precision {', '.join(strange)}.", fix=fix)
    if not batches or min(batches) < 1:
        raise UsageError("A batch has at least one image.", found=", ".join(str(batch) for batch in batches))


def print_report(report: dict[str, Any]) -> None:
    """Print the report as two tables: whole calls, and the stages of an image."""
    console = Console(highlight=False)
    whole = Table("engine", box=None, pad_edge=False, header_style="bold")
    parts = Table("ms an image, p50", box=None, pad_edge=False, header_style="bold")
    stages = [stage for stage in report["results"][0]["stages"] if stage != "total"]
    for name in ("batch", "p50 ms", "p90", "p99", "images/s", "boxes", "ratio", "p10-p90"):
        whole.add_column(name, justify="right", no_wrap=True)
    for name in ("batch", *stages):
        parts.add_column(name, justify="right", no_wrap=True)
    for row in report["results"]:
        ratio, engine = row["ratio"], f"{row['backend']} {row['precision']}"
        whole.add_row(
            engine,
            str(row["batch"]),
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_s']:.1f}",
            f"{row['boxes']:.1f}",
            f"{ratio['p50']:.2f}",
            f"{ratio['p10']:.2f}-{ratio['p90']:.2f}",
        )
        parts.add_row(engine, str(row["batch"]), *(f"{row['stages'][stage]['p50_ms']:.2f}" for stage in stages))
    console.print(whole)
    console.print()
    console.print(parts)
    for row in report["skipped"]:
        text = f"skipped {row['backend']} {row['precision']} batch {row['batch']}: {row['reason']}"
        console.print(text, markup=False)
    if report["loaded"]:
        shares = f"{report['busy_before']} before, {report['busy_after']} after"
        console.print(
            f"LOADED MACHINE: other programs took {shares} of the cores; the figures are too high", style="red"
        )


def engines(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    backend: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BACKENDS)}; several are fine.", show_default="all")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, int8; several are fine.", show_default="all in the bundle")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Images per call; may be given again.", show_default="1 and 8")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each engine.")] = 50,
    images: Annotated[
        Path | None, typer.Option(help="Photo or folder to predict.", show_default="generated images")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one engine.", show_default="the engine's choice")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the report.")] = None,
) -> None:
    """Milliseconds of each backend and precision of a bundle, end to end and by stage, in turn in one process."""
    report = bench_engines(
        bundle,
        backend or BACKENDS,
        precision or (),
        rounds=rounds,
        batches=batch or (1, 8),
        images=images,
        threads=threads,
    )
    print_report(report)
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode())
