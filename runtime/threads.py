"""How many threads do what, so that the engines, OpenCV and Numba do not fight over the cores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .backends import PLAN_BACKENDS
from .errors import UsageError

_MOST_WORKERS = 8
_GPU_WORKERS = 2
_CPU_BACKEND = "onnxruntime"

Goal: TypeAlias = Literal["latency", "throughput"]


@dataclass(frozen=True)
class ThreadUse:
    """Who gets how many threads.

    Attributes:
        workers: Threads that predict at the same time, each a batch of its own.
        engine: Threads within one engine on the CPU; None leaves the choice to the engine library: all cores.
    """

    workers: int
    engine: int | None


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # less than the machine has, in a container or under taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decide_threads(
    goal: Goal,
    backend: str = "auto",
    engine: int | None = None,
    workers: int | None = None,
    cores: int | None = None,
) -> ThreadUse:
    """Decide how many workers there are, and how many threads each engine has.

    For **latency** (one image, a live source), one worker has all cores. For **throughput** (folders, videos), there
    are as many workers as cores, each engine with one thread; beyond 8 cores it is 8 workers, which share the cores
    out evenly, because Python's own work on each image holds one lock. There are never more threads than cores,
    which is the slowest of all. On a GPU it is two workers, as one engine's work overlaps with the other's.

    Images per second of the global graph alone on 2 cores with ONNX Runtime, threads of one engine x workers:
    EfficientNet-Lite0 1x1 74, 2x1 100, 1x2 145, 2x2 91; ResNet-101 at 448 px 1x1 1.67, 2x1 3.17, 1x2 3.30, 2x2 2.53
    (fp32, batch 1). So ResNet-101, whose batch needs long, hardly gains by workers, and a small network much.
    More than 2 cores, 16 for instance, were not measured: the rule above 8 cores is a guess.

    The other libraries: the selector's Numba kernel runs in its worker's thread alone. OpenCV's number of threads
    belongs to the whole process, so the library leaves it as it is; ``glocal run`` sets it to 1 where there is more
    than one worker, and an application that has several should do the same (``cv2.setNumThreads(1)``).

    Args:
        goal: What matters.
        backend: What runs the graphs; ``auto`` counts as the CPU.
        engine: Threads of one engine, where that is settled already.
        workers: Workers, where that is settled already.
        cores: Cores to share out; by default those that this process may use.

    Raises:
        UsageError: More than two workers for a TensorRT backend, which keeps the features of two batches.
    """
    if workers is not None and workers > _GPU_WORKERS and backend in PLAN_BACKENDS:
        raise UsageError(f"The backend {backend} takes at most {_GPU_WORKERS} workers, not {workers}.")
    cores = usable_cores() if cores is None else cores
    if backend not in (_CPU_BACKEND, "auto"):
        default = 1 if goal == "latency" else _GPU_WORKERS
        return ThreadUse(default if workers is None else workers, engine)
    if workers is None:
        fitting = min(max(cores // (engine or 1), 1), _MOST_WORKERS)
        workers = 1 if goal == "latency" else fitting
    if engine is None and workers > 1:
        engine = max(cores // workers, 1)
    return ThreadUse(workers, engine)
