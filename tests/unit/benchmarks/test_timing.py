import numpy as np
import pytest
from glocal.benchmarks.timing import alternate, ratio, summary


def test_summary_gives_percentiles_within_their_intervals() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1.0, 1002.0))
    found = summary(times, "us")
    assert (found["p50_us"], found["p90_us"], found["p99_us"], found["calls"]) == (501, 901, 991, 1001)
    for name in ("p50_us", "p90_us", "p99_us"):
        low, high = found[f"{name}_ci"]
        assert low < found[name] < high


def test_the_interval_of_the_median_covers_it_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = summary(rng.exponential(size=40))["p50_ms_ci"]
        covered += low <= np.log(2) <= high
    assert 930 <= covered <= 990


def test_a_single_call_is_its_own_interval() -> None:
    assert summary(np.array([3.0]))["p99_ms_ci"] == [3.0, 3.0]


def test_ratio_compares_within_a_round() -> None:
    reference = np.array([1.0, 10.0, 100.0])  # a machine that gets slower and slower
    assert ratio(reference * 2, reference) == {"p50": 2.0, "p10": 2.0, "p90": 2.0, "p50_ci": [2.0, 2.0]}


def test_calls_take_turns() -> None:
    seen: list[str] = []
    times = alternate({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=3, warmup=1)
    assert seen == ["a", "b"] * 4
    assert [len(values) for values in times.values()] == [3, 3]


def test_the_rounds_are_positive_durations() -> None:
    assert (alternate({"a": lambda: None}, rounds=5)["a"] > 0).all()
    with pytest.raises(ZeroDivisionError):
        alternate({"a": lambda: 1 // 0}, rounds=1)
