import json
import os
from dataclasses import replace
from hashlib import sha256

import pytest
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import BundleError, GlocalError
from glocal.runtime.plans import (
    Plan,
    PlanInfo,
    PlanOptions,
    find_plan,
    graph_path,
    list_plans,
    record_verification,
    sources,
    write_plan,
)

BYTES = {"global": b"the global engine", "local": b"the local engine"}
ADA = (8, 9)


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture
def write(bundle):
    """Write a plan that fits TensorRT 10.3.0 on Ada, unless told otherwise."""

    def write(**fields) -> Plan:
        digests = sources(bundle, "fp32")
        graphs = {
            name: {
                "source": digests[name],
                "sha256": sha256(data).hexdigest(),
                "size": len(data),
                "seconds": 1.5,
                "layers": 3,
                "precisions": {"fp32": 2},
                "inspected": "engine",
            }
            for name, data in BYTES.items()
        }
        content = {
            "library": "tensorrt",
            "version": "10.3.0",
            "compute_capability": "8.9",
            "gpu": "NVIDIA L4",
            "precision": "fp32",
            "strongly_typed": True,
            "options": PlanOptions(),
            "graphs": graphs,
            "date": "2026-01-01",
        }
        return write_plan(bundle, PlanInfo.model_validate(content | fields), BYTES)

    return write


def test_a_plan_is_found_and_read(bundle, write):
    written = write()
    assert written.path == bundle.path / "plans" / "tensorrt-10.3.0-sm89-fp32"
    plan = find_plan(bundle, "tensorrt", "10.3.0", ADA, "fp32")
    assert plan == written
    assert {name: plan.read(name) for name in BYTES} == BYTES
    assert Bundle.load(bundle.path) == bundle  # plans are beside the bundle's files


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"compute_capability": "any", "library": "tensorrt_rtx"}, "tensorrt_rtx-10.3.0-any-fp32"),
        ({"compute_capability": "8.9+12.0", "library": "tensorrt_rtx"}, "tensorrt_rtx-10.3.0-sm89+sm120-fp32"),
        ({"version": "11.4.0.106", "compute_capability": "8.7"}, "tensorrt-11.4.0.106-sm87-fp32"),
    ],
)
def test_folders_are_named_by_what_they_fit(write, fields, name):
    assert write(**fields).path.name == name


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("tensorrt", "10.13.3", ADA, "fp32"), "built by version 10.3.0"),
        (("tensorrt", "8.6.0", ADA, "fp32"), "built by version 10.3.0"),
        (("tensorrt", "10.3.0", (8, 7), "fp32"), r"built for compute capability 8\.9 \(NVIDIA L4\)"),
        (("tensorrt", "10.3.0", None, "fp32"), "built for compute capability 8.9"),
        (("tensorrt_rtx", "10.3.0", ADA, "fp32"), "no fp32 plan of tensorrt_rtx at all"),
    ],
)
def test_a_plan_for_another_machine_is_refused_with_the_command(bundle, write, arguments, reason):
    write()
    with pytest.raises(BundleError, match=reason) as caught:
        find_plan(bundle, *arguments)
    assert caught.value.fix == f"glocal export {bundle.path} --backend {arguments[0]} --precision fp32"


def test_a_plan_of_another_graph_is_refused(bundle, write):
    write()
    files = bundle.manifest.files | {"fp32/local.onnx": "0" * 64}
    exported_again = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match="built from another local graph"):
        find_plan(exported_again, "tensorrt", "10.3.0", ADA, "fp32")


def test_compatible_plans_go_further(bundle, write):
    write(options=PlanOptions(version_compatible=True))
    assert find_plan(bundle, "tensorrt", "10.13.3.9", ADA, "fp32").info.version == "10.3.0"
    for version in ("10.2.0", "11.4.0"):
        with pytest.raises(BundleError, match="built by version"):
            find_plan(bundle, "tensorrt", version, ADA, "fp32")
    write(options=PlanOptions(hardware_compatible="ampere_plus"))
    assert find_plan(bundle, "tensorrt", "10.3.0", (8, 7), "fp32")
    assert find_plan(bundle, "tensorrt", "10.3.0", (12, 0), "fp32")
    with pytest.raises(BundleError, match="compute capability"):
        find_plan(bundle, "tensorrt", "10.3.0", (7, 5), "fp32")


def test_rtx_plans_fit_any_gpu_or_those_they_name(bundle, write):
    write(library="tensorrt_rtx", version="1.7.1", compute_capability="8.9+12.0", gpu="")
    assert find_plan(bundle, "tensorrt_rtx", "1.7.1", (12, 0), "fp32")
    with pytest.raises(BundleError, match="without a GPU"):
        find_plan(bundle, "tensorrt_rtx", "1.7.1", None, "fp32")
    write(library="tensorrt_rtx", version="1.7.1", compute_capability="any", gpu="")
    assert find_plan(bundle, "tensorrt_rtx", "1.7.1", (8, 6), "fp32").info.compute_capability == "any"


def test_the_plan_for_this_very_machine_comes_first(bundle, write):
    for version in ("10.2.0", "10.3.0", "10.4.0"):
        write(version=version, options=PlanOptions(version_compatible=True))
    write(version="10.3.0", compute_capability="8.0", options=PlanOptions(hardware_compatible="ampere_plus"))
    found = find_plan(bundle, "tensorrt", "10.3.0", ADA, "fp32")
    assert (found.info.version, found.info.compute_capability) == ("10.3.0", "8.9")
    found = find_plan(bundle, "tensorrt", "10.3.0", (8, 6), "fp32")
    assert (found.info.version, found.info.compute_capability) == ("10.3.0", "8.0")


def test_a_damaged_plan_is_refused(bundle, write):
    plan = write()
    (plan.path / "local.plan").write_bytes(b"the local engine, changed")
    assert plan.read("global") == BYTES["global"]
    with pytest.raises(BundleError, match="not the plan that was built"):
        plan.read("local")
    (plan.path / "local.plan").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        plan.read("local")
    os.symlink(plan.path / "global.plan", plan.path / "local.plan")
    with pytest.raises(BundleError, match="link"):
        plan.read("local")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "does not follow the schema"),
        (lambda text: json.dumps(json.loads(text) | {"schema_version": 2}), "does not follow the schema"),
        (lambda text: json.dumps(json.loads(text) | {"surprise": 1}), "does not follow the schema"),
        (lambda text: json.dumps(json.loads(text) | {"version": "10.13"}), "belongs to another plan"),
        (lambda text: text.replace('"local"', '"global"'), "does not follow the schema"),
    ],
)
def test_a_damaged_description_is_an_error_in_the_list_and_a_reason_for_refusal(bundle, write, change, message):
    path = write().path / "plan.json"
    path.write_text(change(path.read_text()))
    (error,) = list_plans(bundle)
    assert isinstance(error, GlocalError)
    assert message in error.what
    with pytest.raises(BundleError, match=message):
        find_plan(bundle, "tensorrt", "10.3.0", ADA, "fp32")


def test_unfinished_work_and_stray_files_are_no_plans(bundle, write):
    plan = write()
    plan.path.with_name(".tensorrt-10.3.0-sm89-fp32.0.new").mkdir()
    plan.path.with_name("notes.txt").write_text("mine")
    assert list_plans(bundle) == [plan]


def test_writing_again_replaces_the_whole_plan(bundle, write):
    first, second = write(), write(options=PlanOptions(max_batch=2))
    assert first.path == second.path
    assert [found.info.options.max_batch for found in list_plans(bundle)] == [2]
    assert sorted(os.listdir(bundle.path / "plans")) == [first.path.name]


def test_verification_is_noted(bundle, write):
    plan = record_verification(write(), {"real/scores": 1e-4})
    assert find_plan(bundle, "tensorrt", "10.3.0", ADA, "fp32") == plan
    assert plan.info.verification == {"real/scores": 1e-4}


def test_tensorrt_takes_its_own_graph_where_there_is_one(write_tiny):
    manifest = Bundle.load(write_tiny({"fp32/local.tensorrt.onnx": b"for TensorRT"})).manifest
    assert graph_path(manifest, "fp32", "local") == "fp32/local.tensorrt.onnx"
    assert graph_path(manifest, "fp32", "global") == "fp32/global.onnx"
    with pytest.raises(BundleError, match="no int8 graphs") as caught:
        graph_path(manifest, "int8", "global")
    assert "fp32" in caught.value.fix


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"workspace_mb": 0}, {"compute_capabilities": ("sm89",)}, {"what": 1}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="validation error"):
        PlanOptions(**options)
