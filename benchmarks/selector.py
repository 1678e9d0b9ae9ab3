"""The region selector against other libraries: ``glocal bench selector``.

The ways of `selector_ways` do the whole job, and their results are compared with ours before any is timed. Beside them
stands ``OpenCV labels only``, the least that OpenCV could need. The selector takes a batch in one call; the others loop
over its images.

The ways take turns, each with a burst of calls. The first call of a burst finds the caches full of another's work, as
it does in a pipeline behind an engine; it is reported apart from the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import GlocalError
from ..runtime.pipeline import Pipeline
from ..runtime.progress import progressed
from ..runtime.selector import RegionSelector
from . import record
from .selector_maps import FloatArray, Maps, Setting
from .selector_ways import FindBoxes, check_same, find_ways, labels_only, select
from .timing import alternate, opencv_threads, ratio, summary

SETTINGS = (Setting(12, 2, ()), Setting(4, 2, (0.5, 1.0)))
BURST = 50  # calls of a way in a row
Way = Callable[[FloatArray, FloatArray], Any]  # of maps (B, N, h, w) and logits (B, N)


def bench_selector(workloads: Sequence[Maps], batches: Sequence[int], rounds: int) -> record.Report:
    """Time every setting and batch size on every workload.

    Args:
        workloads: Class maps.
        batches: Images per call.
        rounds: Bursts of each way at batch 1; a third as many, and shorter, of more images.

    Returns:
        The report that ``--json`` writes, without its end (`record.finish`). ``results``: per workload, setting and
        batch the maps' facts (`Maps.describe`), ``unique_boxes`` (mean per image) and ``ways`` (`time_ways`);
        ``skipped``: ways that are not installed, with the reason.

    Raises:
        SelectorError: The class maps, logits or shift are not what the selector takes.
        GlocalError: A way that does the whole job found something else than ``glocal``.
    """
    finders, skipped = find_ways()
    report = record.begin("selector")
    report |= {"rounds": rounds, "burst": BURST, "opencv_threads": 1, "skipped": skipped, "results": []}
    cases = list(itertools.product([(one, one.describe()) for one in workloads], SETTINGS, batches))
    for (one, facts), setting, batch in progressed(cases, "timing the selector"):
        regions = RegionSelector(one.shift, setting.k_s, setting.k_e, setting.zetas)(one.maps, one.logits)
        boxes = round(float(regions.n.mean()), 2)
        ways = time_ways(one, setting, batch, rounds, finders)
        report["results"].append({**facts, **asdict(setting), "batch": batch, "unique_boxes": boxes, "ways": ways})
    return report


def time_ways(
    workload: Maps, setting: Setting, batch: int, rounds: int, finders: dict[str, FindBoxes]
) -> dict[str, dict[str, Any]]:
    """Time every way on the same batches, in turn, in this process.

    Args:
        workload: Class maps; their batches are taken one after the other.
        setting: Parameters of the selector.
        batch: Images per call.
        rounds: Bursts of each way at batch 1; a third as many, and shorter, of more images.
        finders: The other ways, as `find_ways` gives them.

    Returns:
        By way, of the calls after a burst's first, microseconds as `timing.summary` gives them (``p50_us`` and so on)
        and ``us_per_image`` at the median; ``first_us``: the summary of the first calls; ``ratio``: the burst's median
        over that of ``glocal``, as `timing.ratio` gives it.

    Raises:
        SelectorError: The class maps, logits or shift are not what the selector takes.
        GlocalError: A way that does the whole job found something else than ``glocal``.
    """
    selector = RegionSelector(workload.shift, setting.k_s, setting.k_e, setting.zetas)
    others = {name: _whole_job(find_boxes, workload.shift, setting) for name, find_boxes in finders.items()}
    cases, burst = workload.batch(batch), max(3, BURST // batch)
    rounds = rounds if batch == 1 else -(-rounds // 3)  # the ways that loop over the images take long
    with opencv_threads(1):
        for maps, logits in cases:
            regions = selector(maps, logits)
            for name, way in others.items():
                for image, found in enumerate(way(maps, logits)):
                    check_same(name, found, regions, image)
        ways: dict[str, Way] = {"glocal": selector, **others, "OpenCV labels only": _labels_only(setting)}
        turns = {name: _in_turn(way, cases) for name, way in ways.items()}
        times = alternate({f"{name} {call}": turns[name] for name in ways for call in range(burst)}, rounds)
    table = {name: np.stack([times[f"{name} {call}"] for call in range(burst)], axis=1) * 1e3 for name in ways}
    return {name: _figures(values, table["glocal"], batch) for name, values in table.items()}


def pipeline_share(bundle: Path, paths: Sequence[Path], passes: int) -> dict[str, Any]:
    """The selector's share of a pipeline's time, image by image.

    Args:
        bundle: The bundle's folder.
        paths: Photos.
        passes: How often to go through them, after one pass that does not count.

    Returns:
        ``select`` and ``total``, `timing.summary` of the milliseconds of `Prediction.timings` (``select`` includes the
        check of the energies and the boxes' normalisation); ``share`` of the medians; ``boxes`` (mean per image).

    Raises:
        UsageError, BundleError, EngineError: As `Pipeline.load` says.
        GlocalError: A photo cannot be predicted.
    """
    seen = []
    with Pipeline.load(bundle) as pipeline:
        for number in progressed(range(passes + 1), "running the pipeline"):
            for prediction in pipeline.predict_files(paths, batch=1):
                if prediction.error is not None:
                    raise GlocalError(f"{prediction.source} could not be predicted.", found=prediction.error)
                if number:
                    seen.append((prediction.timings["select"], prediction.timings["total"], len(prediction.regions)))
    selecting, total, boxes = np.array(seen).T
    return {
        "select": summary(selecting),
        "total": summary(total),
        "share": round(float(np.median(selecting) / np.median(total)), 6),
        "boxes": round(float(boxes.mean()), 2),
    }


def _whole_job(find_boxes: FindBoxes, shift: FloatArray, setting: Setting) -> Way:
    return lambda maps, logits: [
        select(find_boxes, one, scores, shift, setting) for one, scores in zip(maps, logits, strict=True)
    ]


def _labels_only(setting: Setting) -> Way:
    return lambda maps, logits: [
        labels_only(one, scores, setting.k_s) for one, scores in zip(maps, logits, strict=True)
    ]


def _in_turn(way: Way, cases: Sequence[tuple[FloatArray, FloatArray]]) -> Callable[[], Any]:
    images = itertools.cycle(cases)
    return lambda: way(*next(images))


def _figures(times: NDArray[np.float64], ours: NDArray[np.float64], batch: int) -> dict[str, Any]:
    """Figures of one way from its (rounds, burst) microseconds and those of ``glocal``."""
    found = summary(times[:, 1:].ravel(), "us")
    found["us_per_image"] = round(found["p50_us"] / batch, 4)
    found["first_us"] = summary(times[:, 0], "us")
    return found | {"ratio": ratio(np.median(times[:, 1:], axis=1), np.median(ours[:, 1:], axis=1))}
