"""The region selector's Numba kernel. ``selector.py`` says what it computes, and imports it when first needed.

A row of a map is read as runs of active cells; a run takes the label of a run that it touches in the row above, or
a new one, and a run that touches several joins their components into the one of the lowest label. That label was
given at the component's first cell in row-major order, so going through the labels settles ties as the rules ask.

An energy is summed in the order in which NumPy sums the same rectangle: pairwise, with eight running sums. Energies
that are equal in exact arithmetic can differ in the last bit when they are summed in another order, and the rules
are stated in NumPy. It is also the faster order: eight independent chains of additions instead of one. (Beyond 8192
cells NumPy sums in parts, which differ between its versions.)
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

_INFINITY = 0x7F800000  # bits of float32: finite magnitudes lie below, infinities and NaN do not
_MAGNITUDE = 0x7FFFFFFF
_BLOCK = 128  # NumPy halves longer sums

_log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """Scratch space for one window of a map."""

    ends: Any  # int32, start and half-open end of each run in turn
    labels: Any  # int32, label of each run
    parent: Any  # int32, of each label
    extents: Any  # int32 (labels, 4), x0, y0, x1, y1 of each component
    cells: Any  # float64, one rectangle, or the area of each label


class _Found(NamedTuple):
    """The outputs' rows of one image."""

    boxes: Any
    counts: Any
    categories: Any
    variants: Any
    energies: Any


@njit(nogil=True)
def _all_finite(values):  # type: ignore[no-untyped-def]
    """Whether a flat float32 array is finite. On the bits, because an integer maximum vectorises."""
    bits = values.view(np.uint32)
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & np.uint32(_MAGNITUDE))
    return largest < np.uint32(_INFINITY)


@njit(nogil=True)
def _rank(logits, order):  # type: ignore[no-untyped-def]
    """Fill ``order`` with the categories of highest logit; on a tie the lower index first."""
    limit = order.size
    kept = 0
    for category in range(logits.size):
        if kept == limit and logits[category] <= logits[order[limit - 1]]:
            continue
        kept = min(kept + 1, limit)
        place = kept - 1
        while place > 0 and logits[category] > logits[order[place - 1]]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = category


@njit(nogil=True)
def _box(table, row):  # type: ignore[no-untyped-def]
    """One row of an int32 (K, 4) table, in the one type that every box has here: each more would compile twice."""
    return np.int64(table[row, 0]), np.int64(table[row, 1]), np.int64(table[row, 2]), np.int64(table[row, 3])


@njit(nogil=True)
def _root(parent, label):  # type: ignore[no-untyped-def]
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@njit(nogil=True)
def _join(parent, extents, one, other):  # type: ignore[no-untyped-def]
    """Make one component of two; returns its label."""
    if one == other:
        return one
    low, high = min(one, other), max(one, other)
    parent[high] = low
    extents[low, 0] = min(extents[low, 0], extents[high, 0])
    extents[low, 2] = max(extents[low, 2], extents[high, 2])
    return low


@njit(nogil=True)
def _label(plane, window, step, work):  # type: ignore[no-untyped-def]
    """Label the components of ``plane > step`` in a window; returns how many labels were given, and to how many runs.

    ``ends`` is written at every cell and advanced only where activity changes: a branch would be unpredictable.
    """
    x0, y0, x1, y1 = window
    ends, labels, parent, extents = work.ends, work.labels, work.parent, work.extents
    first_above, runs, given = 0, 0, 0
    for y in range(y0, y1):
        row = plane[y]
        edge = np.uint64(2 * runs)
        was_active = np.uint64(0)
        for x in range(x0, x1):
            active = np.uint64(row[x] > step)
            ends[edge] = x
            edge += active ^ was_active
            was_active = active
        ends[edge] = x1
        edge += was_active

        above, first = first_above, runs
        runs = np.int64(edge) // 2
        for run in range(first, runs):
            start, end = ends[2 * run], ends[2 * run + 1]
            while above < first and ends[2 * above + 1] < start:
                above += 1
            # Comparing half-open ends with <= lets corners touch. The last run that touches may touch the next too.
            if above < first and ends[2 * above] <= end:
                label = _root(parent, labels[above])
                while above + 1 < first and ends[2 * above + 2] <= end:
                    above += 1
                    label = _join(parent, extents, label, _root(parent, labels[above]))
                extents[label, 0] = min(extents[label, 0], start)
                extents[label, 2] = max(extents[label, 2], end)
                extents[label, 3] = y + 1
            else:
                label = given
                given += 1
                parent[label] = label
                extents[label, 0], extents[label, 1], extents[label, 2], extents[label, 3] = start, y, end, y + 1
            labels[run] = label
        first_above = first
    return given, runs


@njit(nogil=True)
def _measure(work, given, runs):  # type: ignore[no-untyped-def]
    """Count the active cells of each component into ``cells``, under the component's lowest label."""
    for label in range(given):
        work.cells[label] = 0.0
    for run in range(runs):
        work.cells[_root(work.parent, work.labels[run])] += work.ends[2 * run + 1] - work.ends[2 * run]


@njit(nogil=True)
def _at(values, i):  # type: ignore[no-untyped-def]
    return values[np.uint64(i)]  # Numba makes sure at every read that a signed index is not negative


@njit(nogil=True)
def _pairwise_sum(values):  # type: ignore[no-untyped-def]
    """Sum of a flat float64 array in NumPy's order."""
    n = values.size
    if n > _BLOCK:
        half = n // 2
        half -= half % 8
        return _pairwise_sum(values[:half]) + _pairwise_sum(values[half:])
    total = 0.0
    whole = n - n % 8
    if whole > 0:
        a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(0, whole, 8):
            a += _at(values, i)
            b += _at(values, i + 1)
            c += _at(values, i + 2)
            d += _at(values, i + 3)
            e += _at(values, i + 4)
            f += _at(values, i + 5)
            g += _at(values, i + 6)
            h += _at(values, i + 7)
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, n):
        total += _at(values, i)
    return total


@njit(nogil=True)
def _energy(plane, box, step, cells):  # type: ignore[no-untyped-def]
    """Sum of max(plane - step, 0) over a box."""
    x0, y0, x1, y1 = box
    filled = 0
    for y in range(y0, y1):
        source = plane[y, x0:x1]
        target = cells[filled : filled + x1 - x0]
        for x in range(x1 - x0):
            value = source[x] - step
            target[x] = value if value > np.float32(0) else np.float32(0)
        filled += x1 - x0
    return _pairwise_sum(cells[:filled])


@njit(nogil=True)
def _strongest(plane, window, step, by_area, work, boxes, energies):  # type: ignore[no-untyped-def]
    """Fill boxes (K, 4) and energies (K,) with the strongest regions of a window; returns how many there are.

    By area, ``energies`` holds areas while regions are chosen; the energies are summed when the areas, which stand
    in the same scratch space, are no longer needed.
    """
    limit = energies.size
    kept = 0
    given, runs = _label(plane, window, step, work)
    if by_area:
        _measure(work, given, runs)
    for label in range(given):
        if work.parent[label] != label:
            continue
        box = _box(work.extents, label)
        strength = work.cells[label] if by_area else _energy(plane, box, step, work.cells)
        if kept == limit and strength <= energies[limit - 1]:
            continue
        kept = min(kept + 1, limit)
        place = kept - 1
        while place > 0 and strength > energies[place - 1]:
            energies[place] = energies[place - 1]
            for i in range(4):
                boxes[place, i] = boxes[place - 1, i]
            place -= 1
        energies[place] = strength
        for i in range(4):
            boxes[place, i] = box[i]
    if by_area:
        for place in range(kept):
            energies[place] = _energy(plane, _box(boxes, place), step, work.cells)
    return kept


@njit(nogil=True)
def _propose(found, used, box, category, variant, energy):  # type: ignore[no-untyped-def]
    """Count a proposed box, or append it when it is new; returns how many boxes are used."""
    x0, y0, x1, y1 = box
    boxes = found.boxes
    for i in range(used):
        if boxes[i, 0] == x0 and boxes[i, 1] == y0 and boxes[i, 2] == x1 and boxes[i, 3] == y1:
            found.counts[i] += 1
            return used
    boxes[used, 0], boxes[used, 1], boxes[used, 2], boxes[used, 3] = box
    found.counts[used] = 1
    found.categories[used] = category
    found.variants[used] = variant
    found.energies[used] = energy
    return used + 1


@njit(nogil=True)
def _clear(found, used):  # type: ignore[no-untyped-def]
    """Write the slots that hold no box."""
    for i in range(used, found.counts.size):
        for j in range(4):
            found.boxes[i, j] = 0
        found.counts[i] = 0
        found.categories[i] = -1
        found.variants[i] = 0
        found.energies[i] = 0.0


def scratch_size(height: int, width: int, k_s: int, k_e: int) -> int:
    """How many float64 elements of scratch space the kernel needs."""
    runs = height * ((width + 1) // 2)
    return height * width + k_e + 1 + (8 * runs + 1 + 4 * (k_e + 1) + k_s + 1) // 2


def _select(  # type: ignore[no-untyped-def]
    maps, logits, steps, k_s, k_e, by_area, scratch, boxes, counts, categories, variants, energies, n
):
    """Select the regions of a batch into the last six arrays; returns whether the input was finite.

    Shapes: maps (B, N, h, w), logits (B, N), steps (k_r - 1, N), outputs as in ``selector.Regions``. One block of
    ``scratch`` space for floats and integers, because each further array makes the call slower.
    """
    images, total, height, width = maps.shape
    runs = height * ((width + 1) // 2)  # the most that a map can have
    floats, ints = scratch[: height * width + k_e + 1], scratch[height * width + k_e + 1 :].view(np.int32)
    work = _Work(
        ints[: 2 * runs + 1],
        ints[2 * runs + 1 : 3 * runs + 1],
        ints[3 * runs + 1 : 4 * runs + 1],
        ints[4 * runs + 1 : 8 * runs + 1].reshape((runs, 4)),
        floats[: height * width],
    )
    spare = ints[8 * runs + 1 :]
    # The last row is for variants, which are found while the regions before it are still needed.
    top_boxes = spare[: 4 * (k_e + 1)].reshape((k_e + 1, 4))
    top_energies = floats[height * width : height * width + k_e + 1]
    order = spare[4 * (k_e + 1) : 4 * (k_e + 1) + min(k_s, total)]
    whole = np.int64(0), np.int64(0), width, height

    for image in range(images):
        if not (_all_finite(maps[image].ravel()) and _all_finite(logits[image])):
            return False
        found = _Found(boxes[image], counts[image], categories[image], variants[image], energies[image])
        used = 0
        _rank(logits[image], order)
        for rank in range(order.size):
            category = np.int64(order[rank])
            plane = maps[image, category]
            regions = _strongest(plane, whole, np.float32(0), by_area, work, top_boxes[:k_e], top_energies[:k_e])
            for region in range(regions):
                window = _box(top_boxes, region)
                box, energy = window, top_energies[region]
                used = _propose(found, used, box, category, 0, energy)
                for variant in range(1, steps.shape[0] + 1):
                    step = steps[variant - 1, category]
                    if _strongest(plane, window, step, by_area, work, top_boxes[k_e:], top_energies[k_e:]) > 0:
                        box, energy = _box(top_boxes, k_e), top_energies[k_e]
                    used = _propose(found, used, box, category, variant, energy)
        if used == 0:
            used = _propose(found, used, whole, -1, 0, 0.0)
        _clear(found, used)
        n[image] = used
    return True


_I32, _F32, _F64 = types.int32, types.float32, types.float64
_SIGNATURE = types.boolean(
    _F32[:, :, :, ::1], _F32[:, ::1], _F32[:, ::1], types.int64, types.int64, types.int64, _F64[::1],
    _I32[:, :, ::1], _I32[:, ::1], _I32[:, ::1], _I32[:, ::1], _F32[:, ::1], _I32[::1],
)  # fmt: skip


def compile_select() -> Any:
    """Compile the kernel, or load it from Numba's cache, where a later process finds it too."""
    try:
        return njit(_SIGNATURE, nogil=True, cache=True)(_select)
    except Exception as error:  # the cache fails in many ways; an error of the code itself comes again below
        _log.warning("the region selector is compiled anew in each process, as Numba cannot cache it: %s", error)
        return njit(_SIGNATURE, nogil=True)(_select)
