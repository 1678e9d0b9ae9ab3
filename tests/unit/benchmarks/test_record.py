import json
from pathlib import Path

import pytest
from glocal.benchmarks import record
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import GlocalError


def test_a_report_says_which_machine_and_model(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(tiny_bundle)
    monkeypatch.setattr("sys.argv", ["/usr/bin/glocal", "bench", "latency", "/home/me/my bundle", "--rounds", "5"])
    report = record.finish(record.begin("latency", bundle))
    assert report["benchmark"] == "latency"
    assert report["command"] == "glocal bench latency 'my bundle' --rounds 5"
    assert report["machine"]["cores"] >= 1
    assert report["model"]["labels"] == len(bundle.manifest.labels)
    assert len(report["model"]["manifest_sha256"]) == 64
    record.save(report, tmp_path / "a" / "latency.json")
    assert json.loads((tmp_path / "a" / "latency.json").read_text()) == report


@pytest.mark.parametrize(("before", "after", "loaded"), [(0.0, 0.0, False), (0.3, 0.0, True), (None, 0.2, True)])
def test_a_loaded_machine_is_flagged(
    monkeypatch: pytest.MonkeyPatch, before: float | None, after: float, loaded: bool
) -> None:
    shares = iter((before, after))
    monkeypatch.setattr(record, "busy_share", lambda: next(shares))
    report = record.finish(record.begin("latency"))
    assert report["loaded"] is loaded
    assert bool(record.loaded_text(report)) is loaded


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GlocalError, match="cannot be written"):
        record.save({}, tmp_path / "file" / "report.json")
    record.save({}, None)
