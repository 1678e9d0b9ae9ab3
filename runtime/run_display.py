"""What ``glocal run`` shows while and after it predicts."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .prediction import Prediction
from .stream import StreamStats


class Display:
    """The terminal: progress and errors on stderr, labels on stdout.

    Labels are a table at the end, for images; or a line whenever the labels change, for a source that may never end.

    Args:
        kind: What is counted: images or frames.
        total: How many there are, where that is known.
        labels: Whether to show labels at all: not where JSON lines are on stdout.
    """

    def __init__(self, kind: str, total: int | None, labels: bool) -> None:
        self._kind, self._shows = kind, labels
        self._table: Table | None = None
        if labels and kind == "images":
            self._table = Table("file", "labels", "ms", box=None, pad_edge=False, header_style="bold")
            self._table.columns[0].overflow = "fold"
            self._table.columns[2].justify = "right"
        self._before: tuple[str, ...] | None = None
        self._start = time.perf_counter()
        console = Console(stderr=True)
        hidden = not console.is_terminal or (not labels and sys.stdout.isatty())
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        # Left to its default, rich would send what is printed to the bar's stream.
        self.progress = Progress(
            *columns, console=console, transient=True, disable=hidden, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self.progress.add_task("loading the model", total=total)

    def start(self) -> None:
        """The model is loaded: time counts from now on."""
        self._start = time.perf_counter()

    def note(self, text: str) -> None:
        """A line on stderr, as it is."""
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, prediction: Prediction, stats: StreamStats) -> None:
        """Show a prediction, and how far the work has come."""
        done = stats.predicted + stats.failed
        self.progress.update(self._task, completed=done, description=self._state(stats))
        if prediction.error is not None:
            self.note(prediction.error)
        if self._table is not None:
            self._table.add_row(*_row(prediction))
        elif self._shows and prediction.error is None and prediction.labels != self._before:
            self._before = prediction.labels
            line = f"{prediction.source}  {_labels(prediction).plain}"
            if sys.stdout.isatty():
                self.note(line)  # above the bar
            else:
                print(line, flush=True)

    def finish(self, stats: StreamStats) -> None:
        """The table, and what was done."""
        if self._table is not None:
            Console(highlight=False).print(self._table)
        self.note(self._state(stats))

    def _state(self, stats: StreamStats) -> str:
        done, seconds = stats.predicted + stats.failed, time.perf_counter() - self._start
        parts = [f"{done} {self._kind} in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} a second"]
        if stats.dropped:
            parts.append(f"{stats.dropped} dropped")
        if stats.reconnects:
            parts.append(f"{stats.reconnects} times lost and back")
        if stats.failed:
            parts.append(f"{stats.failed} of {done} {self._kind} failed")
        return ", ".join(parts)


def _row(prediction: Prediction) -> tuple[Text, Text, Text]:
    source = Text(prediction.source)
    if prediction.error is not None:
        return source, Text("failed", style="red"), Text("")
    return source, _labels(prediction), Text(f"{prediction.timings['total']:.1f}")


def _labels(prediction: Prediction) -> Text:
    scores = dict(zip(prediction.classes, prediction.scores.tolist(), strict=True))
    if prediction.labels:
        return Text(", ").join(Text.assemble((label, "bold"), f" {scores[label]:.2f}") for label in prediction.labels)
    best = max(scores, key=lambda label: scores[label])
    return Text(f"none (highest: {best} {scores[best]:.2f})", style="dim")
