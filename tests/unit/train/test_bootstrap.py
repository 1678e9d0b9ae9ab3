import numpy as np
import pytest
from glocal.runtime.metrics import average_precision, multilabel_metrics
from glocal.train.bootstrap import paired_bootstrap
from hypothesis import given, settings
from hypothesis import strategies as st


def random_data(seed, n, classes, levels, ignored=0.1):
    """Two scorings on few levels, so that many scores are equal, of targets that both partly explain."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, classes)) < 0.3).astype(np.int8)
    noise = rng.random((2, n, classes))
    a, b = (np.round((0.7 * noise[k] + 0.3 * targets) * levels) / levels for k in range(2))
    targets[rng.random(targets.shape) < ignored] = -1
    return a, b, targets


def resampled_differences(a, b, targets, rounds, seed):
    """The definition: draw images, score both, subtract."""
    rng, n = np.random.default_rng(seed), len(targets)
    differences = []
    for _ in range(rounds):
        rows = rng.integers(n, size=n)
        scored = [k for k in range(targets.shape[1]) if (targets[rows, k] == 1).any()]
        if scored:
            aps = [[average_precision(s[rows, k], targets[rows, k]) for k in scored] for s in (a, b)]
            differences.append(np.mean(aps[0]) - np.mean(aps[1]))
    return differences


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32), n=st.integers(3, 40), classes=st.integers(1, 5), levels=st.sampled_from([1, 4, 10**6])
)
def test_it_equals_scoring_images_that_are_really_resampled(seed, n, classes, levels):
    a, b, targets = random_data(seed, n, classes, levels)
    targets[0, 0] = 1
    interval = paired_bootstrap(a, b, targets, rounds=15, seed=seed)
    expected = np.quantile(resampled_differences(a, b, targets, 15, seed), [0.025, 0.975])
    np.testing.assert_allclose(interval[1:], expected, rtol=0, atol=1e-12)
    gap = multilabel_metrics(a, targets)["mAP"] - multilabel_metrics(b, targets)["mAP"]
    assert interval.difference == pytest.approx(gap)


def test_more_rounds_than_are_held_at_once():
    a, b, targets = random_data(1, 50, 2, 10)
    expected = np.quantile(resampled_differences(a, b, targets, 300, 3), [0.025, 0.975])
    np.testing.assert_allclose(paired_bootstrap(a, b, targets, 300, 3)[1:], expected, atol=1e-12)


def test_a_clear_difference_is_told_from_chance():
    rng = np.random.default_rng(0)
    targets = rng.random((500, 4)) < 0.3
    good, alike, bad = (weight * targets + rng.random((500, 4)) for weight in (0.5, 0.5, 0.2))
    clear = paired_bootstrap(good, bad, targets, rounds=200)
    assert 0 < clear.low < clear.difference < clear.high
    chance = paired_bootstrap(good, alike, targets, rounds=200)
    assert chance.low < 0 < chance.high
    assert paired_bootstrap(good, good, targets, rounds=20) == (0, 0, 0)
    # Exchanged, the interval is mirrored.
    mirrored = paired_bootstrap(bad, good, targets, rounds=200)
    np.testing.assert_allclose(mirrored, [-clear.difference, -clear.high, -clear.low])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rounds"):
        paired_bootstrap([[0.1]], [[0.2]], [[1]], rounds=0)
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap([[0.1]], [[0.2], [0.3]], [[1]])
    with pytest.raises(ValueError, match="no positive"):
        paired_bootstrap([[0.1]], [[0.2]], [[0]])
