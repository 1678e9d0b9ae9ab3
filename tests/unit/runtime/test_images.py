from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from glocal.runtime.errors import ImageError, UsageError
from glocal.runtime.images import check_image, decode_image, encode_jpeg, list_images, read_image, resize
from PIL import Image

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([COLUMNS * 4, ROWS * 5, 255 - COLUMNS * 3], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, ROWS * 5]).astype(np.uint8))


def grey_16() -> Image.Image:
    return Image.fromarray(GREY.astype(np.uint16) * 256 + 77)


CASES = {
    "jpeg": encoded(Image.fromarray(RGB), "JPEG", quality=95),
    "progressive jpeg": encoded(Image.fromarray(RGB), "JPEG", progressive=True),
    "grey jpeg": encoded(Image.fromarray(GREY), "JPEG"),
    "png": encoded(Image.fromarray(RGB), "PNG"),
    "grey png": encoded(Image.fromarray(GREY), "PNG"),
    "alpha png": encoded(with_alpha(), "PNG"),
    "grey alpha png": encoded(with_alpha().convert("LA"), "PNG"),
    "palette png": encoded(Image.fromarray(RGB).quantize(64), "PNG"),
    "transparent palette png": encoded(Image.fromarray(RGB).quantize(64), "PNG", transparency=bytes(range(64))),
    "black and white png": encoded(Image.fromarray(RGB).convert("1"), "PNG"),
    "16-bit grey png": encoded(grey_16(), "PNG"),
    "16-bit png": cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "webp": encoded(Image.fromarray(RGB), "WEBP"),
    "alpha webp": encoded(with_alpha(), "WEBP", lossless=True),
    "bmp": encoded(Image.fromarray(RGB), "BMP"),
    "palette bmp": encoded(Image.fromarray(RGB).quantize(16), "BMP"),
    "tiff": encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    "16-bit grey tiff": encoded(grey_16(), "TIFF"),
    "16-bit tiff": cv2.imencode(".tiff", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "cmyk tiff": encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_decoding_agrees_with_another_decoder(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(data, "image")
    assert image.dtype == np.uint8
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.flags.writeable
    np.testing.assert_array_equal(image, opencv(data))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    image = decode_image(data, "image").astype(int)
    assert np.abs(image - opencv(data)).max() <= 1
    assert np.abs(image - RGB).mean() < 3  # an inverted plane is off by 128 on average


def test_16_bits_are_scaled_and_alpha_is_dropped() -> None:
    np.testing.assert_array_equal(decode_image(CASES["16-bit grey png"], "image")[..., 1], GREY)
    np.testing.assert_array_equal(decode_image(CASES["alpha png"], "image"), RGB)
    # OpenCV paints the transparent parts of a TIFF black.
    np.testing.assert_array_equal(decode_image(encoded(with_alpha(), "TIFF"), "image"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), kind, exif=exif.tobytes())
    image = decode_image(data, "image")
    assert image.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    np.testing.assert_array_equal(image, opencv(data))


def test_broken_exif_does_not_hide_the_picture() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", dpi=(72, 72))
    broken = data[:2] + b"\xff\xe1\x00\x10Exif\0\0XXxxxxxx" + data[2:]
    np.testing.assert_array_equal(decode_image(broken, "image"), decode_image(data, "image"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow also warns about a TIFF that is cut short
@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png", "webp", "bmp", "tiff", "16-bit tiff"])
def test_a_truncated_file_is_never_a_wrong_picture(name: str) -> None:
    data = CASES[name]
    whole = decode_image(data, "whole")
    for length in range(1, len(data), max(len(data) // 300, 1)):
        try:
            image = decode_image(data[:length], "cut")
        except ImageError:
            continue
        # A PNG can do without its last 21 bytes: checksums and the end marker.
        assert name == "png"
        assert len(data) - length < 22
        np.testing.assert_array_equal(image, whole)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [60_000, 9_700])  # beyond, and just short of where Pillow itself objects
def test_a_pixel_bomb_is_refused_by_its_header(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too many pixels") as caught:
            decode_image(png_header(side, side), "bomb.png")
    assert f"{side} x {side}" in caught.value.found


def test_the_pixel_limit_is_the_callers() -> None:
    assert decode_image(CASES["png"], "image", max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="too many pixels"):
        decode_image(CASES["png"], "image", max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "cannot be decoded"),
        (encoded(Image.fromarray(RGB), "GIF"), "is not an image"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "cannot be decoded"),
    ],
    ids=["zero bytes", "text", "noise", "gif", "float tiff"],
)
def test_what_is_no_image_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"photo.jpg {message}") as caught:
        read_image(path)
    assert caught.value.found
    assert caught.value.fix


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("nul\0.jpg")
    (tmp_path / "large.png").write_bytes(CASES["png"])
    with pytest.raises(ImageError, match="is too large"):
        read_image(tmp_path / "large.png", max_bytes=len(CASES["png"]) - 1)


def test_one_pixel_is_an_image() -> None:
    image = decode_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), "image")
    assert image.tolist() == [[[1, 2, 3]]]
    assert (resize(image, (64, 96)) == (1, 2, 3)).all()


def test_an_encoded_jpeg_decodes_to_the_picture() -> None:
    again = decode_image(encode_jpeg(RGB[:, ::-1]), "picture").astype(int)
    assert np.abs(again - RGB[:, ::-1]).mean() < 2


def test_resize_averages_before_it_shrinks() -> None:
    stripes = np.zeros((64, 640, 3), np.uint8)
    stripes[:, ::2] = 255  # plain bilinear sampling would give black or white
    assert (np.abs(resize(stripes, (64, 64)).astype(int) - 128) <= 1).all()


def test_resize_places_what_it_shows() -> None:
    image = np.zeros((30, 500, 3), np.uint8)
    image[:15, 250:] = (10, 200, 30)
    small = resize(image, (60, 50))
    assert small.shape == (60, 50, 3)
    assert (small[:29, 26:] == (10, 200, 30)).all()
    assert (small[31:] == 0).all()
    assert (small[:, :24] == 0).all()


def test_resize_takes_views_and_leaves_the_right_size_alone() -> None:
    image = np.ascontiguousarray(RGB)
    assert resize(image, (HEIGHT, WIDTH)) is image
    np.testing.assert_array_equal(resize(image[..., ::-1], (20, 20)), resize(image, (20, 20))[..., ::-1])
    assert resize(image[..., ::-1], (HEIGHT, WIDTH)).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "fix"),
    [
        (RGB.astype(np.float32) / 255, "0..255"),
        (GREY, "grey channel"),
        (GREY[..., None], "grey channel"),
        (np.dstack([RGB, GREY]), "alpha"),
        (RGB.transpose(2, 0, 1), "transpose"),
        (RGB[None], "list of images"),
        (RGB[:0], "without pixels"),
        (Image.fromarray(RGB), "numpy.asarray"),
        (None, "numpy.asarray"),
    ],
    ids=["float", "grey", "one channel", "alpha", "channels first", "batch", "empty", "pillow", "none"],
)
def test_an_array_that_is_no_image_is_an_error_with_its_fix(array: object, fix: str) -> None:
    with pytest.raises(ImageError, match="frame 7 is not") as caught:
        check_image(array, "frame 7")
    assert fix in caught.value.fix


def test_images_of_a_folder_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.tif"):
        (tmp_path / name).touch()
    (tmp_path / "sub.jpg").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tif"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_source_without_images_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        list_images(tmp_path / "missing")
