"""``glocal run`` on videos, cameras and URLs, as a process of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from mjpeg import MjpegCamera
from PIL import Image
from videos import BLACK, BLUE, GREEN, RED, damage, whole, write_video

PATIENCE = 60


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "glocal.runtime", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def count(path: Path) -> int:
    """Frames of a video that can be decoded."""
    video, frames = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        frames += 1
    return frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", [RED] * 4 + [GREEN] * 3 + [BLACK] * 2 + [BLUE] * 3, fps=5)


def test_a_video_gives_a_line_when_the_labels_change(tiny_bundle: Path, clip: Path) -> None:
    code, out, err = run(tiny_bundle, clip)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"{clip}#{index}" for index in (0, 4, 7, 9)]
    assert [line.split("  ")[1].split(" ")[0] for line in lines] == ["red", "green", "none", "blue"]
    assert err.startswith("12 frames in ")
    assert len(err.splitlines()) == 1


def test_every_output_gets_every_frame(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    damage(clip, [5])
    out = tmp_path / "out"
    files = [out / name for name in ("all.jsonl", "all.csv", "drawn.mp4")]
    code, printed, err = run(
        tiny_bundle, clip, "--json", "--jsonl", files[0], "--csv", files[1], "--video", files[2],
        "--draw", "--out", out / "pictures", "--batch", 3, "--workers", 2,
    )  # fmt: skip
    assert code == 1
    assert f"{clip}#5 cannot be decoded" in err
    assert "1 of 12 frames failed" in err
    documents = [json.loads(line) for line in printed.splitlines()]
    assert [document["source"] for document in documents] == [f"{clip}#{index}" for index in range(12)]
    assert [json.loads(line) for line in files[0].read_text().splitlines()] == documents
    with files[1].open(newline="") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == [
            "|".join(document["labels"]) for document in documents
        ]
    assert count(files[2]) == 12
    assert cv2.VideoCapture(str(files[2])).get(cv2.CAP_PROP_FPS) == 5
    assert len(list((out / "pictures").iterdir())) == 11
    assert sorted(path.name for path in out.iterdir()) == ["all.csv", "all.jsonl", "drawn.mp4", "pictures"]


def test_some_frames_are_enough(tiny_bundle: Path, clip: Path) -> None:
    code, out, err = run(tiny_bundle, clip, "--json", "--every", 2, "--frames", 3)
    assert code == 0, err
    assert [json.loads(line)["source"] for line in out.splitlines()] == [f"{clip}#{index}" for index in (0, 2, 4)]


def test_ctrl_c_ends_a_live_source_with_finished_files(tiny_bundle: Path, tmp_path: Path) -> None:
    table, video = tmp_path / "all.csv", tmp_path / "drawn.avi"
    with MjpegCamera(whole(RED), lasts=(5,)) as camera:
        process = start(tiny_bundle, camera.url, "--csv", table, "--video", video, "--no-drop")
        partial = tmp_path / ".all.partial.csv"
        wait_until(lambda: partial.exists() and len(partial.read_text().splitlines()) > 10, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.splitlines()[0].startswith(f"{camera.url}#0  red ")
    assert len(out.splitlines()) == 1
    assert "lost, trying again in 0.5 s (1st time)" in err
    assert "1 times lost and back" in err
    assert "Traceback" not in err
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [f"{camera.url}#{index}" for index in range(len(rows))]
    assert {row["labels"] for row in rows} == {"red"}
    assert count(video) == len(rows)
    assert f"{len(rows)} frames in " in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["all.csv", "drawn.avi"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_folder_that_is_interrupted_has_finished_files(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(whole(RED)).save(photos / "first.png")
    for index in range(3000):
        os.link(photos / "first.png", photos / f"{index}.png")
    process = start(tiny_bundle, photos, "--json", "--jsonl", tmp_path / "all.jsonl")
    partial = tmp_path / ".all.partial.jsonl"
    wait_until(lambda: partial.exists() and bool(partial.read_text()), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert (tmp_path / "all.jsonl").read_text() == out
    assert 1 <= len(out.splitlines()) < 3001
    assert "Traceback" not in err


def test_a_camera_that_does_not_come_back_ends_it(tiny_bundle: Path, tmp_path: Path) -> None:
    with MjpegCamera(whole(GREEN), lasts=(6,) * 99) as camera:
        url = camera.url
        process = start(tiny_bundle, url, "--tries", 1, "--jsonl", tmp_path / "all.jsonl", "--no-drop")
        partial = tmp_path / ".all.partial.jsonl"
        wait_until(lambda: partial.exists() and bool(partial.read_text()), process)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"{url} was lost" in err
    assert "1 tries" in err
    assert "Traceback" not in err
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) >= 1


def test_wrong_use_is_told_at_once(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    before = clip.read_bytes()
    for arguments, code, message in (
        ((clip, "--video", tmp_path / "drawn.gif"), 2, "no suffix of a video"),
        ((clip, "--video", clip), 2, "is what is read"),
        ((clip, "--csv", "/dev/null"), 2, "no file"),
        (("http://127.0.0.1:9/nothing",), 1, "cannot be opened"),
        (("camera:999",), 1, "cannot be opened"),
    ):
        done, out, err = run(tiny_bundle, *arguments)
        assert (done, out) == (code, ""), err
        assert message in err
        assert err.count("\n") <= 3, err  # and nothing of OpenCV's
    assert clip.read_bytes() == before
