"""Images on their way into the network: decoding, checking, resizing. Training shares this code."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin as Bmp
from PIL import Image, ImageFile
from PIL import JpegImagePlugin as Jpeg
from PIL import PngImagePlugin as Png
from PIL import TiffImagePlugin as Tiff
from PIL import WebPImagePlugin as WebP

from .errors import ImageError, UsageError

MAX_PIXELS = 80_000_000  # below the size from which Pillow warns by itself
MAX_BYTES = 512 * 1024 * 1024
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

_FORMATS = "JPEG, PNG, WebP, BMP or TIFF"
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
_PHOTOMETRIC_TAG = 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file. Its content decides, not its suffix.
        max_pixels: Largest width times height that is decoded.
        max_bytes: Largest file that is read.

    Returns:
        (H, W, 3) uint8 RGB, see `decode_image`.

    Raises:
        ImageError: The file is missing, not a regular file, too large, or not a whole image.
    """
    path = Path(path)
    name = str(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder, not an image.", fix="Name one of the images in it.")
        if not path.is_file():  # a pipe or a device could block or never end
            found = "something that is not a regular file" if path.exists() else "no such file"
            raise ImageError(f"{name} cannot be read.", found=found, fix="Check the path.")
        if (size := path.stat().st_size) > max_bytes:
            found = f"{size} bytes, the limit is {max_bytes}"
            raise ImageError(f"{name} is too large.", found=found, fix="Re-encode the image.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        fix = "Check the path and its rights."
        raise ImageError(f"{name} cannot be read.", found=str(error), fix=fix) from error
    return decode_image(data, name, max_pixels)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode the bytes of an image file.

    The orientation tag is applied. Grey, palette and CMYK become RGB, 16 bits are scaled to 8, alpha is
    dropped (the stored colours stay as they are), colour profiles are ignored, and of several frames the
    first counts. The decoder is Pillow, because it refuses a truncated file; OpenCV fills what is missing
    with grey.

    Args:
        data: The whole file.
        name: What to call the image in an error.
        max_pixels: Largest width times height; checked on the header, before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB, contiguous and writable.

    Raises:
        ImageError: The data are no image of a known format, too large, or not whole.
    """
    if not data:
        raise ImageError(f"{name} is empty.", found="0 bytes", fix="Copy or download the file again.")
    decoder = _decoder_of(data)
    if decoder is None:
        raise ImageError(
            f"{name} is not an image.",
            found=f"a file that starts with {data[:8]!r}",
            fix=f"Give a {_FORMATS} file.",
        )
    try:
        # The decoder's class instead of Image.open: nothing but the format that was recognised is tried, and
        # Pillow's own size warning, which stands in the way of our limit, is not raised.
        image = decoder(io.BytesIO(data))
        width, height = image.size
        if width * height == 0:
            raise ValueError("no pixels")
        if width * height > max_pixels:
            raise ImageError(
                f"{name} has too many pixels.",
                found=f"{width} x {height} pixels, the limit is {max_pixels}",
                fix="Shrink the image, or raise max_pixels.",
            )
        rgb = _as_rgb(image)
        turn = _TURNS.get(_orientation(image))
        return np.array(rgb if turn is None else rgb.transpose(turn))
    except ImageError:
        raise
    except Exception as error:  # damaged bytes make a decoder raise nearly anything
        raise ImageError(
            f"{name} cannot be decoded.",
            found=f"{str(error) or type(error).__name__} ({len(data)} bytes)",
            fix="The file is truncated, damaged or of an unusual kind: copy, download or encode it again.",
        ) from error


def encode_jpeg(image: NDArray[np.uint8], quality: int = 92) -> bytes:
    """Encode (H, W, 3) uint8 RGB as the bytes of a JPEG file; quality from 1 to 95."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def check_image(array: object, name: str) -> NDArray[np.uint8]:
    """Check that an array is an image the runtime takes: (H, W, 3) uint8, not empty.

    Args:
        array: What a caller gave. Whether the channels are RGB, as they must be, cannot be seen.
        name: What to call the image in an error.

    Returns:
        The same array.

    Raises:
        ImageError: The array is something else. The message says how to turn it into an image.
    """
    what = f"{name} is not an (H, W, 3) uint8 RGB array."
    if not isinstance(array, np.ndarray):
        raise ImageError(what, found=type(array).__name__, fix="Convert it with numpy.asarray(image.convert('RGB')).")
    found = f"shape {array.shape}, dtype {array.dtype}"
    if array.ndim == 2:
        raise ImageError(what, found=found, fix="Repeat the grey channel: numpy.stack([image] * 3, axis=-1).")
    if array.ndim == 4:
        raise ImageError(what, found=found, fix="Give a list of images, not a batch in one array.")
    if array.ndim != 3:
        raise ImageError(what, found=found, fix="Give an array of three dimensions.")
    if array.shape[2] != 3:
        fix = "Give three channels, in the order red, green, blue."
        if array.shape[2] == 4:
            fix = "Drop the alpha channel: image[..., :3]."
        elif array.shape[2] == 1:
            fix = "Repeat the grey channel: image.repeat(3, axis=2)."
        elif array.shape[0] == 3:
            fix = "Put the channels last: image.transpose(1, 2, 0)."
        raise ImageError(what, found=found, fix=fix)
    if array.size == 0:
        raise ImageError(what, found=found, fix="Leave out images without pixels.")
    if array.dtype != np.uint8:
        raise ImageError(what, found=found, fix="Scale the values to 0..255 and convert: image.astype(numpy.uint8).")
    return array


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch an image to a size; the aspect is not kept. This is the rule named "stretch" in a bundle.

    An axis that is at least twice too long is first shrunk by the largest whole factor, averaging pixels
    (cheap anti-aliasing). Bilinear interpolation does the rest.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) of the result, pixels.

    Returns:
        (height, width, 3) uint8, contiguous. It is the given array where that has the size already.
    """
    height, width = size
    image = np.ascontiguousarray(image)
    rows, columns = image.shape[:2]
    factor_y, factor_x = max(rows // height, 1), max(columns // width, 1)
    # The runtime leaves OpenCV's thread count, a global setting, to the application.
    if factor_y > 1 or factor_x > 1:
        shrunk = (columns // factor_x, rows // factor_y)
        image = np.asarray(cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if image.shape[:2] != (height, width):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return image


def list_images(source: str | os.PathLike[str]) -> list[Path]:
    """List the images that a path stands for.

    Args:
        source: An image file, or a folder: its files with an image's suffix, without its sub-folders.

    Returns:
        The paths, sorted by name.

    Raises:
        UsageError: There is no such path, or the folder holds no image.
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(f"{source} does not exist.", fix="Name an image or a folder of images.")
    if not source.is_dir():
        return [source]
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UsageError(
            f"{source} holds no image.",
            found=f"no file ending in {' '.join(SUFFIXES)}",
            fix="Name an image or a folder of images; sub-folders are not searched.",
        )
    return paths


def starts_like_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image format that is read here.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _decoder_of(file.read(16)) is not None
    except OSError as error:
        raise UsageError(f"{path} cannot be read.", found=str(error), fix="Check the path and its rights.") from error


def _decoder_of(data: bytes) -> type[ImageFile.ImageFile] | None:
    if data.startswith(b"\xff\xd8\xff"):
        return Jpeg.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Png.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebP.WebPImageFile
    if data.startswith(b"BM"):
        return Bmp.BmpImageFile
    if data.startswith((b"II*\0", b"MM\0*")):
        return Tiff.TiffImageFile
    return None


def _as_rgb(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    # Pillow shows 16-bit grey of PNG as "I" before version 11, and 12-bit grey of TIFF as "I;16".
    wide_png = image.mode == "I" and isinstance(image, Png.PngImageFile)
    if image.mode.startswith("I;16") or wide_png:
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC_TAG, 1) == 0:
            raise ValueError("16-bit grey with white as zero is not supported")
        bits = tags.get(_BITS_PER_SAMPLE_TAG, (16,))[0]
        image_8 = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
        return image_8.convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("samples that are signed or wider than 16 bits have no agreed range")
    image.info.pop("transparency", None)  # else Pillow warns that it will be dropped
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken metadata do not make the picture unreadable
        return 1
