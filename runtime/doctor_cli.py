"""The ``doctor`` command. It imports nothing that a half installed machine may lack."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .doctor import Report, examine
from .doctor_host import Host

_STYLES = {"ok": "green", "missing": "red", "broken": "red", "note": "yellow"}


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Say also what of this bundle runs here.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Time limit for trying one library.")] = 90,
) -> None:
    """Say what is installed, what is missing, and how to mend it. Exit code 0 when at least one backend is ready."""
    with Console(stderr=True).status("trying the libraries, each in a process of its own"):
        report = examine(Host(seconds=seconds), bundle)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)
    bundle_failed = any(check.name == "bundle" and check.state != "ok" for check in report.checks)
    raise typer.Exit(0 if report.ready and not bundle_failed else 1)


def _print(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table("", "", "", box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        found = Text(check.found)
        if check.fix:
            found.append(f"\nfix: {check.fix}", style="bold")
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), found)
    console.print(table, "")
    for name, lacking in report.backends.items():
        state = "ready" if not lacking else f"not ready, see {', '.join(lacking)}"
        console.print(Text(f"{name}: {state}", style="green" if not lacking else ""))


def main() -> None:
    """Run ``python -m glocal.runtime.doctor_cli``."""
    app = typer.Typer(add_completion=False)
    app.command()(doctor)
    app()


if __name__ == "__main__":
    main()
