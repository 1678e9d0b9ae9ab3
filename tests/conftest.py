"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import pytest

# Test processes share few cores with each other; spinning threads of idle pools would only slow them down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def photo_data() -> Path:
    """The folder with real photos that some tests need."""
    root = os.environ.get("GLOCAL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("GLOCAL_DATA names no folder with photos (coco18, coco80_mini)")
    return Path(root)
