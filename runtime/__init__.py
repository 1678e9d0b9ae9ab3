"""Runtime side of glocal: no PyTorch, only numpy, numba, OpenCV, Pillow and one engine library.

The names below are loaded when first used, so that `glocal doctor` also runs where OpenCV or Pillow cannot be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import GlocalError

if TYPE_CHECKING:
    from .camera import Retry
    from .pipeline import Pipeline
    from .prediction import Prediction, Region
    from .sources import open_source
    from .stream import Stream, StreamStats

__all__ = [
    "GlocalError", "Pipeline", "Prediction", "Region", "Retry", "Stream", "StreamStats", "__version__", "open_source",
]  # fmt: skip

__version__ = "0.4.0"

_MODULES = {
    "Pipeline": "pipeline",
    "Prediction": "prediction",
    "Region": "prediction",
    "Retry": "camera",
    "Stream": "stream",
    "StreamStats": "stream",
    "open_source": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
