"""Accuracy against latency: ``glocal bench tradeoff BUNDLE... --data DIR``.

Every bundle and precision is a point, and one more with an early exit where the bundle has thresholds for it. Scores
are those of the pipeline itself, over the split. Latency is that of one file after the other: all points are loaded
into one process and take turns on the same photos, so that whatever slows the machine slows them alike. An early exit
makes fast and slow photos; the mean says what many photos cost, the median only what one of the commoner kind does.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calib.gate import predict
from ..calib.photos import Labelled, at_most, draw
from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.images import encode_jpeg
from ..runtime.metrics import multilabel_metrics
from ..runtime.pipeline import Pipeline
from ..runtime.progress import note
from . import record
from .scored import scored
from .timing import alternate, summary

if TYPE_CHECKING:
    from ..train.labeled import LabeledImages


@dataclass
class _Point:
    """A bundle at one precision, with or without an early exit, and how it is opened."""

    bundle: Bundle
    label: str  # of the bundle
    precision: str
    early_exit: bool
    backend: str
    threads: int | None
    exits: list[bool] = field(default_factory=list)  # of the timed calls

    @property
    def name(self) -> str:
        return f"{self.label} {self.precision}" + (" early exit" if self.early_exit else "")

    def load(self) -> Pipeline:
        return Pipeline.load(self.bundle.path, self.backend, self.precision, self.threads, self.early_exit)


def bench_tradeoff(
    bundles: Sequence[Path],
    data: str,
    split: str = "test",
    precisions: Sequence[str] = (),
    *,
    limit: int | None = None,
    images: int = 32,
    rounds: int = 5,
    length: int = 1000,
    backend: str = "auto",
    threads: int | None = None,
) -> record.Report:
    """Score and time bundles.

    Args:
        bundles: Their folders, the one to compare with first.
        data: ``digits``, or a data folder.
        split: What to score on; the timed photos are drawn from it.
        precisions: Which precisions; by default all that each bundle has.
        limit: Score this many images of the split, drawn at random; all by default.
        images: Photos to time.
        rounds: Times that each of these is timed, at each point.
        length: Scenes, for built-in data.
        backend: See ``Pipeline.load``.
        threads: Threads of one engine on the CPU.

    Returns:
        The report that ``--json`` writes. ``models``: facts of each bundle by name. ``results``: for each point
        ``name``, ``bundle``, ``precision``, ``early_exit``; on the split ``mAP``, ``OF1`` (at the bundle's thresholds),
        ``boxes`` (mean of an image, 0 where it exited), ``exits`` (share); of the timed calls ``mean_ms``, what
        `timing.summary` gives, ``mean_ratio`` (to the first point's mean) and ``timed_exits``.

    Raises:
        UsageError: There is no bundle, precision or backend of that name, or two bundles have one name.
        BundleError: A bundle is damaged.
        DataError: The data do not follow their layout, or have other labels than a bundle.
        GlocalError: A photo cannot be predicted.
    """
    from ..train.data import open_data
    from ..train.labeled import check_labels

    if not bundles:
        raise UsageError("No bundle is named.", fix="name one or more")
    opened = {_label(path): Bundle.load(path) for path in bundles}
    if len(opened) != len(bundles):
        found = ", ".join(_label(path) for path in bundles)
        raise UsageError("Two bundles have one name, so their points could not be told apart.", found=found)
    first = next(iter(opened.values()))
    whole = open_data(data, split, length=length, size=first.manifest.input_size[0])
    for bundle in opened.values():
        check_labels(whole, bundle.manifest.labels)
    points = [
        _Point(bundle, label, precision, early, backend, threads)
        for label, bundle in opened.items()
        for precision in precisions or bundle.manifest.precisions
        for early in ((False, True) if precision in bundle.manifest.early_exit else (False,))
    ]
    labelled = at_most(whole, limit)
    scored = [_score(point, labelled) for point in points]
    report = record.begin("tradeoff", first)  # after the scoring, for the load that the timing sees
    report["models"] = {label: record.model_facts(bundle) for label, bundle in opened.items()}
    report |= {
        "data": Path(data).name,
        "split": split,
        "images": len(labelled),
        "timed_images": min(images, len(whole)),
    }
    report |= {"rounds": rounds, "threads": threads, "backend": backend}
    with _files(whole, report["timed_images"]) as paths:
        timed = _time(points, paths, rounds)
    report["results"] = [
        {
            "name": point.name,
            "bundle": point.label,
            "precision": point.precision,
            "early_exit": point.early_exit,
            **scores,
            **times,
        }
        for point, scores, times in zip(points, scored, timed, strict=True)
    ]
    return record.finish(report)


def pareto(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points than which no other is both as fast (``mean_ms``) and as accurate (``mAP``), by rising time."""
    best: list[dict[str, Any]] = []
    for point in sorted(results, key=lambda one: (one["mean_ms"], -one["mAP"])):
        if not best or point["mAP"] > best[-1]["mAP"]:
            best.append(point)
    return best


def _label(path: Path) -> str:
    return path.resolve().name


def _score(point: _Point, labelled: Labelled) -> dict[str, float]:
    with point.load() as pipeline:
        predictions = predict(pipeline, labelled, point.name)
        scores = np.stack([one.scores for one in predictions])
        metrics = multilabel_metrics(scores, labelled.targets, pipeline.thresholds)
    note(f"{point.name}: mAP {metrics['mAP']:.4f}")
    return {
        "mAP": round(metrics["mAP"], 6),
        "OF1": round(metrics["OF1"], 6),
        "boxes": round(float(np.mean([len(one.regions) for one in predictions])), 3),
        "exits": round(_share([one.exited for one in predictions]), 4),
    }


def _time(points: Sequence[_Point], paths: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        calls = {point.name: _in_turn(point, stack.enter_context(point.load()), paths) for point in points}
        calls_each = rounds * len(paths)  # each photo as often as any other
        times = alternate(calls, calls_each)
    means = {name: float(values.mean()) for name, values in times.items()}
    reference = means[points[0].name]
    return [
        {
            "mean_ms": round(means[point.name], 4),
            **summary(times[point.name]),
            "mean_ratio": round(means[point.name] / reference, 4),
            "timed_exits": round(_share(point.exits[-calls_each:]), 4),  # those before warmed up
        }
        for point in points
    ]


def _in_turn(point: _Point, pipeline: Pipeline, paths: Sequence[Path]) -> Callable[[], None]:
    endless = itertools.cycle(paths)

    def call() -> None:
        (prediction,) = scored(pipeline.predict_files([next(endless)], batch=1), f"{point.name} could not predict.")
        point.exits.append(prediction.exited)

    return call


@contextmanager
def _files(images: LabeledImages, count: int) -> Iterator[list[Path]]:
    """Photos drawn from the split; scenes are written as JPEG files."""
    drawn = draw(images, count)
    if images.paths is not None:
        yield [images.paths[index] for index in drawn.indices]
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(count)]
        for index, path in enumerate(paths):
            path.write_bytes(encode_jpeg(drawn.load(index)))
        yield paths


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
