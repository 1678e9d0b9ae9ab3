"""The adapter on versions that do not run here, told apart by their real name lists (see builder_stand_in)."""

import json
import signal
import threading

import pytest
import tensorrt_names
from builder_stand_in import Layer, stand_in
from glocal.export.tensorrt import build_plan
from glocal.runtime.backends.tensorrt_api import Gpu, Library
from glocal.runtime.errors import EngineError, GlocalError, UsageError
from glocal.runtime.plans import PlanOptions
from rich.console import Console

ORIN = Gpu("Orin", (8, 7), 12060)
OLD = "tensorrt-8.6.0"
TENSORRT = [version for version in tensorrt_names.VERSIONS if version.startswith("tensorrt-")]
TYPED = [version for version in TENSORRT if version != OLD]
RTX = next(version for version in tensorrt_names.VERSIONS if version.startswith("tensorrt_rtx"))
HALF = [Layer("CONVOLUTION", "trunk.0", ("x",), "HALF"), Layer("SOFTMAX", "soft", ("y",), "FLOAT")]
SINGLE = [Layer("CONVOLUTION", "trunk.0", ("x",), "FLOAT"), Layer("MATRIX_MULTIPLY", "head", ("y", "w"), "FLOAT")]
QUANTIZED = [
    Layer("QUANTIZE", "q", ("x",), "INT8"),
    Layer("DEQUANTIZE", "dq", ("q:0",), "FLOAT"),
    Layer("DEQUANTIZE", "wdq", ("w",), "FLOAT"),
    Layer("CONVOLUTION", "trunk.0", ("dq:0", "wdq:0"), "FLOAT"),
]


def build(version, precision="fp32", options=None, gpu=ORIN, timing_cache=None, **behaviour):
    """Build with the stand-in of a version; returns the plan and what TensorRT was told."""
    trt = stand_in(version, **{"layers": SINGLE, **behaviour})
    library = Library(trt.__name__, trt, trt.__version__)
    options = options or PlanOptions()
    return build_plan(library, b"onnx", "some.onnx", precision, options, gpu=gpu, timing_cache=timing_cache), trt.told


@pytest.mark.parametrize("version", TYPED)
@pytest.mark.parametrize(("precision", "layers"), [("fp32", SINGLE), ("fp16", HALF), ("int8", QUANTIZED)])
def test_typed_versions_follow_the_graph(version, precision, layers):
    plan, told = build(version, precision, layers=layers)
    assert plan.strongly_typed
    assert plan.data == b"plan"
    assert ("network", {"STRONGLY_TYPED"}) in told
    assert not [what for what in told if what[0] == "set_flag"]


@pytest.mark.parametrize(("precision", "layers"), [("fp32", SINGLE), ("fp16", HALF), ("int8", QUANTIZED)])
def test_the_oldest_version_needs_flags(precision, layers):
    plan, told = build(OLD, precision, layers=layers)
    assert not plan.strongly_typed
    assert ("network", {"EXPLICIT_BATCH"}) in told
    assert [what[1] for what in told if what[0] == "set_flag"] == {"fp32": [], "fp16": ["FP16"], "int8": ["INT8"]}[
        precision
    ]


@pytest.mark.parametrize("version", TENSORRT)
def test_every_version_gets_profile_verbosity_and_no_tf32(version):
    options = PlanOptions(max_batch=4, opt_batch=2, max_boxes=24, opt_boxes=8, workspace_mb=512)
    _, told = build(version, options=options)
    assert ("shape", "image", (1, 8, 8, 3), (2, 8, 8, 3), (4, 8, 8, 3)) in told
    assert ("shape", "boxes", (1, 1, 4), (2, 8, 4), (4, 24, 4)) in told
    assert not [what for what in told if what[:2] == ("shape", "fixed")]
    assert ("clear_flag", "TF32") in told
    assert ("WORKSPACE", 512 << 20) in told
    assert ("init_libnvinfer_plugins", "") in told
    assert "DETAILED" in {
        getattr(value, "name", None) for name, value in (w for w in told if w[0] == "profiling_verbosity")
    }


def test_tf32_and_the_librarys_own_limit_are_choices():
    _, told = build(TENSORRT[0], options=PlanOptions(tf32=True))
    assert not [what for what in told if what[0] in ("clear_flag", "WORKSPACE")]


@pytest.mark.parametrize("version", TENSORRT)
def test_compatible_plans(version):
    _, told = build(version, options=PlanOptions(version_compatible=True, hardware_compatible="ampere_plus"))
    assert ("set_flag", "VERSION_COMPATIBLE") in told
    assert "AMPERE_PLUS" in [value.name for name, value in (w for w in told if w[0] == "hardware_compatibility_level")]
    same = PlanOptions(hardware_compatible="same_compute_capability")
    if tensorrt_names.load(version).has("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"):
        build(version, options=same)
    else:
        with pytest.raises(UsageError, match="SAME_COMPUTE_CAPABILITY"):
            build(version, options=same)


def test_only_rtx_builds_for_other_gpus():
    options = PlanOptions(compute_capabilities=("8.9", "12.0"))
    _, told = build(RTX, options=options, gpu=None)
    assert [what[1:] for what in told if what[0] == "set_compute_capability"] == [("SM89", 0), ("SM120", 1)]
    with pytest.raises(UsageError, match="its own GPU"):
        build(TENSORRT[0], options=options)
    with pytest.raises(UsageError, match="SM90"):
        build(RTX, options=PlanOptions(compute_capabilities=("9.0",)), gpu=None)


def test_tensorrt_without_a_gpu_is_refused_before_it_is_touched():
    library = Library("tensorrt", None, "10.3.0")  # any use of the module would fail
    with pytest.raises(UsageError, match="GPU") as caught:
        build_plan(library, b"", "some.onnx", "fp32", PlanOptions(), gpu=None)
    assert "tensorrt_rtx" in caught.value.fix


@pytest.mark.parametrize("version", tensorrt_names.VERSIONS)
def test_parser_errors_are_quoted_with_the_node(version):
    with pytest.raises(GlocalError, match="does not parse") as caught:
        build(version, errors=["Assertion failed: no ROIAlign"])
    node = "node 7" if version == OLD else "roi (RoiAlign)"
    assert caught.value.found == f"{node}: Assertion failed: no ROIAlign"
    assert "--roi-align matmul" in caught.value.fix


def test_a_failed_build_quotes_the_log():
    with pytest.raises(EngineError, match="could not build") as caught:
        build(TENSORRT[0], plan=None)
    assert caught.value.found == "no memory"


def test_a_dynamic_axis_that_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setattr("builder_stand_in._Network.shapes", (("image", (-1, -1, 8, 3)),) * 3)
    with pytest.raises(GlocalError, match="neither batch nor boxes"):
        build(TENSORRT[0])


@pytest.mark.parametrize("version", TENSORRT)
@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("raise", "TensorRT gave no message"),
        ("log", "[cache.cpp] stale, starting an empty one"),
        ("false", "TensorRT gave"),
    ],
)
def test_timing_cache(version, refusal, message, tmp_path, capsys):
    path = tmp_path / "cache" / "timing"
    build(version, timing_cache=path)
    assert path.read_bytes() == b"timings"
    _, told = build(version, timing_cache=path, cache=b"timings", refusal=refusal)
    assert [what[2] for what in told if what[0] == "set_timing_cache"] == ["taken"]
    assert "dropped" not in capsys.readouterr().err
    path.write_bytes(b"of another version")
    _, told = build(version, timing_cache=path, cache=b"timings", refusal=refusal)
    assert [what for what in told if what[0] == "set_timing_cache"][-1] == ("set_timing_cache", False, "taken")  # empty
    assert f"{path} is dropped: {message}" in capsys.readouterr().err
    assert path.read_bytes() == b"timings"


def test_rtx_says_that_it_has_no_timing_cache(tmp_path, capsys):
    _, told = build(RTX, gpu=None, timing_cache=tmp_path / "cache")
    assert not [what for what in told if "timing" in str(what[0])]
    assert "no timing cache" in capsys.readouterr().err


@pytest.mark.parametrize("version", tensorrt_names.VERSIONS)
def test_the_engine_is_inspected_where_a_gpu_can_open_it(version):
    engine = {"Layers": [{"Name": "trunk.0 + relu", "LayerType": "CaskConvolution", "Weights": {"Type": "Half"}}]}
    plan, _ = build(version, "fp16", layers=HALF, inspector=json.dumps(engine))
    assert (plan.inspection.source, plan.inspection.precisions) == ("engine", {"fp16": 1})
    engine["Layers"][0]["Weights"]["Type"] = "Float"
    with pytest.raises(GlocalError, match="wider type") as caught:
        build(version, "fp16", layers=HALF, inspector=json.dumps(engine))
    assert caught.value.found == "trunk.0 (fp32 instead of fp16)"


def test_ctrl_c_stops_a_build():
    """The first step sends Ctrl-C; later steps are reached until TensorRT hears of it."""
    seen = []

    class Steps:
        def __iter__(self):
            for step in range(10000):
                seen.append(step)
                if step == 0:
                    signal.raise_signal(signal.SIGINT)
                threading.Event().wait(0.002)
                yield step

    with pytest.raises(KeyboardInterrupt):
        build(TYPED[0], steps=Steps())
    assert 0 < len(seen) < 10000
    reached = len(seen)
    threading.Event().wait(0.05)
    assert len(seen) == reached  # nothing goes on behind


def test_an_error_in_a_build_arrives():
    class Steps:
        def __iter__(self):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        build(TYPED[0], steps=Steps())


def test_progress_is_shown_to_a_person(monkeypatch, capsys):
    terminal = Console(force_terminal=True, width=100)
    monkeypatch.setattr("glocal.export.tensorrt_progress.Console", lambda stderr: terminal)
    build(TYPED[0])
    assert "building some.onnx" in capsys.readouterr().out
