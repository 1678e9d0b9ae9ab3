"""Export and verify as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from glocal.benchmarks.cli import app
from glocal.export.compare import check
from glocal.export.extend import Comparison
from glocal.export.products import convolutions_to_products
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import BundleError, GlocalError, UsageError
from glocal.runtime.plans import list_plans
from glocal.train.checkpoint import save_model
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[3] / "export" / "build_engines.py"


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model.safetensors", model, {"data": "/no/such/data", "image_size": 96, "seed": 0}, {})
    return folder


@pytest.fixture(scope="module")
def built(run, tmp_path_factory) -> Path:
    """A bundle in fp32 and fp16, as the script makes it."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    command = [str(SCRIPT), str(run), "--out", str(out), "--backend", "onnxruntime", "--precision", "fp32", "fp16"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fp16 graphs verified on 2 photos" in done.stderr.replace("\n", " ")
    return out


@pytest.fixture
def bundle(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_both_precisions_are_verified(built):
    manifest = Bundle.load(built).manifest
    assert manifest.precisions == ("fp32", "fp16")
    for precision in manifest.precisions:
        check(manifest.verification[precision], precision, "the graphs")
    assert manifest.verification["fp16"]["real/global.features"] > manifest.verification["fp32"]["real/global.features"]
    assert manifest.thresholds["fp16"] == manifest.thresholds["fp32"]


def test_what_is_finished_is_kept(run, bundle, monkeypatch):
    def fail(*_: object) -> bytes:
        raise AssertionError("exported again")

    monkeypatch.setattr("glocal.export.build.export_global", fail)
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    assert invoke("export", run, "--out", bundle, "--precision", "fp16").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before
    other = invoke("export", run, "--out", bundle, "--roi-align", "operator")  # another option makes another graph
    assert str(other.exception) == "exported again"


@pytest.mark.usefixtures("exported")
def test_a_damaged_bundle_is_made_anew(run, bundle):
    (bundle / "fp32" / "local.onnx").write_bytes(b"damaged")
    assert invoke("export", run, "--out", bundle).exit_code == 0
    assert Bundle.load(bundle).manifest.precisions == ("fp32",)


def test_a_precision_is_added_to_a_bundle_without_the_checkpoint(built, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("thresholds", "metrics", "verification"):
        manifest[name].pop("fp16", None)
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name.startswith("fp32")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(bundle / "fp16")
    done = invoke("export", bundle, "--precision", "fp16")
    assert done.exit_code == 0, done.output
    assert Bundle.load(bundle).manifest.files == Bundle.load(built).manifest.files


def test_adding_to_a_bundle_and_verifying_it_need_neither_pytorch_nor_onnx(bundle):
    code = (
        "import sys\n"
        "from glocal.benchmarks.cli import app\n"
        f"app(['export', {str(bundle)!r}, '--precision', 'fp16'], standalone_mode=False)\n"
        f"app(['verify', {str(bundle)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "name the bundle with --out"),
        (["BUNDLE", "--out", "elsewhere"], "leave --out out"),
        (["BUNDLE", "--precision", "int8"], "glocal calibrate"),
        (["BUNDLE", "--precision", "fp64"], "choose from fp32, fp16, int8"),
        (["BUNDLE", "--backend", "onnxruntime-cuda"], "choose from onnxruntime, tensorrt, tensorrt_rtx"),
        (["BUNDLE", "--roi-align", "operator"], "with a checkpoint"),
        (["BUNDLE", "--max-batch", "2"], "add --backend tensorrt"),
        (["BUNDLE", "--timing-cache", "file"], "add --backend tensorrt"),
        (["BUNDLE", "--backend", "tensorrt_rtx", "--max-batch", "2", "--opt-batch", "4"], "more than --max-batch 2"),
    ],
)
def test_wrong_usage(arguments, message, run, bundle):
    paths = {"RUN": run, "BUNDLE": bundle}
    done = invoke("export", *(paths.get(argument, argument) for argument in arguments))
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_verify_compares_pytorch_and_every_precision(run, bundle, tmp_path):
    done = invoke("verify", bundle, "--checkpoint", run, "--json", tmp_path / "verify.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert [(row["precision"], row["backend"]) for row in rows] == [
        ("fp32", "onnx against PyTorch"),
        ("fp32", "onnxruntime"),
        ("fp16", "onnxruntime"),
    ]
    assert all(row["report"] and not row["over_tolerance"] and not row["skipped"] for row in rows)


def test_verify_fails_on_graphs_that_compute_something_else(bundle):
    """fp16 graphs of another model, with a manifest that vouches for them."""
    import onnx
    from glocal.runtime.bundle import add_to_bundle

    graph = onnx.load(bundle / "fp16" / "local.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "head.bias"))
    manifest = Bundle.load(bundle).manifest
    files = {name: digest for name, digest in manifest.files.items() if name != "fp16/local.onnx"}
    (bundle / "fp16" / "local.onnx").unlink()
    unnamed = Bundle(bundle, manifest.model_copy(update={"files": files}))
    add_to_bundle(unnamed, {"fp16/local.onnx": graph.SerializeToString()})
    done = invoke("verify", bundle, "--precision", "fp16")
    assert isinstance(done.exception, GlocalError)
    assert "fp16 on onnxruntime" in done.exception.found


def test_verify_refuses_the_run_of_another_bundle(model, bundle, tmp_path):
    other = tmp_path / "other"
    save_model(other / "model.safetensors", model, {"data": "x", "image_size": 96, "seed": 1}, {"mAP": 0.1})
    done = invoke("verify", bundle, "--checkpoint", other)
    assert isinstance(done.exception, UsageError)
    assert "was not made from" in str(done.exception)


def test_verify_says_what_it_could_not_run(bundle):
    done = invoke("verify", bundle, "--backend", "tensorrt", "onnxruntime", "--precision", "fp32")
    assert "fp32 on tensorrt was skipped" in done.output
    assert done.exception.found == "fp32 on tensorrt could not be compared"  # it was named


@pytest.mark.usefixtures("exported")
def test_graphs_that_differ_are_written_only_when_allowed(run, tmp_path, monkeypatch):
    real = __import__("glocal.export.build", fromlist=["verify_graphs"]).verify_graphs
    monkeypatch.setattr("glocal.export.build.verify_graphs", lambda *a: {**real(*a), "real/local.logits": 0.5})
    out = tmp_path / "bundle"
    assert isinstance(invoke("export", run, "--out", out).exception, GlocalError)
    assert not out.exists()
    assert invoke("export", run, "--out", out, "--allow").exit_code == 0
    assert Bundle.load(out).manifest.verification["fp32"]["real/local.logits"] == 0.5
    assert "differs by 0.5" in str(invoke("export", run, "--out", out).exception)  # kept, and still not right
    assert "differs by 0.5" in str(invoke("export", out).exception)
    assert invoke("export", out, "--allow").exit_code == 0


@pytest.mark.usefixtures("exported")
def test_the_operator_form_has_a_form_for_tensorrt_beside_it(run, rtx, graphs, tmp_path):
    out = tmp_path / "bundle"
    assert invoke("export", run, "--out", out, "--roi-align", "operator").exit_code == 0
    done = invoke("export", out, "--backend", "tensorrt_rtx", "--precision", "fp16")
    assert done.exit_code == 0, done.output
    bundle = Bundle.load(out)
    assert bundle.read("fp32/local.onnx") == convolutions_to_products(graphs["operator"])
    assert bundle.read("fp32/local.tensorrt.onnx") == graphs["matmul"]
    (plan,) = list_plans(bundle)
    assert plan.info.graphs["local"].source == bundle.manifest.files["fp16/local.tensorrt.onnx"]
    assert set(bundle.manifest.verification["fp16"]) == set(bundle.manifest.verification["fp32"]) - {
        name for name in bundle.manifest.verification["fp32"] if name.startswith("random/")
    }


@pytest.fixture
def run_plans(monkeypatch, rtx):
    """A machine with a GPU, on which plans give a report that a test chooses: a stand-in for running them."""
    report: dict[str, float] = {}
    monkeypatch.setattr("glocal.export.steps.gpu", lambda: "a GPU")

    def compared(bundle, images, backends, precisions):
        return [Comparison(precision, backends[0], dict(report)) for precision in precisions]

    monkeypatch.setattr("glocal.export.steps.verify_bundle", compared)
    return report


def test_plans_are_verified_and_kept_only_if_they_compute_the_same(bundle, run_plans):
    export = ("export", bundle, "--backend", "tensorrt_rtx", "--precision", "fp16")
    run_plans.update({"real/local.logits": 1e-3, "real/scores": 1e-3})
    assert invoke(*export).exit_code == 0
    (plan,) = list_plans(Bundle.load(bundle))
    assert plan.info.verification == run_plans
    run_plans["real/local.logits"] = 0.5
    assert "differs by 0.5" in str(invoke(*export).exception)
    assert list_plans(Bundle.load(bundle)) == []
    assert invoke(*export, "--allow").exit_code == 0
    assert list_plans(Bundle.load(bundle))[0].info.verification["real/local.logits"] == 0.5
    run_plans["real/local.logits"] = float("inf")
    assert "differs by inf" in str(invoke(*export, "--allow").exception)
    assert list_plans(Bundle.load(bundle)) == []


def test_a_damaged_plan_is_not_skipped(bundle, rtx):
    assert invoke("export", bundle, "--backend", "tensorrt_rtx", "--precision", "fp16").exit_code == 0
    done = invoke("verify", bundle, "--precision", "fp16")
    assert done.exit_code == 0, done.exception
    (plan,) = list_plans(Bundle.load(bundle))
    (plan.path / "local.plan").write_bytes(b"damaged")
    assert isinstance(invoke("verify", bundle).exception, BundleError)


def test_figures_that_are_not_finite_are_null_in_json(bundle, tmp_path, monkeypatch):
    found = [Comparison("fp16", "onnxruntime", {"real/scores": float("inf")})]
    monkeypatch.setattr("glocal.export.steps.verify_bundle", lambda *_: found)
    done = invoke("verify", bundle, "--json", tmp_path / "verify.json")
    assert "fp16 on onnxruntime differs in real/scores" in done.exception.found
    (row,) = json.loads((tmp_path / "verify.json").read_text(), parse_constant=pytest.fail)
    assert row["report"] == row["over_tolerance"] == {"real/scores": None}


def test_paths_are_printed_as_they_are(bundle, tmp_path):
    named = bundle.rename(tmp_path / "[bold]")
    done = invoke("verify", named, "--precision", "fp16")
    assert done.exit_code == 0, done.output
    assert "[bold]" in done.output  # no markup


def test_defaults_are_in_the_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command, default in (("export", "onnxruntime"), ("verify", "all that it has")):
        assert f"[default: ({default})]" in invoke(command, "--help").output
