import numpy as np
import pytest
from glocal.calib.gate import check, class_shift, compare
from glocal.runtime.errors import CalibrationError
from glocal.runtime.metrics import multilabel_metrics
from glocal.runtime.prediction import Prediction, Region

TARGETS = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])


def predictions(scores, boxes) -> list[Prediction]:
    none = np.empty(0, np.float32)
    return [
        Prediction(
            "x", (9, 9), ("a", "b"), (), np.float32(row), none, none, none,
            tuple(Region(box, "a", 1.0, 0, 1) for box in regions), {},
        )
        for row, regions in zip(scores, boxes, strict=True)
    ]  # fmt: skip


WHOLE, LEFT, TOP = (0.0, 0.0, 4.0, 4.0), (0.0, 0.0, 2.0, 4.0), (0.0, 0.0, 4.0, 1.0)
GOOD = [[0.9, 0.1], [0.1, 0.8], [0.7, 0.2], [0.3, 0.6]]
REFERENCE = predictions(GOOD, [[WHOLE, LEFT]] * 4)


def test_equal_predictions_agree_in_everything():
    report = compare(REFERENCE, REFERENCE, TARGETS)
    assert report["mAP"] == report["fp32/mAP"] == report["mAP_share"] == 1
    assert report["score_shift"] == report["score_shift_max"] == report["score_bias_max"] == 0
    assert report["box_iou"] == report["same_boxes"] == report["same_box_sets"] == 1
    check(report, "int8", 1.0)


def test_boxes_are_compared_within_an_image():
    others = predictions(GOOD, [[LEFT, WHOLE], [WHOLE], [TOP], [WHOLE, LEFT, TOP]])
    report = compare(REFERENCE, others, TARGETS)
    # by hand: 1 1 | 1 1/2 | 1/4 2/10 | 1 1
    assert report["box_iou"] == pytest.approx((1 + 1 + 1 + 0.5 + 0.25 + 0.2 + 1 + 1) / 8)
    assert report["same_boxes"] == pytest.approx(5 / 8)
    assert report["same_box_sets"] == 1 / 4


def test_scores_are_compared_label_by_label():
    scores = np.array(GOOD) + np.array([[0.02, 0], [0.02, 0], [0.02, 0.1], [0.02, 0]])
    moved = predictions(scores, [[WHOLE, LEFT]] * 4)
    report = compare(REFERENCE, moved, TARGETS)
    assert report["score_shift"] == pytest.approx((4 * 0.02 + 0.1) / 8, abs=1e-6)
    assert report["score_shift_max"] == pytest.approx(0.1, abs=1e-6)
    assert report["score_bias_max"] == pytest.approx(0.025, abs=1e-6)
    assert class_shift(REFERENCE, moved) == pytest.approx({"a": 0.02, "b": 0.025}, abs=1e-6)


def test_the_gate_fails_closed_below_the_share():
    worse = predictions([[0.9, 0.1], [0.1, 0.8], [0.2, 0.7], [0.3, 0.6]], [[WHOLE, LEFT]] * 4)
    report = compare(REFERENCE, worse, TARGETS)
    expected = multilabel_metrics(np.stack([p.scores for p in worse]), TARGETS)
    assert (report["mAP"], report["CF1"], report["OF1"]) == (expected["mAP"], expected["CF1"], expected["OF1"])
    assert report["mAP_share"] == expected["mAP"] < 0.99
    with pytest.raises(CalibrationError, match="loses too much") as error:
        check(report, "int8")
    assert f"{report['mAP']:.4f}" in error.value.found
    check(report, "int8", expected["mAP"])


def test_a_share_that_is_not_a_number_does_not_pass():
    with pytest.raises(CalibrationError):
        check(compare(REFERENCE, REFERENCE, TARGETS) | {"mAP_share": float("nan")}, "int8", 0.0)


@pytest.mark.parametrize("count", [0, 3])
def test_unequal_numbers_of_predictions_are_refused(count):
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(REFERENCE, REFERENCE[:count], TARGETS)
