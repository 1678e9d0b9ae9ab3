"""Runtime side of glocal: no PyTorch, only numpy, numba, OpenCV, Pillow and one engine library."""

from __future__ import annotations

from .errors import GlocalError
from .pipeline import Pipeline
from .prediction import Prediction, Region

__all__ = ["GlocalError", "Pipeline", "Prediction", "Region", "__version__"]

__version__ = "0.2.0"
