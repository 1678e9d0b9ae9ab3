"""The command, on the built-in data."""

import json

import pytest
from glocal.calib.table import read_table
from glocal.export.calibrate_cli import calibrate
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import DataError
from glocal.train.digits import CLASSES
from small_model import make_bundle
from typer import Typer
from typer.testing import CliRunner


@pytest.fixture
def run(tmp_path):
    make_bundle(tmp_path / "bundle", labels=CLASSES)
    app = Typer(pretty_exceptions_enable=False)
    app.command()(calibrate)

    def start(*args: str):
        common = ["--data", "digits", "--length", "60", "--images", "32", "--share", "0.5", "--threads", "1"]
        return CliRunner().invoke(app, [str(tmp_path / "bundle"), *common, *args])

    return start


def test_the_command_adds_int8_and_shows_its_figures(run, tmp_path):
    result = run("--method", "minmax", "--exclude", "global/trunk.0")
    assert result.exit_code == 0, result.exception
    assert "added int8" in result.output
    assert "of the boxes are the same" in result.output.replace("\n", " ")
    bundle = Bundle.load(tmp_path / "bundle")
    assert "int8" in bundle.manifest.precisions
    exclude = json.loads(bundle.read("int8/gate.json"))["exclude"]
    assert "global/trunk.0/Conv" in exclude
    assert "global/head/MatMul" in exclude  # what stays in fp32 by default does so still


def test_a_table_is_used_again_and_a_scan_writes_its_state_and_picture(run, tmp_path):
    assert run().exit_code == 0
    (tmp_path / "table.json").write_bytes((tmp_path / "bundle/int8/calibration.json").read_bytes())
    result = run("--table", str(tmp_path / "table.json"), "--scan", "--scan-images", "20", "--scan-minutes", "0.05")
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "bundle.scan.json").is_file()
    assert (tmp_path / "bundle.scan.png").read_bytes().startswith(b"\x89PNG")
    assert "left in fp32" in result.output
    table = read_table(tmp_path / "table.json")
    assert Bundle.load(tmp_path / "bundle").manifest.files["int8/calibration.json"] == table.sha256


def test_data_of_other_labels_are_refused(tmp_path, run):
    make_bundle(tmp_path / "bundle")
    assert isinstance(run().exception, DataError)
