"""How the doctor reaches the machine: files below a root folder, commands, and libraries each in a process of its own.

A library that is half installed can raise, crash the process or never answer. Each is therefore imported by another
process with a time limit, and what became of that process is a line in the report.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .doctor_probes import MARK

# Not ``python -m``, which would import a numpy.py of the folder that the user happens to be in.
PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from glocal.runtime.doctor_probes import main; main(sys.argv[1:])"
)


@dataclass(frozen=True)
class Ran:
    """A command that was run.

    Attributes:
        code: Exit code, negative for a signal; None where the command does not exist or did not end in time.
        out: What it wrote on stdout.
        err: What it wrote on stderr.
        hung: Whether it was ended because its time was up.
    """

    code: int | None
    out: str = ""
    err: str = ""
    hung: bool = False


Runner: TypeAlias = Callable[[Sequence[str], float], Ran]


def run_command(command: Sequence[str], seconds: float) -> Ran:
    """Run a command; it and its children are killed when the time is up."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Ran(None, err=str(error))
    _RUNNING.add(process)
    try:
        out, err = process.communicate(timeout=seconds)
        return Ran(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        return Ran(None, hung=True)
    finally:
        _RUNNING.discard(process)
        _kill(process)


def kill_running() -> None:
    """End all commands that are running: Ctrl-C reaches neither them nor the threads that wait for them."""
    for process in list(_RUNNING):
        _kill(process)


_RUNNING: set[subprocess.Popen[str]] = set()


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, where they still run."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs does not let its process go
        process.wait(timeout=5)


@dataclass(frozen=True)
class Probed:
    """What importing and trying a library gave.

    Attributes:
        state: ``missing`` where it is not installed, ``broken`` where it is and does not work.
        facts: What the probe found out, by name; see `glocal.runtime.doctor_probes`.
        why: Why it does not work.
    """

    state: Literal["ok", "missing", "broken"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Host:
    """The machine and the Python that are examined.

    Attributes:
        root: Where the file system begins; another folder than ``/`` stands in for a machine in tests.
        run: Runs a command with a time limit in seconds.
        environ: Environment variables.
        architecture: Such as ``x86_64`` or ``aarch64``.
        python: The interpreter that runs the probes.
        python_version: Its (major, minor).
        venv: Whether it is a virtual environment, and whether that sees the system's packages.
        seconds: Time limit of a probe. Loading TensorRT's kernels alone takes many seconds on a small device.
    """

    root: Path = Path("/")
    run: Runner = run_command
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    architecture: str = field(default_factory=platform.machine)
    python: str = sys.executable
    python_version: tuple[int, int] = sys.version_info[:2]
    venv: Literal["no", "closed", "open"] = field(default_factory=lambda: _venv())
    seconds: float = 90

    def path(self, absolute: str) -> Path:
        """Where an absolute path of the machine is found."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str:
        """The text of a file, empty where it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def which(self, name: str) -> str:
        """Absolute path of a program on PATH, empty where there is none."""
        for folder in self.environ.get("PATH", "").split(os.pathsep):
            if folder and self.path(f"{folder}/{name}").is_file():
                return f"{folder.rstrip('/')}/{name}"
        return ""

    def probe(self, name: str, *arguments: str) -> Probed:
        """Run a probe of `glocal.runtime.doctor_probes` in a process of its own."""
        ran = self.run([self.python, "-c", PROGRAM, name, *arguments], self.seconds)
        if ran.hung:
            return Probed("broken", why=f"did not answer within {self.seconds:g} s")
        lines = [line[len(MARK) :] for line in ran.out.splitlines() if line.startswith(MARK)]
        if lines:
            try:
                found = json.loads(lines[-1])
                return Probed(found["state"], found["facts"], found["why"] + _tensorrt_error(ran.err))
            except (ValueError, KeyError, TypeError):  # the process was cut off while writing
                pass
        if ran.code is not None and ran.code < 0:
            return Probed("broken", why=f"crashed the process with {_signal_name(-ran.code)}")
        last = (ran.err.strip().splitlines() or ["nothing on stderr"])[-1]
        return Probed("broken", why=f"ended the process with exit code {ran.code}: {last}")


def _tensorrt_error(err: str) -> str:
    """The last error that TensorRT logged: its exceptions do not tell the cause."""
    errors = [line for line in err.splitlines() if "[TRT] [E]" in line]
    return f" ({errors[-1].split('[TRT] [E]')[-1].strip()})" if errors else ""


def _venv() -> Literal["no", "closed", "open"]:
    if sys.prefix == sys.base_prefix:
        return "no"
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower().replace(" ", "")
    except OSError:
        return "closed"
    return "open" if "include-system-site-packages=true" in settings else "closed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
