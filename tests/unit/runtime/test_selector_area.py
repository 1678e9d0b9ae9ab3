"""The two ranks against each other; test_selector.py holds both to the rules."""

import numpy as np
import pytest
from glocal.runtime.selector import RegionSelector


def select(plane, rank, **parameters):
    selector = RegionSelector([2.0], k_s=1, rank=rank, **parameters)
    return selector(np.float32([[plane]]), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize(("rank", "box", "energy"), [("energy", [4, 0, 6, 2], 10), ("area", [0, 0, 2, 2], 4)])
def test_a_region_has_the_area_of_its_own_cells(rank, box, energy):
    # Four cells of 1, and two of 5 in a rectangle that is as large.
    regions = select([[1, 1, 0, 0, 5, 0], [1, 1, 0, 0, 0, 5]], rank, k_e=1, zetas=())
    assert regions.boxes[0, 0].tolist() == box
    assert regions.energies[0, 0] == energy


@pytest.mark.parametrize(("rank", "box", "energy"), [("energy", [4, 0, 5, 1], 7), ("area", [0, 0, 3, 1], 3)])
def test_a_variant_is_ranked_alike(rank, box, energy):
    # The step leaves three cells of 1, and one of 7.
    regions = select([[3, 3, 3, 1, 9]], rank, k_e=1, zetas=(1.0,))
    assert regions.boxes[0].tolist() == [[0, 0, 5, 1], box]
    assert regions.energies[0].tolist() == [19, energy]


def test_a_tie_of_areas_goes_to_the_first_cell():
    plane = [[9, 0, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0], [3, 3, 0, 1], [0, 0, 0, 1]]
    regions = select(plane, "area", k_e=4, zetas=())
    assert regions.boxes[0].tolist() == [[2, 1, 4, 2], [0, 3, 2, 4], [3, 3, 4, 5], [0, 0, 1, 1]]
    assert regions.energies[0].tolist() == [4, 6, 2, 9]


def test_joined_parts_count_as_one_area():
    # A fork of 2 + 2 + 1 cells, whose arms have labels of their own until they meet, and a bar of 4.
    regions = select([[1, 0, 1, 0, 2], [1, 0, 1, 0, 2], [0, 1, 0, 0, 2], [0, 0, 0, 0, 2]], "area", k_e=2, zetas=())
    assert regions.boxes[0].tolist() == [[0, 0, 3, 3], [4, 0, 5, 4]]
