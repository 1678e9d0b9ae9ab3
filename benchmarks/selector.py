"""The region selector against OpenCV: ``python -m glocal.benchmarks.selector``.

Three ways do the whole job (ranking, regions, enclosing boxes, energies, variants, merging, the check for values that
are not finite), and their results are compared before any is timed:

- ``glocal``: ``RegionSelector``.
- ``OpenCV components``: boxes from connectedComponentsWithStats, one call per map and per crop.
- ``OpenCV contours``: boxes around the outer contours of findContours with RETR_CCOMP, which also lists a component
  inside another's hole; RETR_EXTERNAL would miss it.

OpenCV's ways take energies from ``cv2.integral``. They do not order ties, which smoothed noise does not have.
A fourth, ``OpenCV labels only``, is the least that OpenCV could need: one connectedComponentsWithStats call over
the ranked maps, stacked with an empty row between each two. It has boxes but no energies, so it selects nothing.

The ways take turns, each with a burst of calls. The first call of a burst finds the caches full of another's work, as
it does in a pipeline behind an engine; it is reported apart from the rest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..runtime.cli import run_app
from ..runtime.errors import DataError, GlocalError
from ..runtime.files import write_atomically
from ..runtime.selector import Regions, RegionSelector
from .machine import load_average, machine_facts
from .timing import alternate

FloatArray: TypeAlias = NDArray[np.float32]
Case: TypeAlias = tuple[FloatArray, FloatArray]  # class maps (1, N, h, w) and logits (1, N) of one image
Box: TypeAlias = tuple[int, int, int, int]
Merged: TypeAlias = dict[Box, list[float]]  # count, category, variant, energy
Rectangle: TypeAlias = Sequence[int]  # x, y, width, height
FindBoxes: TypeAlias = Callable[[NDArray[np.uint8]], list[Rectangle]]
_BURST = 50
_IMAGES = 16  # different ones in turn, or the branch predictor would learn the image


@dataclass(frozen=True)
class Setting:
    """Parameters of the selector."""

    k_s: int
    k_e: int
    zetas: tuple[float, ...]


SETTINGS = (Setting(12, 2, ()), Setting(4, 2, (0.5, 1.0)))


def time_ways(cases: Sequence[Case], shift: FloatArray, setting: Setting, rounds: int) -> dict[str, Any]:
    """Time every way on the same images, in turn, in this process.

    Args:
        cases: Images, taken one after the other.
        shift: (N,) as ``RegionSelector`` takes it.
        setting: Parameters of the selector.
        rounds: Bursts of each way.

    Returns:
        By way: ``p50_us``, ``p90_us``, ``p99_us`` of the calls after a burst's first, ``first_p50_us`` of the first;
        ``ratio`` to ``glocal`` of a round's medians (median over the rounds) and its ``ratio_p10``, ``ratio_p90``.

    Raises:
        SelectorError: The class maps, logits or shift are not what the selector takes.
        GlocalError: A way that does the whole job found something else than ``glocal``.
    """
    selector = RegionSelector(shift, setting.k_s, setting.k_e, setting.zetas)
    full: dict[str, Callable[[FloatArray, FloatArray], Merged]] = {
        "OpenCV components": lambda maps, logits: _opencv(_stats_boxes, maps, logits, shift, setting),
        "OpenCV contours": lambda maps, logits: _opencv(_contour_boxes, maps, logits, shift, setting),
    }
    with _one_opencv_thread():
        for maps, logits in cases:
            regions = selector(maps, logits)
            for name, way in full.items():
                _compare(name, way(maps, logits), regions)
        ways: dict[str, Callable[[FloatArray, FloatArray], Any]] = {
            "glocal": selector,
            **full,
            "OpenCV labels only": lambda maps, logits: _labels_only(maps, logits, setting.k_s),
        }
        images = {name: _in_turn(way, cases) for name, way in ways.items()}
        bursts = {f"{name} {call}": images[name] for name in ways for call in range(_BURST)}
        times = alternate(bursts, rounds)
    table = {name: np.stack([times[f"{name} {call}"] for call in range(_BURST)], axis=1) * 1e3 for name in ways}
    return {name: _summary(values, table["glocal"]) for name, values in table.items()}


def noise_cases(categories: int, size: int, seed: int = 0) -> tuple[list[Case], FloatArray]:
    """Class maps of smoothed noise (standard deviation of the filter 1.5 cells), their logits, and a shift."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(_IMAGES):
        maps = rng.standard_normal((1, categories, size, size), np.float32)
        for plane in maps[0]:
            plane[:] = cv2.GaussianBlur(plane, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT) * 4 - 0.3
        cases.append((maps, rng.standard_normal((1, categories), np.float32)))
    return cases, np.abs(rng.standard_normal(categories, np.float32)) * np.float32(0.6)


def load_cases(path: Path) -> tuple[list[Case], FloatArray]:
    """Cases from an .npz file with float32 ``maps`` (B, N, h, w), ``logits`` (B, N) and ``shift`` (N,).

    Raises:
        DataError: The file is not such a file.
    """
    fix = "Save it with numpy.savez(file, maps=..., logits=..., shift=...), float32 (B, N, h, w), (B, N), (N,)."
    try:
        with np.load(path) as file:
            maps, logits, shift = file["maps"], file["logits"], file["shift"]
    except Exception as error:  # NumPy, zipfile and zlib each have errors of their own for a file that is none
        raise DataError(f"{path} holds no class maps.", found=str(error), fix=fix) from error
    if maps.ndim != 4 or len(maps) == 0 or logits.shape != maps.shape[:2]:
        raise DataError(f"{path} holds no class maps.", found=f"maps {maps.shape}, logits {logits.shape}", fix=fix)
    return [(maps[i : i + 1], logits[i : i + 1]) for i in range(len(maps))], shift


def _opencv(find_boxes: FindBoxes, maps: FloatArray, logits: FloatArray, shift: FloatArray, setting: Setting) -> Merged:
    """The whole job for one image, in the order that the rules give."""
    if not (np.isfinite(maps).all() and np.isfinite(logits).all()):
        raise ValueError("not finite")
    merged: Merged = {}

    def propose(box: Box, category: int, variant: int, energy: float) -> None:
        if box in merged:
            merged[box][0] += 1
        else:
            merged[box] = [1, category, variant, energy]

    for category in np.argsort(-logits[0], kind="stable")[: setting.k_s].tolist():
        plane = maps[0, category]
        for region, energy in _strongest(find_boxes, plane, setting.k_e):
            propose(region, category, 0, energy)
            box, (x0, y0, x1, y1) = region, region
            for variant, zeta in enumerate(setting.zetas, 1):
                step = np.float32(zeta) * shift[category]
                for inner, inner_energy in _strongest(find_boxes, plane[y0:y1, x0:x1] - step, 1):
                    box, energy = (inner[0] + x0, inner[1] + y0, inner[2] + x0, inner[3] + y0), inner_energy
                propose(box, category, variant, energy)
    if not merged:
        propose((0, 0, maps.shape[3], maps.shape[2]), -1, 0, 0.0)
    return merged


def _strongest(find_boxes: FindBoxes, plane: FloatArray, limit: int) -> list[tuple[Box, float]]:
    energy_before = cv2.integral(np.maximum(plane, 0), sdepth=cv2.CV_64F).item
    found = []
    for x0, y0, width, height in find_boxes((plane > 0).view(np.uint8)):
        x1, y1 = x0 + width, y0 + height
        energy = energy_before(y1, x1) - energy_before(y0, x1) - energy_before(y1, x0) + energy_before(y0, x0)
        found.append(((x0, y0, x1, y1), energy))
    found.sort(key=lambda region: -region[1])
    return found[:limit]


def _stats_boxes(active: NDArray[np.uint8]) -> list[Rectangle]:
    return cv2.connectedComponentsWithStats(active, connectivity=8)[2][1:, :4].tolist()


def _contour_boxes(active: NDArray[np.uint8]) -> list[Rectangle]:
    contours, hierarchy = cv2.findContours(active, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    parents = hierarchy[0, :, 3].tolist()  # of a hole's contour; an outer one has none
    return [cv2.boundingRect(contour) for contour, parent in zip(contours, parents, strict=True) if parent < 0]


def _labels_only(maps: FloatArray, logits: FloatArray, k_s: int) -> list[Rectangle]:
    ranked = np.argsort(-logits[0], kind="stable")[:k_s]
    height, width = maps.shape[2:]
    stacked = np.zeros((len(ranked), height + 1, width), np.uint8)
    np.greater(maps[0, ranked], 0, out=stacked[:, :height].view(np.bool_))
    return _stats_boxes(stacked.reshape(-1, width))


def _compare(name: str, found: Merged, regions: Regions) -> None:
    used = slice(regions.n[0])
    ours = np.stack((regions.counts[0, used], regions.categories[0, used], regions.variants[0, used]), axis=1)
    theirs = np.array(list(found.values()))
    same = regions.boxes[0, used].tolist() == [list(box) for box in found]
    if not (same and (ours == theirs[:, :3]).all() and np.allclose(regions.energies[0, used], theirs[:, 3], rtol=1e-5)):
        raise GlocalError(
            f"{name} and glocal select different regions.",
            found=f"{list(found)[:4]} and {regions.boxes[0, used][:4].tolist()} ...",
            fix="Use maps without ties, which the OpenCV ways do not order; otherwise report it as a defect.",
        )


def _in_turn(way: Callable[[FloatArray, FloatArray], Any], cases: Sequence[Case]) -> Callable[[], Any]:
    images = itertools.cycle(cases)
    return lambda: way(*next(images))


def _summary(times: NDArray[np.float64], ours: NDArray[np.float64]) -> dict[str, float]:
    """Figures of one way from its (rounds, burst) microseconds and those of ``glocal``."""
    p50, p90, p99 = np.percentile(times[:, 1:], (50, 90, 99))
    ratios = np.median(times[:, 1:], axis=1) / np.median(ours[:, 1:], axis=1)
    low, ratio, high = np.percentile(ratios, (10, 50, 90))
    values = {"p50_us": p50, "p90_us": p90, "p99_us": p99, "first_p50_us": np.median(times[:, 0])}
    values |= {"ratio": ratio, "ratio_p10": low, "ratio_p90": high}
    return {name: round(float(value), 2) for name, value in values.items()}


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # faster on such small maps
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def benchmark(workloads: dict[str, tuple[list[Case], FloatArray]], rounds: int) -> dict[str, Any]:
    """Time every setting on every workload; the report is what ``--json`` writes."""
    report: dict[str, Any] = {
        "machine": machine_facts(),
        "rounds": rounds,
        "burst": _BURST,
        "opencv_threads": 1,
        "results": [],
    }
    for maps, (cases, shift) in workloads.items():
        for setting in SETTINGS:
            facts = {"maps": maps, "images": len(cases), **asdict(setting)}
            report["results"].append({**facts, "ways": time_ways(cases, shift, setting, rounds)})
    report["load_average_after"] = load_average()
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    console = Console(highlight=False)
    for result in report["results"]:
        title = f"{result['maps']} maps, {result['k_s']} x {result['k_e']} x {1 + len(result['zetas'])} boxes"
        table = Table("", title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name in ("p50 us", "p90 us", "p99 us", "first us", "ratio", "p10-p90"):
            table.add_column(name, justify="right")
        for way, row in result["ways"].items():
            times = [f"{row[name]:.1f}" for name in ("p50_us", "p90_us", "p99_us", "first_p50_us")]
            table.add_row(way, *times, f"{row['ratio']:.1f}", f"{row['ratio_p10']:.1f}-{row['ratio_p90']:.1f}")
        console.print(table, "")
    machine = report["machine"]
    loads = f"{machine.get('load_average')} before, {report['load_average_after']} after"
    console.print(f"{machine.get('cpu')}, {machine['cores']} cores; load average {loads}", style="dim")


def main(
    sizes: Annotated[
        list[int] | None, typer.Argument(metavar="[SIZE]...", min=1, help="Sides of the maps, by default 14 28 56.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="Class maps to take instead: .npz with maps, logits and shift.")
    ] = None,
    categories: Annotated[int, typer.Option(min=1, help="Maps per image.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help=f"Bursts of {_BURST} calls of each way.")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the report.")] = None,
) -> None:
    """Time the region selector and OpenCV on the same class maps, in turn."""
    if maps is not None:
        cases, shift = load_cases(maps)
        workloads = {_shape(cases): (cases, shift)}
    else:
        noise = [noise_cases(categories, size) for size in sizes or (14, 28, 56)]
        workloads = {_shape(cases): (cases, shift) for cases, shift in noise}
    report = benchmark(workloads, rounds)
    print_report(report)
    if json_file is not None:
        try:
            write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode())
        except OSError as error:
            raise GlocalError(
                f"{json_file} cannot be written.", found=str(error), fix="Name another file with --json."
            ) from error


def _shape(cases: Sequence[Case]) -> str:
    return "x".join(str(side) for side in cases[0][0].shape[1:])


if __name__ == "__main__":
    run_app(main)
