"""Progress of long work on stderr: bars for a person who watches, and notes that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progressed(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a bar that disappears when they are done."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, transient=True, disable=not console.is_terminal)


def note(text: str) -> None:
    """One line on stderr, as it is: brackets in it are no markup, and a long path is not broken."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
