"""The ``figure`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def figure(
    name: Annotated[
        Literal["tsne", "photos", "energy", "variants", "proposals"],
        typer.Argument(metavar="NAME", help="Which figure."),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run folder; for tsne two, with and without weak supervision."),
    ],
    data: Annotated[str, typer.Option(help="'digits' or 'digits-hard' (built in), or a data folder.")],
    out: Annotated[Path, typer.Option(help="The folder for NAME.png and NAME.csv.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Photos to look at, drawn at random. Default: 1000 for tsne, 50 for proposals, otherwise 500.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")] = 0,
) -> None:
    """Draw a figure of the paper from your runs, with its numbers as CSV.

    tsne: region tokens of two runs (fig. 4)
    photos: regions, class maps and scores (fig. 5 and 9)
    energy: regions by energy and by area (fig. 6)
    variants: a region for each zeta (fig. 7)
    proposals: the boxes against selective search (fig. 8)
    """
    from .figures import KINDS, write_figure

    written = write_figure(name, runs, data, out, split, images, seed)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in written.drawn.table[0]:
        table.add_column(column, overflow="fold")
    for row in written.drawn.table:
        table.add_row(*(_shown(value) for value in row.values()))
    console = Console(highlight=False)
    console.print(table)
    for note in written.drawn.notes:
        console.print(note, markup=False)
    console.print(f"The paper shows, {KINDS[name].paper}.", markup=False)
    print(f"wrote {written.picture} and {written.csv}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return escape(str(value))
