"""``python -m glocal.runtime BUNDLE SOURCE``: the ``run`` command without the rest of the command line."""

from __future__ import annotations

from .cli import run, run_app

if __name__ == "__main__":
    run_app(run)
