"""The figure of proposals: recall of hand-made boxes, and real photos of COCO with their objects."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from glocal.runtime.errors import DataError
from glocal.runtime.images import encode_jpeg
from glocal.train.checkpoint import load_model, save_model
from glocal.train.figure_parts import look, open_sample
from glocal.train.figure_proposals import Hits, hits_of, object_boxes, selective_search
from glocal.train.figures import write_figure

PHOTOS = 6


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("proposals", "objects", "expected"),
    [
        (boxes((0, 0, 10, 10)), boxes(), Hits(0, 0, 0)),
        (boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (20, 20, 30, 30)), Hits(2, 1, 1)),
        (boxes((0, 0, 10, 10)), boxes((0, 0, 10, 5)), Hits(1, 1, 1)),  # an IoU of exactly a half counts
        (boxes((0, 0, 10, 10)), boxes((0, 0, 10, 4.9)), Hits(1, 0, 1)),  # only the centre
        (boxes((0, 0, 4, 10)), boxes((0, 0, 10, 10)), Hits(1, 0, 0)),
        (boxes((0, 0, 4, 10), (0, 0, 9, 10)), boxes((0, 0, 10, 10)), Hits(1, 1, 1)),  # any proposal may find it
        (boxes((0, 0, 4, 4)), boxes((1, 1, 2, 2), (2, 2, 3, 3), (50, 1, 52, 2)), Hits(3, 0, 2)),
    ],
)
def test_hits(proposals, objects, expected):
    assert hits_of(proposals, objects) == expected


@pytest.fixture(scope="module")
def listed(photo_data) -> dict[str, Any]:
    labels = photo_data / "coco80_mini" / "labels.json"
    if not labels.is_file():
        pytest.skip("GLOCAL_DATA has no coco80_mini")
    content = json.loads(labels.read_text())
    # With a crowd among them, which is no object to be found.
    crowded = [image for image in content["images"] if any(found["iscrowd"] for found in image["objects"])]
    plain = [image for image in content["images"] if image["labels"]]
    content["images"] = list({image["image"]: image for image in crowded[:2] + plain}.values())[:PHOTOS]
    return content


@pytest.fixture
def coco(listed, photo_data, tmp_path) -> Path:
    """The photos as a COCO folder."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for image in listed["images"]:
        os.symlink(photo_data / "coco80_mini" / "JPEGImages" / image["image"], folder / "val2017" / image["image"])
    write_instances(folder, instances(listed))
    return folder


def instances(listed: dict[str, Any]) -> dict[str, Any]:
    ids = dict(zip(listed["classes"], listed["coco_category_ids"], strict=True))
    return {
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
        "images": [
            {"id": image["coco_id"], "file_name": image["image"], "width": image["width"], "height": image["height"]}
            for image in listed["images"]
        ],
        "annotations": [
            {"image_id": image["coco_id"], "category_id": ids[found["label"]], "bbox": found["bbox"]}
            | {"iscrowd": found["iscrowd"], "segmentation": [[1, 2, 3, 4, 5, 6]]}
            for image in listed["images"]
            for found in image["objects"]
        ],
    }


def write_instances(folder: Path, content: dict[str, Any]) -> None:
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def run(build_model, listed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = build_model("glocal", classes=tuple(listed["classes"]), image_size=(160, 160))
    save_model(folder / "model.safetensors", model, {}, {})
    return folder


def test_objects_are_read_in_the_order_of_the_photos(run, coco, listed):
    sample = open_sample(str(coco), "test", load_model(run).model.config, 5, 3)
    objects = object_boxes(sample)
    assert objects is not None
    assert len(objects) == 5
    crowds = 0
    for index, found in enumerate(objects):
        (image,) = [image for image in listed["images"] if image["image"] == sample.name(index)]
        assert found.size == sample.images.load(int(sample.rows[index])).shape[:2]
        kept = [thing["bbox"] for thing in image["objects"] if not thing["iscrowd"]]
        np.testing.assert_allclose(found.boxes, boxes(*((x, y, x + w, y + h) for x, y, w, h in kept)))
        crowds += len(image["objects"]) - len(kept)
    assert crowds > 0


def inside(point: tuple[float, float], box: np.ndarray) -> bool:
    return bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])


def test_the_figure_has_the_models_boxes_and_their_recall(run, coco, tmp_path):
    written = write_figure("proposals", [run], str(coco), tmp_path / "out")
    with open(written.csv, newline="") as file:
        ours = next(csv.DictReader(file))
    model = load_model(run).model
    sample = open_sample(str(coco), "test", model.config, 50, 0)
    seen, objects = look(model, sample), object_boxes(sample)
    assert objects is not None
    counts, found, centres = [], 0, 0
    for index, there in enumerate(objects):
        height, width = there.size
        own = seen.boxes(index) / np.array([5, 5, 5, 5]) * (width, height, width, height)
        counts.append(len(own))
        for thing in there.boxes:
            middle = ((thing[0] + thing[2]) / 2, (thing[1] + thing[3]) / 2)
            centres += any(inside(middle, box) for box in own)
            found += hits_of(own, thing[None]).found
    total = sum(len(there.boxes) for there in objects)
    assert (ours["method"], int(ours["photos"]), int(ours["objects"])) == ("ours", PHOTOS, total)
    assert float(ours["proposals"]) == pytest.approx(np.mean(counts))
    assert float(ours["recall"]) == pytest.approx(found / total)
    assert float(ours["centre"]) == pytest.approx(centres / total)
    assert 0 < float(ours["area"]) <= 1


def test_photos_of_another_size_than_annotated_are_not_counted(run, coco, listed, tmp_path):
    content = instances(listed)
    content["images"][0]["width"] += 1
    write_instances(coco, content)
    written = write_figure("proposals", [run], str(coco), tmp_path / "out")
    assert "1 photos do not have the size" in " ".join(written.drawn.notes)
    kept = [thing for image in listed["images"][1:] for thing in image["objects"] if not thing["iscrowd"]]
    assert written.drawn.table[0]["objects"] == len(kept)


@pytest.mark.parametrize(
    ("key", "number", "without", "message"),
    [
        ("annotations", 2, "bbox", r"annotations\.2 has no box"),
        ("images", 0, "width", r"images\.0 has no size"),
        ("images", 0, "height", r"images\.0 has no size"),
    ],
)
def test_annotations_without_boxes_are_refused(run, coco, listed, tmp_path, key, number, without, message):
    content = instances(listed)
    del content[key][number][without]
    write_instances(coco, content)
    with pytest.raises(DataError, match=message) as caught:
        write_figure("proposals", [run], str(coco), tmp_path / "out")
    assert "instances_val2017.json" in caught.value.what
    content = instances(listed)
    content["annotations"][2]["bbox"] = [1, 2, 3]
    write_instances(coco, content)
    with pytest.raises(DataError, match=r"annotations\.2\.bbox"):
        write_figure("proposals", [run], str(coco), tmp_path / "out")


def test_other_layouts_have_no_recall(run, listed, tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(encode_jpeg(np.full((40, 50, 3), 99, np.uint8)))
    (tmp_path / "classes.txt").write_text("\n".join(listed["classes"]))
    (tmp_path / "labels.csv").write_text("image,split,labels\na.jpg,test,dog\n")
    written = write_figure("proposals", [run], str(tmp_path), tmp_path / "out")
    assert "No recall" in " ".join(written.drawn.notes)
    assert (written.drawn.table[0]["objects"], written.drawn.table[0]["recall"]) == (0, "")


def test_without_contrib_modules_the_command_says_what_to_install(run, coco, tmp_path, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc", raising=False)
    written = write_figure("proposals", [run], str(coco), tmp_path / "out", images=2)
    assert [row["method"] for row in written.drawn.table] == ["ours"]
    assert "pip install opencv-contrib-python" in written.drawn.notes[0]


@pytest.mark.skipif(not hasattr(cv2, "ximgproc"), reason="OpenCV without contrib modules")
def test_selective_search_finds_a_square(run, coco, tmp_path):
    photo = np.full((120, 160, 3), 30, np.uint8)
    photo[40:80, 60:110] = (200, 40, 10)
    search = selective_search()
    assert search is not None
    found = search(photo)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= (160, 120)).all()
    assert hits_of(found, boxes((60, 40, 110, 80))).found == 1
    written = write_figure("proposals", [run], str(coco), tmp_path / "out", images=2)
    assert [row["method"] for row in written.drawn.table] == ["ours", "selective search"]
    assert written.drawn.table[1]["proposals"] > 50
    assert written.drawn.table[1]["recall"] > 0.3
