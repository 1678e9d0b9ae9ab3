"""The sensitivity scan: which blocks, left in fp32, give back most accuracy per millisecond.

Accuracy is measured in two ways. mAP is what counts, and decides which points are good enough. But a single block
hardly moves it on a few hundred images, so blocks are ranked by how much they reduce the score shift, the mean
absolute difference of fused scores to fp32, per millisecond that they cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from ..runtime.bundle import Bundle
from ..runtime.errors import CalibrationError
from ..runtime.files import write_atomically
from ..runtime.progress import progressed
from .bench import Bench, Point
from .graph import Graph
from .methods import Method
from .photos import Labelled
from .table import Table

_NEAR = 1.05
_LONGEST_PATH = 8


class State(BaseModel):
    """What a scan knows so far; written after every trial.

    Attributes:
        key: sha256 of all that decides the results: table, method, data, blocks.
        fp32: The reference.
        int8: Every block quantised.
        trials: Points by the blocks left in fp32, joined by a space.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    fp32: Point
    int8: Point
    trials: dict[str, Point] = {}


class Result(NamedTuple):
    """What a scan found.

    Attributes:
        chosen: The blocks to leave in fp32; may be none.
        state: All points.
        untried: Blocks that the time did not suffice for.
    """

    chosen: tuple[str, ...]
    state: State
    untried: tuple[str, ...]


def scan(
    bundle: Bundle,
    graphs: Mapping[str, Graph],
    table: Table,
    method: Method,
    exclude: Sequence[str],
    data: Labelled,
    file: Path,
    *,
    share: float,
    seconds: float,
    threads: int | None = None,
) -> Result:
    """Try each block in fp32, then the best of them together.

    Args:
        bundle: The bundle.
        graphs: Its fp32 graphs, see ``collect.source_graphs``.
        table: Its calibration table.
        method: Which ranges of the table.
        exclude: ``graph/node`` names that stay in fp32 in any case.
        data: Labelled images; all of them are kept in memory at the network's input size.
        file: Where the state is kept. A scan that was ended goes on from there.
        share: The part of the fp32 mAP that the chosen point should keep.
        seconds: No trial begins that would, by the time of those before, end later than this.
        threads: Of ONNX Runtime.

    Raises:
        CalibrationError: The file is of another scan, or an image cannot be predicted.
    """
    bench = Bench(bundle, graphs, table, method, exclude, data, threads)
    deadline = time.monotonic() + seconds
    state = _load(file, bench.key) or _start(bench)
    _save(file, state)
    slowest = 0.0
    done = True
    for blocks in progressed(_plan(bench, state), "scanning blocks"):
        if time.monotonic() + slowest > deadline:
            done = False
            break
        began = time.monotonic()
        state.trials[" ".join(blocks)] = bench.point(blocks, state.int8.ms)
        slowest = max(slowest, time.monotonic() - began)
        _save(file, state)
    _time_again(bench, state, share, file)
    untried = () if done else tuple(block for block in bench.blocks if block not in state.trials)
    return Result(choose(state, share), state, untried)


def choose(state: State, share: float) -> tuple[str, ...]:
    """The blocks of the best point.

    Of the points that keep ``share`` of the fp32 mAP: among the fastest (within 5 %, which is what timing can tell
    apart) the one with the smallest score shift. Where none keeps it, the one with the highest mAP.
    """
    points = {(): state.int8, **{tuple(name.split(" ")): point for name, point in state.trials.items()}}
    good = {blocks: point for blocks, point in points.items() if point.mAP >= share * state.fp32.mAP}
    if not good:
        return max(points, key=lambda blocks: points[blocks].mAP)
    fastest = min(point.slower_ms for point in good.values())
    near = {blocks: point for blocks, point in good.items() if point.slower_ms <= _NEAR * fastest}
    return min(near, key=lambda blocks: (near[blocks].score_shift, len(blocks)))


def _time_again(bench: Bench, state: State, share: float, file: Path) -> None:
    """Time what would be chosen once more, until the choice holds.

    The fastest of many noisy timings is one that noise has favoured; the slower of two is what such a point gets.
    """
    while (chosen := choose(state, share)) and state.trials[" ".join(chosen)].ms_again is None:
        again = {"ms_again": bench.ms(chosen, state.int8.ms)}
        state.trials[" ".join(chosen)] = state.trials[" ".join(chosen)].model_copy(update=again)
        _save(file, state)


def ranking(state: State) -> list[str]:
    """Single blocks that reduce the score shift: first those that cost no time, then by reduction per millisecond."""

    def worth(name: str) -> tuple[bool, float]:
        gain = state.int8.score_shift - state.trials[name].score_shift
        cost = state.trials[name].ms - state.int8.ms
        return (cost <= 0, gain if cost <= 0 else gain / cost)

    single = [name for name in state.trials if " " not in name]
    helpful = [name for name in single if state.trials[name].score_shift < state.int8.score_shift]
    return sorted(helpful, key=worth, reverse=True)


def _plan(bench: Bench, state: State) -> Iterator[tuple[str, ...]]:
    """What is still to be tried: single blocks, then the first two, three, ... of their ranking."""
    for block in bench.blocks:
        if block not in state.trials:
            yield (block,)
    best = ranking(state)
    for count in range(2, min(len(best), _LONGEST_PATH) + 1):
        if " ".join(best[:count]) not in state.trials:
            yield tuple(best[:count])


def _start(bench: Bench) -> State:
    fp32, int8 = bench.start()
    return State(key=bench.key, fp32=fp32, int8=int8)


def _load(file: Path, key: str) -> State | None:
    if not file.exists():
        return None
    fix = f"Remove {file}, or name another file."
    try:
        state = State.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise CalibrationError(f"{file} is no state of a scan.", found=str(error), fix=fix) from error
    if state.key != key:
        raise CalibrationError(f"{file} is of another model, table, method or data.", fix=fix)
    return state


def _save(file: Path, state: State) -> None:
    write_atomically(file, (state.model_dump_json(indent=1) + "\n").encode())
