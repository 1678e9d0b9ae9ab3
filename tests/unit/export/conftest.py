import pytest
import torch
from glocal.export.graphs import export_global, export_local
from glocal.runtime.backends.tensorrt_api import Library, load_library
from glocal.runtime.errors import UsageError
from glocal.train.config import model_config
from glocal.train.model import GlocalNet


@pytest.fixture(scope="session")
def model() -> GlocalNet:
    """A small network with a local stage of its own, as in the paper, in which every part does something."""
    torch.manual_seed(0)
    switches = {"roi_features": "f16", "roi_size": 4}
    config = model_config("glocal", backbone="test_resnet", classes=tuple("abcde"), image_size=(96, 128), **switches)
    model = GlocalNet(config).eval()
    torch.nn.init.normal_(model.local_branch.attention.out.weight, std=0.3)
    torch.nn.init.normal_(model.global_branch.attention.out.weight, std=0.3)
    for module in model.modules():  # timm starts the last norm of a residual block at zero, which would hide errors
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def graphs(model) -> dict[str, bytes]:
    """Its graphs in fp32: ``global``, and the local one in both forms, ``operator`` and ``matmul``."""
    return {"global": export_global(model)} | {form: export_local(model, form) for form in ("operator", "matmul")}


@pytest.fixture(scope="session")
def default_graphs() -> dict[str, bytes]:
    """Graphs of the default preset: regions from F32, and no stage of their own."""
    torch.manual_seed(0)
    config = model_config("glocal", backbone="test_resnet", classes=tuple("abcde"), image_size=(96, 128))
    model = GlocalNet(config).eval()
    return {"global": export_global(model), "matmul": export_local(model, "matmul")}


@pytest.fixture(scope="session")
def rtx() -> Library:
    """TensorRT-RTX, which builds without a GPU."""
    try:
        return load_library("tensorrt_rtx")
    except UsageError as error:
        pytest.skip(f"builds nothing: {error.what} ({error.fix})")


@pytest.fixture
def exported(graphs, monkeypatch) -> None:
    """Exporting takes seconds: graphs that were exported before serve where it is not exporting that is tested."""
    monkeypatch.setattr("glocal.export.build.export_global", lambda _: graphs["global"])
    monkeypatch.setattr("glocal.export.build.export_local", lambda _, form: graphs[form])
