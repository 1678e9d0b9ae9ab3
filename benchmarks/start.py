"""The ``glocal`` script. ``glocal doctor`` must also start where a library that other commands import is broken."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] == ["doctor"]:
        from ..runtime.doctor_cli import main as doctor

        sys.argv = ["glocal doctor", *sys.argv[2:]]
        doctor()
        return
    try:
        from .cli import main as commands
    except ImportError as error:  # OpenCV without its libraries, say
        print(f"the commands cannot be loaded: {error}", file=sys.stderr)
        print("  fix:   `glocal doctor` says what is missing", file=sys.stderr)
        sys.exit(1)
    commands()


if __name__ == "__main__":
    main()
