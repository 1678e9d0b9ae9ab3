"""Which backend and precision ``auto`` means, and what stands in the way of one that was asked for."""

import hashlib

import pytest
from glocal.runtime.backends import choose, open_engines
from glocal.runtime.backends.tensorrt_api import Gpu, Library
from glocal.runtime.bundle import Bundle, add_to_bundle
from glocal.runtime.errors import BundleError, UsageError
from glocal.runtime.plans import GRAPHS, PlanInfo, PlanOptions, sources, write_plan
from tiny_model import FILES

ORIN = Gpu("Orin", (8, 7), 12060)


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    half = {f"fp16/{graph}.onnx": FILES[f"fp32/{graph}.onnx"] for graph in GRAPHS}
    return add_to_bundle(Bundle.load(tiny_bundle), half, thresholds={"fp16": (0.5, 0.5, 0.5)})


@pytest.fixture
def installed(monkeypatch) -> dict:
    """TensorRT 10.3.0 on an Orin; a test may take either away."""
    machine = {"gpu": ORIN, "version": "10.3.0"}

    def load(name: str) -> Library:
        if name != "tensorrt" or machine["version"] is None:
            raise UsageError(f"{name} is not installed.")
        return Library("tensorrt", None, machine["version"])

    monkeypatch.setattr("glocal.runtime.backends.tensorrt_api.gpu", lambda: machine["gpu"])
    monkeypatch.setattr("glocal.runtime.backends.tensorrt_api.load_library", load)
    return machine


def add_plan(bundle: Bundle, precision: str, version: str = "10.3.0", capability: str = "8.7") -> None:
    plans = {graph: f"{graph} {precision}".encode() for graph in GRAPHS}
    facts = {
        graph: {
            "source": sources(bundle, precision)[graph],
            "sha256": hashlib.sha256(plans[graph]).hexdigest(),
            "size": len(plans[graph]),
            "seconds": 1.0,
            "layers": 3,
            "precisions": {precision: 1},
            "inspected": "network",
        }
        for graph in GRAPHS
    }
    info = PlanInfo(
        library="tensorrt", version=version, compute_capability=capability, gpu="Orin", precision=precision,
        strongly_typed=True, options=PlanOptions(), graphs=facts, date="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    write_plan(bundle, info, plans)


@pytest.mark.usefixtures("installed")
def test_auto_takes_the_plan_that_fits_fp16_before_fp32(bundle):
    assert choose(bundle, "auto", "auto") == ("onnxruntime", "fp32")
    add_plan(bundle, "fp32")
    assert choose(bundle, "auto", "auto") == ("tensorrt", "fp32")
    assert choose(bundle, "auto", "fp16") == ("onnxruntime", "fp16")
    add_plan(bundle, "fp16")
    assert choose(bundle, "auto", "auto") == choose(bundle, "tensorrt", "auto") == ("tensorrt", "fp16")
    assert choose(bundle, "auto", "fp32") == ("tensorrt", "fp32")
    assert choose(bundle, "onnxruntime", "auto") == ("onnxruntime", "fp32")


@pytest.mark.parametrize(
    "change", [{"gpu": None}, {"version": None}, {"version": "10.4.0"}, {"gpu": Gpu("", (8, 9), 0)}]
)
def test_auto_leaves_a_plan_that_does_not_fit(bundle, installed, change):
    add_plan(bundle, "fp16")
    assert choose(bundle, "auto", "auto") == ("tensorrt", "fp16")
    installed.update(change)
    assert choose(bundle, "auto", "auto") == ("onnxruntime", "fp32")


def test_a_plan_that_was_asked_for_and_does_not_fit_is_refused_with_the_command_that_builds_it(bundle, installed):
    add_plan(bundle, "fp16")
    installed["gpu"] = Gpu("Thor", (11, 0), 13000)
    with pytest.raises(BundleError, match="no fp16 plan for tensorrt") as caught:
        open_engines(bundle, *choose(bundle, "tensorrt", "fp16"), None)
    assert "built for compute capability 8.7" in caught.value.found
    assert f"glocal export {bundle.path} --backend tensorrt --precision fp16" in caught.value.fix


def test_what_there_is_not(bundle):
    with pytest.raises(UsageError, match="no backend 'caffe'"):
        choose(bundle, "caffe", "auto")
    with pytest.raises(UsageError, match="no precision 'int8'"):
        choose(bundle, "onnxruntime", "int8")
    with pytest.raises(UsageError, match="no precision 'int8'"):
        choose(bundle, "auto", "int8")
