from __future__ import annotations

import os

import pytest
from glocal.runtime.errors import UsageError
from glocal.runtime.threads import ThreadUse, decide_threads, usable_cores


@pytest.mark.parametrize(
    ("cores", "use"),
    [
        (1, ThreadUse(1, None)),
        (2, ThreadUse(2, 1)),
        (8, ThreadUse(8, 1)),
        (12, ThreadUse(8, 1)),
        (16, ThreadUse(8, 2)),
        (64, ThreadUse(8, 8)),
    ],
)
def test_throughput_wants_one_worker_per_core(cores: int, use: ThreadUse) -> None:
    assert decide_threads("throughput", cores=cores) == use


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_latency_wants_one_worker_with_all_cores(cores: int) -> None:
    assert decide_threads("latency", cores=cores) == ThreadUse(1, None)


def test_what_is_settled_stays() -> None:
    assert decide_threads("throughput", engine=2, cores=8) == ThreadUse(4, 2)
    assert decide_threads("throughput", engine=8, cores=2) == ThreadUse(1, 8)
    assert decide_threads("throughput", workers=2, cores=8) == ThreadUse(2, 4)
    assert decide_threads("throughput", workers=1, cores=8) == ThreadUse(1, None)
    assert decide_threads("latency", engine=1, cores=8) == ThreadUse(1, 1)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx", "onnxruntime-cuda"])
def test_a_gpu_gets_two_workers(backend: str) -> None:
    assert decide_threads("throughput", backend, cores=16).workers == 2
    assert decide_threads("latency", backend, cores=16).workers == 1


def test_tensorrt_takes_no_more_than_it_keeps_features_for() -> None:
    with pytest.raises(UsageError, match="at most 2 workers"):
        decide_threads("throughput", "tensorrt", workers=3)
    assert decide_threads("throughput", "tensorrt", workers=2).workers == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot confine a process to some cores")
def test_only_usable_cores_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)
