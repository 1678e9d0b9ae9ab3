"""Write the name list of a TensorRT version: ``python tests/unit/tensorrt_names/make.py SOURCE [--stand-ins]``.

SOURCE is an installed module (``tensorrt``, ``tensorrt_rtx``, ``tensorrt_bindings``) or a JSON file that maps each name
of a module to its members, named after the version. ``--stand-ins`` imports a module without its libraries, as the
``tensorrt-cu13-bindings`` wheels are: it compiles libraries of the same names in which each function gives a null
pointer.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CLASSES = (
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "EngineCapability",
    "EngineInspector",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TacticSource",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
)
OTHERS = ("__version__", "init_libnvinfer_plugins", "nptype", "volume", "float16", "float32", "int8", "uint8")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("--stand-ins", action="store_true")
    arguments = parser.parse_args()
    path = Path(arguments.source)
    if path.suffix == ".json":
        content = from_list(path)
    else:
        if arguments.stand_ins:
            load_stand_ins()
        content = from_module(importlib.import_module(arguments.source))
    target = Path(__file__).parent / f"{content['library']}-{content['version']}.json"
    lines = [f"    {json.dumps(name)}: {json.dumps(members)}" for name, members in sorted(content.pop("names").items())]
    head = json.dumps(content, indent=2)[:-2]
    target.write_text(head + ',\n  "names": {\n' + ",\n".join(lines) + "\n  }\n}\n")
    print(f"wrote {target}")


def from_module(module: Any) -> dict[str, Any]:
    """The content of a list, read from an imported module."""
    names: dict[str, list[str] | None] = {}
    for name in CLASSES:
        if isinstance(kind := getattr(module, name, None), type):
            members = [member for member in dir(kind) if not member.startswith("_")]
            if hasattr(kind, "__members__"):  # an enum: the properties of its values are no members
                members = [member for member in members if member not in ("name", "value")]
            names[name] = sorted(members)
    names |= {name: None for name in OTHERS if hasattr(module, name)}
    return {
        "library": "tensorrt_rtx" if "rtx" in module.__name__ else "tensorrt",
        "version": module.__version__,
        "source": f"the module {module.__name__}",
        "names": names,
    }


def from_list(path: Path) -> dict[str, Any]:
    """The content of a list, read from a JSON file of all names of a module."""
    known = json.loads(path.read_text())
    names = {name: known[name] for name in CLASSES if name in known}
    # Such a file leaves out what starts with an underscore.
    names |= {name: None for name in OTHERS if name in known or name == "__version__"}
    return {
        "library": "tensorrt_rtx" if path.stem.startswith("rtx") else "tensorrt",
        "version": path.stem.removeprefix("rtx"),
        "source": "a list of all names of the module",
        "names": names,
    }


def load_stand_ins() -> None:
    """Load libraries of TensorRT's names, so that the loader does not ask for the real ones."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "stand_in.c")
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
        for major in (8, 10, 11):
            for library in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
                name = f"{library}.so.{major}"
                path = Path(folder, name)
                subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", path, source], check=True)
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    main()
