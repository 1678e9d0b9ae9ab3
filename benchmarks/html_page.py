"""HTML pages that need nothing else: what is not made here as an element is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2330; background: #fff; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; } h3 { margin: 1.5rem 0 .3rem; font-size: 1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.grid img, .wide img { width: 100%; border-radius: 6px; box-shadow: 0 1px 4px #0003; }
.plot { width: 100%; max-width: 720px; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { font-size: .85rem; vertical-align: bottom; }
td + td { font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #dde; }
.scroll td { white-space: nowrap; } .scroll.wrap td { white-space: normal; }
.number { text-align: right; }
.loaded { background: #b3261e; color: #fff; padding: .5rem .8rem; border-radius: 6px; }
small, .facts { color: #566; } summary { cursor: pointer; }
"""
_VOID = ("img", "br", "meta")


class Html(str):
    """Text that is HTML already."""


def element(tag: str, *children: str, **attributes: str) -> Html:
    """An element. Children and attributes are escaped; only what is `Html` is taken as it is.

    Args:
        tag: Its name.
        children: What stands in it.
        attributes: By name; a trailing underscore is dropped (``class_``).
    """
    named = "".join(f' {name.rstrip("_")}="{html.escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{named}>" if tag in _VOID else f"<{tag}{named}>{joined_html(children)}</{tag}>")


def joined_html(parts: Iterable[str]) -> Html:
    """The parts one after the other, escaped unless they are `Html`."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def html_table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numeric: Sequence[bool] = ()) -> Html:
    """A table; ``numeric`` says which columns are set to the right."""

    def cells(tag: str, row: Sequence[str]) -> Html:
        marks = [*numeric, *[False] * (len(row) - len(numeric))]
        classes: list[dict[str, str]] = [{"class_": "number"} if right else {} for right in marks]
        return element("tr", *(element(tag, cell, **more) for cell, more in zip(row, classes, strict=True)))

    top = [element("thead", cells("th", head))] if head else []
    return element("table", *top, element("tbody", *(cells("td", row) for row in rows)))


def document(title: str, *body: str) -> bytes:
    """A whole page as UTF-8, dark on white, fit for a phone."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Html(f"<style>{_STYLE}</style>"),
    )
    page = f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"
    return page.encode("utf-8", "replace")  # JSON may hold half of a surrogate pair
