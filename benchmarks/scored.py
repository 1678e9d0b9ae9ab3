"""Predictions that are measured must have scores."""

from __future__ import annotations

from collections.abc import Iterable

from ..runtime.errors import GlocalError
from ..runtime.prediction import Prediction


def scored(predictions: Iterable[Prediction], what: str, fix: str = "see `glocal verify`") -> list[Prediction]:
    """The predictions, if none of them failed.

    Args:
        predictions: Taken until the first that failed.
        what: What to say about that one.
        fix: What to do about it.

    Raises:
        GlocalError: One failed.
    """
    good = []
    for prediction in predictions:
        if prediction.error is not None:
            raise GlocalError(what, found=prediction.error, fix=fix)
        good.append(prediction)
    return good
