"""Pretrained backbones: by name from timm's hub, or from a local file."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime.errors import CheckpointError, UsageError
from .backbone import Backbone, create_timm_model, split

_CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "_fc.")


class Start(NamedTuple):
    """Where training starts from: a split backbone and the normalisation its weights expect."""

    backbone: Backbone
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_backbone(name: str, weights: str | Path = "none") -> Start:
    """Build a backbone.

    Args:
        name: A timm model name.
        weights: ``none`` for random weights, ``hub`` for those timm downloads, or a file: ``.safetensors``, or a
            ``.pth`` of tensors only (never unpickled otherwise). Keys follow timm (torchvision's ResNets do) or
            efficientnet_lite_pytorch. A classifier in the file is ignored.

    Raises:
        UsageError: The name or the file does not exist, or the hub cannot be reached.
        CheckpointError: The file is unsafe, unreadable, or holds another network.
    """
    model = create_timm_model(name)
    cfg = cast("dict[str, Any]", model.pretrained_cfg)
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if weights == "hub":
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
        except Exception as error:  # timm and its hub client raise many kinds
            raise UsageError(
                f"the pretrained weights of {name} could not be had",
                found=str(error).splitlines()[0],
                fix="give a local file: --weights PATH (.safetensors, or .pth of tensors)",
            ) from error
    elif weights != "none":
        state = read_tensors(Path(weights))
        if "_conv_stem.weight" in state:
            state = _from_efficientnet_lite(state, model)
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # that package feeds (value - 127) / 128
        _load(model, state, Path(weights), name)
    return Start(split(model, name), mean, std)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file as float32, without running code from it.

    Raises:
        UsageError: No such file.
        CheckpointError: The file is not of tensors only.
    """
    if not path.is_file():
        raise UsageError(
            f"no weights file at {path}", fix="use 'none', 'hub', or the path of a .safetensors or .pth file"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
            if not all(isinstance(value, Tensor) for value in state.values()):
                raise TypeError("values that are not tensors")
    except (
        SafetensorError,
        AttributeError,
        EOFError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{path} is no file of plain tensors",
            found=str(error).splitlines()[0][:200],
            fix="convert it to .safetensors where you trust it; pickled objects are never loaded",
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    state = {key: value for key, value in state.items() if not key.startswith(_CLASSIFIERS)}
    own = model.state_dict()
    wrong = [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if wrong or missing:
        raise CheckpointError(
            f"{path} does not hold the weights of {name}",
            found=f"{len(missing)} tensors missing ({', '.join(missing[:2])}), "
            f"{len(wrong)} that do not fit ({', '.join(wrong[:2])})",
            fix="give the file of this backbone, with timm's key names",
        )
    model.load_state_dict(state, strict=False)


def _from_efficientnet_lite(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the keys of PyPI's efficientnet_lite_pytorch to timm's."""
    places = [(s, b) for s, stage in enumerate(model.blocks) for b in range(len(stage))]  # type: ignore[arg-type]
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanded |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    renamed = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if block and int(block[1]) < len(places):
            stage, index = places[int(block[1])]
            names = expanded if f"_blocks.{block[1]}._expand_conv.weight" in state else plain
            key = f"blocks.{stage}.{index}.{names.get(block[2], block[2])}.{block[3]}"
        elif not block:
            head, _, rest = key.partition(".")
            key = f"{outside.get(head, head)}.{rest}"
        renamed[key] = value
    return renamed
