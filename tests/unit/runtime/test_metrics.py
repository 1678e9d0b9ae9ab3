from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from glocal.runtime.metrics import average_precision, multilabel_metrics
from sklearn.metrics import average_precision_score, precision_score, recall_score
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelPrecision, MultilabelRecall


def random_data(seed, n=200, classes=7, levels=12):
    """Scores on few levels, so that many are equal, and targets that they partly explain."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, classes)) < 0.3).astype(np.int8)
    scores = np.round((0.6 * rng.random((n, classes)) + 0.4 * targets) * levels) / levels
    return scores.astype(np.float32), targets


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_sklearn_with_ties(seed):
    scores, targets = random_data(seed)
    metrics = multilabel_metrics(scores, targets)
    sklearn_ap = [average_precision_score(t, s) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(metrics["per_class_AP"], sklearn_ap, rtol=0, atol=1e-12)
    assert metrics["mAP"] == pytest.approx(np.mean(sklearn_ap), abs=1e-12)
    assert metrics["images"] == 200


@pytest.mark.parametrize("ignore", [None, -1])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_torchmetrics(seed, ignore):
    scores, targets = random_data(seed)
    if ignore is not None:
        targets[np.random.default_rng(seed).random(targets.shape) < 0.2] = ignore
    kinds = {
        "mAP": MultilabelAveragePrecision(7, average="macro", ignore_index=ignore),
        "CP": MultilabelPrecision(7, average="macro", ignore_index=ignore),
        "CR": MultilabelRecall(7, average="macro", ignore_index=ignore),
        "OP": MultilabelPrecision(7, average="micro", ignore_index=ignore),
        "OR": MultilabelRecall(7, average="micro", ignore_index=ignore),
    }
    # It asks for more than the threshold, where the field asks for at least it: 0.5 is a score here.
    nudged = torch.from_numpy(np.where(scores == 0.5, np.float32(0.5001), scores))
    metrics = multilabel_metrics(scores, targets)
    for name, metric in kinds.items():
        expected = metric(nudged, torch.from_numpy(targets).long())
        assert metrics[name] == pytest.approx(float(expected), abs=1e-6), name


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_equal_sklearn_with_a_threshold_per_class(seed):
    scores, targets = random_data(seed)
    thresholds = np.linspace(0.2, 1.1, 7)  # the last class is never predicted
    predicted = scores >= thresholds
    metrics = multilabel_metrics(scores, targets, thresholds)
    for name, average in (("C", "macro"), ("O", "micro")):
        p = precision_score(targets, predicted, average=average, zero_division=0)
        r = recall_score(targets, predicted, average=average, zero_division=0)
        assert metrics[f"{name}P"] == pytest.approx(p)
        assert metrics[f"{name}R"] == pytest.approx(r)
        assert metrics[f"{name}F1"] == pytest.approx(2 * p * r / (p + r))


def test_average_precision_by_hand():
    # Ranked 1, 0, 1: precision 1 at recall 1/2, precision 2/3 at recall 1.
    assert average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # All tied: one threshold, so the precision is the share of positives in whatever order they stand.
    assert average_precision([0.5] * 4, [1, 0, 0, 0]) == average_precision([0.5] * 4, [0, 0, 0, 1]) == 0.25
    # Scores that float32 still tells apart are no tie.
    close = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1))], dtype=np.float32)
    assert average_precision(close, [0, 1]) == 1.0


def test_all_figures_by_hand():
    scores = [
        [0.9, 0.6, 0.2, 0.1],
        [0.4, 0.7, 0.3, 0.2],
        [0.5, 0.1, 0.8, 0.6],
    ]
    targets = [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
    ]
    metrics = multilabel_metrics(scores, targets)
    # Predicted (>= 0.5): a in 0 and 2, b in 0 and 1, c in 2, d in 2. Class d has no positive.
    assert metrics["per_class_AP"] == [pytest.approx(0.5 + 0.5 * 2 / 3), 1.0, 1.0, None]
    assert metrics["mAP"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert metrics["CP"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert metrics["CR"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert metrics["CF1"] == pytest.approx(2 * (2 / 3) * (5 / 6) / (2 / 3 + 5 / 6))
    assert (metrics["OP"], metrics["OR"]) == (3 / 6, 3 / 4)
    assert metrics["OF1"] == pytest.approx(0.6)
    # The three highest: abc, abc, acd. None of them is lost, so only the threshold tells.
    assert metrics["top3"] == {name: metrics[name] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")}
    # With a threshold of 0.15 all but the d of the first image reach it: abc, abc (not d), acd.
    top3 = multilabel_metrics(scores, targets, 0.15)["top3"]
    assert top3["CP"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 3) / 3)
    assert (top3["CR"], top3["OP"], top3["OR"]) == (1.0, 4 / 9, 1.0)
    # And with one that only the c of the last image keeps.
    assert multilabel_metrics(scores, targets, [2, 2, 0.7, 2])["top3"]["OR"] == 1 / 4
    assert set(metrics) == {"mAP", "CP", "CR", "CF1", "OP", "OR", "OF1", "top3", "per_class_AP", "images"}
    assert set(top3) == {"CP", "CR", "CF1", "OP", "OR", "OF1"}
    json.dumps(metrics, allow_nan=False)


def test_ignored_targets_count_neither_way():
    scores, targets = random_data(9, n=60)
    ignored = targets.copy()
    rng = np.random.default_rng(1)
    ignored[rng.random(targets.shape) < 0.2] = -1
    metrics = multilabel_metrics(scores, ignored)
    for k in range(7):
        keep = ignored[:, k] >= 0
        expected = average_precision_score(targets[keep, k], scores[keep, k])
        assert metrics["per_class_AP"][k] == pytest.approx(expected, abs=1e-12)
    kept = ignored >= 0
    assert metrics["OP"] == pytest.approx(precision_score(targets[kept], scores[kept] >= 0.5))
    assert metrics["OR"] == pytest.approx(recall_score(targets[kept], scores[kept] >= 0.5))
    assert metrics["OP"] != multilabel_metrics(scores, targets)["OP"]


def test_nothing_predicted_is_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = multilabel_metrics([[0.1, 0.2]], [[1, 0]])
    assert [metrics[k] for k in ("CP", "CR", "CF1", "OP", "OR", "OF1")] == [0.0] * 6
    assert metrics["top3"]["OR"] == 0.0  # the threshold is asked there too
    assert multilabel_metrics([[0.9, 0.2]], [[1, 0]])["top3"]["OR"] == 1.0  # fewer than three classes: all of them


def test_top3_of_equal_scores_is_exactly_three():
    metrics = multilabel_metrics(np.full((2, 8), 0.5), [[1] + [0] * 7, [0] * 7 + [1]])
    assert metrics["OP"] == 2 / 16
    assert (metrics["top3"]["OP"], metrics["top3"]["OR"]) == (1 / 6, 1 / 2)


@pytest.mark.parametrize(
    ("scores", "targets", "thresholds", "message"),
    [
        ([[0.1, 0.2]], [[1, 0, 0]], 0.5, "one shape"),
        ([0.1, 0.2], [1, 0], 0.5, "2 axes"),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.5, "length 0"),
        ([[0.1, np.nan]], [[1, 0]], 0.5, "finite; 1 of 2"),
        ([[0.1, np.inf]], [[1, 0]], 0.5, "finite"),
        ([[0.1, 0.2]], [[1, 2]], 0.5, "0, 1 or -1"),
        ([[0.1, 0.2]], [[1, 0.5]], 0.5, "0, 1 or -1"),
        ([[0.1, 0.2]], [[0, -1]], 0.5, "no positive"),
        ([[0.1, 0.2]], [[1, 0]], [0.5, 0.5, 0.5], "thresholds"),
        ([[0.1, 0.2]], [[1, 0]], np.nan, "thresholds"),
    ],
)
def test_bad_input_is_refused(scores, targets, thresholds, message):
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(scores, targets, thresholds)


def test_average_precision_without_a_positive_is_refused():
    with pytest.raises(ValueError, match="no positive"):
        average_precision([0.1, 0.2], [0, -1])
