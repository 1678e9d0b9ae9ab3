"""Reading reports that may lack anything: what is missing or of another kind gives an empty cell, never an error.

`Section` is what is shown of a report; the renderers of `report_sections` make it out of what is read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
_FIGURE = re.compile(r"[+-]?[\d.,]+(e[+-]\d+)?%?(-[\d.]+)?( \(.*\))?")  # 1.08; 5.2%; 1.05-1.11; 293.1 (290-296)
Column = str | Callable[[Row], str]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        head: Names of its columns.
        rows: As many cells each.
        folded: Whether a page shows it only when asked.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False

    def is_numeric(self, column: int) -> bool:
        """Whether a column's cells are all figures or empty, and not all empty."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(_FIGURE.fullmatch(cell) for cell in cells)


@dataclass(frozen=True)
class Section:
    """What is shown of one report.

    Attributes:
        headlines: The main figures, one sentence each.
        tables: All figures.
        draw: Makes the plot, PNG; None where the report has nothing to draw.
    """

    headlines: tuple[str, ...]
    tables: tuple[Table, ...]
    draw: Callable[[], bytes] | None = None


def at(data: Any, path: str) -> Any:
    """What stands at ``a.b.c`` of nested dictionaries; None where a part is missing."""
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON knows integers that no float holds
        return None


def fixed(value: Any, form: str = ".2f", scale: float = 1) -> str:
    """A number in a fixed form, times ``scale``; empty for anything else."""
    known = number(value)
    return "" if known is None else f"{known * scale:{form}}"


def short(value: Any) -> str:
    """Four digits that count of a number; other values as `text` gives them."""
    known = number(value)
    if known is None or isinstance(value, int):
        return text(value)
    return f"{known:,.0f}" if abs(known) >= 1000 else f"{known:.4g}"


def text(value: Any) -> str:
    """Any JSON value in one line; None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(text(each) for each in value)
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def pair(value: Any) -> tuple[float, float] | None:
    """An interval, [low, high]."""
    ends = [number(each) for each in value] if isinstance(value, list) else []
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def with_interval(value: Any, interval: Any, form: str = "") -> str:
    """``1.078 (1.075-1.081)``; without the brackets where the interval is missing."""
    shown = fixed(value, form) if form else short(value)
    ends = pair(interval)
    if not shown or ends is None:
        return shown
    low, high = (fixed(end, form) if form else short(end) for end in ends)
    return f"{shown} ({low} to {high})" if low[:1] in ("-", "+") else f"{shown} ({low}-{high})"


def ratio_of(row: Any, name: str = "ratio") -> str:
    """A `timing.ratio` with its interval; a bare number is fine too."""
    value = at(row, name)
    if not isinstance(value, dict):
        return fixed(value, ".3f")
    return with_interval(value.get("p50"), value.get("p50_ci"), ".3f")


def rows_of(report: Row, name: str = "results") -> list[Row]:
    """The rows of a list of dictionaries, or of a dictionary of dictionaries by ``name``."""
    value = report.get(name)
    if isinstance(value, dict):
        return [{"name": key, **row} for key, row in value.items() if isinstance(row, dict)]
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def dict_of(data: Any, path: str) -> Row:
    """The dictionary at a path; empty where there is none."""
    value = at(data, path)
    return value if isinstance(value, dict) else {}


def scalars(report: Row) -> Row:
    """The report's own settings: all that is neither a list nor a dictionary."""
    return {name: value for name, value in report.items() if not isinstance(value, list | dict)}


def table(title: str, rows: Iterable[Row], columns: dict[str, Column], folded: bool = False) -> Table:
    """A table with one line a row.

    Args:
        title: What it shows.
        rows: What to show.
        columns: By head: where in a row the value stands (as for `at`), or how to make its text.
        folded: Whether a page shows it only when asked.
    """
    cells = tuple(
        tuple(column(row) if callable(column) else short(at(row, column)) for column in columns.values())
        for row in rows
    )
    return Table(title, tuple(columns), cells, folded)


def joined(parts: Sequence[str], separator: str = ", ") -> str:
    """The parts that are not empty."""
    return separator.join(part for part in parts if part)


def plot(
    kind: Literal["stacked", "bars", "lines", "scatter"], data: Any, *labels: str, **more: Any
) -> Callable[[], bytes] | None:
    """A plot of `report_plots` to be drawn later, when its library is loaded; None without data."""

    def draw() -> bytes:
        from . import report_plots

        picture: bytes = getattr(report_plots, kind)(data, *labels, **more)
        return picture

    return draw if data else None


def bars_of(rows: Iterable[Row], value: str, name: Callable[[Row], str]) -> list[tuple[str, float, Any]]:
    """Bars for `plot`: name, value and interval (``VALUE_ci``) of the rows that have the value."""
    interval = f"{value}_ci"
    return [(name(row), size, pair(row.get(interval))) for row in rows if (size := number(row.get(value))) is not None]


def name_of(row: Row) -> str:
    """The row's ``name``, or ``peer``."""
    return text(row.get("name") or row.get("peer"))


def p50(row: Row) -> str:
    """Median milliseconds with their interval."""
    return with_interval(row.get("p50_ms"), row.get("p50_ms_ci"))


def timed(row: Row, reference: str) -> str:
    """``293.1 ms, 1.078 (1.075-1.081) x REFERENCE``."""
    ratio = ratio_of(row)
    return joined([f"{short(row.get('p50_ms'))} ms", f"{ratio} {reference}" if ratio else ""])


def rate(row: Row) -> str:
    """Images a second with their interval."""
    return with_interval(row.get("images_per_s"), row.get("images_per_s_ci"))


def between(ratio: Any) -> str:
    """The 10th to 90th percentile of a `timing.ratio`."""
    return joined([fixed(at(ratio, "p10"), ".3f"), fixed(at(ratio, "p90"), ".3f")], "-")


def skipped(report: Row) -> list[Table]:
    """What could not run, with the reason; nothing where all ran."""
    value = report.get("skipped")
    rows = [{"what": text(name), "reason": why} for name, why in value.items()] if isinstance(value, dict) else []
    for row in rows_of(report, "skipped") if isinstance(value, list) else []:
        told = [text(each) for key, each in row.items() if key not in ("reason", "fix")]
        rows.append({"what": joined(told, " "), "reason": row.get("reason")})
    return [table("Skipped", rows, {"what": "what", "reason": "reason"})] if rows else []


PERCENTILES: dict[str, Column] = {"p50 ms (95 %)": p50, "p90": "p90_ms", "p99": "p99_ms"}
