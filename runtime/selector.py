"""Region selection on the class maps, by energy or by area (paper: sec. 3.3 and suppl. A, eq. 7-8; table 7).

For the ``k_s`` categories of highest logit, the ``k_e`` regions of highest energy are proposed, each with its own box
and one tighter box per zeta. A region is an 8-connected component of cells above 0, its box the smallest rectangle
around it, its energy the sum of the positive cells of that rectangle. A tighter box is that of the strongest region
which remains in the rectangle after ``zeta * shift`` of its category is subtracted (eq. 8); when nothing remains, the
box before it is proposed again. Ties go to the lower category, and to the region whose first cell comes first in
row-major order. An image without any region gets one box, the whole map. With the rank ``area``, the number of a
region's own cells stands in for its energy wherever regions are compared.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import GlocalError

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)


class SelectorError(GlocalError, ValueError):
    """Class maps, logits or parameters that regions cannot be selected from."""


class _Scratch(threading.local):
    """Scratch space of the calling thread, so that threads may share one selector, and the sizes it last served."""

    needs = (0, 0, 0, 0)
    block: npt.NDArray[np.float64] = np.empty(0)


_scratch = _Scratch()


@functools.cache
def _kernel() -> Any:  # Numba's dispatcher
    from ._components import compile_select  # Numba takes long to import, and many importers never select

    return compile_select()


@functools.cache
def _compiled() -> Callable[..., bool]:
    """The kernel behind Numba's dispatcher, which would look up the types of all arguments at each call.

    The compiled function trusts them: arrays of another type would be misread.
    """
    kernel = _kernel()
    if not hasattr(kernel, "get_overload"):  # with NUMBA_DISABLE_JIT=1 it is a Python function
        return kernel
    return kernel.get_overload(kernel.signatures[0])


class Regions(NamedTuple):
    """The boxes selected for a batch, each once, in the order in which they were first proposed.

    Slots from ``n`` on are unused: box, count, variant and energy 0, category -1.

    Attributes:
        boxes: (B, k_o, 4) int32, half-open x0, y0, x1, y1 in cells of the class map.
        counts: (B, k_o) int32, how often each box was proposed.
        categories: (B, k_o) int32, of the first proposal; -1 for the whole map of an image without regions.
        variants: (B, k_o) int32, of the first proposal: 0 for a region's own box, i for that of the i-th zeta.
        energies: (B, k_o) float32, of the first proposal: sum of the positive activation in the box.
        n: (B,) int32, unique boxes of each image, at least 1.
        grid: Height and width of the class maps in cells.
    """

    boxes: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    categories: npt.NDArray[np.int32]
    variants: npt.NDArray[np.int32]
    energies: npt.NDArray[np.float32]
    n: npt.NDArray[np.int32]
    grid: tuple[int, int]

    def normalised(self, k: int | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Boxes and counts as the local graph takes them.

        Args:
            k: Slots per image; by default as many as the image with the most boxes needs.

        Returns:
            boxes (B, k, 4) float32 in [0, 1] of the map's width and height, and counts (B, k) float32.

        Raises:
            SelectorError: An image has more than ``k`` boxes.
        """
        needed = int(self.n.max(initial=1))
        k = needed if k is None else k
        if k < needed:
            raise SelectorError(
                f"{k} slots per image are too few.", found=f"an image with {needed} boxes", fix=f"Use k >= {needed}."
            )
        height, width = self.grid
        boxes = np.zeros((len(self.n), k, 4), np.float32)
        counts = np.zeros((len(self.n), k), np.float32)
        boxes[:, :needed] = self.boxes[:, :needed]
        boxes /= np.array((width, height, width, height), np.float32)
        counts[:, :needed] = self.counts[:, :needed]
        return boxes, counts


class RegionSelector:
    """Selects the regions of a batch in one Numba call. Any number of threads may call one selector at once.

    The first selector of a process compiles the kernel (seconds), or loads it from Numba's cache. A call releases the
    GIL, and keeps scratch space of a few times the largest map so far in each calling thread.

    Args:
        shift: (N,) >= 0, per category ``|running_mean| / sqrt(running_var + eps)`` of the class maps' batch norm.
        k_s: Categories per image; with fewer than ``k_s`` categories, all of them.
        k_e: Regions per category, at most.
        zetas: Strictly increasing, > 0; may be empty. A region has ``k_r = 1 + len(zetas)`` variants.
        rank: What makes a region strong: its ``energy``, or its ``area``, the number of its own active cells.

    Attributes:
        k_o: ``k_s * k_e * k_r``, the most boxes that an image can get.

    Raises:
        SelectorError: An argument is not as described.
    """

    def __init__(
        self,
        shift: npt.ArrayLike,
        k_s: int = 4,
        k_e: int = 2,
        zetas: Sequence[float] = (0.5, 1.0),
        rank: Literal["energy", "area"] = "energy",
    ) -> None:
        self.shift = _checked_shift(shift)
        self.k_s, self.k_e = _checked_count("k_s", k_s), _checked_count("k_e", k_e)
        self.zetas = _checked_zetas(zetas)
        self.rank = _checked_rank(rank)
        self._by_area = int(self.rank == "area")  # an integer, because Numba is slower to take a boolean
        self.k_o = self.k_s * self.k_e * (1 + len(self.zetas))
        with np.errstate(over="ignore"):  # an infinite step leaves no cell active, as it should
            self._steps = np.asarray(self.zetas, np.float32)[:, np.newaxis] * self.shift
        _compiled()

    def __call__(self, class_maps: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> Regions:
        """Select the regions of a batch.

        Args:
            class_maps: (B, N, h, w) float32, after batch norm and before any activation.
            logits: (B, N) float32 scores of the global branch; only their order matters.

        Raises:
            SelectorError: Wrong type, dtype or shape, or a value that is not finite.
        """
        maps = _checked_array("class_maps", class_maps, 4)
        logits = _checked_array("logits", logits, 2)
        batch, total, height, width = maps.shape
        if total != self.shift.size or logits.shape != (batch, total) or height == 0 or width == 0:
            raise SelectorError(
                f"class_maps must be (B, {self.shift.size}, h, w) and logits (B, {self.shift.size}).",
                found=f"class_maps {maps.shape} and logits {logits.shape}",
                fix="Pass the outputs of the global graph that the shift belongs to; h and w are at least 1.",
            )
        slots = (batch, self.k_o)
        boxes = np.empty((batch, self.k_o, 4), _INT32)
        counts, categories, variants = np.empty(slots, _INT32), np.empty(slots, _INT32), np.empty(slots, _INT32)
        energies, n = np.empty(slots, _FLOAT32), np.empty(batch, _INT32)
        scratch = _scratch_for(height, width, self.k_s, self.k_e)
        finite = _compiled()(
            maps, logits, self._steps, self.k_s, self.k_e, self._by_area, scratch,
            boxes, counts, categories, variants, energies, n,
        )  # fmt: skip
        if not finite:
            raise _not_finite(maps, logits)
        return Regions(boxes, counts, categories, variants, energies, n, (height, width))


def _scratch_for(height: int, width: int, k_s: int, k_e: int) -> npt.NDArray[np.float64]:
    """This thread's scratch space, which only grows."""
    needs = (height, width, k_s, k_e)
    if _scratch.needs != needs:
        from ._components import scratch_size

        size = scratch_size(*needs)
        if _scratch.block.size < size:
            _scratch.block = np.empty(size)
        _scratch.needs = needs
    return _scratch.block


def _checked_array(name: str, value: npt.NDArray[np.float32], ndim: int) -> npt.NDArray[np.float32]:
    if not isinstance(value, np.ndarray) or value.dtype != _FLOAT32 or value.ndim != ndim:
        is_array = isinstance(value, np.ndarray)
        raise SelectorError(
            f"{name} must be a float32 NumPy array of {ndim} dimensions.",
            found=f"{value.dtype} of shape {value.shape}" if is_array else f"a {type(value).__name__}",
            fix="Convert it where it is made, such as with .astype(numpy.float32).",
        )
    # The kernel takes arrays that are C-contiguous, aligned and writable.
    return value if value.flags.carray else np.array(value, order="C")


def _not_finite(maps: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> SelectorError:
    bad_maps = ~np.isfinite(maps)
    bad = bad_maps.any(axis=(2, 3)) | ~np.isfinite(logits)
    image, category = (int(i) for i in np.argwhere(bad)[0])
    if bad_maps[image, category].any():
        y, x = (int(i) for i in np.argwhere(bad_maps[image, category])[0])
        found = f"class_maps[{image}, {category}, {y}, {x}] = {maps[image, category, y, x]}"
    else:
        found = f"logits[{image}, {category}] = {logits[image, category]}"
    return SelectorError(
        f"Class maps and logits must be finite, but those of image {image}, category {category} are not.",
        found=f"{found}; {int(bad.sum())} of {bad.size} pairs of image and category are affected",
        fix="Look for overflow in the global graph at this precision.",
    )


def _checked_shift(shift: npt.ArrayLike) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            array = np.array(shift, np.float32)
        found = f"shape {array.shape}"
    except (TypeError, ValueError):
        array, found = np.empty(0, np.float32), f"a {type(shift).__name__}"
    if array.ndim != 1 or array.size == 0:
        raise SelectorError(
            "shift must hold one number per category.",
            found=found,
            fix="Pass |running_mean| / sqrt(running_var + eps) of the class maps' batch norm, shape (N,).",
        )
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if wrong.size:
        raise SelectorError(
            "shift must be finite and >= 0.",
            found=f"{array[wrong[0]]} for category {wrong[0]}",
            fix="Take the absolute value of the running mean, and look for a batch norm that diverged.",
        )
    array.setflags(write=False)
    return array


def _checked_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SelectorError(f"{name} must be an integer >= 1.", found=repr(value), fix="The default is k_s=4, k_e=2.")
    return int(value)


def _checked_zetas(zetas: Sequence[float]) -> tuple[float, ...]:
    try:
        values = tuple(float(zeta) for zeta in zetas)
    except (TypeError, ValueError):
        values = (float("nan"),)
    limits = (0.0, *values, float(np.finfo(np.float32).max))
    if not all(low < high for low, high in itertools.pairwise(limits)):
        raise SelectorError(
            "zetas must be strictly increasing numbers > 0.", found=repr(zetas), fix="The default is (0.5, 1.0)."
        )
    return values


def _checked_rank(rank: Literal["energy", "area"]) -> Literal["energy", "area"]:
    if not isinstance(rank, str) or rank not in ("energy", "area"):
        raise SelectorError("rank must be 'energy' or 'area'.", found=repr(rank), fix="The default is 'energy'.")
    return rank
