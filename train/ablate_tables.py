"""What is compared: the ablations of the paper, and comparisons of our own, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runtime.errors import UsageError


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Attributes:
        name: What to call it.
        switches: Fields of ``ModelConfig``, instead of the base's.
        settings: Fields of ``TrainConfig``, instead of the base's.
        voc: The paper's mAP on VOC 2007 in percent (ResNet-101, 448 px), where it is known.
        coco: Likewise on MS-COCO.
    """

    name: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    voc: float | None = None
    coco: float | None = None

    @property
    def slug(self) -> str:
        """The name in small letters, digits and dashes, for folders and the command line."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """Models that are compared with one another.

    Attributes:
        title: What varies.
        rows: The models. A row that turns out to equal an earlier one (a switch set to what the preset has) is left
            out when the table is run.
        references: Names of the rows that the others are compared with.
        note: What else the paper says.
    """

    title: str
    rows: tuple[Row, ...]
    references: tuple[str, ...]
    note: str = ""


FULL: dict[str, Any] = {"voc": 95.17, "coco": 85.31}


# Without the weak loss only the global branch's classifier can make the class maps: nothing else trains them.
_LOSSES = (
    Row("L_global", {"head": "global"}, voc=93.21, coco=83.25),
    Row(
        "L_global + L_local",
        {"head": "glocal", "shared_map_head": True},
        {"weak_weight": 0.0},
        voc=94.27,
        coco=84.60,
    ),
    Row("L_global + L_local + L_weak", {"head": "glocal"}, {"weak_weight": 1.0}, **FULL),
)


def _peers() -> tuple[Row, ...]:
    heads = (
        Row("average", {"head": "average"}, voc=90.8, coco=79.3),
        Row("max", {"head": "max"}),
        Row("csra", {"head": "csra"}, voc=94.7, coco=83.3),
    )
    own = []
    for preset in ("paper", "glocal"):
        for row in _LOSSES:
            # The paper's figures belong to its own network only.
            known = {"voc": row.voc, "coco": row.coco} if preset == "paper" else {}
            own.append(Row(f"{preset}: {row.name}", row.switches, {**row.settings, "preset": preset}, **known))
    return (*heads, *own)


# Each switch at all values of interest; those of the preset are left out when the table is run.
_SWITCHES: dict[str, tuple[Any, ...]] = {
    "shift": ("absolute", "signed"),
    "zetas": ((), (0.5, 1.0), (1.0, 2.0)),
    "fusion": ("probability", "logit"),
    "box_fusion": ("max", "sum", "average_max"),
    "global_pool": ("max", "average_max"),
    "cross_scale": (False, True),
    "normalise_tokens": (False, True),
    "roi_features": ("f16", "f32"),
    "roi_size": (3, 4, 6, 8),
    "local_stride": (1, 2),
    "shared_map_head": (False, True),
    "shared_local_head": (False, True),
}
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "weak_weight": (0.5, 1.0, 2.0),
    "region_weight": (0.0, 1.0),
    "loss": ("bce", "asl"),
}


def _label(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"{name} {' '.join(map(str, value)) or 'none'}"
    return f"{name} {str(value).lower()}"


TABLES: dict[str, Table] = {
    "3": Table(
        "Table 3: attention",
        (
            Row("full", {"global_attention": True, "cross_attention": True}, **FULL),
            Row("without CA", {"global_attention": True, "cross_attention": False}),
            Row("without CA and GA", {"global_attention": False, "cross_attention": False}),
        ),
        ("full",),
    ),
    "4": Table(
        "Table 4: categories proposed per image",
        (
            Row("no regions", {"head": "global"}),
            Row("k_s 2", {"head": "glocal", "k_s": 2}),
            Row("k_s 4", {"head": "glocal", "k_s": 4}, **FULL),
            Row("k_s 8", {"head": "glocal", "k_s": 8}),
        ),
        ("no regions",),
    ),
    "5": Table("Table 5: losses", _LOSSES, ("L_global",)),
    "6": Table(
        "Table 6: features of regions (F_r) and class maps (F_w)",
        (
            Row("F_r F16, F_w F32", {"roi_features": "f16", "map_features": "f32"}, **FULL),
            Row("F_r F16, F_w F16", {"roi_features": "f16", "map_features": "f16"}),
            Row("F_r F32, F_w F32", {"roi_features": "f32", "map_features": "f32"}),
            Row("F_r F32, F_w F16", {"roi_features": "f32", "map_features": "f16"}),
        ),
        ("F_r F16, F_w F32",),
        note="The paper has F_r from F32 1.2 mAP behind on VOC 2007.",
    ),
    "7": Table(
        "Table 7: what makes a region strong",
        (Row("energy", {"rank": "energy"}, **FULL), Row("area", {"rank": "area"}, voc=95.00, coco=84.23)),
        ("energy",),
    ),
    "peers": Table(
        "Peers without attention, and the steps of both presets",
        _peers(),
        ("csra", "average"),
        note="Paper: average pooling and CSRA with the same ResNet-101 at 448 px.",
    ),
    "switches": Table(
        "One switch at a time off the preset",
        (
            Row("preset"),
            *(Row(_label(name, value), {name: value}) for name, values in _SWITCHES.items() for value in values),
            *(
                Row(_label(name, value), settings={name: value})
                for name, values in _SETTINGS.items()
                for value in values
            ),
        ),
        ("preset",),
    ),
}


def find_table(name: str) -> Table:
    """A table by its name.

    Raises:
        UsageError: There is no such table.
    """
    if name not in TABLES:
        listed = "; ".join(f"{key} ({table.title})" for key, table in TABLES.items())
        raise UsageError(f"there is no table {name!r}", fix=f"choose one of: {listed}")
    return TABLES[name]


def choose_rows(table: Table, only: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows named in ``only`` (by name or slug), or all, in the table's order.

    Raises:
        UsageError: There is no such row.
    """
    unknown = [name for name in only if not any(name in (row.name, row.slug) for row in table.rows)]
    if unknown:
        raise UsageError(
            f"{table.title} has no row {unknown[0]!r}",
            fix=f"choose from {', '.join(row.slug for row in table.rows)}",
        )
    return tuple(row for row in table.rows if not only or row.name in only or row.slug in only)
