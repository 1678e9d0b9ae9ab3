"""Every command of runtime/JETSON.md exists, with the options that it names."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from glocal.benchmarks.cli import app

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "runtime" / "JETSON.md").read_text()
BLOCKS = re.findall(r"^ *```bash\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines()]
INLINE = re.findall(r"`(glocal [^`]*)`", PAGE)
COMMANDS = sorted({line for line in (*LINES, *INLINE) if line.startswith("glocal ")})


def test_the_page_has_commands():
    assert len(BLOCKS) >= 8
    assert any(line.startswith("glocal export BUNDLE --backend tensorrt") for line in LINES)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_and_its_options_exist(line):
    words = shlex.split(line.split(",")[0])[1:]
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_options_in_the_text_exist():
    known = {
        option for command in typer.main.get_command(app).commands.values() for p in command.params for option in p.opts
    }
    named = set(re.findall(r"`(--[a-z-]+)[ `]", PAGE)) - {"--system-site-packages"}
    assert named
    assert named <= known


def test_files_that_it_names_exist():
    for name in ("benchmarks/gpu.sh", "benchmarks/results"):
        assert name in PAGE
        assert (ROOT / name).exists()
