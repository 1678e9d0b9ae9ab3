"""What the threads of a stream share: frames in order, bounded in number, on their way to the consumer."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from .prediction import Prediction

_POLL_S = 0.1  # a signal handler may only set a flag, which the consumer looks at this often


class Slot:
    """One frame on its way.

    Attributes:
        source: What to call it.
        image: (H, W, 3) uint8 RGB, once it is decoded, and as long as it is needed.
        ms: What reading and decoding took, milliseconds.
        prediction: Once it is there.
        since: When it was handed over to the workers, `time.monotonic`.
    """

    __slots__ = ("image", "ms", "prediction", "since", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.image: NDArray[np.uint8] | None = None
        self.ms = 0.0
        self.prediction: Prediction | None = None
        self.since = 0.0


class Relay:
    """Frames between readers, workers and the consumer.

    At most ``limit`` frames are on their way: a reader waits until the consumer has taken earlier ones. With ``drop``
    no reader waits: of more than ``batch`` frames that no worker has taken yet, the oldest are given up, and at most
    ``limit`` are with the workers or wait for the consumer.

    Args:
        batch: Frames that a worker takes at once, at most.
        max_wait_s: How long a batch waits for further frames after its first.
        limit: Frames on their way.
        drop: Whether to give up the oldest frames.

    Attributes:
        read: Frames that came from the source.
        dropped: Of these, how many were given up.
        stopping: Set it to end the stream at the next prediction; a signal handler may do that.
    """

    def __init__(self, batch: int, max_wait_s: float, limit: int, drop: bool) -> None:
        self.read = self.dropped = 0
        self.stopping = False
        self._batch, self._max_wait_s, self._limit, self._drop = batch, max_wait_s, limit, drop
        # The plain lock is taken by `with`: an interrupt cannot come between taking it and being sure to free it.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._handed = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._forming = threading.Lock()  # one batch is formed at a time
        self._order: deque[Slot] = deque()  # all frames on their way, in the order of the source
        self._queue: deque[Slot] = deque()  # decoded, not taken by a worker yet
        self._taken = 0  # with a worker, or waiting for the consumer
        self._exhausted = False  # the source has no more frames
        self._closed = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Reader: wait until another frame may be read; False when none should be."""
        with self._lock:
            while not (self._closed or self._exhausted or self._drop or len(self._order) < self._limit):
                self._room.wait()
            return not (self._closed or self._exhausted)

    def add(self, source: str) -> Slot:
        """Reader: a frame was read, and will be handed over once it is decoded."""
        slot = Slot(source)
        with self._lock:
            self._order.append(slot)
            self.read += 1
        return slot

    def hand_over(self, slot: Slot) -> None:
        """Reader: a frame is decoded, or failed; it is the workers' now."""
        with self._lock:
            if self._closed:
                return
            if self._drop and len(self._queue) >= self._batch:
                self._order.remove(self._queue.popleft())
                self.dropped += 1
            slot.since = time.monotonic()
            self._queue.append(slot)
            self._handed.notify()

    def no_more(self, error: BaseException | None = None) -> None:
        """Reader: the source has ended, or failed; the consumer meets the error after the frames before it."""
        with self._lock:
            self._exhausted = True
            self._error = self._error or error
            self._wake()

    def take(self) -> list[Slot]:
        """Worker: wait for a batch; empty when there will be none."""
        with self._forming, self._lock:
            while not self._closed and not (self._queue and self._allowed()):
                if self._exhausted and len(self._order) == self._taken:
                    return []
                self._handed.wait()
            while not self._closed and len(self._queue) < self._batch and not self._nothing_comes():
                left = self._queue[0].since + self._max_wait_s - time.monotonic()
                if left <= 0 or not self._handed.wait(left):
                    break
            count = 0 if self._closed else min(self._batch, len(self._queue), self._allowed())
            slots = [self._queue.popleft() for _ in range(count)]
            self._taken += count
            return slots

    def finish(self, slots: list[Slot], predictions: list[Prediction]) -> None:
        """Worker: the predictions of a batch."""
        with self._lock:
            for slot, prediction in zip(slots, predictions, strict=True):
                slot.prediction = prediction
            if self._order and self._order[0].prediction is not None:
                self._done.notify()

    def get(self) -> Slot | None:
        """Consumer: wait for the next frame with its prediction; None at the end.

        Raises:
            BaseException: What went wrong in a thread.
        """
        with self._lock:
            while not self._closed and not self.stopping:
                if self._order and self._taken and self._order[0].prediction is not None:
                    self._taken -= 1
                    slot = self._order.popleft()
                    self._room.notify()
                    if self._drop:
                        self._handed.notify()
                    return slot
                if self._exhausted and not self._order:
                    break
                self._done.wait(_POLL_S)
            if self._error is not None and not self.stopping:
                raise self._error
            return None

    def close(self, error: BaseException | None = None) -> None:
        """End all waiting, at once; the consumer meets the error, if there is one."""
        with self._lock:
            self._closed = True
            self._error = error or self._error
            self._queue.clear()
            self._order.clear()
            self._wake()

    def _allowed(self) -> int:
        """How many frames workers may take now."""
        return self._limit - self._taken if self._drop else self._batch

    def _nothing_comes(self) -> bool:
        """Whether waiting for a fuller batch is in vain: nothing is being read, and nothing can be before this."""
        reading = len(self._order) - len(self._queue) - self._taken
        full = not self._drop and len(self._order) >= self._limit
        return reading == 0 and (self._exhausted or full)

    def _wake(self) -> None:
        for condition in (self._room, self._handed, self._done):
            condition.notify_all()
