"""A long TensorRT build that shows progress and that Ctrl-C stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def run_with_progress(trt: Any, config: Any, build: Callable[[], Any], description: str) -> Any:
    """Run a build, with bars for its phases where TensorRT reports them (from 10 on), else with a status line.

    TensorRT keeps its thread for minutes, and Python acts on Ctrl-C only in the main thread. So the build has a thread
    of its own, and the main thread waits. The first Ctrl-C asks TensorRT to stop at its next step; the second does not
    wait.

    Args:
        trt: The TensorRT module.
        config: The builder's configuration.
        build: The build.
        description: What to show.

    Returns:
        What ``build`` returned.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Exception: What ``build`` raised.
    """
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    stop = threading.Event()
    monitor = None
    if hasattr(trt, "IProgressMonitor"):
        monitor = _make_monitor(trt, bars, stop)
        config.progress_monitor = monitor
    with bars:
        bars.add_task(description, total=None if monitor is None else 1)
        outcome: list[Any] = []
        # An event, since Thread.join that Ctrl-C interrupts may take the thread for ended (Python 3.11).
        done = threading.Event()
        worker = threading.Thread(target=_call, args=(build, outcome, done), name=description, daemon=True)
        try:
            worker.start()  # which waits, and so can be interrupted, when the build is under way already
            while not done.wait(0.1):
                pass
        except KeyboardInterrupt:
            stop.set()
            console.print("stopping; Ctrl-C again to leave at once")
            done.wait()
            raise
    result, error = outcome
    if error is not None:
        raise error
    return result


def _call(build: Callable[[], Any], outcome: list[Any], done: threading.Event) -> None:
    try:
        outcome.extend((build(), None))
    except BaseException as error:  # raised again in the main thread
        outcome.extend((None, error))
    finally:
        done.set()


def _make_monitor(trt: Any, bars: Progress, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Called by TensorRT's threads; an exception here would end the process, so nothing here can raise."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.depths: dict[str, int] = {}
            self.tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self.depths[phase_name] = self.depths.get(parent_phase or "", 0) + 1
            self.tasks[phase_name] = bars.add_task("  " * depth + phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.tasks:
                bars.update(self.tasks[phase_name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            task = self.tasks.pop(phase_name, None)
            if task is not None:
                bars.remove_task(task)

    return Monitor()
