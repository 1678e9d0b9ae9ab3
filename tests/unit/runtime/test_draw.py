from __future__ import annotations

import numpy as np
import pytest
from glocal.runtime.draw import draw
from glocal.runtime.errors import ImageError, UsageError
from glocal.runtime.prediction import Prediction, Region

CLASSES = ("red", "green", "a label with a name that is far too long for the panel, and then some more")


def predicted(size: tuple[int, int], *regions: Region, scores: tuple[float, ...] = (0.9, 0.2, 0.1)) -> Prediction:
    values = np.array(scores, np.float32)
    thresholds = np.full(3, 0.5, np.float32)
    return Prediction("photo.jpg", size, CLASSES, ("red",), values, values, values, thresholds, regions, {})


def region(*box: float, category: str | None = "red", variant: int = 0) -> Region:
    return Region(box, category, 12.5, variant, 1)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (480, 640), (2000, 20), (20, 2000), (1500, 2500)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    height, width = size
    regions = (region(0, 0, width, height), region(0, 0, width / 3, height / 2, category=None))
    picture = draw(grey(*size), predicted(size, *regions))
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[1] <= 1000
    assert 250 < picture.shape[0] <= 1000
    assert (picture != 128).any()


def test_a_region_is_framed_where_it_lies() -> None:
    image = grey(320, 640)
    picture = draw(image, predicted((320, 640), region(320, 80, 480, 240)), top=3)
    photo = picture[(picture.shape[0] - 320) // 2 :][:320, :640]
    framed = (photo != 128).any(axis=2)
    rows, columns = np.nonzero(framed)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (320, 80, 479, 239)
    assert not framed[110:230, 330:470].any()


def test_variants_are_thinner_than_their_region() -> None:
    size = (640, 640)
    thick = draw(grey(*size), predicted(size, region(0, 200, 640, 640)))
    thin = draw(grey(*size), predicted(size, region(0, 200, 640, 640, variant=1)))
    assert (thick[400, :640] != 128).any(axis=1).sum() == 6
    assert (thin[400, :640] != 128).any(axis=1).sum() == 2


def test_bars_grow_with_the_score() -> None:
    size = (10, 10)
    low = draw(grey(*size), predicted(size, scores=(0.3, 0.2, 0.1)))
    high = draw(grey(*size), predicted(size, scores=(0.8, 0.2, 0.1)))
    blue = (37, 99, 186)  # of a fused score
    filled = [(picture == blue).all(axis=2).sum() for picture in (low, high)]
    assert filled[1] > 1.5 * filled[0]


def test_top_limits_the_labels() -> None:
    size = (10, 10)
    pictures = [draw(grey(*size), predicted(size), top=top) for top in (1, 2, 99)]
    ink = [(picture[:, 640:] < 128).all(axis=2).sum() for picture in pictures]
    assert ink[0] < ink[1] < ink[2]


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(UsageError, match="belongs to another image"):
        draw(grey(10, 20), predicted((20, 10)))
    with pytest.raises(UsageError, match="has no prediction to draw"):
        draw(grey(10, 20), Prediction.failed("photo.jpg", "too dark", CLASSES))
    with pytest.raises(ImageError, match=r"photo\.jpg is not"):
        draw(grey(10, 20).astype(float), predicted((10, 20)))
