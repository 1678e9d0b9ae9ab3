import pytest
import torch
from glocal.train.config import Preset, model_config
from glocal.train.model import GlocalNet
from torch import nn

CLASSES = tuple("abcdefg")


def _build_model(preset: Preset, **overrides) -> GlocalNet:
    """A small network in which every part does something: what starts as zero would hide errors."""
    torch.manual_seed(0)
    settings = {"backbone": "test_resnet", "classes": CLASSES, "image_size": (96, 128)} | overrides
    model = GlocalNet(model_config(preset, **settings))
    for block in (model.global_branch.attention, getattr(model.local_branch, "attention", None)):
        if isinstance(block, nn.Module) and hasattr(block, "out"):
            nn.init.normal_(block.out.weight, std=0.3)
    for module in model.modules():  # timm starts the last norm of a residual block at zero
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        if model.local_branch is not None:
            model.global_branch.map_norm.running_mean.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def build_model():
    return _build_model


@pytest.fixture(scope="module", params=["paper", "glocal"])
def model(request) -> GlocalNet:
    return _build_model(request.param)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
