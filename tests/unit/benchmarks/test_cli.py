"""The `glocal` command: what a user sees when something is wrong."""

import subprocess
import sys

import pytest
from glocal.benchmarks.cli import main


@pytest.fixture
def glocal(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["glocal", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


def test_usage_errors_exit_with_2(glocal, tmp_path):
    for arguments, message in (
        (["train", "--data", "digits"], "--out"),
        (
            ["train", "--data", "digits", "--out", str(tmp_path / "r"), "--lr", "-1"],
            "--lr: Input should be greater than 0",
        ),
        (["train", "--data", "digits", "--out", str(tmp_path / "r"), "--backbone", "resnet1"], "unknown backbone"),
        (["evaluate", str(tmp_path / "none"), "--data", "digits"], "no checkpoint"),
        (["export", str(tmp_path / "none"), "--out", str(tmp_path / "b")], "none does not exist"),
        (["run", str(tmp_path / "none"), str(tmp_path)], ""),
        (["nonsense"], "nonsense"),
    ):
        code, error = glocal(*arguments)
        assert code == 2, arguments
        assert message in error
        assert "Traceback" not in error


def test_bad_data_exits_with_1(glocal, tmp_path):
    folder = tmp_path / "data"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "classes.txt").write_text("cat\n")
    (folder / "labels.csv").write_text("image,split,labels\na.jpg,train,dog\n")
    code, error = glocal("train", "--data", str(folder), "--out", str(tmp_path / "run"))
    assert code == 1
    assert "unknown label" in error
    assert "'dog'" in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_file_that_cannot_be_written_is_an_error_without_a_traceback(glocal, exported, tmp_path):
    (tmp_path / "file").touch()
    options = ["--backend", "onnxruntime", "--precision", "fp32", "--batch", "1", "--rounds", "1"]
    code, error = glocal("bench", "latency", str(exported.path), *options, "--json", str(tmp_path / "file" / "x.json"))
    assert code == 1
    assert str(tmp_path / "file") in error


def test_a_missing_package_is_named_with_the_extra_to_install(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from glocal.benchmarks.cli import main\n"
        f"sys.argv = ['glocal', 'train', '--data', 'digits', '--out', {str(tmp_path / 'run')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs torch" in done.stderr
    assert "glocal[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_itself_needs_no_torch():
    program = (
        "import sys; import glocal.benchmarks.cli; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
