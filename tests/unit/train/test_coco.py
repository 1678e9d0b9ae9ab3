"""The COCO layout: a small folder, and real photos of COCO with their boxes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glocal.runtime.errors import DataError
from glocal.runtime.images import encode_jpeg
from glocal.train.data import TrainImages, open_data

CONTENT: dict[str, Any] = {
    "info": {"year": 2017},
    # Neither by id nor by name: the order of the classes is by id.
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}],
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "width": 40, "height": 30},
        {"id": 7, "file_name": "000000000007.jpg", "width": 40, "height": 31},
        {"id": 8, "file_name": "000000000008.jpg", "width": 40, "height": 32},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": [[1.5, 2, 3, 4, 5, 6]]},
        {"id": 2, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": []},
        {"id": 3, "image_id": 8, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [3, 4], "size": [32, 40]}},
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photos of 30, 31 and 32 x 40; train and val have the same content."""
    (tmp_path / "annotations").mkdir()
    for place in (tmp_path / "train2017", tmp_path / "images" / "val2017"):
        place.mkdir(parents=True)
        for image in CONTENT["images"]:
            photo = np.full((image["height"], image["width"], 3), 128, np.uint8)
            (place / image["file_name"]).write_bytes(encode_jpeg(photo))
    for part in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(CONTENT))
        (tmp_path / "annotations" / f"captions_{part}2017.json").write_text("{}")
    return tmp_path


def test_classes_are_in_id_order_crowds_count_and_images_without_labels_stay(folder):
    data = open_data(folder, "train")
    assert (data.name, data.split, data.classes) == (str(folder), "train", ("person", "cat", "dog"))
    np.testing.assert_array_equal(data.targets, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert data.targets.dtype == np.int8
    assert [data.load(k).shape for k in range(3)] == [(30, 40, 3), (31, 40, 3), (32, 40, 3)]


def test_test_is_val_and_photos_may_lie_in_images(folder):
    val, test = open_data(folder, "val"), open_data(folder, "test")
    assert (val.split, test.split) == ("val", "test")
    assert val.paths == test.paths
    assert val.paths is not None
    assert val.paths[0] == folder / "images" / "val2017" / "000000000009.jpg"
    np.testing.assert_array_equal(val.targets, test.targets)
    with pytest.raises(DataError, match=r"no split 'trainval'\.\n.*instances_train2017\.json"):
        open_data(folder, "trainval")
    (folder / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"no split 'test'"):
        open_data(folder, "test")


@pytest.mark.parametrize("name", ["instances_train2014.json", "instances_val2014.json"])
def test_two_releases_are_an_error_for_each_split(folder, name):
    (folder / "annotations" / name).write_text(json.dumps(CONTENT))
    for split in ("train", "val"):
        with pytest.raises(DataError, match="more than one release") as caught:
            open_data(folder, split)
        assert name in caught.value.found
        assert "Keep" in caught.value.fix


def test_missing_photos_are_named(folder):
    (folder / "train2017" / "000000000007.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 3 images .*\n.*000000000007\.jpg"):
        open_data(folder, "train")
    (folder / "images" / "val2017").rename(folder / "photos")
    with pytest.raises(DataError, match=r"no folder with the photos of .*val2017\.json.*\n.*neither .*val2017 nor"):
        open_data(folder, "val")


def entry(key: str, **values: Any) -> dict[str, Any]:
    """The content with one entry more, a copy of the first with other values."""
    return CONTENT | {key: [*CONTENT[key], CONTENT[key][0] | values]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "should be a dictionary"),
        ({"images": [], "annotations": []}, "categories: Field required"),
        (CONTENT | {"annotations": [{"image_id": 9}]}, r"annotations\.0\.category_id: Field required"),
        (CONTENT | {"annotations": None}, "annotations: Input should be a valid list"),
        (entry("images", id="nine"), r"images\.3\.id: Input should be a valid integer"),
        (entry("images", id=10), r"the file name is there twice\.\n.*000000000009\.jpg"),
        (entry("images", file_name="a.jpg"), r"the image id is there twice\.\n.*9"),
        (entry("images", id=10, file_name="../a.jpg"), r"image 10: an image must lie in train2017/\."),
        (entry("images", id=10, file_name=""), r"image 10: an image must lie in train2017/\."),
        (entry("categories", id=2), r"the category name is there twice\.\n.*'dog'"),
        (entry("categories", name="cow"), r"the category id is there twice\.\n.*18"),
        (entry("annotations", image_id=5), r"annotations\.3 is of an image .*\n.*image_id=5"),
        (entry("annotations", category_id=5), r"annotations\.3 is of .*\n.*category_id=5"),
        (CONTENT | {"categories": []}, "names no class"),
        (CONTENT | {"annotations": []}, "No image of split 'train' has a label"),
        (CONTENT | {"images": [], "annotations": []}, "No image of split 'train' has a label"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"images": [', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
    ],
)
def test_a_bad_file_is_named(folder, content, message):
    file = folder / "annotations" / "instances_train2017.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError, match=message) as caught:
        open_data(folder, "train")
    assert str(file) in str(caught.value)
    assert caught.value.fix


@pytest.fixture(scope="session")
def mini(photo_data) -> Path:
    """Real photos of COCO, with boxes of all 80 categories."""
    if not (photo_data / "coco80_mini" / "labels.json").is_file():
        pytest.skip("GLOCAL_DATA has no coco80_mini")
    return photo_data / "coco80_mini"


def as_instances(images: list[dict[str, Any]], ids: dict[str, int]) -> dict[str, Any]:
    """Entries of labels.json as the content of a file of COCO instances."""
    return {
        "categories": [{"id": ids[label], "name": label} for label in sorted(ids)],
        "images": [{"id": image["coco_id"], "file_name": image["image"]} for image in images],
        "annotations": [
            {"image_id": image["coco_id"], "category_id": ids[found["label"]], "bbox": found["bbox"]}
            | {"iscrowd": found["iscrowd"], "segmentation": []}
            for image in images
            for found in image["objects"]
        ],
    }


def test_real_photos_open_with_their_80_categories(mini, tmp_path):
    listed = json.loads((mini / "labels.json").read_text())
    ids = dict(zip(listed["classes"], listed["coco_category_ids"], strict=True))
    (tmp_path / "annotations").mkdir()
    unlabelled = 0
    for split, name, count in (("train", "train2017", 407), ("test", "val2017", 262)):
        images = [image for image in listed["images"] if image["split"] == split]
        (tmp_path / name).mkdir()
        for image in images:
            os.symlink(mini / "JPEGImages" / image["image"], tmp_path / name / image["image"])
        content = json.dumps(as_instances(images, ids))
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(content)
        data = open_data(tmp_path, split)
        assert (len(data), data.classes) == (count, tuple(listed["classes"]))
        for image, target in zip(images, data.targets, strict=True):
            assert {data.classes[k] for k in np.flatnonzero(target)} == set(image["labels"])
        assert data.targets.any(axis=0).all()
        assert data.load(0).shape == (images[0]["height"], images[0]["width"], 3)
        unlabelled += int((~data.targets.any(axis=1)).sum())
    assert unlabelled == 3
    photo, target = TrainImages(open_data(tmp_path, "train"), (224, 224), augment=True, seed=0)[1]
    assert (photo.shape, target.shape) == ((224, 224, 3), (80,))
