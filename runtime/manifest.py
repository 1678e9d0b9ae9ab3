"""The schema of a bundle's ``manifest.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Precision = Literal["fp32", "fp16", "int8"]
Fusion = Literal["probability", "logit"]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Length = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SelectorSettings(_Model):
    """Settings of the region selector.

    Attributes:
        k_s: Categories per image.
        k_e: Regions per category.
        zetas: Steps of eq. 8, strictly increasing; each gives one variant of a region.
        shift: (N,) |running mean| / sigma of the class maps' batch norm; 0 for a negative mean where the model's shift
            is signed.
        rank: What makes a region strong, see `glocal.runtime.selector.RegionSelector`.
    """

    k_s: _Length
    k_e: _Length
    zetas: tuple[_Positive, ...]
    shift: tuple[_NotNegative, ...]
    rank: Literal["energy", "area"] = "energy"

    @model_validator(mode="after")
    def _check(self) -> SelectorSettings:
        if any(later <= earlier for earlier, later in zip(self.zetas, self.zetas[1:], strict=False)):
            raise ValueError("zetas must be strictly increasing")
        return self


class Manifest(_Model):
    """The content of ``manifest.json``.

    Attributes:
        schema_version: Layout of the bundle.
        name: What the model is called.
        labels: The N labels, in the order of the graphs' outputs.
        input_size: (height, width) of the global graph's image, pixels.
        resize: How an image is brought to that size, see `glocal.runtime.images.resize`.
        selector: Settings of the region selector.
        fusion: The fused score is the mean of the two ``probability`` values, or the probability of the mean ``logit``.
        thresholds: Per precision, (N,) fused scores from which a label is given.
        early_exit: Per precision, (low, high) global scores between which no category of an image may lie for the
            local engine to be skipped, see `glocal.runtime.early_exit`; empty where none were fitted.
        metrics: Per precision, figures of the fused scores, such as mAP.
        verification: Per precision, largest differences between the graphs and the model they come from.
        files: sha256 of each file, by its relative POSIX path.
        provenance: Where the model comes from: checkpoint hash, versions, date.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    input_size: tuple[_Length, _Length]
    resize: Literal["stretch"] = "stretch"
    selector: SelectorSettings
    fusion: Fusion = "probability"
    thresholds: dict[Precision, tuple[_Probability, ...]] = Field(min_length=1)
    early_exit: dict[Precision, tuple[_Probability, _Probability]] = {}
    metrics: dict[Precision, dict[str, float]] = {}
    verification: dict[Precision, dict[str, float]] = {}
    files: dict[str, _Sha256]
    provenance: dict[str, str] = {}

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that the bundle has graphs for."""
        return tuple(self.thresholds)

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if len(self.selector.shift) != len(self.labels):
            raise ValueError(f"{len(self.selector.shift)} values of shift for {len(self.labels)} labels")
        for path in self.files:
            _check_relative(path)
        for precision, thresholds in self.thresholds.items():
            if len(thresholds) != len(self.labels):
                raise ValueError(f"{len(thresholds)} {precision} thresholds for {len(self.labels)} labels")
            for graph in ("global.onnx", "local.onnx"):
                if f"{precision}/{graph}" not in self.files:
                    raise ValueError(f"thresholds for {precision}, but no {precision}/{graph} in files")
        for precision, (low, high) in self.early_exit.items():
            if precision not in self.thresholds:
                raise ValueError(f"early exit for {precision}, but no thresholds for it")
            if low > high:
                raise ValueError(f"{precision} early exit between {low} and {high}: the first must not be higher")
        return self


def make_manifest(fields: Mapping[str, Any], name: str) -> Manifest:
    """Build a manifest from its fields.

    Args:
        fields: The fields of `Manifest`.
        name: What to call the bundle in an error.

    Raises:
        BundleError: A field is missing, unknown or wrong.
    """
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise _as_bundle_error(error, name) from error


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Parse the content of a ``manifest.json``.

    Args:
        text: The file's content.
        name: What to call the file in an error.

    Raises:
        BundleError: It is not JSON, of another schema version, or a field is missing, unknown or wrong.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        fix = "Copy the bundle again, or export it again."
        raise BundleError(f"{name} is not JSON.", found=str(error), fix=fix) from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version is None:
        raise BundleError(f"{name} is not a bundle's manifest.", found="no schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{name} has a schema version that this version of glocal does not read.",
            found=f"schema_version {version}, this version reads {SCHEMA_VERSION}",
            fix="Install the version of glocal that wrote it, or export the model again with this version.",
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise _as_bundle_error(error, name) from error


def _as_bundle_error(error: ValidationError, name: str) -> BundleError:
    mistakes = []
    for mistake in error.errors()[:5]:
        place = ".".join(str(part) for part in mistake["loc"])
        mistakes.append(f"{place}: {mistake['msg']}" if place else mistake["msg"])
    fix = "Export the bundle again."
    return BundleError(f"{name} does not follow the schema.", found="; ".join(mistakes), fix=fix)


def _check_relative(path: str) -> None:
    """Refuse a path that is not a plain relative POSIX path, or that takes the manifest's place."""
    parts = PurePosixPath(path)
    plain = parts.as_posix() == path and not parts.is_absolute() and ".." not in parts.parts
    if not plain or path in (".", MANIFEST) or any(sign in path for sign in "\\:\0"):
        raise ValueError(f"{path!r} is not a plain path inside the bundle")
