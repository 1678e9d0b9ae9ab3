import json
import os
import subprocess
import sys

import pytest
from glocal.export import plans as plans_module
from glocal.export.half import to_half
from glocal.export.plans import build_plans
from glocal.runtime.bundle import Bundle, write_bundle
from glocal.runtime.errors import BundleError, GlocalError, UsageError
from glocal.runtime.plans import PlanOptions, find_plan, list_plans

FIELDS = {
    "name": "tiny",
    "labels": tuple("abcde"),
    "input_size": (96, 128),
    "selector": {"k_s": 2, "k_e": 2, "zetas": (0.5, 1.0), "shift": (0.1,) * 5},
    "thresholds": {"fp32": (0.5,) * 5, "fp16": (0.5,) * 5},
}


@pytest.fixture
def bundle(tmp_path, rtx, graphs) -> Bundle:
    """A bundle with the graphs of a small network in fp32 and fp16."""
    single = {"fp32/global.onnx": graphs["global"], "fp32/local.onnx": graphs["matmul"]}
    half = {name.replace("fp32", "fp16"): to_half(graph) for name, graph in single.items()}
    return write_bundle(tmp_path / "bundle", {**single, **half}, **FIELDS)


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """The graphs that are built, in order."""
    names, real = [], plans_module.build_plan

    def build_plan(library, graph, name, *arguments, **options):
        names.append(name)
        return real(library, graph, name, *arguments, **options)

    monkeypatch.setattr(plans_module, "build_plan", build_plan)
    return names


def test_plans_are_built_once(bundle, builds, rtx, capsys):
    plans = build_plans(bundle, "tensorrt_rtx", ["fp32", "fp16"])
    assert builds == ["fp32/global.onnx", "fp32/local.onnx", "fp16/global.onnx", "fp16/local.onnx"]
    assert [plan.path.name for plan in plans] == [f"tensorrt_rtx-{rtx.version}-any-{p}" for p in ("fp32", "fp16")]
    for plan in plans:
        assert plan == find_plan(bundle, "tensorrt_rtx", rtx.version, (8, 9), plan.info.precision)
        for name, facts in plan.info.graphs.items():
            assert len(plan.read(name)) == facts.size
            assert facts.precisions[plan.info.precision] > 0
    content = json.loads((plans[1].path / "plan.json").read_text())
    assert content["strongly_typed"]
    assert content["graphs"]["global"]["source"] == bundle.manifest.files["fp16/global.onnx"]

    builds.clear()
    assert build_plans(bundle, "tensorrt_rtx", ["fp32", "fp16"]) == plans
    assert builds == []
    assert "kept" in capsys.readouterr().err

    (plans[0].path / "global.plan").write_bytes(b"damaged")
    build_plans(bundle, "tensorrt_rtx", ["fp32", "fp16"])
    assert builds == ["fp32/global.onnx", "fp32/local.onnx"]

    builds.clear()
    (again,) = build_plans(bundle, "tensorrt_rtx", ["fp32"], PlanOptions(max_batch=2))
    assert len(builds) == 2
    assert again.info.options.max_batch == 2

    builds.clear()
    changed = {name: bundle.read(name) for name in bundle.manifest.files}
    changed["fp32/global.onnx"] += b"\x7a\x00"  # an empty field that no reader knows
    exported_again = write_bundle(bundle.path.with_name("again"), changed, **FIELDS)
    (bundle.path / "plans").rename(exported_again.path / "plans")
    with pytest.raises(BundleError, match="another global graph"):
        find_plan(exported_again, "tensorrt_rtx", rtx.version, (8, 9), "fp32")
    build_plans(exported_again, "tensorrt_rtx", ["fp16", "fp32"])
    assert builds == ["fp32/global.onnx", "fp32/local.onnx"]
    assert find_plan(exported_again, "tensorrt_rtx", rtx.version, (8, 9), "fp32")


@pytest.mark.parametrize(
    ("k_s", "k_e", "options", "boxes"),
    [(5, 3, None, 45), (2, 1, None, 6), (2, 1, PlanOptions(max_boxes=16), 16), (5, 3, PlanOptions(max_boxes=16), 45)],
)
def test_plans_take_as_many_boxes_as_the_selector_proposes(tmp_path, rtx, graphs, k_s, k_e, options, boxes):
    selector = {**FIELDS["selector"], "k_s": k_s, "k_e": k_e}
    fields = {**FIELDS, "selector": selector, "thresholds": {"fp32": (0.5,) * 5}}
    files = {"fp32/global.onnx": graphs["global"], "fp32/local.onnx": graphs["matmul"]}
    (plan,) = build_plans(write_bundle(tmp_path / "bundle", files, **fields), "tensorrt_rtx", ["fp32"], options)
    assert plan.info.options.max_boxes == boxes


def test_a_build_that_was_interrupted_goes_on(bundle, monkeypatch):
    real, names = plans_module.build_plan, []

    def interrupted(library, graph, name, *arguments, **options):
        if name == "fp16/local.onnx":
            raise KeyboardInterrupt
        return real(library, graph, name, *arguments, **options)

    monkeypatch.setattr(plans_module, "build_plan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_plans(bundle, "tensorrt_rtx", ["fp32", "fp16"])
    assert [plan.info.precision for plan in list_plans(bundle)] == ["fp32"]

    monkeypatch.setattr(plans_module, "build_plan", lambda *a, **o: names.append(a[2]) or real(*a, **o))
    build_plans(bundle, "tensorrt_rtx", ["fp32", "fp16"])
    assert names == ["fp16/global.onnx", "fp16/local.onnx"]
    assert len(list_plans(bundle)) == len(os.listdir(bundle.path / "plans")) == 2


def test_nothing_is_written_when_a_precision_is_not_used(bundle, tmp_path, graphs):
    files = {
        f"{precision}/{name}.onnx": graphs[form]
        for precision in ("fp32", "fp16")
        for name, form in (("global", "global"), ("local", "matmul"))
    }
    mislabelled = write_bundle(tmp_path / "mislabelled", files, **FIELDS)
    with pytest.raises(GlocalError, match=r"fp16/global\.onnx was asked for in fp16"):
        build_plans(mislabelled, "tensorrt_rtx", ["fp16"])
    assert list_plans(mislabelled) == []


def test_a_graph_that_changed_on_disk_is_refused(bundle):
    path = bundle.path / "fp32" / "global.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(BundleError, match="not the file"):
        build_plans(bundle, "tensorrt_rtx", ["fp32"])


def test_a_precision_that_the_bundle_lacks_is_refused_before_anything_is_built(bundle, builds):
    with pytest.raises(BundleError, match="no int8 graphs"):
        build_plans(bundle, "tensorrt_rtx", ["fp32", "int8"])
    assert builds == []


def test_a_missing_library_is_refused(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match="not installed"):
        build_plans(bundle, "tensorrt_rtx", ["fp32"])


def test_building_plans_needs_no_torch():
    heavy = ("torch", "onnx", "onnxruntime", "tensorrt_rtx")
    code = f"import glocal.export.plans, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
