"""One page of all reports: complete, safe with any JSON, and without anything from elsewhere."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import example_reports
import pytest
from glocal.benchmarks import report_cli
from glocal.benchmarks.cli import app
from glocal.benchmarks.report import Entry, collect, newest
from glocal.benchmarks.report_markdown import markdown
from glocal.benchmarks.report_sections import SECTIONS, anything
from glocal.runtime.errors import GlocalError, UsageError
from typer.testing import CliRunner

EVIL = (
    """$\\bad{$ " onload="x' <script>alert('x')</script><img src=http://evil.example/a.png> """
    "| `c` [a](http://evil.example) \ud800\n# x"
)


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what a browser would load or follow."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "style"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data


def fill(folder: Path, reports: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in reports.items():
        (folder / f"{name}.json").write_text(json.dumps(one))
    return folder


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["bench", "report", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, the Markdown and the plots of a folder with every kind, twice one of them, and others."""
    folder = tmp_path_factory.mktemp("reports")
    fill(folder / "in" / "cpu-2core", example_reports.ALL)
    loaded = example_reports.peers() | {"loaded": True, "busy_before": 0.4}
    loaded["model"]["name"] = "photos-lite0"
    new = example_reports.head("new thing") | {"rounds": 3, "results": [{"way": "by hand", "a.b": 1.5}]}
    fill(folder / "in" / "cpu-16core", {"peers": loaded, "new": new, "old": {"seconds": []}, "list": [1]})
    (folder / "in" / "broken.json").write_text("{")
    plots = ["--markdown", folder / "out" / "report.md", "--plots", folder / "out" / "plots a"]
    assert "11 reports" in call(folder / "in", "--out", folder / "out" / "report.html", *plots)
    return folder / "out"


def test_the_page_needs_nothing_else_and_is_whole(all_kinds: Path) -> None:
    text = (all_kinds / "report.html").read_text()
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.tags.count("section") == 11
    assert page.tags.count("img") == 10  # but for the one that nobody knows
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,iVBORw0K")) for link in page.links)
    assert [link[1:] for link in page.links if link.startswith("#")] == page.ids  # the table of contents
    assert not re.search("https?://", text)


def test_each_section_says_what_was_measured(all_kinds: Path) -> None:
    text = (all_kinds / "report.html").read_text()
    for fact in ("glocal bench latency", "glocal macs", "sha256 c0ffee00", "01234567 with changes", "2026-11-25"):
        assert fact in text
    for figure in ("293.1 ms, 1.078 (1.075-1.081) x the plain backbone", "102.9% of the bound", "0 out of order"):
        assert figure in text
    assert "+0.0004 (-0.0020 to +0.0030) MiB per 1,000 frames" in text
    assert "tensorrt fp32</td><td>no GPU" in text
    assert "cpu-16core/old.json" in text
    assert "broken.json" in text
    assert re.search(r"<th>way</th><th[^>]*>a\.b</th>.*by hand", text)


def test_a_loaded_machine_has_a_banner_in_its_section_only(all_kinds: Path) -> None:
    sections = (all_kinds / "report.html").read_text().split("<section>")[1:]
    loaded = [section for section in sections if 'class="loaded"' in section]
    assert len(loaded) == 1
    assert "photos-lite0" in loaded[0]
    assert "LOADED MACHINE: other programs took 0.4 before" in loaded[0]
    assert (all_kinds / "report.md").read_text().count("**LOADED MACHINE") == 1


def test_the_markdown_links_to_plots_that_exist(all_kinds: Path) -> None:
    text = (all_kinds / "report.md").read_text()
    links = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert len(links) == 10
    assert all(link.startswith("plots%20a/") for link in links)
    assert all((all_kinds / link.replace("%20", " ")).read_bytes().startswith(b"\x89PNG") for link in links)
    assert "| onnxruntime fp32 | 1 | own (7.1) | 293.1 (290.2-299) |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # as many cells in every line of a table
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def poisoned(value: Any) -> Any:
    """The report with every string, and every key but those that make its shape, made malicious."""
    if isinstance(value, dict):
        names = ("stages", "seconds", "bounds", "ways")
        return {
            key: {EVIL + inner: poisoned(each) for inner, each in one.items()} if key in names else poisoned(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return EVIL if isinstance(value, str) else value


def test_malicious_strings_are_text(tmp_path: Path) -> None:
    reports = {name: poisoned(one) | {"benchmark": name} for name, one in example_reports.ALL.items()}
    fill(tmp_path / "in", {**reports, "unknown": poisoned(example_reports.head("x")) | {EVIL: [{EVIL: EVIL}]}})
    call(tmp_path / "in", "--out", tmp_path / "r.html", "--markdown", tmp_path / "r.md", "--plots", tmp_path)
    page = Page((tmp_path / "r.html").read_text())
    assert "script" not in page.tags
    assert page.tags.count("img") == 8  # but for the unknown, and the selector's, whose maps now have no size
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert any("<script>alert('x')</script>" in text for text in page.texts)
    text = (tmp_path / "r.md").read_text()
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert not re.search(r"^# x", text, re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def damaged(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all that a report has, of each list the first element's only."""
    paths = [path] if path else []
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value[:1]))
    return paths + [found for key, child in children for found in damaged(child, (*path, key))]


@pytest.mark.parametrize("kind", example_reports.ALL)
def test_anything_may_be_missing_or_of_another_kind(kind: str) -> None:
    whole = example_reports.ALL[kind]
    assert kind in SECTIONS
    for path in damaged(whole):
        for value in (None, "x", -1, [None], {"x": []}, float("nan"), 10**400):
            one = copy.deepcopy(whole)
            parent = one
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            entry = Entry("a.json", one | {"benchmark": kind})
            SECTIONS[kind](one)
            anything(one)
            assert entry.facts().rows
            assert entry.title.startswith(kind)
    entry = Entry("a.json", {"benchmark": kind})
    assert entry.section().draw is None
    assert all(len(row) == len(table.head) for table in entry.section().tables for row in table.rows)


@pytest.mark.parametrize("kind", example_reports.ALL)
def test_plots_of_odd_figures_can_be_drawn(kind: str) -> None:
    def odd(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: odd(one) for key, one in value.items()}
        if isinstance(value, list):
            return [odd(one) for one in value]
        return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value

    draw = SECTIONS[kind](odd(example_reports.ALL[kind])).draw
    assert draw is None or draw().startswith(b"\x89PNG")


def test_every_figure_of_a_row_is_in_its_table() -> None:
    (table, engines, stages, _) = SECTIONS["latency"](example_reports.latency()).tables
    assert dict(zip(table.head, table.rows[1], strict=True)) | {"images/s": ""} == {
        "case": "onnxruntime fp32",
        "batch": "1",
        "boxes": "24 (24.0)",
        "p50 ms (95 %)": "310.7 (307.6-316.9)",
        "p90": "341.8",
        "p99": "403.9",
        "images/s": "",
        "plain backbone p50": "271.9",
        "ratio (95 %)": "1.143 (1.140-1.146)",
        "p10-p90": "1.123-1.173",
        "load s": "1.1",
        "first ms": "310",
    }
    assert engines.rows[0][-1] == "1.10%"
    assert stages.head[3:] == ("decode", "resize", "global", "select", "local", "fuse", "total")
    points = SECTIONS["tradeoff"](example_reports.tradeoff())
    assert points.headlines[1] == "coco int8: mAP 69.10 % at 5.2 ms"
    assert points.tables[0].rows[2][-1] == "40.0%"
    ways = SECTIONS["peers"](example_reports.peers())
    assert len(ways.headlines) == 4
    assert ways.headlines[1] == "PyTorch eager: 520 ms, 1.775 (1.772-1.778) x glocal"
    assert ways.tables[2].rows == (("OpenVINO", "not installed"),)
    counts = SECTIONS["macs"](example_reports.macs())
    assert counts.tables[0].rows[-1][1:] == ("24", "full", "34.84", "35.04", "1.117", "74.42", "35.98", "74.42")
    assert counts.headlines[-1] == "resnet101 paper, 448 px, 24 boxes: 34.84 G MACs, 1.117 x the plain backbone"


def test_newest_takes_the_latest_of_each_kind_and_model(tmp_path: Path) -> None:
    old, new, other = example_reports.startup(), example_reports.startup(), example_reports.startup()
    old["machine"]["date"], old["seconds"] = "2026-11-20", {"import": [9.0]}
    other["model"]["name"], other["loaded"] = "a|b", True
    fill(tmp_path / "cpu" / "sub", {"new": new})
    fill(tmp_path / "cpu", {"z-old": old, "other": other})
    fill(tmp_path / "gpu", {"old": old})
    assert newest(tmp_path).splitlines() == [
        "| machine | date | what | figure |",
        "| --- | --- | --- | --- |",
        "| cpu | 2026-11-25 | startup, a\\|b 448x448 | import glocal.runtime 0.011 s, Pipeline.load 0.85 s, "
        "first prediction 0.305 s (on a LOADED machine) |",
        "| cpu | 2026-11-25 | startup, photos-r101 448x448 | import glocal.runtime 0.011 s, Pipeline.load 0.85 s, "
        "first prediction 0.305 s |",
        "| gpu | 2026-11-20 | startup, photos-r101 448x448 | import 9 s |",
    ]
    assert call(tmp_path, "--newest") == newest(tmp_path) + "\n"
    assert not (tmp_path / "report.html").exists()


def test_files_of_another_shape_are_named_with_the_reason(tmp_path: Path) -> None:
    fill(tmp_path, {"good": example_reports.soak(), "older": {"results": []}, "nameless": {"benchmark": [EVIL]}})
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "folder.json").mkdir()
    found = collect(tmp_path)
    assert [entry.path for entry in found.entries] == ["good.json"]
    reasons = dict(found.left_out)
    assert list(reasons) == ["binary.json", "deep.json", "folder.json", "nameless.json", "older.json"]
    assert "no JSON" in reasons["binary.json"]
    assert "cannot be read" in reasons["folder.json"]
    assert "older" in reasons["older.json"]
    assert "older.json" in markdown(found, "x")


def test_a_folder_without_reports_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        collect(tmp_path / "none")
    with pytest.raises(GlocalError, match="no JSON file"):
        collect(tmp_path)
    fill(tmp_path, {"older": {}})
    with pytest.raises(GlocalError, match="1 JSON files of another shape"):
        newest(tmp_path)


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in", {"startup": example_reports.startup()})
    out = tmp_path / "report.html"
    out.write_text("before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(GlocalError, match="disk full"):
        report_cli.report(tmp_path / "in", out)
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_plots_without_markdown_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"startup": example_reports.startup()})
    with pytest.raises(UsageError, match="--plots"):
        report_cli.report(tmp_path, tmp_path / "r.html", plots=tmp_path)
