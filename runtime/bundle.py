"""The bundle: a folder that holds a model's graphs and all that is needed to run them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import BundleError, GlocalError, UsageError
from .files import write_atomically
from .manifest import MANIFEST, Manifest, Precision, make_manifest, parse_manifest

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were as the manifest says when it was loaded.

    Files that the manifest does not name are ignored.

    Attributes:
        path: The folder.
        manifest: The content of its manifest.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle and check its manifest and every file that it names.

        Raises:
            UsageError: There is no such folder.
            BundleError: The folder is no bundle, its schema is another, or a file is missing or changed.
        """
        path = Path(path)
        if not path.exists():
            raise UsageError(f"{path} does not exist.", fix="Name the folder of a bundle.")
        bundle = cls(path, _read_manifest(path))
        for relative in bundle.manifest.files:
            with bundle._open(relative) as file:
                digest = hashlib.sha256()
                for chunk in _chunks(file):
                    digest.update(chunk)
            bundle._check_digest(relative, digest.hexdigest())
        return bundle

    def read(self, relative: str) -> bytes:
        """Read a file of the bundle.

        The bytes that are returned are the bytes that were checked, so nothing can change in between.

        Args:
            relative: Path of the file in the manifest, such as ``fp32/global.onnx``.

        Raises:
            BundleError: The manifest does not name the file, or the file is missing or changed.
        """
        with self._open(relative) as file:
            data = file.read()
        self._check_digest(relative, hashlib.sha256(data).hexdigest())
        return data

    def _open(self, relative: str) -> BinaryIO:
        if relative not in self.manifest.files:
            raise BundleError(f"{self.path} names no file {relative}.", found=", ".join(self.manifest.files))
        return _open_inside(self.path, relative)

    def _check_digest(self, relative: str, digest: str) -> None:
        expected = self.manifest.files[relative]
        if digest != expected:
            raise BundleError(
                f"{self.path / relative} is not the file that the bundle was written with.",
                found=f"sha256 {digest[:12]}..., expected {expected[:12]}...",
                fix="Copy the bundle again, or export it again.",
            )


def write_bundle(path: str | os.PathLike[str], files: Mapping[str, bytes | Path], **fields: Any) -> Bundle:
    """Write a bundle; at no time is there half of one at ``path``.

    A bundle that stands there is replaced by the last step; it stays as it was if anything goes wrong before.

    Args:
        path: The folder to write.
        files: Content of each file, or a file to copy, by relative POSIX path.
        **fields: The fields of `Manifest` except ``files`` and ``schema_version``.

    Raises:
        UsageError: Something that is not a bundle stands at ``path``.
        BundleError: The fields do not make a manifest.
        OSError: The folder cannot be written.
    """
    target = Path(path).resolve()
    _check_replaceable(target)
    make_manifest({**fields, "files": dict.fromkeys(files, "0" * 64)}, str(target))  # before any work is done
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.new"
    try:
        staging.mkdir()
        digests = {}
        for relative, content in files.items():
            (staging / relative).parent.mkdir(parents=True, exist_ok=True)
            digests[relative] = _write(staging / relative, content)
        manifest = make_manifest({**fields, "files": digests}, str(target))
        _write(staging / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
        for folder, _, _ in os.walk(staging):
            _sync_folder(folder)
        _swap(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Bundle(target, manifest)


def add_to_bundle(bundle: Bundle, files: Mapping[str, bytes], **fields: Any) -> Bundle:
    """Add files to a bundle, such as the graphs of a further precision.

    The manifest is replaced last, so the bundle is whole at any time: before that it does not name the new files.

    Args:
        bundle: The bundle.
        files: Content of each file by relative POSIX path.
        **fields: Fields of `Manifest`. A mapping, such as ``thresholds``, is added to what is there.

    Returns:
        The bundle as it is now.

    Raises:
        UsageError: The manifest names one of the files already, with another content.
        BundleError: The fields do not make a manifest.
        OSError: The folder cannot be written.
    """
    merged = bundle.manifest.model_dump()
    for name, value in fields.items():
        merged[name] = {**merged[name], **value} if isinstance(merged.get(name), Mapping) else value
    digests = dict(bundle.manifest.files)
    contents = {
        name: content if isinstance(content, bytes) else content.read_bytes() for name, content in files.items()
    }
    for relative, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if digests.setdefault(relative, digest) != digest:
            raise UsageError(
                f"{bundle.path} has another {relative}.", fix="Export the whole bundle again, or into another folder."
            )
    manifest = make_manifest({**merged, "files": digests}, str(bundle.path))
    for relative, content in files.items():
        write_atomically(bundle.path / relative, content)
    write_atomically(bundle.path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    return Bundle(bundle.path, manifest)


def drop_from_bundle(bundle: Bundle, precision: Precision) -> Bundle:
    """Take a precision out of a bundle, such as one that is to be made anew.

    The manifest is replaced first, so the bundle is whole at any time: it no longer names what is then removed.

    Args:
        bundle: The bundle.
        precision: Its graphs, thresholds and figures go, and every file in the folder of its name.

    Returns:
        The bundle as it is now; the same if it had no such precision.

    Raises:
        BundleError: It has no other precision.
        OSError: The folder cannot be written.
    """
    fields = bundle.manifest.model_dump()
    for name in ("thresholds", "metrics", "verification"):
        fields[name].pop(precision, None)
    gone = [relative for relative in bundle.manifest.files if relative.startswith(f"{precision}/")]
    for relative in gone:
        del fields["files"][relative]
    manifest = make_manifest(fields, str(bundle.path))
    write_atomically(bundle.path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    for relative in gone:
        (bundle.path / relative).unlink(missing_ok=True)
    return Bundle(bundle.path, manifest)


def _read_manifest(folder: Path) -> Manifest:
    with _open_inside(folder, MANIFEST) as file:
        return parse_manifest(file.read(), str(folder / MANIFEST))


def _open_inside(folder: Path, relative: str) -> BinaryIO:
    path = folder / relative
    fix = "Name the folder of a bundle; copy the whole bundle again, or export it again."
    try:
        real = path.resolve()
        if real != folder.resolve() / relative:
            raise BundleError(f"{path} is a link, or lies behind one.", found=str(real), fix=fix)
        if not path.is_file():  # a pipe would block
            raise BundleError(f"{path} cannot be read.", found="no such file", fix=fix)
        return path.open("rb")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise BundleError(f"{path} cannot be read.", found=str(error), fix=fix) from error


def _check_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        _read_manifest(target)
    except GlocalError as error:
        raise UsageError(
            f"{target} exists and is not a bundle, so it is not replaced.",
            found=error.what,
            fix="Name another folder, or remove this one yourself.",
        ) from error


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _write(path: Path, content: bytes | Path) -> str:
    """Write a file through to the disk; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
            digest.update(content)
        else:
            with content.open("rb") as source:
                for chunk in _chunks(source):
                    file.write(chunk)
                    digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


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
