"""Multi-label metrics of the field (mAP, CP, CR, CF1, OP, OR, OF1), in numpy.

Conventions, as in the code of ML-GCN (Chen et al., CVPR 2019), which later work compares with:

- a label is predicted where its score reaches its threshold (`>=`);
- CP and CR are means over the classes, OP and OR are taken over all labels together, and CF1 and OF1 are the
  harmonic means of the pair (so CF1 is not the mean of the classes' F1);
- for the "top-3" figures, of the predicted labels of an image at most the three of highest score count;
- a class that is never predicted has precision 0 (and adds nothing to OP, where that code counts one false
  prediction), and the harmonic mean of 0 and 0 is 0.

A class without a positive has no recall and no average precision: it is left out of mAP, CP and CR, and its
predictions still count in OP. An ignored target counts nowhere (that code takes it as absent outside of mAP). Every
figure is a fraction in [0, 1], not a percentage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORED = -1
"""A target that counts neither way, such as an object that VOC marks as difficult."""


def multilabel_metrics(scores: ArrayLike, targets: ArrayLike, thresholds: ArrayLike = 0.5) -> dict[str, Any]:
    """Score the predictions for a whole data set.

    Args:
        scores: (n, N) finite floats; one row an image, one column a class.
        targets: (n, N); 1 present, 0 absent, -1 ignored.
        thresholds: A number, or (N,) one per class, in the unit of the scores.

    Returns:
        `mAP`, `CP`, `CR`, `CF1`, `OP`, `OR`, `OF1`: fractions in [0, 1].
        `top3`: the last six again, where a predicted label is also among the three highest scores of its image (of
        equal scores the lower class comes first).
        `per_class_AP`: a list in class order, None where a class has no positive.
        `images`: n.

    Raises:
        ValueError: If shapes disagree, there are no images or no positives, a score or threshold is not
            finite, or a target is not 0, 1 or -1.
    """
    s, t = checked(scores, targets, ndim=2)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape not in ((), s.shape[1:]) or not np.isfinite(limits).all():
        raise ValueError(
            f"thresholds must be one finite number, or one for each of the {s.shape[1]} classes; "
            f"found {limits.tolist()}"
        )
    present = t == 1
    if not present.any():
        raise ValueError("targets hold no positive: no metric is defined")
    ap = [average_precision(s[:, k], t[:, k]) if present[:, k].any() else None for k in range(s.shape[1])]
    top3 = np.zeros(s.shape, dtype=bool)
    np.put_along_axis(top3, np.argsort(-s, axis=1, kind="stable")[:, :3], True, axis=1)
    return {
        "mAP": float(np.mean([a for a in ap if a is not None])),
        **_precision_recall(s >= limits, t),
        "top3": _precision_recall(top3 & (s >= limits), t),
        "per_class_AP": ap,
        "images": len(s),
    }


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """All-point average precision of one class: sum over thresholds of (R_k - R_(k-1)) * P_k.

    Equal scores share one threshold, so the order of tied images does not matter (as in
    `sklearn.metrics.average_precision_score`).

    Args:
        scores: (n,) finite floats.
        targets: (n,); 1 positive, 0 negative, -1 ignored.

    Raises:
        ValueError: If shapes disagree, there is no positive, a score is not finite, or a target is not 0, 1
            or -1.
    """
    s, t = checked(scores, targets, ndim=1)
    s, t = s[t != IGNORED], t[t != IGNORED]
    if not (t == 1).any():
        raise ValueError("targets hold no positive: average precision is not defined")
    order = np.argsort(-s, kind="stable")
    last_of_ties = np.append(np.diff(s[order]) != 0, True)
    hits = np.cumsum(t[order] == 1)[last_of_ties]
    precision = hits / (np.flatnonzero(last_of_ties) + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def checked(scores: ArrayLike, targets: ArrayLike, ndim: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Scores as float64 and targets, both of one shape with ``ndim`` axes.

    Raises:
        ValueError: If shapes disagree, an axis is empty, a score is not finite, or a target is not 0, 1 or -1.
    """
    # float64 keeps the value of every float16 and float32 score, and so its ties.
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if s.ndim != ndim or s.shape != t.shape or s.size == 0:
        raise ValueError(
            f"scores and targets must have one shape of {ndim} axes, none of length 0; found {s.shape} and {t.shape}"
        )
    if not np.isfinite(s).all():
        raise ValueError(f"scores must be finite; {np.sum(~np.isfinite(s))} of {s.size} are not")
    if not np.isin(t, (0, 1, IGNORED)).all():
        raise ValueError(f"targets must be 0, 1 or {IGNORED} (ignored), found {np.unique(t)[:5]}")
    return s, t


def _precision_recall(predicted: NDArray[np.bool_], targets: NDArray[Any]) -> dict[str, float]:
    predicted, present = predicted & (targets != IGNORED), targets == 1
    hits = np.sum(predicted & present, axis=0)
    n_predicted, n_present = np.sum(predicted, axis=0), np.sum(present, axis=0)
    scored = n_present > 0
    cp = float(np.mean(hits[scored] / np.maximum(n_predicted[scored], 1)))
    cr = float(np.mean(hits[scored] / n_present[scored]))
    op = float(np.sum(hits) / max(np.sum(n_predicted), 1))
    recall = float(np.sum(hits) / np.sum(n_present))
    return {
        "CP": cp,
        "CR": cr,
        "CF1": _harmonic_mean(cp, cr),
        "OP": op,
        "OR": recall,
        "OF1": _harmonic_mean(op, recall),
    }


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0
