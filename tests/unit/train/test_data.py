from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from glocal.runtime.errors import DataError, UsageError
from glocal.train.data import LabeledImages, TrainImages, open_data
from glocal.train.digits import write_data_folder
from torch.utils.data import DataLoader

ROWS = "image,split,labels\na.png,train,cat\nb.png,train,dog|cat\nsub/c.png,train,\nd.png,test,dog\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four photos of 40 x 60; the red channel is the row, the green one the column, the blue one the image."""
    (tmp_path / "JPEGImages" / "sub").mkdir(parents=True)
    rows, columns = np.mgrid[:40, :60]
    for blue, name in enumerate(("a.png", "b.png", "sub/c.png", "d.png")):
        rgb = np.stack([rows, columns, np.full_like(rows, blue)], axis=-1).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path / "JPEGImages" / name), rgb[..., ::-1])
    (tmp_path / "labels.csv").write_text(ROWS)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def test_a_folder_is_read_as_it_is_written(folder):
    data = open_data(folder, "train", length=2, size=96)  # length and size are of built-in data
    assert (data.name, data.split, data.classes, len(data)) == (str(folder), "train", ("cat", "dog"), 3)
    np.testing.assert_array_equal(data.targets, [[1, 0], [1, 1], [0, 0]])
    assert data.targets.dtype == np.int8
    assert data.paths is not None
    assert [path.name for path in data.paths] == ["a.png", "b.png", "c.png"]
    assert (data.crop, data.flip) == (True, True)
    image = data.load(1)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    assert image[7, 9].tolist() == [7, 9, 1]
    with pytest.raises(IndexError):
        data.load(-1)


def test_spreadsheet_habits_are_read(folder):
    """A byte order mark, CRLF, spaces around labels, blank lines, and further columns with commas and line ends."""
    text = '\ufeffsplit,image,labels,caption\r\ntest,d.png, dog | cat ,"one, ""two""\nthree"\r\n\r\n'
    (folder / "labels.csv").write_bytes(text.encode())
    (folder / "classes.txt").write_bytes("\ufeffcat\r\ndog \r\n\r\n".encode())
    data = open_data(str(folder), "test")
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.targets, [[1, 1]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("e.png,train,cat|cow", r"labels\.csv, line 6: unknown label\.\n.*'cow'"),
        ("e.png,train,cat|", r"line 6: unknown label\.\n.*''"),
        ("./a.png,val,dog", r"line 6: the image a\.png is there twice\.\n.*line 2"),
        ("../a.png,train,dog", r"line 6: an image must lie in JPEGImages/\.\n.*'\.\./a\.png'"),
        ("/etc/a.png,train,dog", "line 6: an image must lie in"),
        ("sub\\..\\..\\a.png,train,dog", "line 6: an image must lie in"),
        ("C:a.png,train,dog", "line 6: an image must lie in"),
        ("e.png,train", "line 6: the row is incomplete"),
        ("e.png,,dog", "line 6: the row is incomplete"),
        (",train,dog", "line 6: the row is incomplete"),
        ('"e.png,train,dog', "line 6: not CSV"),
    ],
)
def test_a_bad_row_is_named_with_its_line(folder, row, message):
    (folder / "labels.csv").write_text(ROWS + row + "\n")
    with pytest.raises(DataError, match=message) as caught:
        open_data(folder, "test")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "cat\ndog\ncat\n", r"classes\.txt, line 3: the class 'cat' is there twice\.\n.*line 1"),
        ("classes.txt", "\n\n", r"classes\.txt names no class"),
        ("classes.txt", "cat|dog\n", r"classes\.txt, line 1: a class must not contain '\|'"),
        ("labels.csv", "", "must have the columns image, split, labels.*\n.*an empty file"),
        ("labels.csv", "image,labels\n", "must have the columns image, split, labels.*\n.*image, labels"),
        ("labels.csv", "image,split,labels,labels\n", "each once"),
        ("labels.csv", "image,split,labels\n", r"has no split 'train'\.\n.*no rows"),
        ("labels.csv", b"image,split,labels\n\xff.png,train,cat\n", r"labels\.csv cannot be read"),
        ("labels.csv", None, r"labels\.csv cannot be read"),
        ("classes.txt", None, r"classes\.txt cannot be read"),
    ],
)
def test_a_bad_file_is_named(folder, file, text, message):
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_data(folder, "train")
    assert caught.value.fix


def test_an_unknown_split_lists_those_found(folder):
    with pytest.raises(DataError, match=r"no split 'val'\.\n.*train \(3 images\), test \(1 images\)"):
        open_data(folder, "val")
    with pytest.raises(UsageError, match="no such split"):
        open_data("digits", "training")


def test_missing_images_are_counted_and_the_first_three_named(folder):
    names = [f"gone{k}.png" for k in range(5)]
    (folder / "labels.csv").write_text(ROWS + "".join(f"{name},train,cat\n" for name in names))
    with pytest.raises(DataError, match="5 of the 8 images") as caught:
        open_data(folder, "train")
    assert "gone2.png" in caught.value.found
    assert "gone3.png" not in caught.value.found
    assert len(open_data(folder, "test")) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no data folder .*nowhere"):
        open_data(tmp_path / "nowhere", "train")


def test_a_folder_of_no_layout_says_what_was_found_and_what_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"none of the layouts .*\n.*an empty folder") as caught:
        open_data(tmp_path, "train")
    for needed in ("labels.csv, classes.txt and JPEGImages/", "ImageSets/Main/<class>_", "annotations/instances_"):
        assert needed in caught.value.fix
    for k in range(8):
        (tmp_path / f"photo{k}.jpg").touch()
    with pytest.raises(DataError, match=r"found: photo0\.jpg, .*photo5\.jpg, \.\.\.\n"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize(("other", "needs"), [("ImageSets/Main", "PASCAL VOC"), ("annotations", "MS-COCO")])
def test_a_folder_of_two_layouts_is_not_guessed(folder, other, needs):
    (folder / other).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"mixes layouts .*\n.*labels\.csv.*{needs}"):
        open_data(folder, "train")


def test_digits_open_by_name_and_equal_their_folder(tmp_path):
    built_in = open_data("digits", "val", length=6, size=96, seed=3)
    assert (len(built_in), built_in.paths, built_in.crop, built_in.flip) == (6, None, False, False)
    write_data_folder(tmp_path / "digits", {"val": 6}, size=96, seed=3)
    from_disk = open_data(tmp_path / "digits", "val")
    assert from_disk.classes == built_in.classes
    np.testing.assert_array_equal(from_disk.targets, built_in.targets)
    np.testing.assert_array_equal(from_disk.load(5), built_in.load(5))
    assert (built_in.load(5) != built_in.load(5, epoch=1)).any()


def test_items_without_augmentation_are_the_resized_images(folder):
    items = TrainImages(open_data(folder, "train"), (40, 60), augment=False, seed=0)
    items.set_epoch(3)
    image, target = items[1]
    assert (image.dtype, target.dtype) == (torch.uint8, torch.float32)
    np.testing.assert_array_equal(image.numpy(), items.data.load(1))
    assert target.tolist() == [1, 1]
    assert TrainImages(items.data, (32, 64), augment=False, seed=0)[0][0].shape == (32, 64, 3)
    digits = TrainImages(open_data("digits", "train", length=2, size=96), (96, 96), augment=False, seed=0)
    digits.set_epoch(3)
    np.testing.assert_array_equal(digits[0][0].numpy(), digits.data.load(0, epoch=0))


def crops_of(items: TrainImages, epochs: int) -> list[tuple[int, int, bool]]:
    """Height and width of each epoch's crop of image 0 and whether it is mirrored, read off its colours."""
    crops = []
    for epoch in range(epochs):
        items.set_epoch(epoch)
        corners = items[0][0].numpy().astype(int)[[0, -1]][:, [0, -1]]
        rows, columns = corners[:, 0, 0], corners[0, :, 1]
        crops.append((rows[1] - rows[0] + 1, abs(columns[1] - columns[0]) + 1, columns[1] < columns[0]))
    return crops


def test_photos_are_cropped_at_the_scales_of_the_paper_and_mirrored(folder):
    data = open_data(folder, "train")
    crops = crops_of(TrainImages(data, (80, 120), augment=True, seed=0), 600)
    steps = Counter(((40, 35, 30, 26, 20).index(h), (60, 52, 45, 40, 30).index(w)) for h, w, _ in crops)
    assert set(steps) == {(i, j) for i in range(5) for j in range(5) if abs(i - j) <= 2}
    assert 12 < min(steps.values()) <= max(steps.values()) < 60  # 600 / 19 = 32 of each on average
    assert 0.3 < np.mean([mirrored for _, _, mirrored in crops]) < 0.7


def test_digits_are_neither_cropped_nor_mirrored_but_fresh_in_each_epoch():
    data = open_data("digits", "train", length=3, size=96)
    items = TrainImages(data, (96, 96), augment=True, seed=0)
    for epoch in (0, 4):
        items.set_epoch(epoch)
        np.testing.assert_array_equal(items[2][0].numpy(), data.load(2, epoch))


def test_augmentation_depends_on_seed_epoch_and_index_alone_in_every_worker(folder):
    data = open_data(folder, "train")
    items = TrainImages(pickle.loads(pickle.dumps(data)), (24, 24), augment=True, seed=5)
    loaded = {}
    for workers in (0, 2):
        for epoch in (0, 1):
            items.set_epoch(epoch)
            images, targets = next(iter(DataLoader(items, batch_size=3, num_workers=workers)))
            loaded[workers, epoch] = images
            np.testing.assert_array_equal(targets, data.targets)
    for epoch in (0, 1):
        assert torch.equal(loaded[0, epoch], loaded[2, epoch])
    assert not torch.equal(loaded[0, 0], loaded[0, 1])
    other = TrainImages(data, (24, 24), augment=True, seed=6)
    assert not torch.equal(torch.stack([other[k][0] for k in range(3)]), loaded[0, 0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_without_a_traceback(folder, workers):
    data = open_data(folder, "train")
    (folder / "JPEGImages" / "b.png").write_bytes(b"no image at all")
    loader = DataLoader(TrainImages(data, (24, 24), augment=True, seed=0), num_workers=workers)
    with pytest.raises(DataError, match=r"b\.png") as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "found:" in message
    assert "fix:" in message
    assert "Traceback" not in message


def test_coco18_opens_with_its_published_numbers():
    root = Path(os.environ.get("GLOCAL_DATA", "")) / "coco18"
    if "GLOCAL_DATA" not in os.environ or not root.is_dir():
        pytest.skip("GLOCAL_DATA names no folder with coco18")
    data: dict[str, LabeledImages] = {split: open_data(root, split) for split in ("train", "val", "test")}
    assert [len(images) for images in data.values()] == [6000, 1000, 3000]
    for images, per_image in zip(data.values(), (1.908, 1.897, 1.916), strict=True):
        assert len(images.classes) == 18
        assert images.targets.sum(axis=1).mean() == pytest.approx(per_image, abs=5e-4)
    items = TrainImages(data["train"], (224, 224), augment=True, seed=0)
    for index in (0, 2999, 5999):
        image, target = items[index]
        assert image.shape == (224, 224, 3)
        assert target.sum() >= 1
