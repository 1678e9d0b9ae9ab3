from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime.errors import SourceError
from glocal.runtime.prediction import Prediction
from glocal.runtime.sources import Source, open_source
from glocal.runtime.stream import Decoded, Stream
from hypothesis import given, settings
from hypothesis import strategies as st

PATIENCE = 20  # seconds until a test gives up waiting
NONE = np.empty(0, np.float32)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert running() == []


def running() -> list[str]:
    """The threads of streams."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("glocal-")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def numbered(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number % 256, np.uint8)


def endless() -> Iterator[np.ndarray]:
    number = 0
    while True:
        yield numbered(number)
        number += 1


def predict(images: Sequence[Decoded]) -> list[Prediction]:
    return [
        Prediction(source, image.shape[:2], (), (), *[NONE] * 4, (), {"decode": ms}) for image, source, ms in images
    ]


def stream(source: object, predictor: Callable[..., list[Prediction]] = predict, **arguments: object) -> Stream:
    return Stream(open_source(source), predictor, (), **arguments)  # type: ignore[arg-type]


class Live:
    """A live source whose frames the test gives one by one."""

    live, sequential, total, fps, name, images = True, True, None, None, "live", ()

    def __init__(self) -> None:
        self.reconnects = 0
        self._given: list[object] = []
        self._more = threading.Condition()
        self.taken = 0
        self.closed = 0

    def give(self, count: int) -> None:
        """Give frames, and wait until the stream has taken them."""
        with self._more:
            self._given += [numbered(0)] * count
            self._more.notify()
        wait_until(lambda: not self._given)

    def end(self) -> None:
        with self._more:
            self._given.append(None)
            self._more.notify()

    def read(self) -> object:
        from glocal.runtime.capture import Frame

        with self._more:
            while not self._given:
                self._more.wait()
            image = self._given[0]
            name = f"live#{self.taken}"
            self.taken += image is not None
            del self._given[0]
        return None if image is None else Frame(name, lambda: image)  # type: ignore[arg-type, return-value]

    def stop(self) -> None:
        self.end()

    def close(self) -> None:
        self.closed += 1


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 40),
    batch=st.integers(1, 5),
    workers=st.integers(1, 4),
    readers=st.integers(1, 4),
    max_wait_ms=st.sampled_from([0, 1, 200]),
    seed=st.integers(0, 99),
)
def test_the_order_is_that_of_the_source(
    count: int, batch: int, workers: int, readers: int, max_wait_ms: float, seed: int
) -> None:
    chance = random.Random(seed)
    sizes = []

    def slowly(images: Sequence[Decoded]) -> list[Prediction]:
        sizes.append(len(images))
        time.sleep(chance.random() * 0.003)
        return predict(images)

    images = [numbered(index) for index in range(count)]
    with stream(images, slowly, batch=batch, workers=workers, readers=readers, max_wait_ms=max_wait_ms) as predictions:
        assert [prediction.source for prediction in predictions] == [f"image {index}" for index in range(count)]
        assert sum(sizes) == count
        assert max(sizes, default=1) <= batch
        assert predictions.stats.read == predictions.stats.predicted == count


def test_the_source_waits_for_a_slow_consumer() -> None:
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for image in endless():
            read += 1
            yield image

    batch, workers, readers = 2, 3, 2
    most = batch * (workers + 2) + readers
    with stream(images(), batch=batch, workers=workers, readers=readers) as predictions:
        for taken in range(1, 40):
            assert next(predictions).error is None
            assert read <= taken + most
        wait_until(lambda: read == 39 + most)  # as far ahead as it may be, and no further
        time.sleep(0.05)
        assert read == 39 + most


def test_a_batch_is_full_when_frames_are_there_and_partial_at_the_end() -> None:
    sizes = []

    def noting(images: Sequence[Decoded]) -> list[Prediction]:
        sizes.append(len(images))
        return predict(images)

    predictions = stream([numbered(index) for index in range(11)], noting, batch=4, max_wait_ms=3_600_000)
    assert len(list(predictions)) == 11
    assert sizes == [4, 4, 3]


def test_a_frame_waits_no_longer_than_it_should_for_its_batch() -> None:
    source = Live()
    with stream(source, batch=8, max_wait_ms=1) as predictions:
        source.give(1)
        assert next(predictions).source == "live#0"  # although no second frame ever comes
        source.end()
        assert list(predictions) == []


def test_a_live_source_drops_its_oldest_frames() -> None:
    source = Live()
    free, busy = threading.Event(), threading.Event()
    batches: list[list[str]] = []

    def blocked(images: Sequence[Decoded]) -> list[Prediction]:
        batches.append([name for _, name, _ in images])
        busy.set()
        assert free.wait(PATIENCE)
        return predict(images)

    with stream(source, blocked, batch=1) as predictions:
        source.give(1)
        assert busy.wait(PATIENCE)  # the worker has the first frame, and all others have to wait
        source.give(9)
        wait_until(lambda: predictions.stats.dropped == 8)
        free.set()
        source.end()
        assert [prediction.source for prediction in predictions] == ["live#0", "live#9"]
        stats = predictions.stats
    assert (stats.read, stats.predicted, stats.dropped) == (10, 2, 8)
    assert source.closed >= 1


def test_a_live_source_with_a_slow_consumer_needs_no_more_memory() -> None:
    source = Live()
    with stream(source, batch=2, max_wait_ms=0, workers=2) as taken:
        source.give(200)
        next(taken)
        source.give(200)
        source.end()
        rest = list(taken)
        stats = taken.stats
    assert len(rest) <= 2 * (2 + 1) + 2  # with the workers or done: batch * (workers + 1); waiting: one batch
    assert rest[-1].source == "live#399"
    numbers = [int(prediction.source.rpartition("#")[2]) for prediction in rest]
    assert numbers == sorted(set(numbers))
    assert stats.predicted + stats.dropped == stats.read == 400


def test_nothing_is_dropped_where_that_is_said() -> None:
    source = Live()
    with stream(source, drop=False) as predictions:
        giver = threading.Thread(target=lambda: (source.give(50), source.end()))
        giver.start()
        assert [prediction.source for prediction in predictions] == [f"live#{index}" for index in range(50)]
        giver.join()
        assert predictions.stats.dropped == 0


def test_a_bad_item_is_a_failed_prediction(tmp_path: Path) -> None:
    paths = [tmp_path / "missing.png"] * 3
    predictions = list(stream([numbered(0), *paths, numbered(1)], batch=2))
    assert [prediction.error is None for prediction in predictions] == [True, False, False, False, True]
    assert "missing.png cannot be read" in str(predictions[1].error)


def test_a_loop_that_is_left_ends_the_threads() -> None:
    ended = []

    def images() -> Iterator[np.ndarray]:
        try:
            yield from endless()
        finally:
            ended.append(threading.current_thread().name)

    for prediction in stream(images(), workers=2):
        assert prediction.source == "image 0"
        break
    gc.collect()
    assert ended == ["glocal-reader"]

    def failing() -> None:
        for _ in stream(images(), workers=2):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        failing()
    gc.collect()
    assert len(ended) == 2


def test_closing_ends_it_at_once() -> None:
    predictions = stream(endless(), batch=3, workers=3)
    next(predictions)
    predictions.close()
    predictions.close()
    assert list(predictions) == []
    assert running() == []
    stream(endless()).close()  # before anything was taken


def test_stop_ends_it_as_if_the_source_had_ended() -> None:
    taken = 0
    predictions = stream(endless())
    for taken, _ in enumerate(predictions, 1):
        if taken == 5:
            predictions.stop()
    assert taken == 5
    source = Live()
    waiting = stream(source)
    threading.Timer(0.1, waiting.stop).start()
    assert list(waiting) == []  # although no frame ever came


def test_images_and_predictions_go_to_the_callback_in_order(tmp_path: Path) -> None:
    seen = []
    taker = threading.current_thread()

    def on_frame(image: np.ndarray | None, prediction: Prediction) -> None:
        assert threading.current_thread() is taker
        seen.append((None if image is None else int(image[0, 0, 0]), prediction))

    items = [numbered(0), tmp_path / "missing.png", numbered(2), numbered(3)]
    predictions = list(stream(items, batch=2, workers=2, on_frame=on_frame))
    assert [value for value, _ in seen] == [0, None, 2, 3]
    assert [prediction for _, prediction in seen] == predictions


def test_an_error_in_the_callback_ends_it() -> None:
    def on_frame(image: np.ndarray | None, prediction: Prediction) -> None:
        raise KeyboardInterrupt

    predictions = stream(endless(), workers=2, on_frame=on_frame)
    with pytest.raises(KeyboardInterrupt):
        next(predictions)
    assert running() == []


def test_an_error_of_a_worker_reaches_the_consumer() -> None:
    def out_of_memory(images: Sequence[Decoded]) -> list[Prediction]:
        if images[0][1] == "image 7":
            raise MemoryError("no more")
        return predict(images)

    with pytest.raises(MemoryError, match="no more"):
        list(stream(endless(), out_of_memory, workers=3))
    assert running() == []


def test_an_error_of_the_source_comes_after_the_frames_before_it() -> None:
    def images() -> Iterator[np.ndarray]:
        yield from (numbered(index) for index in range(5))
        raise SourceError("The camera was lost.")

    predictions = stream(images(), batch=2, workers=2)
    assert [next(predictions).source for _ in range(5)] == [f"image {index}" for index in range(5)]
    with pytest.raises(SourceError, match="lost"):
        next(predictions)
    assert running() == []


def test_an_error_while_decoding_reaches_the_consumer() -> None:
    class Broken(Live):
        def read(self) -> object:
            from glocal.runtime.capture import Frame

            return Frame("live#0", lambda: 1 / 0)  # type: ignore[arg-type, return-value]

    with pytest.raises(ZeroDivisionError):
        list(stream(Broken()))


def test_images_are_not_kept() -> None:
    kept: list[weakref.ref] = []

    def images() -> Iterator[np.ndarray]:
        for index in range(30):
            image = numbered(index)
            kept.append(weakref.ref(image))
            yield image
            del image

    predictions = stream(images(), batch=2, workers=2)
    results = [next(predictions) for _ in range(30)]
    assert len(results) == 30
    wait_until(lambda: not any(reference() is not None for reference in kept))
    predictions.close()


def test_a_source_stays_open_until_its_reader_has_left() -> None:
    class Careful(Live):
        reading = False

        def read(self) -> object:
            self.reading = True
            try:
                return super().read()
            finally:
                self.reading = False

        def close(self) -> None:
            assert not self.reading
            super().close()

    source: Source = Careful()  # type: ignore[assignment]
    predictions = Stream(source, predict, ())
    wait_until(lambda: source.reading)  # type: ignore[attr-defined]
    predictions.close()
    assert source.closed == 1  # type: ignore[attr-defined]


def test_a_program_ends_with_a_stream_open() -> None:
    code = """
import itertools, numpy as np
from glocal.runtime.sources import open_source
from glocal.runtime.stream import Stream
from glocal.runtime.prediction import Prediction
images = itertools.repeat(np.zeros((9, 9, 3), np.uint8))
predict = lambda images: [Prediction.failed(name, "none", ()) for _, name, _ in images]
kept = Stream(open_source(images), predict, (), workers=2)
print(next(kept).source)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "image 0\n", "")
