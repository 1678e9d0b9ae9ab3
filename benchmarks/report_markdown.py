"""Reports as Markdown."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .record import loaded_text
from .report_values import Table

if TYPE_CHECKING:
    from .report import Found


def markdown(found: Found, title: str, plots: Mapping[int, Path] | None = None, beside: Path = Path()) -> str:
    """Reports as Markdown.

    Args:
        found: What to show.
        title: Of the page.
        plots: Files of plots, by number of the entry.
        beside: The folder that the page will stand in; links to the plots are relative to it.
    """
    parts = [f"# {escaped(title)}", "\n".join(f"- {escaped(entry.title)}" for entry in found.entries)]
    for index, entry in enumerate(found.entries):
        section, plot = entry.section(), (plots or {}).get(index)
        parts.append(f"## {escaped(entry.title)}")
        if warning := loaded_text(entry.report):
            parts.append(f"**{escaped(warning)}**")
        parts.append("\n".join(f"- {name}: {escaped(value)}" for name, value in entry.origin()))
        parts.append("\n".join(f"- **{escaped(headline)}**" for headline in section.headlines))
        if plot is not None:
            link = urllib.parse.quote(Path(os.path.relpath(plot, beside)).as_posix())
            parts.append(f"![{escaped(entry.title)}]({link})")
        parts += [_titled(each, each.folded) for each in section.tables]
        parts.append(_titled(entry.facts(), folded=True))
    if found.left_out:
        rows = tuple(found.left_out)
        parts += ["## Not shown", markdown_table(Table("", ("file", "reason"), rows))]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """A table as Markdown, figures to the right."""
    marks = ["---:" if table.is_numeric(column) else "---" for column in range(len(table.head))]
    rows = [_row([escaped(cell) for cell in row]) for row in (table.head, *table.rows)]
    return "\n".join([rows[0], _row(marks), *rows[1:]])


def escaped(value: str) -> str:
    """Text without meaning to Markdown or HTML, in one line."""
    value = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", value)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _titled(table: Table, folded: bool) -> str:
    title = escaped(table.title)
    if folded:
        return f"<details><summary>{title}</summary>\n\n{markdown_table(table)}\n\n</details>"
    return f"**{title}**\n\n{markdown_table(table)}"
