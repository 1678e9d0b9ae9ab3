"""The report's sections of ``glocal bench selector`` and ``glocal macs``."""

from __future__ import annotations

from .report_values import (
    Column,
    Row,
    Section,
    at,
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
    with_interval,
)

_OURS = "glocal"


def selector(report: Row) -> Section:
    """The region selector against other libraries, by size of the maps, setting and batch."""
    results = rows_of(report)
    rows = [
        {**figures, "way": way, "case": result}
        for result in results
        for way, figures in dict_of(result, "ways").items()
        if isinstance(figures, dict)
    ]
    columns: dict[str, Column] = {
        "maps": "case.maps",
        "boxes": lambda row: _setting(row["case"]),
        "batch": "case.batch",
        "way": "way",
        "p50 us (95 %)": lambda row: with_interval(row.get("p50_us"), row.get("p50_us_ci")),
        "p90": "p90_us",
        "p99": "p99_us",
        "first p50": "first_us.p50_us",
        "us an image": "us_per_image",
        "ratio (95 %)": ratio_of,
    }
    least = min((batch for each in results if (batch := number(each.get("batch"))) is not None), default=None)
    single = [row for row in rows if number(row["case"].get("batch")) == least]
    share, whole = at(report, "pipeline.share"), at(report, "pipeline.total.p50_ms")
    ours = [row for row in single if row["way"] == _OURS and number(row.get("p50_us")) is not None]
    headlines = [_call(row) for row in ours if _setting(row["case"]) == _setting(ours[0]["case"])]
    if number(share) is not None:
        headlines.append(f"in the pipeline: {fixed(share, '.2%')} of {short(whole)} ms")
    tables = [table("One call", single, columns), *skipped(report)]
    if len(rows) > len(single):
        tables.append(table("All batches", rows, columns, folded=True))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in single:
        side, time = _side(row["case"]), number(row.get("p50_us"))
        if side is not None and time is not None and time > 0:
            panels.setdefault(f"{_setting(row['case'])} boxes", {}).setdefault(row["way"], []).append((side, time))
    for curves in panels.values():
        for points in curves.values():
            points.sort()
    draw = plot("lines", panels, "side of the maps, cells", "us, median", log=True)
    return Section(tuple(headlines), tuple(tables), draw)


def macs(report: Row) -> Section:
    """Multiply-accumulates and parameters, the paper's values beside ours."""
    rows = rows_of(report)
    backbones = {_place(row): row for row in rows if row.get("network") == "backbone"}

    def of_backbone(row: Row) -> str:
        ours, plain = number(row.get("macs")), number(at(backbones.get(_place(row)), "macs"))
        return f"{ours / plain:.3f}" if ours is not None and plain else ""

    columns: dict[str, Column] = {
        "side": "size",
        "boxes": "boxes",
        "network": "network",
        "G MACs": lambda row: _giga(row, "macs"),
        "with the rest": lambda row: _giga(row, "with_rest"),
        "of the backbone": of_backbone,
        "M parameters": lambda row: fixed(row.get("parameters"), ".2f", 1e-6),
        "paper: G": lambda row: _giga(row, "paper.with_rest"),
        "paper: M": lambda row: fixed(at(row, "paper.parameters"), ".2f", 1e-6),
    }
    full = [row for row in rows if row.get("network") == "full"]
    stages: dict[str, Column] = {
        text(name): _stage(name) for row in full for name in dict_of(row, "products") if isinstance(name, str)
    }
    sizes = {size for row in full if (size := number(row.get("size"))) is not None}
    shown = 448 if 448 in sizes else max(sizes, default=None)
    headlines = []
    for row in full:
        if number(row.get("size")) == shown and _giga(row, "macs"):
            network = f"{text(row.get('backbone'))} {text(row.get('preset'))}, {text(row.get('size'))} px"
            ratio = of_backbone(row)
            cost = joined([f"{_giga(row, 'macs')} G MACs", f"{ratio} x the plain backbone" if ratio else ""])
            headlines.append(f"{network}, {text(row.get('boxes'))} boxes: {cost}")
    crosses = [
        (size, paper / 1e9)
        for row in rows
        if (size := number(row.get("size"))) is not None and (paper := number(at(row, "paper.with_rest"))) is not None
    ]
    tables = [table("Networks", rows, columns)]
    if stages:
        where: dict[str, Column] = {"side": "size", "boxes": "boxes"}
        tables.append(table("Full, by stage, G", full, where | stages, folded=True))
    axes = ("input side, pixels", "G MACs, batch norm and the like included")
    return Section(tuple(headlines), tuple(tables), plot("lines", _macs_panels(rows), *axes, crosses=crosses))


def _macs_panels(rows: list[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """G MACs with the rest over the input's side (figure 10): by backbone and preset, by network and boxes."""
    panels: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        size, cost, network = number(row.get("size")), number(row.get("with_rest")), text(row.get("network"))
        title = joined([text(row.get("backbone")), text(row.get("preset"))])
        name = network if network == "backbone" else f"{network}, {text(row.get('boxes'))} boxes"
        if size is not None and cost is not None:
            panels.setdefault(title, {}).setdefault(name, {})[size] = cost / 1e9
    return {
        title: {name: sorted(points.items()) for name, points in curves.items()} for title, curves in panels.items()
    }


def _call(row: Row) -> str:
    case = row["case"]
    times = joined([f"p50 {short(row.get('p50_us'))} us", f"p99 {short(row.get('p99_us'))}"])
    return f"{text(case.get('maps'))} maps, {_setting(case)} boxes, batch {text(case.get('batch'))}: {times}"


def _setting(case: Row) -> str:
    zetas = case.get("zetas")
    copies = str(1 + len(zetas)) if isinstance(zetas, list) else ""
    return joined([text(case.get("k_s")), text(case.get("k_e")), copies], " x ")


def _side(case: Row) -> float | None:
    """14 of ``12x14x14``."""
    side = text(case.get("maps")).rpartition("x")[2]
    return float(side) if side.isascii() and side.isdigit() and len(side) < 6 else None


def _place(row: Row) -> tuple[str, ...]:
    return tuple(text(row.get(name)) for name in ("backbone", "preset", "size", "labels", "boxes"))


def _giga(row: Row, path: str) -> str:
    return fixed(at(row, path), ".2f", 1e-9)


def _stage(name: str) -> Column:
    return lambda row: fixed(dict_of(row, "products").get(name), ".2f", 1e-9)
