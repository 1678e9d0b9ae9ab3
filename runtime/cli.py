"""The ``run`` command: predict images with a bundle."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from .backends import BACKENDS
from .draw import draw
from .errors import GlocalError, UsageError
from .files import write_atomically
from .images import encode_jpeg, list_images, read_image
from .pipeline import Pipeline
from .prediction import Prediction


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="An image, or a folder of images.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")] = False,
    draws: Annotated[bool, typer.Option("--draw", help="Write a picture of each prediction.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/predictions"),
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    backend: Annotated[str, typer.Option(help=f"auto, {', '.join(BACKENDS)}.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one engine.", show_default="the engine's choice")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels whose scores are drawn.")] = 5,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Skip the local branch where the global scores settle an image.")
    ] = False,
) -> None:
    """Predict the labels of images."""
    paths = list_images(source)
    pictures = _picture_paths(paths, out) if draws else {}
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may not be printable
        sys.stdout.reconfigure(errors="backslashreplace")
    table = Table("file", "labels", "ms", box=None, pad_edge=False, header_style="bold")
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    errors = []

    with (
        _interrupts() as check_interrupt,
        Pipeline.load(bundle, backend, precision, threads, early_exit) as pipeline,
        _progress(as_json) as progress,
    ):
        predictions = pipeline.predict_files(paths, batch)
        for path, prediction in progress.track(
            zip(paths, predictions, strict=True), total=len(paths), description="predicting"
        ):
            check_interrupt()
            if as_json:
                print(json.dumps(prediction.to_json(), allow_nan=False), flush=True)
            else:
                table.add_row(*_row(prediction))
            if prediction.error is not None:
                errors.append(prediction.error)
            elif draws:
                try:
                    _save_picture(pictures[path], prediction, top)
                except GlocalError as error:
                    errors.append(str(error))
    if not as_json:
        Console(highlight=False).print(table)
    for message in errors:
        print(message, file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(paths)} images failed.", file=sys.stderr)
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


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
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


def _progress(as_json: bool) -> Progress:
    """A progress bar on the terminal, not where it would mix with the JSON lines."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or (as_json and sys.stdout.isatty())
    # Left to its default, rich would send what is printed to the bar's stream.
    return Progress(console=console, transient=True, disable=hidden, redirect_stdout=False, redirect_stderr=False)


def _row(prediction: Prediction) -> tuple[Text, Text, Text]:
    source = Text(prediction.source)
    if prediction.error is not None:
        return source, Text("failed", style="red"), Text("")
    scores = dict(zip(prediction.classes, prediction.scores.tolist(), strict=True))
    labels = Text(", ").join(Text.assemble((label, "bold"), f" {scores[label]:.2f}") for label in prediction.labels)
    if not prediction.labels:
        best = max(scores, key=lambda label: scores[label])
        labels = Text(f"none (highest: {best} {scores[best]:.2f})", style="dim")
    return source, labels, Text(f"{prediction.timings['total']:.1f}")


def _picture_paths(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the picture of each image goes: no two in one file, none over a source."""
    folder = paths[0].parent
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", fix="Name a folder with --out.")
    if out.resolve() == folder.resolve():
        fix = "Name another folder with --out."
        raise UsageError(f"The pictures would stand among the images in {out}.", fix=fix)
    chosen: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        # a.jpg gives a.jpg, and a.png beside it a.png.jpg
        name = path.stem if path.stem.casefold() not in taken else path.name
        number = 2
        while name.casefold() in taken:
            name = f"{path.name}-{number}"
            number += 1
        taken.add(name.casefold())
        chosen[path] = out / f"{name}.jpg"
    return chosen


def _save_picture(path: Path, prediction: Prediction, top: int) -> None:
    picture = draw(read_image(prediction.source), prediction, top)
    try:
        write_atomically(path, encode_jpeg(picture))
    except OSError as error:
        fix = "Free space, or name another folder with --out."
        raise GlocalError(f"{path} cannot be written.", found=str(error), fix=fix) from error
