"""The ``run`` command: predict images, videos and cameras with a bundle."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from typer.core import TyperCommand

from .backends import BACKENDS
from .camera import Retry
from .errors import GlocalError, SourceError, UsageError
from .interrupts import asked_to_end, interrupts
from .outputs import Csv, JsonLines, Output, Pictures
from .pipeline import Pipeline
from .prediction import Prediction
from .run_display import Display
from .sources import Source, open_source
from .threads import Goal, decide_threads
from .video_output import DrawnVideo


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="An image, a folder of images, a video, a camera (0), or a URL.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")] = False,
    jsonl: Annotated[Path | None, typer.Option(help="File for the lines of JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for a table: labels and scores per image.")] = None,
    video: Annotated[Path | None, typer.Option(help="File for a video of the drawn predictions.")] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.1, max=1000, help="Its frames a second.", show_default="the source's, or 25")
    ] = None,
    draws: Annotated[bool, typer.Option("--draw", help="Write a picture of each prediction.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/predictions"),
    top: Annotated[int, typer.Option(min=1, help="Labels whose scores are drawn.")] = 5,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many.", show_default="all")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every N-th.")] = 1,
    drop: Annotated[
        bool | None, typer.Option("--drop/--no-drop", help="Give up old frames when late.", show_default="if live")
    ] = None,
    tries: Annotated[
        int | None, typer.Option(min=0, help="Tries for a lost camera, then give up.", show_default="for ever")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per batch.", show_default="1; 8 on a GPU if not live")
    ] = None,
    max_wait_ms: Annotated[
        float | None, typer.Option(min=0, help="Longest wait for a batch to fill.", show_default="200; 20 if live")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Batches at once.", show_default="one per core; 1 if live")
    ] = None,
    backend: Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one engine.", show_default="1; all cores for one worker")
    ] = None,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Skip the local branch where the global scores settle an image.")
    ] = False,
) -> None:
    """Predict the labels of images, of a video, of a camera or of a stream.

    Ctrl-C, or SIGTERM, ends it after the frame at hand; files are finished with what they have. The exit code is then 0
    for a live source and 130 (143) for any other. Else it is 1 if any image of a source that is not live failed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may not be printable
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is told once, in our words
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    notes: list[Callable[[str], None]] = []
    with interrupts() as check_interrupt, contextlib.ExitStack() as stack:
        opened = open_source(source, every, Retry(tries=tries), lambda text: notes[0](text))
        stack.callback(opened.close)
        display = Display("images" if opened.images else "frames", _smaller(opened.total, frames), not as_json)
        notes.append(display.note)
        pictures = [Pictures(out, opened.images, top)] if draws else []
        goal: Goal = "latency" if opened.live or opened.total == 1 else "throughput"
        use = decide_threads(goal, backend, threads, workers)
        if use.workers > 1:  # else OpenCV's threads and the workers would fight over the cores
            cv2.setNumThreads(1)
        stack.enter_context(display.progress)
        pipeline = stack.enter_context(Pipeline.load(bundle, backend, precision, use.engine, early_exit))
        outputs: list[Output] = [JsonLines()] if as_json else []
        for path, kind in (
            (jsonl, JsonLines),
            (csv, lambda path: Csv(path, pipeline.labels)),
            (video, lambda path: DrawnVideo(path, fps or opened.fps or 25.0, top)),
        ):
            if path is not None:
                _check_not_source(path, opened)
                outputs.append(kind(path))
                stack.callback(outputs[-1].close)

        not_drawn = 0

        def write(image: NDArray[np.uint8] | None, prediction: Prediction) -> None:
            nonlocal not_drawn
            for output in outputs:
                output.write(image, prediction)
            for output in pictures:
                try:
                    output.write(image, prediction)
                except GlocalError as error:  # the others may fit
                    not_drawn += 1
                    display.note(str(error))

        if batch is None:
            batch = 1 if opened.live or pipeline.backend == "onnxruntime" else 8
        check_interrupt()
        display.start()
        stream = stack.enter_context(
            pipeline.stream(opened, batch, max_wait_ms, workers=workers, drop=drop, on_frame=write)
        )
        with asked_to_end(stream.stop) as asked:
            try:
                for done, prediction in enumerate(stream, 1):
                    display.show(prediction, stream.stats)
                    if done == frames:
                        break
                stream.close()
            except SourceError:  # after hours, perhaps
                display.finish(stream.stats)
                raise
    display.finish(stream.stats)
    if asked and not opened.live:
        raise typer.Exit(128 + asked[0])
    if (stream.stats.failed and not opened.live) or not_drawn:
        raise typer.Exit(1)


def run_app(command: Callable[..., None], cls: type[TyperCommand] | None = None) -> None:
    """Run a program that has one command, of the class ``cls`` where it is not the usual one."""
    app = typer.Typer(add_completion=False)
    app.command(cls=cls)(command)
    main_with_errors(app)


def main_with_errors(app: typer.Typer) -> None:
    """Run a command line; an error that the user can mend is printed without a traceback and sets the exit code."""
    try:
        app()
    except GlocalError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a file that cannot be written, say
        print(error, file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "glocal").startswith("glocal"):
            raise
        print(f"this command needs {error.name}, which is not installed", file=sys.stderr)
        print("  fix:   pip install 'glocal[train]'", file=sys.stderr)
        sys.exit(1)


def _smaller(total: int | None, frames: int | None) -> int | None:
    return min((number for number in (total, frames) if number is not None), default=None)


def _check_not_source(path: Path, source: Source) -> None:
    """An output must not replace what is being read."""
    if path.resolve() in {Path(source.name).resolve(), *(image.resolve() for image in source.images)}:
        raise UsageError(f"{path} is what is read.", fix="Name another file.")
