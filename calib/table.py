"""The calibration table: activation ranges, and what they belong to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..runtime.errors import CalibrationError
from ..runtime.manifest import Manifest, SelectorSettings
from .methods import Method

TABLE = "calibration.json"
# Of 224-pixel photos. Fewer leave the tails of the distributions to chance: see calib/README.md.
MINIMUM = 32

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Range = tuple[Annotated[float, Field(le=0)], Annotated[float, Field(ge=0)]]
_FIX = "Calibrate this bundle: glocal calibrate BUNDLE --data DIR."


class Table(BaseModel):
    """Activation ranges of the fp32 graphs of one bundle.

    Attributes:
        schema_version: Layout of the table.
        graphs: sha256 of each fp32 graph file that was calibrated, by its path in the bundle.
        data_sha256: Of the pixels as the network was fed with them, in order.
        images: How many images that was.
        input_size: (height, width) they were resized to, pixels.
        resize: By which rule, see `glocal.runtime.images.resize`.
        selector: Settings of the selector that chose the boxes of the local graph.
        methods: The methods by which ranges were computed.
        ranges: By graph (``global``, ``local``, ``local.tensorrt``), tensor and method: (low, high).
        date: When, ISO 8601.
        versions: Of the libraries that ran the chain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    schema_version: Literal[1] = 1
    graphs: dict[str, _Sha256]
    data_sha256: _Sha256
    images: Annotated[int, Field(ge=MINIMUM)]
    input_size: tuple[int, int]
    resize: str
    selector: SelectorSettings
    methods: tuple[Method, ...] = Field(min_length=1)
    ranges: dict[str, dict[str, dict[Method, _Range]]]
    date: str
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Of the table as it is written."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def of(self, graph: str, method: Method) -> dict[str, tuple[float, float]]:
        """Ranges of a graph's tensors by one method.

        Raises:
            CalibrationError: The table lacks the graph or the method.
        """
        if graph not in self.ranges or method not in self.methods:
            raise CalibrationError(
                f"The table has no {method} ranges of the {graph} graph.",
                found=f"{', '.join(self.methods)} of {', '.join(self.ranges)}",
                fix=_FIX,
            )
        return {tensor: ranges[method] for tensor, ranges in self.ranges[graph].items()}


def read_table(path: Path) -> Table:
    """Read a table from a file.

    Raises:
        CalibrationError: It cannot be read, or does not follow the schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read.", found=str(error), fix="Check the path.") from error
    return parse_table(data, str(path))


def parse_table(data: bytes, name: str) -> Table:
    """Parse a table; ``name`` is what to call it in an error.

    Raises:
        CalibrationError: It does not follow the schema.
    """
    try:
        return Table.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(
            f"{name} is not a calibration table.", found=f"{place}: {first['msg']}".lstrip(": "), fix=_FIX
        ) from error


def check_table(table: Table, manifest: Manifest, graphs: tuple[str, ...]) -> None:
    """Refuse a table that was made with another model, other pixels or other boxes.

    Args:
        table: The table.
        manifest: Of the bundle that is to be quantised.
        graphs: The fp32 graph files of that bundle which are to be quantised.

    Raises:
        CalibrationError: It does not belong to this bundle.
    """
    mine = {path: manifest.files[path] for path in graphs}
    if table.graphs != mine:
        wrong = sorted(path for path in {*mine, *table.graphs} if mine.get(path) != table.graphs.get(path))
        found = ", ".join(
            f"{path} {table.graphs.get(path, 'missing')[:12]} in the table, {mine.get(path, 'missing')[:12]} here"
            for path in wrong
        )
        raise CalibrationError("The calibration table belongs to another model.", found=found, fix=_FIX)
    for what in ("input_size", "resize", "selector"):
        expected, found_value = getattr(manifest, what), getattr(table, what)
        if expected != found_value:
            raise CalibrationError(
                f"The calibration table was made with another {what.replace('_', ' ')}.",
                found=f"{found_value}, the bundle has {expected}",
                fix=_FIX,
            )
