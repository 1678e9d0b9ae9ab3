"""Errors that say what was expected, what was found, and what to do."""

from __future__ import annotations


class GlocalError(Exception):
    """Something that the caller can mend. The command line prints it without a traceback.

    Args:
        what: What went wrong, naming the file or value at fault.
        found: What was observed, where that adds something.
        fix: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: str = "", fix: str = "") -> None:
        self.what, self.found, self.fix = what, found, fix
        lines = [what]
        if found:
            lines.append(f"  found: {found}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))


class UsageError(GlocalError):
    """An argument that cannot be right, such as a path that does not exist."""

    exit_code = 2


class ImageError(GlocalError):
    """An image that cannot be read, or that is not what an image should be."""


class SourceError(GlocalError):
    """A video, camera or stream that cannot be opened, or that was lost for good."""


class BundleError(GlocalError):
    """A bundle that is incomplete, changed, or of another schema version."""


class EngineError(GlocalError):
    """An engine that failed, or whose outputs cannot be used."""


class DataError(GlocalError):
    """A data set that does not follow its layout."""


class CheckpointError(GlocalError):
    """A checkpoint that is incomplete, unsafe, or of another model."""


class CalibrationError(GlocalError):
    """Calibration that cannot be trusted: a table of another model, unsuitable images, or too much accuracy lost."""
