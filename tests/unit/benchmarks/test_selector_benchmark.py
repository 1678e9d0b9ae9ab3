import json
import subprocess

import numpy as np
import pytest
from glocal.benchmarks import machine, selector
from glocal.benchmarks.machine import machine_facts
from glocal.runtime.errors import DataError, GlocalError
from typer.testing import CliRunner

WAYS = ["glocal", "OpenCV components", "OpenCV contours", "OpenCV labels only"]


def test_every_way_is_timed_and_compared_with_ours():
    cases, shift = selector.noise_cases(categories=3, size=9)
    for setting in selector.SETTINGS:
        figures = selector.time_ways(cases, shift, setting, rounds=3)
        assert list(figures) == WAYS
        for row in figures.values():
            assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
            assert row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]
        assert figures["glocal"]["ratio"] == 1


def test_a_way_that_selects_other_regions_is_not_timed(monkeypatch):
    cases, shift = selector.noise_cases(categories=3, size=9)
    right = selector._contour_boxes
    monkeypatch.setattr(selector, "_contour_boxes", lambda active: right(active)[1:])
    with pytest.raises(GlocalError, match="OpenCV contours and glocal select different regions"):
        selector.time_ways(cases, shift, selector.SETTINGS[0], rounds=1)


@pytest.mark.parametrize("find_boxes", [selector._stats_boxes, selector._contour_boxes])
def test_a_component_inside_a_hole_is_found(find_boxes):
    ring = np.ones((5, 5), np.uint8)
    ring[1:4, 1:4] = 0
    ring[2, 2] = 1
    assert sorted(tuple(box) for box in find_boxes(ring)) == [(0, 0, 5, 5), (2, 2, 1, 1)]
    assert find_boxes(np.zeros((5, 5), np.uint8)) == []


def test_the_report_on_given_maps_is_written(tmp_path):
    cases, shift = selector.noise_cases(categories=5, size=7)
    maps, logits = (np.concatenate(arrays) for arrays in zip(*cases, strict=True))
    np.savez(tmp_path / "maps.npz", maps=maps, logits=logits, shift=shift)
    app = selector.typer.Typer()
    app.command()(selector.main)
    arguments = ["--maps", str(tmp_path / "maps.npz"), "--rounds", "1", "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "5x7x7 maps, 4 x 2 x 3 boxes" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["packages"]["numpy"] == np.__version__
    assert [(row["images"], row["k_s"], row["zetas"]) for row in report["results"]] == [(16, 12, []), (16, 4, [0.5, 1])]
    assert [list(row["ways"]) for row in report["results"]] == [WAYS, WAYS]


@pytest.mark.parametrize("content", [{"maps": np.zeros((1, 2, 3, 3))}, {"maps": 1, "logits": 1, "shift": 1}, None])
def test_a_file_without_class_maps_is_refused(tmp_path, content):
    path = tmp_path / "maps.npz"
    path.write_bytes(b"PK\3\4") if content is None else np.savez(path, **content)
    with pytest.raises(DataError, match="holds no class maps"):
        selector.load_cases(path)


def test_the_commit_is_named_only_in_our_own_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(machine, "_ROOT", tmp_path.resolve())
    git("init")
    assert "commit" not in machine_facts()
    git("commit", "--allow-empty", "-m", "first")
    commit = machine_facts()["commit"]
    assert len(commit) == 40
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "file").touch()
    assert machine_facts()["commit"] == f"{commit} with changes"
    monkeypatch.setattr(machine, "_ROOT", tmp_path.resolve() / "installed")
    assert "commit" not in machine_facts()
