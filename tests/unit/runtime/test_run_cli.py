from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import pytest
from glocal.runtime.cli import run as command
from glocal.runtime.cli import run_app
from glocal.runtime.interrupts import interrupts
from PIL import Image
from tiny_model import painted

RED, GREEN = (255, 0, 0), (0, 255, 0)


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["glocal", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run_app(command)
        captured = capsys.readouterr()
        return Done(left.value.code or 0, captured.out, captured.err)

    return run


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "glocal.runtime", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.png", RED), ("a.bmp", GREEN), ("b [1].png", RED)):
        Image.fromarray(painted(64, 96, (slice(0, 64), slice(0, 48), colour))).save(folder / name)
    return folder


def test_json_is_one_line_per_image_and_nothing_else(tiny_bundle: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    process = start(tiny_bundle, photos, "--json", "--batch", 2)
    out, err = process.communicate(timeout=60)
    documents = [json.loads(line) for line in out.splitlines()]
    names = [Path(document["source"]).name for document in documents]
    assert names == ["a.bmp", "a.png", "b [1].png", "broken.png"]
    assert [document["labels"] for document in documents] == [["green"], ["red"], ["red"], []]
    assert "broken.png" in documents[3]["error"]
    assert process.returncode == 1
    assert "broken.png cannot be decoded" in err
    assert "1 of 4 images failed" in err


def test_the_table_names_files_labels_and_scores(run: Callable[..., Done], tiny_bundle: Path, photos: Path) -> None:
    done = run(tiny_bundle, photos)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if "b [1].png" in line]
    assert len(lines) == 1
    assert "red 0." in lines[0]
    assert re.fullmatch(r"3 images in \d+\.\d s, \d+\.\d a second\n", done.err)


def test_pictures_do_not_overwrite_each_other(
    run: Callable[..., Done], tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "a.png.webp").write_bytes((photos / "a.png").read_bytes())
    out = tmp_path / "deep" / "pictures"
    done = run(tiny_bundle, photos, "--draw", "--out", out, "--top", 2)
    assert done.code == 0, done.err
    names = sorted(path.name for path in out.iterdir())
    assert names == ["a.jpg", "a.png.jpg", "a.png.webp.jpg", "b [1].jpg"]
    for name in names:
        with Image.open(out / name) as picture:
            assert picture.size[0] == 970


def test_pictures_never_replace_the_sources(run: Callable[..., Done], tiny_bundle: Path, photos: Path) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    done = run(tiny_bundle, photos, "--draw", "--out", photos)
    assert done.code == 2
    assert "among the images" in done.err
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_a_picture_that_cannot_be_written_is_told(
    run: Callable[..., Done], tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = run(tiny_bundle, photos, "--draw", "--out", tmp_path / "file" / "out")
    assert done.code == 1
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err
    done = run(tiny_bundle, photos, "--draw", "--out", tmp_path / "file")
    assert done.code == 2
    assert "is a file" in done.err


def test_wrong_use_exits_with_2(run: Callable[..., Done], tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "missing", photos), "missing does not exist"),
        ((tiny_bundle, tmp_path / "missing"), "missing does not exist"),
        ((tiny_bundle, tmp_path / "empty"), "holds no image"),
        ((tiny_bundle, photos, "--precision", "int8"), "no precision 'int8'"),
        ((tiny_bundle, photos, "--backend", "abacus"), "no backend 'abacus'"),
        ((tiny_bundle, photos, "--unheard-of"), "unheard-of"),
        ((tiny_bundle, photos, "--batch", "0"), "batch"),
    ):
        done = run(*arguments)
        assert done.code == 2, (arguments, done.err)
        assert message in done.err
        assert "Traceback" not in done.err
        assert done.out == ""


def test_a_changed_bundle_exits_with_1(run: Callable[..., Done], tiny_bundle: Path, photos: Path) -> None:
    with (tiny_bundle / "fp32/local.onnx").open("ab") as file:
        file.write(b"x")
    done = run(tiny_bundle, photos)
    assert done.code == 1
    assert "is not the file" in done.err
    assert "fix:" in done.err
    assert "Traceback" not in done.err


def test_opencv_gets_one_thread_where_there_are_several_workers(
    run: Callable[..., Done], tiny_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(cv2, "setNumThreads", asked.append)
    assert run(tiny_bundle, photos, "--workers", 1).code == 0
    assert run(tiny_bundle, photos / "a.png").code == 0
    assert asked == []
    assert run(tiny_bundle, photos, "--workers", 2).code == 0
    assert asked == [1]


def many(photos: Path) -> Path:
    for index in range(400):
        os.link(photos / "a.png", photos / f"{index}.png")
    return photos


def test_a_reader_that_leaves_ends_it_quietly(tiny_bundle: Path, photos: Path) -> None:
    process = start(tiny_bundle, many(photos), "--json", "--batch", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["labels"]
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_interrupt_ends_it_quietly(tiny_bundle: Path, photos: Path) -> None:
    process = start(tiny_bundle, many(photos), "--json", "--batch", 1)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in messages


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with interrupts() as check:
        check()
        Finalised()  # its KeyboardInterrupt goes no further than __del__
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
