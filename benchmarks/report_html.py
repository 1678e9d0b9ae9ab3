"""Reports as one HTML file that needs nothing else: the plots are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from .html_page import Html, document, element, html_table, joined_html
from .record import loaded_text
from .report import Entry, Found
from .report_values import Table


def page(found: Found, title: str, plots: Mapping[int, bytes]) -> bytes:
    """Reports as HTML, UTF-8.

    Args:
        found: What to show.
        title: Of the page.
        plots: PNG by number of the entry.
    """
    contents = [
        element("li", element("a", entry.title, href=f"#s{index}"), element("small", f" {entry.date}, {entry.path}"))
        for index, entry in enumerate(found.entries)
    ]
    sections = [_section(index, entry, plots.get(index)) for index, entry in enumerate(found.entries)]
    left_out = []
    if found.left_out:
        contents.append(element("li", element("a", "Not shown", href="#left-out")))
        left_out.append(element("h2", "Not shown", id="left-out"))
        left_out.append(_table(Table("", ("file", "reason"), found.left_out)))
    return document(title, element("h1", title), element("nav", element("ol", *contents)), *sections, *left_out)


def _section(index: int, entry: Entry, plot: bytes | None) -> Html:
    section, parts = entry.section(), [element("h2", entry.title, id=f"s{index}")]
    if warning := loaded_text(entry.report):
        parts.append(element("p", warning, class_="loaded"))
    facts = [joined_html([f"{name} ", element("b", value), element("br")]) for name, value in entry.origin()]
    parts.append(element("p", *facts, class_="facts"))
    parts.append(element("ul", *(element("li", headline) for headline in section.headlines)))
    if plot is not None:
        data = f"data:image/png;base64,{base64.b64encode(plot).decode()}"
        parts.append(element("p", element("img", src=data, alt=f"plot of {entry.title}", class_="plot")))
    for table in section.tables:
        parts += [_folded(table)] if table.folded else [element("h3", table.title), _table(table)]
    return element("section", *parts, _folded(entry.facts()))


def _folded(table: Table) -> Html:
    return element("details", element("summary", table.title), _table(table, wrap=True))


def _table(table: Table, wrap: bool = False) -> Html:
    numeric = [table.is_numeric(column) for column in range(len(table.head))]
    return element("div", html_table(table.rows, table.head, numeric), class_="scroll wrap" if wrap else "scroll")
