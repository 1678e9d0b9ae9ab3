"""Ctrl-C in a command: never lost, and never in the middle of an output."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """A check that ends the work after Ctrl-C.

    Python raises KeyboardInterrupt wherever it happens to be, and drops it in a finaliser or a weak reference's
    callback; the check raises it again.
    """
    seen = False

    def handle(number: int, frame: object) -> None:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def asked_to_end(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` at the first Ctrl-C or SIGTERM, so that nothing is torn; a second one ends the work anywhere.

    Gives the signals that came.
    """
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
