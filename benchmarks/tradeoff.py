"""Accuracy against latency: ``glocal bench tradeoff BUNDLE... --data DIR``.

Every bundle and precision is a point, and one more with an early exit where the bundle has thresholds for it. Scores
come from the pipeline itself, over the split. Latency is that of one file after the other: all points are loaded into
one process and take turns on the same photos, so that whatever slows the machine slows them alike. An early exit makes
two kinds of photos, fast and slow ones; the mean says what a stream of photos costs, the median only what the commoner
kind does.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..calib.gate import predict
from ..calib.photos import Labelled, draw_labelled
from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.images import Array
from ..runtime.metrics import multilabel_metrics
from ..runtime.pipeline import Pipeline
from . import record
from .timing import alternate, summary
