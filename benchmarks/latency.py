"""Milliseconds from an image file to scores, against the plain backbone on the same engine.

Every backend and precision that a bundle and a machine have is loaded into one process, each beside the plain backbone
of the same weights, precision, backend and threads (`plain_graph`), and all take turns, so that whatever slows the
machine slows them alike. The headline is the wall time of a call; what the engines take of it, and every stage of
`Prediction.timings`, stand beside it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import BACKENDS, Backend, open_engines
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.manifest import Precision
from ..runtime.pipeline import Pipeline, selector_of
from ..runtime.progress import note
from ..runtime.selector import Regions
from . import record
from .boxes import OWN, ReplacingSelector, prepare
from .pictures import pictures
from .plain_engine import PlainPipeline, open_plain
from .scored import scored
from .timing import alternate, ratio, summary

# What the plain engine's call is compared with: the two graphs and the copies to and from the device. Of these the
# stages of a pipeline have those that it has.
_ENGINES = ("to_device", "global", "to_host", "local")
_Prepared = Sequence[Regions] | None


@dataclass
class _Case:
    """One backend at one precision: the two branches, and the plain backbone beside them."""

    backend: Backend
    precision: Precision
    pipeline: Pipeline
    selector: ReplacingSelector
    plain: PlainPipeline
    load_s: float
    plain_load_s: float
    first_ms: float = 0.0
    plain_first_ms: float = 0.0
    seen: list[tuple[dict[str, float], list[int]]] = field(default_factory=list)  # of calls: timings, images' boxes
    plain_seen: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    def predict(self, paths: Sequence[Path], prepared: _Prepared) -> None:
        self.selector.prepared = prepared
        predictions = scored(self.pipeline.predict_files(paths, batch=len(paths)), f"{self.name} could not predict.")
        stages = predictions[0].timings
        totals = {stage: sum(one.timings[stage] for one in predictions) for stage in stages}
        self.seen.append((totals, [len(one.regions) for one in predictions]))

    def predict_plain(self, paths: Sequence[Path]) -> None:
        self.plain_seen.append(self.plain.predict_files(paths)[1])


@dataclass
class _Turn:
    """One case with one kind of boxes, at one batch size."""

    case: _Case
    boxes: str
    times: NDArray[np.float64]
    stages: dict[str, NDArray[np.float64]]
    counts: list[int]


def bench_latency(
    bundle: Path,
    backends: Sequence[str] = BACKENDS,
    precisions: Sequence[str] = (),
    *,
    rounds: int = 50,
    batches: Sequence[int] = (1, 8),
    boxes: Sequence[str] = (OWN,),
    images: Path | None = None,
    threads: int | None = None,
) -> record.Report:
    """Time backends and precisions of a bundle in turn, each against its plain backbone.

    Args:
        bundle: The bundle's folder.
        backends: Which backends.
        precisions: Which precisions; by default all that the bundle has.
        rounds: Timed calls of each.
        batches: Images per call.
        boxes: What goes through the local engine: ``own``, a number, or the folder of a bundle (see `boxes.prepare`).
        images: A photo or a folder of photos; by default generated JPEG files of 640x480.
        threads: Threads of one engine on the CPU.

    Returns:
        The report that ``--json`` writes. ``results``, per case, batch and kind of boxes (``boxes_from``: ``own``, the
        number, or the name of the bundle's folder):

        - the milliseconds of a call from files to scores (see `timing.summary`), ``images_per_s`` at the median;
        - ``ratio`` to the plain backbone, ``to_first`` to the first case with the same boxes (see `timing.ratio`);
        - ``plain``: the plain backbone's call, its ``engine``, ``load_s`` and ``first_ms``;
        - ``engines``: both engines with their copies, ms an image, and their ``ratio`` to the plain engine;
        - ``host_share``: what is neither engine nor decoding, as a share of the call without decoding;
        - ``stages``: ms an image; ``boxes``: mean, median and p95 over the images of all calls;
        - ``load_s`` and ``first_ms``: opening the bundle, and the first call after that; the first case also imports
          what all share (`glocal bench startup` measures fresh processes).

        ``boxes_from``: the models of other bundles that boxes come from. ``skipped``: what cannot run here, with the
        reason.

    Raises:
        UsageError: A backend, a precision or a kind of boxes has no such name.
        BundleError: The bundle is damaged.
        GlocalError: No case can run, or one fails while it is timed.
    """
    chosen = _checked(backends, precisions, batches, boxes)
    opened = Bundle.load(bundle)
    report = record.begin("latency", opened)
    report |= {"rounds": rounds, "threads": threads, "results": [], "skipped": []}
    with ExitStack() as stack:
        paths, report["images"] = stack.enter_context(pictures(images))
        prepared = {Path(kind).name: prepare(kind, paths, threads) for kind in boxes}
        others = [Bundle.load(kind) for kind in boxes if kind != OWN and not kind.isdecimal()]
        report["boxes_from"] = {other.path.name: record.model_facts(other) for other in others}
        cases = []
        for backend, precision in itertools.product(chosen, dict.fromkeys(precisions or opened.manifest.precisions)):
            try:
                cases.append(_open(stack, bundle, backend, precision, threads))
            except Exception as error:  # what a broken library raises must not end the others' run
                report["skipped"].append({"backend": backend, "precision": precision, **_reason(error)})
        for batch in dict.fromkeys(batches):
            usable = list(_usable(cases, paths, batch, prepared, report["skipped"]))
            note(f"batch {batch}: {rounds} rounds of {len(usable)} cases")
            report["results"] += _rows(_time(usable, paths, batch, prepared, rounds), batch)
    if not report["results"]:
        reasons = {f"{row['backend']} {row['precision']}: {row['reason']}": None for row in report["skipped"]}
        raise GlocalError("No engine of the bundle can run here.", found="; ".join(reasons), fix="see `glocal doctor`")
    return record.finish(report)


def _open(stack: ExitStack, bundle: Path, backend: Backend, precision: Any, threads: int | None) -> _Case:
    start = time.perf_counter()
    opened = Bundle.load(bundle)  # again, because a user's process does so too
    engines = open_engines(opened, backend, precision, threads)
    stack.callback(engines.close)
    selector = ReplacingSelector(selector_of(opened.manifest))
    pipeline = Pipeline(opened.manifest, precision, engines, selector)
    loaded = time.perf_counter()
    engine = open_plain(opened, backend, precision, threads)
    stack.callback(engine.close)
    plain = PlainPipeline(engine, opened.manifest.input_size)
    return _Case(backend, precision, pipeline, selector, plain, loaded - start, time.perf_counter() - loaded)


def _usable(
    cases: Sequence[_Case],
    paths: Sequence[Path],
    batch: int,
    prepared: Mapping[str, _Prepared],
    skipped: list[dict[str, Any]],
) -> Iterator[tuple[_Case, str]]:
    """The cases and kinds of boxes that can run a batch: each is tried once, which also warms it up."""
    for case, kind in itertools.product(cases, prepared):
        files, regions = next(_chunks(paths, batch, prepared[kind]))
        try:
            start = time.perf_counter()
            case.predict(files, regions)
            middle = time.perf_counter()
            case.predict_plain(files)
            end = time.perf_counter()
        except Exception as error:  # too little memory for this batch, say
            row = {"backend": case.backend, "precision": case.precision, "batch": batch, "boxes_from": kind}
            skipped.append({**row, **_reason(error)})
            continue
        case.first_ms = case.first_ms or (middle - start) * 1e3
        case.plain_first_ms = case.plain_first_ms or (end - middle) * 1e3
        yield case, kind


def _time(
    usable: Sequence[tuple[_Case, str]],
    paths: Sequence[Path],
    batch: int,
    prepared: Mapping[str, _Prepared],
    rounds: int,
) -> list[tuple[_Turn, _Turn]]:
    """Time all in turn; gives each with the plain backbone of the same rounds."""
    calls: dict[str, Callable[[], None]] = {}
    for case, kind in usable:
        case.seen.clear()
        case.plain_seen.clear()
        if case.name not in calls:  # once a round, whatever the boxes
            calls[case.name] = _plain_in_turn(case, _chunks(paths, batch, None))
        calls[f"{case.name} {kind}"] = _in_turn(case, _chunks(paths, batch, prepared[kind]))
    if not calls:
        return []
    times = alternate(calls, rounds)
    pairs = []
    for case, kind in usable:
        kinds = [other for one, other in usable if one is case]
        # The kinds of boxes of a case take turns; the rounds before the timed ones warmed up.
        measured = case.seen[kinds.index(kind) :: len(kinds)][-rounds:]
        stages = {name: np.array([one[name] for one, _ in measured]) for name in measured[0][0]}
        counts = [count for _, boxes in measured for count in boxes]
        plain = {name: np.array([one[name] for one in case.plain_seen[-rounds:]]) for name in case.plain_seen[0]}
        turn = _Turn(case, kind, times[f"{case.name} {kind}"], stages, counts)
        pairs.append((turn, _Turn(case, kind, times[case.name], plain, [])))
    return pairs


def _rows(pairs: Sequence[tuple[_Turn, _Turn]], batch: int) -> Iterator[dict[str, Any]]:
    firsts: dict[str, NDArray[np.float64]] = {}
    for turn, plain in pairs:
        case, times = turn.case, turn.times
        engines = np.sum([turn.stages[name] for name in _ENGINES if name in turn.stages], axis=0)
        decoded = times - turn.stages["decode"]
        whole = summary(times)
        yield {
            "backend": case.backend,
            "precision": case.precision,
            "batch": batch,
            "boxes_from": turn.boxes,
            **whole,
            "images_per_s": round(batch / whole["p50_ms"] * 1e3, 2),
            "ratio": ratio(times, plain.times),
            "to_first": ratio(times, firsts.setdefault(turn.boxes, times)),
            "plain": {
                **summary(plain.times),
                "engine": summary(plain.stages["engine"] / batch),
                "load_s": round(case.plain_load_s, 3),
                "first_ms": round(case.plain_first_ms, 3),
            },
            "engines": {**summary(engines / batch), "ratio": ratio(engines, plain.stages["engine"])},
            "host_share": ratio(decoded - engines, decoded),
            "boxes": {
                "mean": round(float(np.mean(turn.counts)), 2),
                "median": float(np.median(turn.counts)),
                "p95": float(np.percentile(turn.counts, 95)),
                "images": len(turn.counts),
            },
            "load_s": round(case.load_s, 3),
            "first_ms": round(case.first_ms, 3),
            "stages": {name: summary(values / batch) for name, values in turn.stages.items()},
        }


def _in_turn(case: _Case, chunks: Iterator[tuple[list[Path], _Prepared]]) -> Callable[[], None]:
    return lambda: case.predict(*next(chunks))


def _plain_in_turn(case: _Case, chunks: Iterator[tuple[list[Path], _Prepared]]) -> Callable[[], None]:
    return lambda: case.predict_plain(next(chunks)[0])


def _chunks(paths: Sequence[Path], batch: int, prepared: _Prepared) -> Iterator[tuple[list[Path], _Prepared]]:
    """Batches of images, round and round, with their prepared regions."""
    endless = itertools.cycle(range(len(paths)))
    while True:
        numbers = list(itertools.islice(endless, batch))
        regions = None if prepared is None else [prepared[number] for number in numbers]
        yield [paths[number] for number in numbers], regions


def _reason(error: Exception) -> dict[str, str]:
    if isinstance(error, GlocalError):
        return {"reason": " ".join(part for part in (error.what, error.found) if part), "fix": error.fix}
    return {"reason": f"{type(error).__name__}: {error}", "fix": "see `glocal doctor`"}


def _checked(
    backends: Sequence[str], precisions: Sequence[str], batches: Sequence[int], boxes: Sequence[str]
) -> list[Backend]:
    """The backends, after a look at all that is named."""
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown or not backends:
        fix = f"Choose among {', '.join(BACKENDS)}."
        raise UsageError(f"There is no backend {', '.join(unknown)}." if unknown else "No backend is named.", fix=fix)
    if strange := [name for name in precisions if name not in get_args(Precision)]:
        fix = f"Choose among {', '.join(get_args(Precision))}."
        raise UsageError(f"There is no precision {', '.join(strange)}.", fix=fix)
    if not batches or min(batches) < 1:
        raise UsageError("A batch has at least one image.", found=", ".join(str(batch) for batch in batches))
    if not boxes or len({Path(kind).name for kind in boxes}) < len(boxes):
        fix = f"Give {OWN}, numbers, or folders of bundles, each once and of different names."
        raise UsageError("The kinds of boxes cannot be told apart.", found=", ".join(boxes), fix=fix)
    return [known for name in dict.fromkeys(backends) for known in BACKENDS if known == name]
