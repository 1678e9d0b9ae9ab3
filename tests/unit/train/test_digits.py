from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
from glocal.runtime.errors import UsageError
from glocal.runtime.images import read_image
from glocal.train import digits
from glocal.train.data import open_data
from glocal.train.digits import CLASSES, DigitScenes, Scene, write_data_folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    data = DigitScenes("train", 300)
    return [data.scene(index) for index in range(len(data))]


def test_a_scene_depends_on_seed_split_index_and_epoch_alone():
    base = DigitScenes("train", 10).scene(7, epoch=2)
    again = DigitScenes("train", 99).scene(7, epoch=2)
    np.testing.assert_array_equal(base.image, again.image)
    np.testing.assert_array_equal(base.boxes, again.boxes)
    for other in (
        DigitScenes("train", 10).scene(7, epoch=3),
        DigitScenes("train", 10).scene(8, epoch=2),
        DigitScenes("test", 10).scene(7, epoch=2),
        DigitScenes("train", 10, seed=1).scene(7, epoch=2),
    ):
        assert (base.image != other.image).mean() > 0.5


def test_an_epoch_changes_the_look_and_keeps_the_labels():
    data = DigitScenes("train", 20, size=96)
    for index in range(len(data)):
        for epoch in (0, 5):
            np.testing.assert_array_equal(data.scene(index, epoch).target, data.targets[index])


def test_boxes_lie_in_the_image_and_agree_with_the_target(scenes):
    for scene in scenes:
        assert scene.image.shape == (192, 192, 3)
        assert (scene.image.dtype, scene.target.dtype, scene.boxes.dtype) == (np.uint8, np.float32, np.int32)
        assert 1 <= len(scene.boxes) <= 5
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:4] <= 192).all()
        np.testing.assert_array_equal(np.flatnonzero(scene.target), np.unique(scene.boxes[:, 4]))


def test_many_digits_are_tiny_some_are_large_and_they_hardly_overlap(scenes):
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    assert (sides < 192 / 7).mean() > 1 / 4
    assert (sides > 192 / 4).mean() > 0.1
    assert sides.min() >= 14
    assert sides.max() <= 192 / 2.5
    for scene in scenes:
        cover = np.zeros((192, 192), int)
        for x0, y0, x1, y1, _ in scene.boxes:
            cover[y0:y1, x0:x1] += 1
        areas = np.prod(scene.boxes[:, 2:4] - scene.boxes[:, :2], axis=1)
        assert np.sum(cover > 1) <= 0.1 * len(areas) * areas.max()


def test_an_image_is_its_background_but_for_visible_digits_in_the_boxes():
    data = DigitScenes("test", 40)
    for index in range(len(data)):
        scene = data.scene(index)
        background = digits._background(data._generator(index, 0), 192)
        luma = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int) for image in (scene.image, background)]
        change = np.abs(luma[0] - luma[1])
        outside = np.any(scene.image != background, axis=2)
        for x0, y0, x1, y1, _ in scene.boxes:
            outside[y0:y1, x0:x1] = False
            inside = change[y0:y1, x0:x1]
            assert (inside > 25).mean() > 0.08  # strokes that can be seen
            band = 2 + max(inside.shape) // 8  # the box is tight
            for edge in (inside[:band], inside[-band:], inside[:, :band], inside[:, -band:]):
                assert edge.max() > 10
        assert not outside.any()


def test_hard_scenes_have_small_digits_of_less_contrast_in_more_clutter():
    hard = open_data("digits-hard", "train", length=60, size=128)
    assert hard.name == "digits-hard"
    scenes = [hard.source.scene(index) for index in range(60)]
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    assert sides.min() >= 7
    assert sides.max() <= 16
    assert {len(scene.boxes) for scene in scenes} == {2, 3, 4, 5, 6}
    np.testing.assert_array_equal(hard.load(7), scenes[7].image)
    easy = open_data("digits", "train", length=60, size=128)
    assert easy.source == DigitScenes("train", 60, 128)
    assert not np.array_equal(hard.targets, easy.targets)
    # The same draws, so three times as many shapes lie on the same colours.
    rough = [digits._background(np.random.default_rng(5), 128, times).astype(int) for times in (0, 1, 3)]
    changed = [(np.abs(image - rough[0]).max(axis=2) > 8).mean() for image in rough[1:]]
    assert changed[1] > 1.3 * changed[0] > 0
    faint, strong = (_least_change(contrast) for contrast in (20.0, 100.0))
    assert strong > faint + 40


def _least_change(contrast: float) -> float:
    """Least luma difference of a full digit over grey in 50 paintings."""
    found = []
    for seed in range(50):
        grey = np.full((4, 4, 3), 128, np.uint8)
        digits._paint(np.random.default_rng(seed), grey, np.ones((4, 4), np.float32), contrast)
        found.append(abs(float(grey[0, 0] @ digits.LUMA) - 128))
    return min(found)


def test_splits_share_no_digit_image_and_all_have_each_digit():
    parts = {split: digits._glyphs(split) for split in digits.SPLITS}
    assert sum(len(glyphs) for part in parts.values() for glyphs in part) == 1797
    seen = {split: {glyph.tobytes() for glyphs in part for glyph in glyphs} for split, part in parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        for k in range(10):
            everywhere = sum(len(part[k]) for part in parts.values())
            assert len(parts[split][k]) == pytest.approx(share * everywhere, abs=1.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training", 10), "no such split"),
        (("train", 0), "length"),
        (("train", 10, 32), "size"),
        (("train", 10, 192, -1), "seed"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        DigitScenes(*arguments)


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_scene_beyond_the_length(index):
    with pytest.raises(IndexError):
        DigitScenes("train", 3).scene(index)


def test_write_data_folder_holds_the_scenes(tmp_path):
    folder = tmp_path / "new" / "digits"
    write_data_folder(folder, {"train": 3, "test": 2}, size=96, seed=4)
    assert (folder / "classes.txt").read_text().split() == list(CLASSES)
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 2
    for index, row in enumerate(rows[3:]):
        scene = DigitScenes("test", 2, size=96, seed=4).scene(index)
        np.testing.assert_array_equal(read_image(folder / "JPEGImages" / row["image"]), scene.image)
        assert row["labels"].split("|") == [CLASSES[k] for k in np.flatnonzero(scene.target)]
    assert list(tmp_path.glob("*")) == [tmp_path / "new"]
    assert list(folder.parent.iterdir()) == [folder]


def test_write_data_folder_refuses_what_exists(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_data_folder(tmp_path, {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_write_data_folder_leaves_nothing_when_the_disk_is_full(tmp_path, monkeypatch):
    written = []

    def imencode(*arguments):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(arguments)
        return encode(*arguments)

    encode = cv2.imencode
    monkeypatch.setattr(digits.cv2, "imencode", imencode)
    with pytest.raises(UsageError, match="No space left"):
        write_data_folder(tmp_path / "digits", {"train": 5}, size=96)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []
