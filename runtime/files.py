"""Writing files so that nobody ever meets half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: either all of it is there afterwards, or what was there before.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the file from a service user
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def is_new_or_empty(folder: Path) -> bool:
    """Whether a folder can be filled without mixing with anything that is there."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
