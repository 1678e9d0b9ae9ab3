"""Checkpoints without pickle: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..runtime.errors import CheckpointError, UsageError
from ..runtime.files import write_atomically
from .config import ModelConfig
from .model import GlocalNet

SCHEMA = 1
MODEL_FILE = "model.safetensors"
STATE_FILE = "last.safetensors"


class Checkpoint(NamedTuple):
    """A trained model as read from disk."""

    model: GlocalNet
    training: dict[str, Any]  # how it was trained
    metrics: dict[str, float]  # on the validation split
    path: Path
    thresholds: tuple[float, ...] | None = None  # (N,) of the fused scores, fitted on the validation split


def save_model(
    path: Path,
    model: GlocalNet,
    training: Mapping[str, Any],
    metrics: Mapping[str, float],
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write a model's weights and configuration as one file, atomically."""
    header = {
        "schema": SCHEMA,
        "model": model.config.model_dump(mode="json"),
        "training": dict(training),
        "metrics": dict(metrics),
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
    }
    _write(path, model.state_dict(), header)


def load_model(path: str | Path) -> Checkpoint:
    """Read a model, ready for evaluation on the CPU.

    Args:
        path: A run folder or the ``model.safetensors`` in it.

    Raises:
        UsageError: Nothing is there.
        CheckpointError: The file is no checkpoint of this package, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}", fix="give a run folder or its model.safetensors")
    tensors, header = _read(path)
    if header.get("schema") != SCHEMA or "model" not in header:
        raise CheckpointError(
            f"{path} is no model of this version",
            found=f"schema {header.get('schema')!r}, expected {SCHEMA}",
            fix=f"give the {MODEL_FILE} that `glocal train` wrote",
        )
    try:
        config = ModelConfig(**header["model"])
        model = GlocalNet(config)
        model.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit this version's network", found=str(error).splitlines()[0], fix="train again"
        ) from error
    thresholds = header.get("thresholds")  # not there in files of older versions
    if thresholds is not None and len(thresholds) != len(config.classes):
        raise CheckpointError(
            f"{path} has other thresholds than classes",
            found=f"{len(thresholds)} thresholds, {len(config.classes)} classes",
            fix="train again",
        )
    fitted = None if thresholds is None else tuple(thresholds)
    return Checkpoint(model.eval(), header["training"], header["metrics"], path, fitted)


class SafetensorsIO(CheckpointIO):
    """Lightning's full training state (optimizer, schedule, loops) as safetensors and JSON instead of pickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the state atomically."""
        tensors: dict[str, Tensor] = {}
        _write(Path(path), tensors, {"state": _encode(checkpoint, tensors, "")})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the state; raises CheckpointError where the file is something else."""
        tensors, header = _read(Path(path))
        if "state" not in header:
            raise CheckpointError(f"{path} holds no training state", fix=f"resume from {STATE_FILE}")
        return _decode(header["state"], tensors)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a state file."""
        Path(path).unlink(missing_ok=True)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    # Cloned, because safetensors refuses tensors that share memory, as a shared head does.
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_atomically(path, save(plain, {"glocal": json.dumps(header)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["glocal"])
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        start = path.open("rb").read(4) if path.is_file() and os.access(path, os.R_OK) else b""
        kind = "a pickle" if start[:2] == b"PK" or start[:1] == b"\x80" else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} is no safetensors checkpoint",
            found=kind,
            fix="pickles are never loaded: train with `glocal train`, which writes safetensors, "
            "or start from a backbone with --weights",
        ) from error


def _encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A tree as JSON, its tensors moved to ``tensors``. Tuples and keys that are no strings are marked."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"__tensor__": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _encode(item, tensors, f"{name}.{key}") for key, item in value.items()}
        return {"__items__": [[key, _encode(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"training state {name} has a {type(value).__name__}, which JSON cannot hold")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__items__" in value:
        return {key: _decode(item, tensors) for key, item in value["__items__"]}
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    return {key: _decode(item, tensors) for key, item in value.items()}
