"""Writing files so that nobody ever meets half of one, and reading them from where they should be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import BundleError

_CHUNK = 1 << 20


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


@contextlib.contextmanager
def stage_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``target`` in one step when the block ends well.

    What stands at ``target`` stays as it was if anything goes wrong before.

    Raises:
        OSError: The folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.new"
    try:
        staging.mkdir()
        yield staging
        for folder, _, _ in os.walk(staging):
            _sync_folder(folder)
        _swap(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_through(path: Path, content: bytes | Path) -> str:
    """Write a new file, from bytes or another file, through to the disk; returns its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
            digest.update(content)
        else:
            with content.open("rb") as source:
                for chunk in chunks(source):
                    file.write(chunk)
                    digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def open_inside(folder: Path, relative: str, fix: str) -> BinaryIO:
    """Open a file of a folder for reading; a link, or a file behind one, is refused.

    Raises:
        BundleError: It is missing, no file, or not inside the folder.
    """
    path = folder / relative
    try:
        real = path.resolve()
        if real != folder.resolve() / relative:
            raise BundleError(f"{path} is a link, or lies behind one.", found=str(real), fix=fix)
        if not path.is_file():  # a pipe would block
            raise BundleError(f"{path} cannot be read.", found="no such file", fix=fix)
        return path.open("rb")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise BundleError(f"{path} cannot be read.", found=str(error), fix=fix) from error


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The content of a file, a mebibyte at a time."""
    while chunk := file.read(_CHUNK):
        yield chunk


def is_new_or_empty(folder: Path) -> bool:
    """Whether a folder can be filled without mixing with anything that is there."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _swap(new: Path, target: Path) -> None:
    """Put a finished folder at its place; what stood there goes once the new one is in."""
    old = new.with_suffix(".old")
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if replaces:
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: str | Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
