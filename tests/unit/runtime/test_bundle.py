from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from glocal.runtime.bundle import Bundle, add_to_bundle, write_bundle
from glocal.runtime.errors import BundleError, UsageError
from tiny_model import FIELDS, FILES


def change_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_written_can_be_read(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    assert bundle.manifest.labels == ("red", "green", "blue")
    assert bundle.manifest.input_size == (64, 96)
    assert bundle.manifest.selector.zetas == (0.5, 1.0)
    assert bundle.manifest.precisions == ("fp32",)
    assert bundle.read("fp32/local.onnx") == FILES["fp32/local.onnx"]
    assert listing(tiny_bundle) == ["fp32", "fp32/global.onnx", "fp32/local.onnx", "manifest.json"]
    assert listing(tiny_bundle.parent)[0] == "bundle"  # and no temporary folder beside it


def test_a_manifest_without_rank_and_fusion_means_energy_and_probability(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny(fusion="logit", selector={**FIELDS["selector"], "rank": "area"})
    manifest = Bundle.load(bundle).manifest
    assert (manifest.fusion, manifest.selector.rank) == ("logit", "area")
    written = json.loads((bundle / "manifest.json").read_text())
    del written["fusion"], written["selector"]["rank"]
    (bundle / "manifest.json").write_text(json.dumps(written))
    manifest = Bundle.load(bundle).manifest
    assert (manifest.fusion, manifest.selector.rank) == ("probability", "energy")


def test_files_can_be_copied_in(tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(FILES["fp32/global.onnx"])
    bundle = write_bundle(tmp_path / "b", {**FILES, "fp32/global.onnx": graph}, **FIELDS)
    assert Bundle.load(tmp_path / "b") == bundle


@pytest.mark.parametrize("name", ["fp32/global.onnx", "fp32/local.onnx"])
def test_a_changed_byte_is_found(tiny_bundle: Path, name: str) -> None:
    data = bytearray((tiny_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not the file") as caught:
        Bundle.load(tiny_bundle)
    assert "sha256" in caught.value.found


def test_a_file_that_changes_after_loading_is_found(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    (tiny_bundle / "fp32/global.onnx").write_bytes(FILES["fp32/local.onnx"])
    with pytest.raises(BundleError, match="is not the file"):
        bundle.read("fp32/global.onnx")
    with pytest.raises(BundleError, match=r"names no file \.\./secret"):
        bundle.read("../secret")


def test_a_missing_file_is_found(tiny_bundle: Path) -> None:
    (tiny_bundle / "fp32/local.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp32/local\.onnx cannot be read"):
        Bundle.load(tiny_bundle)
    os.mkfifo(tiny_bundle / "fp32/local.onnx")
    with pytest.raises(BundleError, match=r"fp32/local\.onnx cannot be read"):
        Bundle.load(tiny_bundle)


def test_a_link_is_refused_even_to_the_right_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "fp32").rename(tmp_path / "elsewhere")
    (tiny_bundle / "fp32").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.load(tiny_bundle)


def test_a_bundle_may_be_reached_by_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_bundle)
    assert Bundle.load(tmp_path / "current").read("fp32/local.onnx") == FILES["fp32/local.onnx"]


def test_what_is_no_bundle_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Bundle.load(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(BundleError, match="is not a bundle's manifest"):
        Bundle.load(tmp_path)


def test_another_schema_version_has_its_own_message(tiny_bundle: Path) -> None:
    change_manifest(tiny_bundle, schema_version=2, something_new=True)
    with pytest.raises(BundleError, match="schema version") as caught:
        Bundle.load(tiny_bundle)
    assert "schema_version 2" in caught.value.found
    assert "Install" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"extra": 1}, "extra"),
        ({"labels": ["red", "green"]}, "3 values of shift for 2 labels"),
        ({"labels": ["red", "red", "blue"]}, "unique"),
        ({"labels": ["red", "", "blue"]}, "labels.1"),
        ({"resize": "crop"}, "resize"),
        ({"input_size": [0, 64]}, "input_size.0"),
        ({"thresholds": {"fp32": [0.5]}}, "1 fp32 thresholds for 3 labels"),
        ({"thresholds": {"fp32": [0.5, 0.5, 1.5]}}, "thresholds.fp32.2"),
        ({"metrics": {"fp32": {"mAP": float("nan")}}}, "metrics.fp32.mAP"),
        ({"thresholds": {"int8": [0.5, 0.5, 0.5]}}, "no int8/global.onnx"),
        ({"thresholds": {"fp64": [0.5, 0.5, 0.5]}}, "fp64"),
        ({"thresholds": {}}, "thresholds"),
        ({"selector": {"k_s": 2, "k_e": 2, "zetas": [1, 0.5], "shift": [0, 0, 0]}}, "strictly increasing"),
        ({"selector": {"k_s": 0, "k_e": 2, "zetas": [1], "shift": [0, 0, 0]}}, "selector.k_s"),
        ({"selector": {"k_s": 2, "k_e": 2, "zetas": [1], "shift": [0, 0, 0], "rank": "size"}}, "selector.rank"),
        ({"fusion": "maximum"}, "fusion"),
        ({"files": {"/etc/passwd": "0" * 64}}, "plain path"),
        ({"files": {"../outside": "0" * 64}}, "plain path"),
        ({"files": {"a\\b": "0" * 64}}, "plain path"),
        ({"files": {"manifest.json": "0" * 64}}, "plain path"),
        ({"files": {"fp32/global.onnx": "abc"}}, "files.fp32/global.onnx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_manifest_names_the_field(tiny_bundle: Path, changes: dict, found: str) -> None:
    change_manifest(tiny_bundle, **changes)
    with pytest.raises(BundleError, match="does not follow the schema") as caught:
        Bundle.load(tiny_bundle)
    assert found in caught.value.found


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "b", {**FILES, "fp32/notes.txt": tmp_path / "missing"}, **FIELDS)
    assert listing(tmp_path) == []


def test_a_write_that_breaks_off_leaves_the_old_bundle(tiny_bundle: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(tiny_bundle, {**FILES, "notes.txt": tiny_bundle / "missing"}, **{**FIELDS, "name": "new"})
    assert Bundle.load(tiny_bundle).manifest.name == "tiny"
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]


def test_a_failing_last_step_puts_the_old_bundle_back(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        write_bundle(tiny_bundle, FILES, **{**FIELDS, "name": "new"})
    assert Bundle.load(tiny_bundle).manifest.name == "tiny"
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_is_replaced_as_a_whole(tiny_bundle: Path) -> None:
    write_bundle(tiny_bundle, {**FILES, "notes.txt": b"x"}, **{**FIELDS, "name": "second"})
    write_bundle(tiny_bundle, FILES, **{**FIELDS, "name": "third"})
    assert Bundle.load(tiny_bundle).manifest.name == "third"
    assert not (tiny_bundle / "notes.txt").exists()
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_bundle(tmp_path / "photos", FILES, **FIELDS)  # empty: nothing to lose
    shutil.rmtree(tmp_path / "photos/fp32")
    (tmp_path / "photos/manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UsageError, match="is not a bundle, so it is not replaced"):
        write_bundle(tmp_path / "photos", FILES, **FIELDS)
    assert listing(tmp_path) == ["photos", "photos/manifest.json"]


def test_a_wrong_manifest_is_not_written(write_tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not follow the schema"):
        write_tiny(labels=("red", "green"))
    with pytest.raises(BundleError, match="plain path"):
        write_tiny(files={"../outside.txt": b"x"})
    assert listing(tmp_path) == []


def test_a_precision_can_be_added(tiny_bundle: Path) -> None:
    before = Bundle.load(tiny_bundle)
    half = {f"fp16/{name}.onnx": FILES[f"fp32/{name}.onnx"] for name in ("global", "local")}
    added = add_to_bundle(before, half, thresholds={"fp16": (0.4, 0.5, 0.6)}, provenance={"fp16": "made"})
    assert Bundle.load(tiny_bundle) == added
    assert added.manifest.precisions == ("fp32", "fp16")
    assert added.manifest.thresholds["fp32"] == before.manifest.thresholds["fp32"]
    assert added.manifest.provenance == {"checkpoint": "none", "fp16": "made"}
    assert add_to_bundle(added, half) == added  # the same content again changes nothing


@pytest.mark.parametrize("at", ["fp16/local.onnx", "manifest.json"])
def test_a_bundle_stays_whole_when_adding_to_it_fails(tiny_bundle: Path, monkeypatch, at: str) -> None:
    import glocal.runtime.bundle as module

    before, write = Bundle.load(tiny_bundle), module.write_atomically

    def fail(path: Path, data: bytes) -> None:
        if path == tiny_bundle / at:
            raise OSError("disk full")
        write(path, data)

    monkeypatch.setattr(module, "write_atomically", fail)
    half = {f"fp16/{name}.onnx": FILES[f"fp32/{name}.onnx"] for name in ("global", "local")}
    with pytest.raises(OSError, match="disk full"):
        add_to_bundle(before, half, thresholds={"fp16": (0.5, 0.5, 0.5)})
    assert Bundle.load(tiny_bundle) == before


def test_adding_replaces_no_file_and_needs_whole_precisions(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    with pytest.raises(UsageError, match=r"another fp32/local\.onnx"):
        add_to_bundle(bundle, {"fp32/local.onnx": b"other"})
    with pytest.raises(BundleError, match=r"no fp16/global\.onnx"):
        add_to_bundle(bundle, {"fp16/local.onnx": b"alone"}, thresholds={"fp16": (0.5, 0.5, 0.5)})
    assert listing(tiny_bundle) == ["fp32", "fp32/global.onnx", "fp32/local.onnx", "manifest.json"]
