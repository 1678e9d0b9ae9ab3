"""The Python names that each TensorRT version has, as far as this project may use them.

``<library>-<version>.json`` is ``{"library": "tensorrt" | "tensorrt_rtx", "version": "10.3.0", "source": "...",
"names": {...}}``. ``names`` maps a name of the module to the sorted public names of that class or enum (properties,
methods, members), or to null for a function or a value: ``{"Builder": ["build_serialized_network", ...], ..., "nptype":
null}``. What a version lacks is not there. Only the names in `make.CLASSES` and `make.OTHERS` are listed. `make.py`
writes the files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
VERSIONS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Names:
    """The names of one version.

    Attributes:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: Such as ``10.3.0``.
        classes: Members by class or enum.
        others: Functions and values of the module.
    """

    library: str
    version: str
    classes: dict[str, frozenset[str]]
    others: frozenset[str]

    def has(self, name: str, member: str | None = None) -> bool:
        """Whether the module has ``name``, or the class ``name`` has ``member``."""
        if member is None:
            return name in self.classes or name in self.others
        return member in self.classes.get(name, ())


def load(version: str) -> Names:
    """The names of one of `VERSIONS`, such as ``tensorrt-10.3.0``."""
    content = json.loads((FOLDER / f"{version}.json").read_text())
    names = content["names"]
    classes = {name: frozenset(members) for name, members in names.items() if members is not None}
    others = frozenset(name for name, members in names.items() if members is None)
    return Names(content["library"], content["version"], classes, others)
