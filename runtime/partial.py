"""Files that grow for long, and are never met half finished."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import GlocalError, UsageError


class PartialFile:
    """A file that is not finished yet: it lies beside its own place, as ``.NAME.partial.SUFFIX``.

    Args:
        path: Where it belongs. What stands there stays until the new one is finished.

    Attributes:
        path: Where it lies meanwhile.

    Raises:
        UsageError: Something else than a file stands there.
        GlocalError: The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._target = path.resolve()  # a link stays one
        if self._target.exists() and not self._target.is_file():  # /dev/null, say, would be replaced
            raise UsageError(f"{path} is no file that could be replaced.", fix="Name a file.")
        self.path = self._target.with_name(f".{self._target.stem}.partial{self._target.suffix}")
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.path.unlink()
        except OSError as error:
            raise self.broken(str(error)) from error

    def broken(self, found: str) -> GlocalError:
        """The error of a file that cannot be written; what there is of it goes."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        return GlocalError(f"{self._target} cannot be written.", found=found, fix="Free space, or name another file.")

    def finish(self) -> None:
        """Put the file at its place."""
        try:
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(self.path, self._target)
        except OSError as error:
            raise self.broken(str(error)) from error


class TextFile:
    """A text file, on the disk line by line, and at its place when it is closed; see `PartialFile`."""

    def __init__(self, path: Path) -> None:
        self._partial = PartialFile(path)
        try:
            self._file = self._partial.path.open(
                "w", buffering=1, encoding="utf-8", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise self._partial.broken(str(error)) from error

    def write(self, text: str) -> None:
        """Write lines; a GlocalError says that they cannot be, and that there will be no file."""
        try:
            self._file.write(text)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise self._partial.broken(str(error)) from error

    def close(self) -> None:
        """Finish the file. Closing twice is fine."""
        if self._file.closed:
            return
        try:
            self._file.close()
        except OSError as error:
            raise self._partial.broken(str(error)) from error
        self._partial.finish()
