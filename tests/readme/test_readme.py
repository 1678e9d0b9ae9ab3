"""The README is true: its commands and its Python run, its links lead somewhere, its files exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from glocal.benchmarks.report import newest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "train" / "README.md").read_text()
JETSON = (ROOT / "runtime" / "JETSON.md").read_text()
CALIBRATION = (ROOT / "calib" / "README.md").read_text()
MEASURING = (ROOT / "benchmarks" / "README.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands_of(page: str) -> list[str]:
    return [line.split("#")[0].strip() for block in blocks("bash", page) for line in block.splitlines()]


COMMANDS = commands_of(README)


def run_all(run, commands: list[str]) -> dict[str, str]:
    """What each command prints; all must succeed, in their order."""
    printed = {}
    for command in commands:
        done = run(*shlex.split(command))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    return printed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a program in an empty folder beside the repository's scripts, with this environment's commands first."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "export").symlink_to(ROOT / "export")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def call(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)

    call.folder = folder
    return call


def test_the_newest_results_are_those_of_the_reports():
    shown = re.findall(r"^<!-- newest results -->\n(.*?)^<!-- end -->$", README, re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in shown] == [newest(ROOT / "benchmarks" / "results")]


def test_make_targets_exist():
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "glocal demo" in subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True).stdout


def test_commands_and_python_run_in_their_order(run):
    commands = [command for command in COMMANDS if not command.startswith("make ")]
    assert len(commands) >= 6
    printed = run_all(run, commands)
    assert len(list((run.folder / "runs" / "drawn").glob("*.jpg"))) == 4
    lines = printed["python -m glocal.runtime runs/digits-bundle runs/scenes/JPEGImages --json"].splitlines()
    errors = [json.loads(line)["error"] for line in lines]
    assert errors == [None] * 4
    assert (run.folder / "runs" / "clip.csv").read_text().count("drawn.avi#") == 4
    assert (run.folder / "runs" / "report.html").read_text().count("<section") == 2
    (python,) = blocks("python")
    done = run(sys.executable, "-c", python)
    assert done.returncode == 0, done.stderr
    assert "'total'" in done.stdout
    assert "predicted=4" in done.stdout


def test_the_commands_of_the_measuring_page_run(run):
    """After those of the README, which leave the bundle."""
    commands = commands_of(MEASURING)
    assert len(commands) >= 6
    run_all(run, commands)


def test_the_commands_of_the_training_page_run(run):
    commands = commands_of(TRAINING)
    assert len(commands) >= 4
    run_all(run, commands)
    assert "attention" in json.dumps(json.loads((run.folder / "runs" / "tiny.json").read_text())["probe"])
    assert (run.folder / "runs" / "tables" / "5.png").is_file()
    assert (run.folder / "runs" / "figures" / "photos.png").is_file()


@pytest.mark.parametrize(
    ("folder", "page"),
    [(".", README), ("train", TRAINING), ("runtime", JETSON), ("calib", CALIBRATION), ("benchmarks", MEASURING)],
)
def test_links_lead_somewhere(folder, page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page)
    files = [target for target in targets if not target.startswith("http")]
    assert targets
    assert [target for target in files if not (ROOT / folder / target).exists()] == []


def test_every_command_has_help_and_the_readme_names_no_other(run):
    listing = run("glocal", "--help").stdout
    commands = {
        "demo",
        "train",
        "evaluate",
        "ablate",
        "figure",
        "export",
        "verify",
        "calibrate",
        "early-exit",
        "run",
        "doctor",
        "macs",
        "bench",
    }
    for command in commands:
        assert command in listing
        done = run("glocal", command, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    missing = README.split("## What is not there yet")[1].split("##")[0]
    named = set(re.findall(r"glocal ([a-z-]+)", README.replace(missing, "") + TRAINING + MEASURING)) - {"import"}
    assert named <= commands, named - commands
