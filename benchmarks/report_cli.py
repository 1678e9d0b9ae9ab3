"""The command ``glocal bench report``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With reports (*.json), also in folders below.")],
    out: Annotated[Path, typer.Option(help="The page to write, HTML with everything inside.")] = Path("report.html"),
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Also write it as Markdown.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots that the Markdown shows.")] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Only print the newest headlines as a Markdown table; write nothing.")
    ] = False,
) -> None:
    """One page of all measurements in a folder: headlines, plots, tables, machine facts."""
    from ..runtime.errors import GlocalError, UsageError
    from ..runtime.files import write_atomically
    from ..runtime.progress import progressed
    from . import report as reports

    if newest:
        print(reports.newest(folder))
        return
    if plots and markdown_file is None:
        raise UsageError("--plots is for the Markdown.", fix="name its file with --markdown")
    from .report_html import page
    from .report_markdown import markdown

    found, title = reports.collect(folder), f"Benchmarks: {folder.resolve().name}"
    pictures = {}
    for index, entry in progressed(list(enumerate(found.entries)), "drawing"):
        if draw := entry.section().draw:
            pictures[index] = draw()
    files = {}
    if plots is not None:
        for index in pictures:
            stem = re.sub(r"[^a-z0-9]+", "-", Path(found.entries[index].path).with_suffix("").as_posix().lower())
            files[index] = plots / f"{index + 1:02}-{stem.strip('-')[:60]}.png"
    try:
        write_atomically(out, page(found, title, pictures))
        for index, file in files.items():
            write_atomically(file, pictures[index])
        if markdown_file is not None:
            text = markdown(found, title, files, markdown_file.parent)
            write_atomically(markdown_file, text.encode("utf-8", "replace"))
    except OSError as error:
        raise GlocalError("The report cannot be written.", found=str(error), fix="Name another file.") from error
    print(f"{len(found.entries)} reports in {out}; {len(found.left_out)} JSON files not shown")
