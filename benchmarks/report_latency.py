"""The report's section of ``glocal bench latency``."""

from __future__ import annotations

from .report_values import (
    PERCENTILES,
    Column,
    Row,
    Section,
    at,
    between,
    dict_of,
    fixed,
    joined,
    number,
    plot,
    ratio_of,
    rows_of,
    short,
    skipped,
    table,
    text,
    timed,
)

_CASE: dict[str, Column] = {"case": lambda row: _case(row), "batch": "batch", "boxes": lambda row: _boxes(row)}
_WHOLE: dict[str, Column] = {
    **PERCENTILES,
    "images/s": "images_per_s",
    "plain backbone p50": "plain.p50_ms",
    "ratio (95 %)": ratio_of,
    "p10-p90": lambda row: between(row.get("ratio")),
    "load s": "load_s",
    "first ms": "first_ms",
}
_ENGINES: dict[str, Column] = {
    "p50 ms": "engines.p50_ms",
    "plain engine p50": "plain.engine.p50_ms",
    "ratio (95 %)": lambda row: ratio_of(row, "engines.ratio"),
    "p10-p90": lambda row: between(at(row, "engines.ratio")),
    "host share": lambda row: fixed(_host_share(row), ".2%"),
}


def latency(report: Row) -> Section:
    """Whole calls against the plain backbone, the engines alone, and the stages.

    The headlines are those of the first case and batch, with all kinds of boxes.
    """
    rows = rows_of(report)
    stages: dict[str, Column] = {stage: _stage(stage) for row in rows for stage in dict_of(row, "stages")}
    tables = (
        table("From file to scores", rows, _CASE | _WHOLE),
        table("Engines only, ms an image", rows, _CASE | _ENGINES),
        table("Stages, ms an image, p50", rows, _CASE | stages),
        *skipped(report),
    )
    headlines = tuple(_headline(row) for row in rows if _group(row) == _group(rows[0]))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    bars = [bar for group, members in groups.items() for bar in _bars(group, members)]
    return Section(headlines, tables, plot("stacked", bars, "ms an image, medians"))


def _headline(row: Row) -> str:
    boxes = _boxes(row)
    return f"{joined([_group(row), f'boxes {boxes}' if boxes else ''])}: {timed(row, 'x the plain backbone')}"


def _bars(group: str, rows: list[Row]) -> list[tuple[str, dict[str, float], str]]:
    """The plain backbone's bar, then one of each kind of boxes, with the stages."""
    bars: list[tuple[str, dict[str, float], str]] = []
    plain = number(at(rows[0], "plain.p50_ms"))
    if plain is not None:
        bars.append((group, {"plain backbone": plain / _batch(rows[0])}, ""))
    for row in rows:
        stages = {
            text(name): value
            for name in dict_of(row, "stages")
            if name != "total" and (value := _stage_ms(row, name)) is not None
        }
        ratio = fixed(at(row, "ratio.p50"), ".3f")
        if stages:
            bars.append((f"{_boxes(row)} boxes", stages, f"{ratio} x" if ratio else ""))
    return bars


def _group(row: Row) -> str:
    batch = text(row.get("batch"))
    return joined([_case(row), f"batch {batch}" if batch else ""], " ")


def _case(row: Row) -> str:
    return joined([text(row.get("backend")), text(row.get("precision"))], " ")


def _boxes(row: Row) -> str:
    """``own (7.1)``: where the boxes are from, and how many there are on average."""
    boxes = row.get("boxes")
    mean = fixed(at(boxes, "mean") if isinstance(boxes, dict) else boxes, ".1f")
    kind = text(row.get("boxes_from") or at(boxes, "mode"))
    return f"{kind} ({mean})" if kind and mean else kind or mean


def _host_share(row: Row) -> object:
    share = row.get("host_share")
    return at(share, "p50") if isinstance(share, dict) else share


def _stage(name: str) -> Column:
    return lambda row: short(_stage_ms(row, name))


def _stage_ms(row: Row, name: str) -> float | None:
    value = dict_of(row, "stages").get(name)  # a name may have dots in it
    return number(at(value, "p50_ms") if isinstance(value, dict) else value)


def _batch(row: Row) -> float:
    return max(number(row.get("batch")) or 1, 1)
