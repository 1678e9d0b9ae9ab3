import sys
from pathlib import Path

import pytest
from glocal.runtime.bundle import write_bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))  # the tiny model stands there


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    from tiny_model import FIELDS, FILES

    write_bundle(tmp_path / "bundle", FILES, **FIELDS)
    return tmp_path / "bundle"
