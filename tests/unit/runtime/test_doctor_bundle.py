"""The doctor with a bundle: which plans fit the machine, and how to build those that are missing."""

import hashlib
import json

import pytest
import typer
from fake_host import BARE, ORIN_ANSWERS, answer, make_host
from glocal.runtime.bundle import Bundle
from glocal.runtime.doctor import examine
from glocal.runtime.doctor_cli import doctor
from glocal.runtime.plans import GraphPlan, PlanInfo, PlanOptions, sources, write_plan
from typer.testing import CliRunner

PLANS = {"global": b"global plan", "local": b"local plan"}
ANSWERS = {**ORIN_ANSWERS, "tensorrt tensorrt gpu": answer(version="10.3.0", built=True, ran=True)}


def add_plan(path, version="10.3.0", capability="8.7"):
    bundle = Bundle.load(path)
    graphs = {
        name: GraphPlan(
            source=source,
            sha256=hashlib.sha256(PLANS[name]).hexdigest(),
            size=len(PLANS[name]),
            seconds=1,
            layers=1,
            precisions={"fp32": 1},
            inspected="engine",
        )
        for name, source in sources(bundle, "fp32").items()
    }
    info = PlanInfo(
        library="tensorrt",
        version=version,
        compute_capability=capability,
        gpu="Orin",
        precision="fp32",
        strongly_typed=True,
        options=PlanOptions(),
        graphs=graphs,
        date="2026-11-25",
    )
    return write_plan(bundle, info, PLANS)


def examined(tmp_path, bundle, answers):
    report = examine(make_host(tmp_path / "root", {}, answers, architecture="aarch64"), bundle)
    json.dumps(report.to_json(), allow_nan=False)
    return {check.name: check for check in report.checks}


def test_a_plan_that_fits(tmp_path, tiny_bundle):
    add_plan(tiny_bundle)
    check = examined(tmp_path, tiny_bundle, ANSWERS)
    assert check["bundle"].state == "ok"
    assert "tiny, 3 labels, fp32" in check["bundle"].found
    assert check["tensorrt fp32 plan"].state == "ok"
    assert check["tensorrt fp32 plan"].found == "tensorrt-10.3.0-sm87-fp32"


@pytest.mark.parametrize(("other", "why"), [({"version": "10.13.3.9"}, "10.13.3.9"), ({"capability": "8.9"}, "8.9")])
def test_a_plan_of_another_machine_does_not_fit(other, why, tmp_path, tiny_bundle):
    add_plan(tiny_bundle, **other)
    check = examined(tmp_path, tiny_bundle, ANSWERS)["tensorrt fp32 plan"]
    assert check.state == "missing"
    assert why in check.found
    assert check.fix == f"glocal export {tiny_bundle} --backend tensorrt --precision fp32"


def test_a_damaged_plan_does_not_fit(tmp_path, tiny_bundle):
    plan = add_plan(tiny_bundle)
    (plan.path / "local.plan").write_bytes(b"something")
    check = examined(tmp_path, tiny_bundle, ANSWERS)["tensorrt fp32 plan"]
    assert check.state == "missing"
    assert "glocal export" in check.fix


def test_plans_that_this_user_may_not_read(tmp_path, tiny_bundle, monkeypatch):
    def refuse(*_):
        raise PermissionError("plans: Permission denied")

    monkeypatch.setattr("glocal.runtime.doctor_bundle.find_plan", refuse)
    monkeypatch.setattr("glocal.runtime.doctor_bundle.list_plans", refuse)
    check = examined(tmp_path, tiny_bundle, ANSWERS)["tensorrt fp32 plan"]
    assert (check.state, check.found) == ("broken", "plans: Permission denied")
    assert "Permission denied" in examined(tmp_path, tiny_bundle, BARE)["plans"].found


def test_without_tensorrt_the_plans_are_only_listed(tmp_path, tiny_bundle):
    add_plan(tiny_bundle)
    check = examined(tmp_path, tiny_bundle, BARE)["plans"]
    assert check.state == "note"
    assert "tensorrt-10.3.0-sm87-fp32" in check.found


def test_a_damaged_bundle_is_a_line_and_an_exit_code(tmp_path, tiny_bundle, monkeypatch):
    (tiny_bundle / "fp32" / "local.onnx").write_bytes(b"something")
    check = examined(tmp_path, tiny_bundle, BARE)["bundle"]
    assert check.state == "broken"
    assert "export it again" in check.fix
    fake = make_host(tmp_path / "root", {}, BARE)
    monkeypatch.setattr("glocal.runtime.doctor_cli.Host", lambda seconds: fake)
    app = typer.Typer()
    app.command()(doctor)
    for path, code in ((tiny_bundle, 1), (tmp_path / "none", 1)):
        result = CliRunner().invoke(app, [str(path)], catch_exceptions=False)
        assert result.exit_code == code
        assert "onnxruntime: ready" in result.stdout
    assert CliRunner().invoke(app, ["--json"], catch_exceptions=False).exit_code == 0
