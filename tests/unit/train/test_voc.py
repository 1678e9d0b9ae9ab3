"""The VOC layout: a small folder with its habits, and the genuine labels of VOC 2007."""

from __future__ import annotations

import csv
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from glocal.runtime.errors import DataError
from glocal.runtime.images import encode_jpeg
from glocal.train.data import TrainImages, open_data

CAT = "000012 -1\n000017  1\n000019  0\n"
TRAIN = "000012  1\n000017  1\n000019 -1\n"

# Images with a class, of trainval and of test, as published (development kit of VOC 2007, table 1).
PUBLISHED = {
    "aeroplane": (238, 204),
    "bicycle": (243, 239),
    "bird": (330, 282),
    "boat": (181, 172),
    "bottle": (244, 212),
    "bus": (186, 174),
    "car": (713, 721),
    "cat": (337, 322),
    "chair": (445, 417),
    "cow": (141, 127),
    "diningtable": (200, 190),
    "dog": (421, 418),
    "horse": (287, 274),
    "motorbike": (245, 222),
    "person": (2008, 2007),
    "pottedplant": (245, 224),
    "sheep": (96, 97),
    "sofa": (229, 223),
    "train": (261, 259),
    "tvmonitor": (256, 229),
}


def write_year(folder: Path) -> Path:
    """Three photos of two classes: image k is grey of 10 * k, and 30 + k pixels high."""
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for k, name in enumerate(("000012", "000017", "000019")):
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(encode_jpeg(np.full((30 + k, 40, 3), 10 * k, np.uint8)))
    (sets / "train.txt").write_text("000012\n000017\n000019\n")
    # The class "train" sorts after "cat", and has files that look like lists of splits.
    (sets / "train_train.txt").write_text(TRAIN)
    (sets / "cat_train.txt").write_text(CAT)
    for split in ("val", "trainval"):
        (sets / f"train_{split}.txt").write_text("000017  1\n")
        (sets / f"cat_{split}.txt").write_text("000017 -1\n")
    return folder


@pytest.fixture
def year(tmp_path) -> Path:
    return write_year(tmp_path / "VOCdevkit" / "VOC2007")


def test_difficult_objects_are_ignored_and_classes_are_in_alphabetical_order(year):
    data = open_data(year, "train")
    assert (data.name, data.split, data.classes) == (str(year), "train", ("cat", "train"))
    np.testing.assert_array_equal(data.targets, [[0, 1], [1, 1], [-1, 0]])
    assert data.targets.dtype == np.int8
    assert data.paths is not None
    assert [path.name for path in data.paths] == ["000012.jpg", "000017.jpg", "000019.jpg"]
    assert [data.load(k).shape[0] for k in range(3)] == [30, 31, 32]
    assert data.load(2)[0, 0].tolist() == [20, 20, 20]


def test_items_keep_what_is_ignored_also_through_pickle(year):
    data = pickle.loads(pickle.dumps(open_data(year, "train")))
    image, target = TrainImages(data, (32, 32), augment=True, seed=0)[2]
    assert image.shape == (32, 32, 3)
    assert (target.dtype, target.tolist()) == (torch.float32, [-1, 0])


def test_each_split_has_its_own_files(year):
    assert [len(open_data(year, split)) for split in ("train", "val", "trainval")] == [3, 1, 1]
    with pytest.raises(DataError, match=r"no files <class>_test\.txt\.\n.*train \(2 classes\).*val \(2 classes\)"):
        open_data(year, "test")


def test_a_devkit_with_one_year_is_that_year_and_with_two_an_error(year):
    devkit = year.parent
    data = open_data(devkit, "train")
    assert (data.name, len(data)) == (str(devkit), 3)
    assert data.load(0).shape == (30, 40, 3)
    write_year(devkit / "VOC2012")
    with pytest.raises(DataError, match=r"several years of VOC\.\n.*VOC2007, VOC2012\n.*VOCdevkit/VOC2012"):
        open_data(devkit, "train")
    assert len(open_data(devkit / "VOC2012", "train")) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CAT + "000020 2\n", r"cat_train\.txt, line 4: not an image and its label\.\n.*'000020 2'"),
        (CAT + "000020\n", "line 4: not an image and its label"),
        (CAT + "000020 1 1\n", "line 4: not an image and its label"),
        ("\n" + CAT + "000012  1\n", "line 5: the image 000012 is there twice"),
        (CAT + "../000020  1\n", r"cat_train\.txt: an image must lie in JPEGImages/\.\n.*'\.\./000020'"),
        (CAT + "000020 -1\n", r"train_train\.txt and cat_train\.txt do not list the same images\.\n.*1 .*000020"),
        ("", "do not list the same images"),
        (b"\xff 1\n", r"cat_train\.txt cannot be read"),
        (None, r"lacks 1 of the 2 classes\.\n.*no file cat_train\.txt"),
    ],
)
def test_a_bad_file_is_named(year, text, message):
    file = year / "ImageSets" / "Main" / "cat_train.txt"
    file.unlink()
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_data(year, "train")
    assert caught.value.fix


def test_missing_photos_and_a_split_without_public_labels_are_named(year):
    (year / "JPEGImages" / "000017.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 3 images of split 'train' are missing\.\n.*000017\.jpg"):
        open_data(year, "train")
    for label in ("cat", "train"):
        (year / "ImageSets" / "Main" / f"{label}_test.txt").write_text("000012  0\n")
    with pytest.raises(DataError, match="No image of split 'test' has a label"):
        open_data(year, "test")


@pytest.fixture(scope="session")
def labels_2007(photo_data) -> list[dict[str, str]]:
    file = photo_data / "voc2007_labels_only" / "labels.csv"
    if not file.is_file():
        pytest.skip("GLOCAL_DATA has no voc2007_labels_only")
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture(scope="session")
def voc2007(labels_2007, tmp_path_factory) -> Path:
    """The genuine image sets of VOC 2007; the photos are absent, so one grey photo stands for each."""
    folder = tmp_path_factory.mktemp("voc") / "VOC2007"
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    photo = folder / "photo.jpg"
    photo.write_bytes(encode_jpeg(np.full((30, 40, 3), 128, np.uint8)))
    for row in labels_2007:
        os.link(photo, folder / "JPEGImages" / f"{row['image']}.jpg")
    for split, parts in {"train": ["train"], "val": ["val"], "trainval": ["train", "val"], "test": ["test"]}.items():
        rows = [row for row in labels_2007 if row["split"] in parts]
        for label in PUBLISHED:
            lines = []
            for row in rows:
                present, difficult = (label in row[column].split("|") for column in ("positive", "difficult_only"))
                lines.append(f"{row['image']} {1 if present else 0 if difficult else -1:2d}\n")
            (sets / f"{label}_{split}.txt").write_text("".join(lines))
    return folder


def test_voc2007_opens_with_its_genuine_labels(labels_2007, voc2007):
    data = {split: open_data(voc2007, split) for split in ("train", "val", "trainval", "test")}
    assert [len(images) for images in data.values()] == [2501, 2510, 5011, 4952]
    for split in ("train", "val", "test"):
        for column, value in (("positive", 1), ("difficult_only", -1)):
            rows = [row[column].split("|") for row in labels_2007 if row["split"] == split]
            expected = Counter(label for labels in rows for label in labels if label)
            counted = (data[split].targets == value).sum(axis=0)
            assert dict(zip(PUBLISHED, counted, strict=True)) == {label: expected[label] for label in PUBLISHED}
    positives = zip(*((data[split].targets == 1).sum(axis=0).tolist() for split in ("trainval", "test")), strict=True)
    assert dict(zip(data["test"].classes, positives, strict=True)) == PUBLISHED
    assert data["trainval"].classes == tuple(PUBLISHED)
    assert data["test"].load(4951).shape == (30, 40, 3)
