"""Predictions of a source's frames as they come: threads read, threads predict, and the consumer gets them in order.

Each worker takes a batch through the whole chain: resize, global engine, selector, local engine, fusion. While one
worker is in the global engine, another is in the selector or the local engine, so that all stages overlap; on a CPU
this is faster than a thread for each stage, where all wait for the slowest.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, UsageError
from .prediction import Prediction
from .relay import Relay, Slot
from .sources import Source

Decoded: TypeAlias = tuple[NDArray[np.uint8], str, float]  # an image, what to call it, milliseconds of decoding
OnFrame: TypeAlias = Callable[[NDArray[np.uint8] | None, Prediction], None]

_MAX_WAIT_MS = 200.0
_LIVE_MAX_WAIT_MS = 20.0
_PATIENCE_S = 10.0  # longer than a capture's own limit on reading; beyond it, an iterator of the caller's must hang


@dataclass(frozen=True)
class StreamStats:
    """What a stream has done so far.

    Attributes:
        read: Frames that came from the source.
        predicted: Predictions with scores that the consumer got.
        failed: Predictions with an error that the consumer got.
        dropped: Frames that were given up because newer ones came.
        reconnects: How often a lost camera came back.
    """

    read: int
    predicted: int
    failed: int
    dropped: int
    reconnects: int


class Stream(Iterator[Prediction]):
    """The predictions of a source, made by `glocal.runtime.Pipeline.stream`; one thread takes them.

    The threads run from the start, a bounded number of frames ahead, and end at the last prediction, at `close`, when
    the stream is no longer referred to (a ``break`` out of a loop over it), and at any exception. An exception of a
    thread is raised where the predictions are taken; one of the source, after the predictions of the frames before.

    Args:
        source: Where the frames come from. The stream closes it.
        predict: Predicts a batch, in any thread.
        labels: The labels of the model.
        batch: Frames per batch, at most.
        max_wait_ms: How long a frame waits for its batch to fill; None for the default.
        workers: Threads that predict.
        readers: Threads that decode; None for the default.
        drop: Whether to give up the oldest waiting frames; None for the default.
        on_frame: Called with each image and its prediction.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        source: Source,
        predict: Callable[[Sequence[Decoded]], list[Prediction]],
        labels: tuple[str, ...],
        *,
        batch: int = 1,
        max_wait_ms: float | None = None,
        workers: int = 1,
        readers: int | None = None,
        drop: bool | None = None,
        on_frame: OnFrame | None = None,
    ) -> None:
        if max_wait_ms is None:
            max_wait_ms = _LIVE_MAX_WAIT_MS if source.live else _MAX_WAIT_MS
        drop = source.live if drop is None else drop
        readers = 1 if source.sequential or drop else workers if readers is None else readers
        for name, value, least in (
            ("batch", batch, 1), ("max_wait_ms", max_wait_ms, 0), ("workers", workers, 1), ("readers", readers, 1),
        ):  # fmt: skip
            if not least <= value < float("inf"):
                source.close()
                raise UsageError(f"{name} must be at least {least}, not {value}.")
        # Each worker has a batch, another forms, and one waits for the consumer.
        limit = batch * (workers + 1) if drop else batch * (workers + 2) + readers
        relay = Relay(batch, max_wait_ms / 1e3, limit, drop)
        self._source, self._relay, self._on_frame = source, relay, on_frame
        self._predicted = self._failed = 0
        reading = _Readers(source, relay, labels, readers)
        # They must not refer to the stream, else it would never be collected. They are daemons so that a stream which
        # is still open when the program ends does not keep it alive: the finaliser, which also runs then, ends them.
        threads = [threading.Thread(target=reading.run, name="glocal-reader", daemon=True) for _ in range(readers)]
        work = (relay, predict, on_frame is not None)
        threads += [
            threading.Thread(target=_work, args=work, name="glocal-worker", daemon=True) for _ in range(workers)
        ]
        self._end = weakref.finalize(self, _end, relay, source, threads)
        for thread in threads:
            thread.start()

    @property
    def stats(self) -> StreamStats:
        """What was done so far."""
        relay = self._relay
        return StreamStats(relay.read, self._predicted, self._failed, relay.dropped, self._source.reconnects)

    def __next__(self) -> Prediction:
        try:
            slot = self._relay.get()
            if slot is None or slot.prediction is None:
                raise StopIteration
            if slot.prediction.error is None:
                self._predicted += 1
            else:
                self._failed += 1
            if self._on_frame is not None:
                self._on_frame(slot.image if slot.prediction.error is None else None, slot.prediction)
        except BaseException:
            self.close()
            raise
        return slot.prediction

    def stop(self) -> None:
        """End at the next prediction, as if the source had ended. A signal handler may call it."""
        self._relay.stopping = True

    def close(self, error: Exception | None = None) -> None:
        """End the threads and free the source; frames on their way are given up. Closing twice is fine.

        Args:
            error: What who still waits for a prediction gets to see; by default the stream just ends.
        """
        if error is not None and self._end.alive:
            self._relay.close(error)
        self._end()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Readers:
    """What the readers of one source share."""

    def __init__(self, source: Source, relay: Relay, labels: tuple[str, ...], count: int) -> None:
        self._source, self._relay, self._labels, self._left = source, relay, labels, count
        self._turn = threading.Lock()  # to read from the source

    def run(self) -> None:
        """Read and decode until the end."""
        try:
            while self._read_one():
                pass
        except BaseException as error:
            self._relay.close(error)
        with self._turn:
            self._left -= 1
            if self._left == 0:  # a generator can only be closed where it does not run
                try:
                    self._source.close()
                except Exception as error:
                    self._relay.no_more(error)

    def _read_one(self) -> bool:
        with self._turn:
            if not self._relay.wait_for_room():
                return False
            try:
                frame = self._source.read()
            except BaseException as error:
                self._relay.no_more(error)
                return False
            if frame is None:
                self._relay.no_more()
                return False
            slot = self._relay.add(frame.source)
        start = time.perf_counter()
        try:
            slot.image = frame.load()
        except ImageError as error:
            slot.prediction = Prediction.failed(frame.source, str(error), self._labels)
        slot.ms = frame.ms + (time.perf_counter() - start) * 1e3
        self._relay.hand_over(slot)
        return True


def _work(relay: Relay, predict: Callable[[Sequence[Decoded]], list[Prediction]], keep_images: bool) -> None:
    try:
        while slots := relay.take():
            _predict(relay, slots, predict, keep_images)
            del slots  # else the images of the last batch would stay while this waits for the next
    except BaseException as error:
        relay.close(error)


def _predict(
    relay: Relay, slots: list[Slot], predict: Callable[[Sequence[Decoded]], list[Prediction]], keep_images: bool
) -> None:
    images = [(slot.image, slot.source, slot.ms) for slot in slots if slot.prediction is None]
    if not keep_images:
        for slot in slots:
            slot.image = None
    predicted = iter(predict(images) if images else ())  # type: ignore[arg-type]
    relay.finish(slots, [slot.prediction or next(predicted) for slot in slots])


def _end(relay: Relay, source: Source, threads: list[threading.Thread]) -> None:
    relay.close()
    source.stop()
    deadline = time.monotonic() + _PATIENCE_S
    for thread in threads:
        if thread.ident in (None, threading.get_ident()):  # not started; or the garbage collector runs in it
            continue
        # A batch always ends, reading from an iterator of the caller's may not.
        thread.join(max(deadline - time.monotonic(), 0) if thread.name == "glocal-reader" else None)
        if thread.is_alive():
            warnings.warn(f"A thread still waits for the next image of {source.name}.", RuntimeWarning, stacklevel=2)
