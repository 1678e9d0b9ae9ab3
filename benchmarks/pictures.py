"""Image files to measure with: given ones, or generated ones that are the same on every machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..runtime.images import encode_jpeg, list_images, resize

_IMAGES = 8
_SIZE = (480, 640)


@contextmanager
def pictures(source: Path | None) -> Iterator[tuple[list[Path], str]]:
    """The image files of a source, and what to call them in a report.

    Without a source: JPEG files of smooth colours, which cost what photos cost to decode.

    Args:
        source: A photo or a folder of photos, or None.

    Raises:
        UsageError: There is no such source, or no image in it.
    """
    if source is not None:
        paths = list_images(source)
        yield paths, f"{len(paths)} given"
        return
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(_IMAGES)]
        for path in paths:
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            path.write_bytes(encode_jpeg(resize(coarse, _SIZE)))
        yield paths, f"{_IMAGES} generated JPEG, {_SIZE[1]}x{_SIZE[0]}"
