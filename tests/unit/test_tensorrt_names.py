"""Every TensorRT name in the sources exists in every version, or is asked for with ``hasattr`` first."""

import ast
from pathlib import Path

import pytest
import tensorrt_names
from tensorrt_names import make

ROOT = Path(__file__).parents[2]
MODULE = "the module"
# What an expression is in these sources: a class or enum of TensorRT, or the module.
RECEIVERS = {
    "export/tensorrt.py": {
        "trt": MODULE,
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "flags": "BuilderFlag",
        "kinds": "NetworkDefinitionCreationFlag",
        "parser.get_error(index)": "ParserError",
        "config.get_timing_cache()": "ITimingCache",
    },
    "export/tensorrt_layers.py": {
        "trt": MODULE,
        "network": "INetworkDefinition",
        "layer": "ILayer",
        "tensor": "ITensor",
        "layer.get_output(0)": "ITensor",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "engine.create_engine_inspector()": "EngineInspector",
    },
    "export/tensorrt_progress.py": {"trt": MODULE, "config": "IBuilderConfig"},
    "runtime/backends/tensorrt_api.py": {"module": MODULE},
    "runtime/backends/tensorrt.py": {"library.module": MODULE, "self._runtime": "Runtime"},
    "runtime/backends/tensorrt_engine.py": {
        "self._trt": MODULE,
        "runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "config": "IRuntimeConfig",
    },
}
SOURCES = sorted(
    path for pattern in ("export/tensorrt*.py", "runtime/backends/tensorrt*.py") for path in ROOT.glob(pattern)
)
# Other expressions with an attribute that TensorRT also has.
OURS = {"library", "log", "log_of(library)", "device", "self._device", "bars", "self"}
# Attributes that arrays and files have too; they are looked at where the expression is declared above.
COMMON = {"shape", "dtype", "name", "itemsize", "nbytes"}
# Names that sources make up at run time, and the versions that must have them.
MADE_UP = {
    "BuilderFlag": {"FP16": ["tensorrt-8.6.0"], "INT8": ["tensorrt-8.6.0"]},
    "HardwareCompatibilityLevel": {
        "AMPERE_PLUS": tensorrt_names.VERSIONS,
        "SAME_COMPUTE_CAPABILITY": ["tensorrt-11.4.0.106"],
    },
    "ComputeCapability": {"SM89": ["tensorrt_rtx-1.7.1.116"]},
    "LayerType": {
        "CONVOLUTION": tensorrt_names.VERSIONS,
        "DECONVOLUTION": tensorrt_names.VERSIONS,
        "FULLY_CONNECTED": ["tensorrt-8.6.0"],
        "MATRIX_MULTIPLY": tensorrt_names.VERSIONS,
    },
    "DataType": dict.fromkeys(("FLOAT", "HALF", "INT8"), tensorrt_names.VERSIONS),
    "ILogger": dict.fromkeys(("WARNING", "ERROR", "INTERNAL_ERROR"), tensorrt_names.VERSIONS),
}
# Names behind ``hasattr`` of another name, which come with that one.
GUARDED_BY = {
    ("IBuilderConfig", "progress_monitor"): "IProgressMonitor",
    ("IBuilderConfig", "num_compute_capabilities"): "ComputeCapability",
    ("IBuilderConfig", "set_compute_capability"): "ComputeCapability",
    ("ParserError", "node_operator"): "node_name",
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"): "ExecutionContextAllocationStrategy",
    ("IExecutionContext", "set_device_memory"): "ExecutionContextAllocationStrategy",
    ("ICudaEngine", "create_runtime_config"): "CudaGraphStrategy",
    ("IRuntimeConfig", "set_execution_context_allocation_strategy"): "CudaGraphStrategy",
    ("IRuntimeConfig", "cuda_graph_strategy"): "CudaGraphStrategy",
}
# Names where ``hasattr`` says that another name is not there.
INSTEAD_OF = {
    ("ICudaEngine", "device_memory_size"): "device_memory_size_v2",
    ("ICudaEngine", "create_execution_context_without_device_memory"): "ExecutionContextAllocationStrategy",
}
ENUM = {"value"}  # what values of enums have


@pytest.fixture(scope="module")
def versions() -> list[tensorrt_names.Names]:
    return [tensorrt_names.load(version) for version in tensorrt_names.VERSIONS]


def used(source: str, receivers: dict[str, str], known: set[str]) -> set[tuple[str, str]]:
    """(class, member) of all TensorRT attributes in a source; one of an expression that nobody declared is an error."""
    receivers, found = dict(receivers), set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr in ENUM or node.attr.startswith("__"):
            continue
        text = ast.unparse(node.value)
        parts = text.rsplit(".", 1)
        if text in receivers:
            found.add((receivers[text], node.attr))
        elif len(parts) == 2 and receivers.get(parts[0]) == MODULE:  # trt.Class.member
            found.add((parts[1], node.attr))
        elif text not in OURS and node.attr not in COMMON:
            assert node.attr not in known, f"line {node.lineno}: what is {text} in {text}.{node.attr}?"
    return found


def guards(source: str) -> set[str]:
    """The names that a source asks for with ``hasattr``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asked = [call.args[1] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "hasattr"]
    names = {argument.value for argument in asked if isinstance(argument, ast.Constant)}
    return {name for name in names if not name.startswith("_")}  # those are of our own objects


def test_all_versions_are_listed(versions):
    listed = {names.library + " " + ".".join(names.version.split(".")[:2]) for names in versions}
    assert listed == {
        "tensorrt 8.6",
        "tensorrt 10.3",
        "tensorrt 10.13",
        "tensorrt 10.16",
        "tensorrt 11.4",
        "tensorrt_rtx 1.7",
    }
    for names in versions:
        assert {"Builder", "ICudaEngine", "IExecutionContext", "Runtime"} <= names.classes.keys()
        assert set(names.classes) <= set(make.CLASSES)


def test_every_source_is_looked_at():
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"export/tensorrt.py", "runtime/backends/tensorrt_api.py"} <= names <= RECEIVERS.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_names_exist_in_every_version_or_are_guarded(path, versions):
    source, receivers = path.read_text(), RECEIVERS[str(path.relative_to(ROOT))]
    known = {member for names in versions for members in names.classes.values() for member in members}
    found, guarded = used(source, receivers, known), guards(source)
    assert found
    for kind, member in sorted(found):
        asked = (member, None) if kind == MODULE else (kind, member)
        having = [names.version for names in versions if names.has(*asked)]
        assert having, f"no version has {kind}.{member}"
        others = {GUARDED_BY.get((kind, member)), INSTEAD_OF.get((kind, member))}
        if len(having) < len(versions):
            assert guarded & {kind, member, *others}, f"{kind}.{member}: only {having}"


def offers(names: tensorrt_names.Names, guard: str) -> bool:
    """Whether ``hasattr`` of a guard is true: of the module, or of a class."""
    return names.has(guard) if guard in make.CLASSES else any(names.has(kind, guard) for kind in names.classes)


def test_names_that_come_together(versions):
    for names in versions:
        for (kind, member), guard in GUARDED_BY.items():
            assert not offers(names, guard) or names.has(kind, member), (names.version, kind, member)
        for (kind, member), guard in INSTEAD_OF.items():
            assert offers(names, guard) or names.has(kind, member), (names.version, kind, member)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_guards_ask_for_names_that_exist(path, versions):
    everything = set().union(*(names.others | names.classes.keys() for names in versions))
    everything = everything.union(*(members for names in versions for members in names.classes.values()))
    assert guards(path.read_text()) <= everything


@pytest.mark.parametrize("kind", MADE_UP)
def test_names_made_at_run_time(kind):
    for member, where in MADE_UP[kind].items():
        for version in where:
            assert tensorrt_names.load(version).has(kind, member), (version, kind, member)


def test_the_check_sees_names():
    source = "config.set_flag(trt.BuilderFlag.FP16)\nhasattr(trt, 'IProgressMonitor')"
    receivers = {"trt": MODULE, "config": "IBuilderConfig"}
    assert used(source, receivers, set()) == {
        (MODULE, "BuilderFlag"),
        ("BuilderFlag", "FP16"),
        ("IBuilderConfig", "set_flag"),
    }
    assert guards(source) == {"IProgressMonitor"}
    with pytest.raises(AssertionError, match="what is thing"):
        used("thing.set_flag(1)", receivers, {"set_flag"})


def test_a_list_can_be_read_from_a_module(versions):
    """The committed list of an installed version is what the script would write."""
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    content = make.from_module(module)
    names = [n for n in versions if (n.library, n.version) == (content["library"], content["version"])]
    if not names:
        pytest.skip(f"no list of {content['version']}")
    assert {name: frozenset(members) for name, members in content["names"].items() if members} == names[0].classes
