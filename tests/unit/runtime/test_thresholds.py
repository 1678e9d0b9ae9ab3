import numpy as np
import pytest
from glocal.runtime.thresholds import fit_thresholds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 3))


@st.composite
def labelled_scores(draw):
    """Scores with many ties, and some that only float32 tells apart."""
    shape = draw(SHAPES)
    near = [0.0, 0.1, 0.3, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 0.7, 1.0]
    scores = draw(arrays(np.float32, shape, elements=st.sampled_from(near) | st.floats(0, 1, width=32)))
    return scores, draw(arrays(np.int8, shape, elements=st.sampled_from([1, 0, -1])))


def f1_at(threshold, scores, targets):
    return f1_score(targets, scores >= threshold, zero_division=0)


@given(labelled_scores())
def test_no_cut_has_a_higher_f1(case):
    scores, targets = case
    thresholds = fit_thresholds(scores, targets)
    assert thresholds.dtype == np.float32
    assert thresholds.shape == scores.shape[1:]
    for s, t, threshold in zip(scores.T, targets.T, thresholds, strict=True):
        s, t = s[t >= 0], t[t >= 0]
        if not (0 < t.sum() < len(t)):
            assert threshold == 0.5
            continue
        cuts = {cut: f1_at(cut, s, t) for cut in np.unique(s)}
        best = max(cuts.values())
        assert f1_at(threshold, s, t) == pytest.approx(best, abs=1e-12)
        # It stands between two scores, at the place nearest to 0.5 of those with this F1.
        upper = s[s >= threshold].min()
        lower = np.float32(max(s[s < threshold], default=0))
        assert threshold in (upper, np.float32(lower + (upper - lower) / 2))
        for cut, value in cuts.items():
            if value > best - 1e-12:
                below = np.float32(max(s[s < cut], default=0))
                middle = np.float32(below + (cut - below) / 2)
                other = middle if middle > below else cut
                assert abs(float(threshold) - 0.5) <= abs(float(other) - 0.5)


@given(labelled_scores())
def test_classes_and_ignored_labels_do_not_touch_each_other(case):
    scores, targets = case
    one_by_one = [fit_thresholds(scores[:, [k]], targets[:, [k]])[0] for k in range(scores.shape[1])]
    np.testing.assert_array_equal(fit_thresholds(scores, targets), one_by_one)
    other = np.where(targets == -1, 1 - scores, scores)
    np.testing.assert_array_equal(fit_thresholds(other, targets), one_by_one)


def test_by_hand():
    scores = np.array([[0.9, 0.2], [0.8, 0.4], [0.3, 0.1], [0.2, 0.05]], np.float32)
    targets = np.array([[1, 1], [1, 1], [0, 0], [0, 0]])
    np.testing.assert_allclose(fit_thresholds(scores, targets), [0.55, 0.15])
    # Everything gets the label: half way to 0.
    np.testing.assert_allclose(fit_thresholds([[0.4], [0.8]], [[1], [0]]), [0.2])
    # Labels at 0.9 alone and labels at 0.9, 0.5, 0.4 have F1 0.8: 0.7 against 0.2.
    tied = fit_thresholds([[0.9], [0.5], [0.4], [0.0]], [[1], [0], [1], [0]])
    np.testing.assert_allclose(tied, [0.2])
    tied = fit_thresholds([[0.9], [0.8], [0.7], [0.6], [0.5]], [[1], [1], [0], [0], [0]])
    np.testing.assert_allclose(tied, [0.75])


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([[0.1, 0.2]], [[1]], "one shape"),
        ([0.1], [1], "2 axes"),
        ([[1.5]], [[1]], r"\[0, 1\]"),
        ([[-3.0]], [[1]], r"\[0, 1\]"),
        ([[np.nan]], [[1]], "finite"),
        ([[0.1]], [[2]], "0, 1 or -1"),
    ],
)
def test_bad_input_is_refused(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_thresholds(scores, targets)
