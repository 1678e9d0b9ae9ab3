"""What several measuring commands have in common: their options, and what they print about the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from . import record

BundleFolder: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)
]
Images: TypeAlias = Annotated[
    Path | None, typer.Option(help="Photo or folder to predict.", show_default="generated images")
]
EngineThreads: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads of one engine.", show_default="the engine's choice")
]
JsonFile: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Where to write the report.")]


def show_loaded(console: Console, report: record.Report) -> None:
    """Warn where other programs took part of the cores."""
    if text := record.loaded_text(report):
        console.print(text, style="red")
