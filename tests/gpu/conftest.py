"""What the tests on a real GPU share: the libraries, a bundle with its plans, photos. They skip with a reason.

``pytest tests/gpu`` builds the plans of a small bundle with random weights, which needs the extra ``train``;
``GLOCAL_BUNDLE`` names another bundle, such as one that was shipped to a Jetson.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.backends.tensorrt import TensorRTEngines
from glocal.runtime.backends.tensorrt_api import Backend, Gpu, Library, gpu, load_library
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import UsageError
from glocal.runtime.images import read_image, resize
from glocal.runtime.plans import Plan, PlanOptions

MAX_BATCH, MAX_BOXES = 4, 24


@pytest.fixture(scope="session")
def card() -> Gpu:
    """The GPU."""
    found = gpu()
    if found is None:
        pytest.skip("libcuda finds no driver or no GPU")
    return found


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest, card: Gpu) -> Library:
    """Each TensorRT that is installed; the driver is asked first, because TensorRT may crash without one."""
    pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed", exc_type=ImportError)
    try:
        return load_library(cast("Backend", request.param))
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bundle(card: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle under test."""
    if named := os.environ.get("GLOCAL_BUNDLE"):  # a copy: its own plans stay as they were built
        copy = tmp_path_factory.mktemp("named") / "bundle"
        return Bundle.load(shutil.copytree(named, copy, ignore=shutil.ignore_patterns("plans")))
    torch = pytest.importorskip("torch", reason="neither GLOCAL_BUNDLE nor torch")
    from glocal.export.build import build_bundle
    from glocal.train.checkpoint import save_model
    from glocal.train.config import model_config
    from glocal.train.model import GlocalNet

    torch.manual_seed(0)
    config = model_config("glocal", backbone="resnet18", classes=tuple("abcdefgh"), image_size=(224, 224))
    model = GlocalNet(config).eval()
    torch.nn.init.normal_(model.local_branch.attention.out.weight, std=0.3)
    folder = tmp_path_factory.mktemp("gpu")
    save_model(folder / "model.safetensors", model, {"data": "random", "image_size": 224, "seed": 0}, {"mAP": 0.0})
    build_bundle(folder / "model.safetensors", folder / "bundle")
    return Bundle.load(folder / "bundle")


@pytest.fixture(scope="session")
def plan(library: Library, bundle: Bundle) -> Plan:
    """The fp32 plans of the bundle, built here."""
    from glocal.export.plans import build_plans

    options = PlanOptions(max_batch=MAX_BATCH, max_boxes=MAX_BOXES)
    (plan,) = build_plans(bundle, library.name, ["fp32"], options)
    return plan


Open = Callable[..., TensorRTEngines]


@pytest.fixture
def opened(library: Library, plan: Plan) -> Iterator[Open]:
    """Opens engines, and closes them after the test."""
    engines: list[TensorRTEngines] = []

    def open_engines(**options: Any) -> TensorRTEngines:
        settings = {"max_boxes": MAX_BOXES, **options}
        engines.append(TensorRTEngines(library, plan.read("global"), plan.read("local"), **settings))
        return engines[-1]

    yield open_engines
    for each in engines:
        each.close()


@pytest.fixture(scope="session")
def reference(bundle: Bundle) -> OnnxRuntimeEngines:
    """The same graphs in ONNX Runtime on the CPU."""
    return OnnxRuntimeEngines(bundle.read("fp32/global.onnx"), bundle.read("fp32/local.onnx"))


@pytest.fixture(scope="session")
def photos(bundle: Bundle, photo_data: Path) -> Sequence[np.ndarray]:
    """Real photos, as they are."""
    return [read_image(path) for path in sorted((photo_data / "coco18" / "JPEGImages").glob("*.jpg"))[:24]]


@pytest.fixture(scope="session")
def images(bundle: Bundle, photos: Sequence[np.ndarray]) -> np.ndarray:
    """The same photos as the global engine takes them."""
    return np.stack([resize(photo, bundle.manifest.input_size) for photo in photos])
