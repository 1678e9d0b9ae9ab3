import math

import numpy as np
import pytest
from glocal.calib.histogram import HALF, Histogram
from glocal.calib.methods import entropy, minmax, mse, percentile


def filled(*chunks) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(np.asarray(chunk, np.float32))
    return histogram


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Skewed, two-sided, with a few far outliers, and many exact zeros."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1, 200_000)
    x = np.where(x < -0.5, 0.1 * x, x)
    x[:20] = 60
    x[rng.random(x.size) < 0.2] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("order", [1, -1])
def test_counts_are_exact_in_any_order_and_size_of_chunks(values, order):
    histogram = filled(*np.array_split(np.sort(values)[::order], 37))
    expected, _ = np.histogram(values[values != 0].astype(np.float64), histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == np.sum(values == 0)
    assert histogram.total == values.size
    assert HALF / 2 < 60 / histogram.width <= HALF


def test_values_of_very_different_size_can_come_one_after_the_other():
    histogram = filled([1e-20], [0.0, 0.0], [3.0], [-1e9])
    assert histogram.total == 5
    assert (histogram.low, histogram.high, histogram.zeros) == (-1e9, 3.0, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        filled([1.0, bad])


def test_minmax_is_the_range_of_all_values(values):
    assert minmax(filled(values)) == (values.min(), values.max())


def test_every_range_holds_zero_and_nothing_unseen():
    for method in (minmax, percentile, entropy, mse):
        low, high = method(filled(np.linspace(2, 5, 5000)))
        assert low == 0
        assert 2 < high <= 5
        assert method(filled(np.zeros(10))) == (0, 0)
        low, high = method(filled(-np.linspace(2, 5, 5000)))
        assert -5 <= low < -2
        assert high == 0


@pytest.mark.parametrize("share", [99.0, 99.9])
def test_percentile_is_that_of_the_values(values, share):
    histogram = filled(values)
    low, high = percentile(histogram, share)
    expected = np.percentile(values, [(100 - share) / 2, (100 + share) / 2])
    np.testing.assert_allclose([low, high], expected, atol=1.01 * histogram.width)


def squared_error(values, low, high) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    rounded = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return float(np.mean((rounded - values) ** 2))


def test_mse_finds_the_range_of_least_error():
    """Against quantising the values themselves on a grid of ranges."""
    values = np.random.default_rng(1).standard_t(3, 100_000).astype(np.float32)
    values = np.where(values < 0, 0.3 * values, values)
    found = squared_error(values, *mse(filled(values)))
    grid = [
        squared_error(values, low, high)
        for low in np.linspace(values.min(), -1e-3, 12)
        for high in np.linspace(1, values.max(), 60)
    ]
    assert found <= 1.05 * min(grid)
    assert found < 0.8 * squared_error(values, *minmax(filled(values)))


def test_entropy_agrees_with_onnxruntime():
    """On the same bins and levels; theirs tries every limit, ours every eighth."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    x = np.random.default_rng(0).laplace(0, 1, 200_000).astype(np.float32)
    histogram = filled(x)
    width = 2 * histogram.width  # the larger side has 2048 bins at most then
    half = int(np.ceil(np.abs(x).max() / width))
    limit = half * width
    counts, edges = np.histogram(x, 2 * half, (-limit, limit))
    collector = HistogramCollector("entropy", False, 2 * half, 256, 0, "same")
    theirs = collector.get_entropy_threshold((counts, edges.astype(np.float32), x.min(), x.max(), limit), 256)
    assert entropy(histogram).high == pytest.approx(float(theirs[1]), rel=0.15)
    assert float(theirs[1]) < 0.9 * x.max()


def test_entropy_never_clips_nearly_everything():
    """All mass in the last bin would look like no loss at all."""
    assert entropy(filled(-np.linspace(2, 5, 5000))).low < -4.9
