from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.fixtures import gpu, opened, reference, version  # noqa: F401 (fixtures)
from glocal.runtime.bundle import write_bundle
from tiny_model import FIELDS, FILES


@pytest.fixture
def write_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny bundle, with other graphs or manifest fields where given."""

    def write(files: dict[str, bytes] | None = None, **fields: object) -> Path:
        path = tmp_path / "bundle"
        write_bundle(path, {**FILES, **(files or {})}, **{**FIELDS, **fields})
        return path

    return write


@pytest.fixture
def tiny_bundle(write_tiny: Callable[..., Path]) -> Path:
    return write_tiny()
