"""The bundle: a folder that holds a model's graphs and all that is needed to run them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import BundleError, GlocalError, UsageError
from .files import chunks, open_inside, stage_folder, write_atomically, write_through
from .manifest import MANIFEST, Manifest, Precision, make_manifest, parse_manifest

_FIX = "Name the folder of a bundle; copy the whole bundle again, or export it again."


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
                for chunk in chunks(file):
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
        return open_inside(self.path, relative, _FIX)

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
    with stage_folder(target) as staging:
        digests = {relative: write_through(staging / relative, content) for relative, content in files.items()}
        manifest = make_manifest({**fields, "files": digests}, str(target))
        write_through(staging / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
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
    for relative, content in files.items():
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
        precision: Its graphs, thresholds and figures go, every file in the folder of its name, and provenance that
            begins with its name and ``_``.

    Returns:
        The bundle as it is now; the same if it had no such precision.

    Raises:
        BundleError: It has no other precision.
        OSError: The folder cannot be written.
    """
    fields = bundle.manifest.model_dump()
    for name in ("thresholds", "early_exit", "metrics", "verification"):
        fields[name].pop(precision, None)
    fields["provenance"] = {k: v for k, v in fields["provenance"].items() if not k.startswith(f"{precision}_")}
    gone = [relative for relative in bundle.manifest.files if relative.startswith(f"{precision}/")]
    for relative in gone:
        del fields["files"][relative]
    manifest = make_manifest(fields, str(bundle.path))
    write_atomically(bundle.path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    for relative in gone:
        (bundle.path / relative).unlink(missing_ok=True)
    return Bundle(bundle.path, manifest)


def _read_manifest(folder: Path) -> Manifest:
    with open_inside(folder, MANIFEST, _FIX) as file:
        return parse_manifest(file.read(), str(folder / MANIFEST))


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
