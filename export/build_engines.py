"""Build a bundle from a trained checkpoint: ``python export/build_engines.py CHECKPOINT --out BUNDLE``."""

from __future__ import annotations

from glocal.export.cli import ListCommand, export
from glocal.runtime.cli import run_app

if __name__ == "__main__":
    run_app(export, ListCommand)
