"""Reports of a folder, and what all of them have in common: ``glocal bench report FOLDER``.

What a benchmark's own figures look like is up to `report_sections`; pages are made by `report_html` and
`report_markdown`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import GlocalError, UsageError
from .report_markdown import markdown_table
from .report_sections import SECTIONS, anything
from .report_values import Row, Section, Table, at, dict_of, joined, number, scalars, text

_MOST = 64 << 20  # bytes of a file that is read
_HEADLINES = 6  # of one report among the newest
_COMMANDS = {"macs": "glocal macs"}


@dataclass(frozen=True)
class Entry:
    """A report and where it was found.

    Attributes:
        path: Relative to the folder, with forward slashes.
        report: As `record.save` wrote it.
    """

    path: str
    report: Row

    @property
    def benchmark(self) -> str:
        """Its name, as in ``glocal bench NAME``."""
        return text(self.report.get("benchmark"))

    @property
    def title(self) -> str:
        """Benchmark, model and input size."""
        size = at(self.report, "model.input_size")
        sides = "x".join(text(side) for side in size) if isinstance(size, list) else ""
        name = text(at(self.report, "model.name"))
        return joined([self.benchmark, name if sides in name else f"{name} {sides}".strip()])

    @property
    def date(self) -> str:
        """Day of the measurement, ISO."""
        return text(at(self.report, "machine.date"))

    def origin(self) -> list[tuple[str, str]]:
        """What was measured, when, by which code: (what, value)."""
        model = dict_of(self.report, "model")
        short_hash = text(model.get("checkpoint_sha256") or model.get("manifest_sha256"))[:8]
        labels = f"{text(model.get('labels'))} labels" if number(model.get("labels")) is not None else ""
        hashed = f"sha256 {short_hash}" if short_hash else ""
        commit, _, changed = text(at(self.report, "machine.commit")).partition(" ")
        command = text(self.report.get("command")) or _COMMANDS.get(self.benchmark, f"glocal bench {self.benchmark}")
        facts = {
            "command": command,
            "model": joined([text(model.get("name")), labels, hashed]),
            "date": self.date,
            "commit": joined([commit[:8], changed], " "),
            "machine": joined([text(at(self.report, "machine.cpu")), _cores(self.report)]),
            "file": self.path,
        }
        return [(name, value) for name, value in facts.items() if value]

    def facts(self) -> Table:
        """All facts of the machine and the model, and the settings, for who wants to know."""
        busy = {name: self.report.get(name) for name in ("busy_before", "busy_after", "load_average_after")}
        model = {f"model {name}": value for name, value in dict_of(self.report, "model").items()}
        known = {**scalars(self.report), **dict_of(self.report, "machine"), **busy, **model}
        return Table(
            "Machine, model and settings", ("what", "value"), tuple((text(k), text(v)) for k, v in known.items())
        )

    def section(self) -> Section:
        """Its figures."""
        return SECTIONS.get(self.benchmark, anything)(self.report)


@dataclass(frozen=True)
class Found:
    """Files of a folder: ``entries`` in the order of `SECTIONS`, and (path, reason) of the others, ``left_out``."""

    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]


def collect(folder: Path) -> Found:
    """Read all reports below a folder.

    Args:
        folder: With ``*.json`` files, also in folders of folders.

    Returns:
        The reports, and what is of another shape, with the reason.

    Raises:
        UsageError: There is no such folder.
        GlocalError: It holds no report.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", fix="name a folder with reports, such as benchmarks/results")
    entries, left_out = [], []
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        try:
            entries.append(Entry(name, _read(path)))
        except GlocalError as error:
            left_out.append((name, error.what))
    if not entries:
        found = f"{len(left_out)} JSON files of another shape" if left_out else "no JSON file"
        fix = "measure something first: glocal bench NAME ... --json FILE"
        raise GlocalError(f"{folder} holds no report.", found=found, fix=fix)
    ranks = {name: rank for rank, name in enumerate(SECTIONS)}
    entries.sort(key=lambda entry: (ranks.get(entry.benchmark, len(ranks)), entry.title, entry.path))
    return Found(tuple(entries), tuple(left_out))


def newest(root: Path) -> str:
    """The newest headlines of every machine kind, benchmark and model, as a Markdown table.

    Args:
        root: With one folder per machine kind.

    Raises:
        UsageError: There is no such folder.
        GlocalError: It holds no report.
    """
    latest: dict[tuple[str, str], Entry] = {}
    for entry in collect(root).entries:
        kind = entry.path.rpartition("/")[0].partition("/")[0]
        before = latest.get((kind, entry.title))
        if before is None or (entry.date, entry.path) > (before.date, before.path):
            latest[kind, entry.title] = entry
    rows = []
    for (kind, title), entry in sorted(latest.items(), key=lambda item: item[0][0]):
        loaded = " (on a LOADED machine)" if entry.report.get("loaded") else ""
        figures = joined(entry.section().headlines[:_HEADLINES], "; ")
        rows.append((kind or root.resolve().name, entry.date, title, figures + loaded))
    return markdown_table(Table("", ("machine", "date", "what", "figure"), tuple(rows)))


def _read(path: Path) -> Row:
    try:
        if path.stat().st_size > _MOST:
            raise GlocalError(f"larger than {_MOST >> 20} MiB")
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise GlocalError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise GlocalError(f"is no JSON: {error}") from error
    if not isinstance(report, dict) or "benchmark" not in report:
        raise GlocalError("says of no benchmark; it is older, or something else")
    if not isinstance(report["benchmark"], str) or not report["benchmark"].strip():
        raise GlocalError("its benchmark has no name")
    return report


def _cores(report: Row) -> str:
    cores = text(at(report, "machine.cores"))
    return f"{cores} cores" if cores else ""
