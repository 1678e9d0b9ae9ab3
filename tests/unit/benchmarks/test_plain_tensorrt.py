"""The plain plan on stand-ins for TensorRT and PyCUDA, and its build with TensorRT-RTX where that is installed."""

import shutil

import numpy as np
import pytest
import tensorrt_names
from fakes.fixtures import gpu, version  # noqa: F401 (fixtures)
from fakes.tensorrt import make_plan, make_tensorrt
from glocal.benchmarks import plain_tensorrt
from glocal.benchmarks.plain_engine import OnnxRuntimePlain, open_plain
from glocal.benchmarks.plain_graph import plain_graph
from glocal.benchmarks.plain_tensorrt import TensorRTPlain
from glocal.export.tensorrt import BuiltPlan, build_plan
from glocal.export.tensorrt_layers import Inspection
from glocal.runtime.backends.tensorrt_api import Gpu, Library, load_library
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import BundleError, EngineError, UsageError
from glocal.runtime.plans import GRAPHS, PlanInfo, PlanOptions, sources, write_plan

SIDE, BATCH = 96, 3


def profile(batch):
    return {"image": ((1, SIDE, SIDE, 3), (batch, SIDE, SIDE, 3))}


def scenes(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def library(gpu, version):  # noqa: F811
    names = tensorrt_names.load(version)
    return Library(names.library, make_tensorrt(names, gpu), names.version)


def test_every_version_computes_what_onnx_runtime_does(exported, library):
    graph = plain_graph(exported.read("fp32/global.onnx"))
    engine, reference = TensorRTPlain(library, make_plan(graph, profile(BATCH))), OnnxRuntimePlain(graph, 1)
    for seed, batch in enumerate((1, 3, 1, 7, 1, 2, 3, 3)):  # shapes come again, and 7 runs in parts
        images = scenes(batch, seed)
        logits = engine.run(images)
        assert (logits.dtype, logits.flags.owndata) == (np.float32, True)
        np.testing.assert_allclose(logits, reference.run(images), rtol=1e-4, atol=1e-5)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run(scenes(1))


@pytest.mark.parametrize("version", ["tensorrt-10.3.0"], indirect=True)
def test_a_plan_that_is_not_plain_is_refused_and_freed(exported, library):
    plan = make_plan(exported.read("fp32/global.onnx"), profile(BATCH))
    with pytest.raises(EngineError, match="not that of a plain graph"):
        TensorRTPlain(library, plan)
    with pytest.raises(EngineError, match="cannot load the plain plan"):
        TensorRTPlain(library, b"damaged")


@pytest.mark.parametrize("version", ["tensorrt-10.3.0"], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_is_built_as_the_bundles_own_plan_was(precision, exported, library, monkeypatch, tmp_path):
    bundle = Bundle(shutil.copytree(exported.path, tmp_path / "bundle"), exported.manifest)
    device = Gpu("Orin", (8, 7), 12060)
    told = []

    def build(library, graph, name, precision, options, **machine):
        told.append((library.name, name, precision, options, machine))
        inspection = Inspection({}, {}, "network")
        return BuiltPlan(make_plan(graph, profile(options.max_batch)), 0.1, 1, True, inspection)

    monkeypatch.setattr(plain_tensorrt, "load_library", lambda _: library)
    monkeypatch.setattr(plain_tensorrt, "gpu", lambda: device)
    monkeypatch.setattr(plain_tensorrt, "build_plan", build)
    with pytest.raises(BundleError, match=f"no {precision} plan"):
        open_plain(bundle, "tensorrt", precision)
    options = PlanOptions(max_batch=BATCH, tf32=True)
    graphs = {
        graph: {"source": digest, "sha256": "0" * 64, "size": 1, "seconds": 0, "layers": 1, "precisions": {}}
        | {"inspected": "network"}
        for graph, digest in sources(bundle, precision).items()
    }
    facts = {"library": "tensorrt", "version": library.version, "compute_capability": "8.7", "gpu": device.name}
    facts |= {"precision": precision, "strongly_typed": True, "options": options, "graphs": graphs, "date": "today"}
    write_plan(bundle, PlanInfo.model_validate(facts), dict.fromkeys(GRAPHS, b"plan"))
    engine = open_plain(bundle, "tensorrt", precision)
    assert told == [("tensorrt", f"{precision}/plain", precision, options, {"gpu": device})]
    name = "int8/global.tensorrt.onnx" if precision == "int8" else "fp32/global.onnx"
    images = scenes(4)
    expected = OnnxRuntimePlain(plain_graph(exported.read(name)), 1).run(images)
    np.testing.assert_allclose(engine.run(images), expected, rtol=1e-4, atol=1e-5)
    engine.close()


@pytest.mark.parametrize("name", ["fp32/global.onnx", "fp16/global.onnx", "int8/global.tensorrt.onnx"])
def test_tensorrt_rtx_builds_it_at_its_precision(name, exported):
    try:
        rtx = load_library("tensorrt_rtx")
    except UsageError as error:
        pytest.skip(f"builds nothing: {error.what} ({error.fix})")
    graph, precision = plain_graph(exported.read(name)), name.split("/")[0]
    built = build_plan(rtx, graph, name, precision, PlanOptions(), gpu=None)
    assert built.inspection.precisions[precision] > 0
    assert built.data
