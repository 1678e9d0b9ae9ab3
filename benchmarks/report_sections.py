"""What a report shows of each benchmark: its headline figures, tables and plot.

A renderer is a function of the report; `SECTIONS` names them. A benchmark that is not among them is shown by
`anything`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .report_counts import macs, selector
from .report_latency import latency
from .report_values import (
    PERCENTILES,
    Column,
    Row,
    Section,
    bars_of,
    dict_of,
    fixed,
    joined,
    name_of,
    number,
    pair,
    plot,
    rate,
    ratio_of,
    rows_of,
    scalars,
    short,
    skipped,
    table,
    text,
    timed,
    with_interval,
)


def peers(report: Row) -> Section:
    """The same network run by other means. The headlines are those of the first batch."""
    rows, facts = rows_of(report), rows_of(report, "peers")
    columns: dict[str, Column] = {
        "way": name_of,
        "batch": "batch",
        **PERCENTILES,
        "images/s": "images_per_s",
        "ratio to glocal (95 %)": ratio_of,
    }
    tables = [table("Ways", rows, columns)]
    if facts:
        others: dict[str, Column] = {
            "way": name_of,
            "load s": "load_s",
            "compile s": "compile_s",
            "scores differ by": "max_score_difference",
        }
        tables.append(table("What they are", facts, others))
    first = [row for row in rows if row.get("batch") == rows[0].get("batch")]
    headlines = tuple(f"{name_of(row)}: {timed(row, 'x glocal')}" for row in first)
    draw = plot("bars", bars_of(rows, "p50_ms", _peer), "ms, median and its 95 % interval")
    return Section(headlines, (*tables, *skipped(report)), draw)


def stream(report: Row) -> Section:
    """A stream against the serial loop and bounds."""
    rows, bounds, shares = rows_of(report), dict_of(report, "bounds"), dict_of(report, "share_of_bound")
    listed = [{"name": name, "value": value, "share": fixed(shares.get(name), ".1%")} for name, value in bounds.items()]
    tables = (
        table("Images a second", rows, {"way": name_of, "images/s (95 %)": rate}),
        table("Bounds", listed, {"bound": "name", "images/s": "value", "stream reaches": "share"}),
    )
    ratio = ratio_of(report)
    headlines = [f"{name_of(row)}: {rate(row)} images/s" for row in rows]
    headlines += [f"stream: {ratio} x the serial loop"] if ratio else []
    headlines += [f"stream: {row['share']} of the bound by {row['name']}" for row in listed if row["share"]]
    known = {text(name): value for name, each in bounds.items() if (value := number(each)) is not None}
    draw = plot("bars", bars_of(rows, "images_per_s", name_of), "images a second", bounds=known)
    return Section(tuple(headlines), tables, draw)


def soak(report: Row) -> Section:
    """Memory over a long stream."""
    readings = [point for each in _list(report.get("memory")) if (point := pair(each))]
    slope = dict_of(report, "slope")
    grows = with_interval(slope.get("mib_per_1000"), slope.get("ci"), "+.4f")
    names = ("frames", "predicted", "failed", "lost", "out_of_order", "images_per_s", "batch", "workers", "flat")
    counts = [f"{text(report[name])} {_words(name)}" for name in names[:5] if number(report.get(name)) is not None]
    headlines = (joined(counts), f"memory of the second half: {grows} MiB per 1,000 frames" if grows else "")
    curves = {"resident memory": readings}
    half, rise = readings[len(readings) // 2 :], number(slope.get("mib_per_1000"))
    if len(half) > 1 and rise is not None:
        middle, level = (sum(values) / len(half) for values in zip(*half, strict=True))
        curves["slope of the second half"] = [
            (frame, level + rise * (frame - middle) / 1e3) for frame, _ in (half[0], half[-1])
        ]
    facts = [{"what": _words(name), "value": report.get(name)} for name in names]
    tables = (table("Account", facts, {"what": "what", "value": "value"}),)
    draw = plot("lines", {"": curves} if readings else {}, "frame", "MiB", from_zero=False)
    return Section(tuple(filter(None, headlines)), tables, draw)


def threads(report: Row) -> Section:
    """Images a second by workers and threads, and what threads do to single images."""
    rows, single = rows_of(report), rows_of(report, "latency")
    columns: dict[str, Column] = {
        "workers": "workers",
        "threads of an engine": "threads",
        "images/s (95 %)": rate,
        "ratio (95 %)": ratio_of,
    }
    bars = bars_of(rows, "images_per_s", _share)
    best = max(bars, key=lambda bar: bar[1], default=None)
    headlines = [f"most images a second: {short(best[1])} with {best[0]} (workers x threads)"] if best else []
    headlines += [f"single images, {name_of(row)}: {timed(row, 'x the first')}" for row in single]
    tables = [table("Throughput", rows, columns)]
    if single:
        tables.append(table("Single images", single, {"way": name_of, **PERCENTILES, "ratio (95 %)": ratio_of}))
    draw = plot("bars", bars, "images a second, by workers x threads of one engine")
    return Section(tuple(headlines), tuple(tables), draw)


def tradeoff(report: Row) -> Section:
    """Accuracy against latency, by bundle, precision and early exit."""
    rows = rows_of(report)
    columns: dict[str, Column] = {
        "point": name_of,
        "mAP %": lambda row: fixed(row.get("mAP"), ".2f", 100),
        "OF1 %": lambda row: fixed(row.get("OF1"), ".2f", 100),
        "mean ms": "mean_ms",
        "ratio of means": "mean_ratio",
        **PERCENTILES,
        "boxes": "boxes",
        "exits": lambda row: fixed(row.get("exits"), ".1%"),
    }
    headlines = tuple(
        f"{name_of(row)}: mAP {fixed(row.get('mAP'), '.2f', 100)} % at {short(row.get('mean_ms'))} ms" for row in rows
    )
    points = [
        (text(row.get("bundle")) or name_of(row), time, 100 * accuracy, _kind(row))
        for row in rows
        if (time := number(row.get("mean_ms"))) is not None and (accuracy := number(row.get("mAP"))) is not None
    ]
    draw = plot("scatter", points, "mean ms of a photo", "mAP, %")
    return Section(headlines, (table("Points", rows, columns), *skipped(report)), draw)


def startup(report: Row) -> Section:
    """Seconds of fresh processes by step."""
    rows: list[Row] = []
    for name, listed in (dict_of(report, "seconds") or dict_of(report, "results")).items():
        if values := [value for each in _list(listed) if (value := number(each)) is not None]:
            row = {"name": name, "median": statistics.median(values), "low": min(values), "high": max(values)}
            rows.append(row | {"processes": len(values)})
    columns: dict[str, Column] = {
        "step": name_of,
        "median s": "median",
        "lowest": "low",
        "highest": "high",
        "processes": "processes",
    }
    headlines = (joined([f"{name_of(row)} {short(row['median'])} s" for row in rows]),) if rows else ()
    bars = [(name_of(row), row["median"], (row["low"], row["high"])) for row in rows]
    return Section(headlines, (table("Steps", rows, columns),), plot("bars", bars, "s: median, lowest, highest"))


def anything(report: Row) -> Section:
    """A benchmark that nobody has written a section for: every list of rows as a table."""
    fields = [{"what": name, "value": value} for name, value in scalars(report).items()]
    tables = [table("Fields", fields, {"what": "what", "value": "value"})]
    for name in report:
        rows = rows_of(report, name) if name not in ("machine", "model") else []
        columns: dict[str, Column] = {text(key): _whole(key) for row in rows for key in row}
        if columns:
            tables.append(table(text(name), rows, columns))
    return Section((), tuple(tables))


SECTIONS: dict[str, Callable[[Row], Section]] = {
    "latency": latency,
    "peers": peers,
    "stream": stream,
    "soak": soak,
    "threads": threads,
    "tradeoff": tradeoff,
    "selector": selector,
    "macs": macs,
    "startup": startup,
}


def _whole(key: str) -> Column:
    return lambda row: short(row.get(key))  # a key may have dots in it


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(name: str) -> str:
    return name.replace("_", " ")


def _peer(row: Row) -> str:
    batch = text(row.get("batch"))
    return joined([name_of(row), f"batch {batch}" if batch not in ("", "1") else ""])


def _kind(row: Row) -> str:
    return joined([text(row.get("precision")), "early exit" if row.get("early_exit") else ""])


def _share(row: Row) -> str:
    return f"{text(row.get('workers'))} x {text(row.get('threads'))}"
