"""What is installed on this machine, what is missing, and what to do about it (``glocal doctor``)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import __version__
from . import doctor_fixes as fixes
from .doctor_host import Host, Probed, kill_running
from .doctor_machine import INT8_INSTRUCTIONS, Machine, Toolkit, machine, toolkit

State = Literal["ok", "missing", "broken", "note"]
# What each backend needs, by the names of checks.
_COMMON = ("python", "numpy", "pydantic", "images", "selector")
BACKENDS = {
    "onnxruntime": (*_COMMON, "onnxruntime"),
    "onnxruntime-cuda": (*_COMMON, "onnxruntime", "gpu", "onnxruntime-cuda"),
    "onnxruntime-tensorrt": (*_COMMON, "onnxruntime", "gpu", "onnxruntime-tensorrt"),
    "tensorrt": (*_COMMON, "gpu", "pycuda", "tensorrt"),
    "tensorrt_rtx": (*_COMMON, "gpu", "pycuda", "tensorrt_rtx"),
}

# Backends that are a provider of ONNX Runtime.
PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: ``missing`` and ``broken`` keep the backends that need it from running; ``note`` does not.
        found: What was found.
        fix: What to do, empty where there is nothing to do.
        facts: The same for programs.
    """

    name: str
    state: State
    found: str
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
        checks: In the order of printing.
        backends: By backend, what keeps it from running; empty where it is ready.
    """

    checks: tuple[Check, ...]
    backends: Mapping[str, tuple[str, ...]]

    @property
    def ready(self) -> bool:
        """Whether everything needed for at least one backend works."""
        return any(not lacking for lacking in self.backends.values())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "glocal": __version__,
            "ready": self.ready,
            "backends": {name: {"ready": not why, "lacking": list(why)} for name, why in self.backends.items()},
            "checks": [asdict(check) for check in self.checks],
        }


def examine(host: Host, bundle: Path | None = None) -> Report:
    """Examine the machine, and what of a bundle fits it.

    Nothing that is broken on the machine raises: libraries are tried in processes of their own.

    Args:
        host: The machine.
        bundle: Folder of a bundle.
    """
    with ThreadPoolExecutor(4) as pool:
        try:
            checks = _checks(host, pool)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_running()
            raise
    if bundle is not None:
        checks += _bundle(bundle, {check.name: check for check in checks})
    good = {check.name for check in checks if check.state == "ok"}
    backends = {name: tuple(need for need in needs if need not in good) for name, needs in BACKENDS.items()}
    return Report(tuple(checks), backends)


def _checks(host: Host, pool: ThreadPoolExecutor) -> list[Check]:
    this = machine(host)
    found = toolkit(host)
    cuda = pool.submit(host.probe, "cuda")
    names = ("numpy", "pydantic")
    modules = {name: pool.submit(host.probe, "module", name) for name in names}
    modules |= {name: pool.submit(host.probe, name) for name in ("images", "selector", "onnxruntime")}
    gpu = _gpu(this, cuda.result())
    has = "gpu" if gpu.state == "ok" else "no-gpu"
    libraries = {name: pool.submit(host.probe, "tensorrt", name, has) for name in ("tensorrt", "tensorrt_rtx")}
    pycuda = pool.submit(host.probe, "pycuda", has)
    runtime = modules["onnxruntime"].result()
    providers = {
        name: pool.submit(host.probe, "onnxruntime", provider)
        for name, provider in PROVIDERS.items()
        if has == "gpu" and provider in runtime.facts.get("providers", ())
    }
    return [
        _python(host),
        _machine(this),
        _cpu(this),
        *(_package(name, modules[name].result()) for name in names),
        _images(modules["images"].result()),
        _selector(modules["selector"].result()),
        _onnxruntime(runtime),
        gpu,
        *(_provider(this, gpu, runtime, name, providers.get(name)) for name in PROVIDERS),
        _toolkit(this, host, found, gpu, pycuda.result()),
        _pycuda(host, found, gpu, pycuda.result()),
        *(_tensorrt(this, host, gpu, name, probed.result()) for name, probed in libraries.items()),
    ]


def _bundle(bundle: Path, checks: Mapping[str, Check]) -> list[Check]:
    if checks["pydantic"].state != "ok":
        return [Check("bundle", "note", "not looked at, because its manifest cannot be read without pydantic")]
    from .doctor_bundle import bundle_checks

    return bundle_checks(bundle, checks)


def _python(host: Host) -> Check:
    version = ".".join(str(part) for part in host.python_version)
    where = {
        "no": "",
        "closed": ", virtual environment",
        "open": ", virtual environment that sees the system's packages",
    }
    found = f"{version}{where[host.venv]}, glocal {__version__}"
    if host.python_version < (3, 10):
        return Check("python", "broken", found, "use Python 3.10 or newer")
    return Check("python", "ok", found, facts={"version": version, "venv": host.venv, "glocal": __version__})


def _machine(this: Machine) -> Check:
    parts = [this.board, this.system, this.architecture]
    if this.jetson:
        parts.append(f"Jetson Linux {this.l4t or 'unknown'} (JetPack {this.jetpack or 'unknown'})")
        parts.append(f"power mode {this.power_mode or 'unknown: ask with `sudo nvpmodel -q`'}")
    facts = {name: value for name, value in asdict(this).items() if value}
    if this.jetpack_major == 5:
        fix = "JetPack 5 has Python 3.8, glocal needs 3.10: flash JetPack 6 or newer"
        return Check("machine", "note", ", ".join(part for part in parts if part), fix, facts)
    return Check("machine", "ok", ", ".join(part for part in parts if part), facts=facts)


def _cpu(this: Machine) -> Check:
    found = ", ".join(part for part in (this.cpu, " ".join(this.instructions)) if part) or platform.processor()
    fast = [name for name in INT8_INSTRUCTIONS if name in this.instructions]
    note = "int8 runs fast on it" if fast else "no VNNI or dot product: int8 on ONNX Runtime gains little"
    return Check("cpu", "note", f"{found}; {note}", facts={"int8": fast})


def _package(name: str, probed: Probed) -> Check:
    if probed.state == "ok":
        return Check(name, "ok", str(probed.facts["version"]), facts=probed.facts)
    return Check(name, probed.state, probed.why, fixes.package(name, probed))


def _images(probed: Probed) -> Check:
    if probed.state == "ok":
        versions = f"OpenCV {probed.facts['version']}, Pillow {probed.facts['pillow']}"
        return Check("images", "ok", versions, facts=probed.facts)
    name = "pillow" if "PIL" in probed.why else "opencv-python"
    return Check("images", probed.state, probed.why, fixes.package(name, probed))


def _selector(probed: Probed) -> Check:
    if probed.state != "ok":
        return Check("selector", probed.state, probed.why, fixes.package("numba", probed))
    found = f"Numba {probed.facts['version']}"
    if not probed.facts["cached"]:
        fix = "name a folder that can be written: export NUMBA_CACHE_DIR=$HOME/.cache/glocal"
        # It works without, so no backend lacks anything: only this line tells.
        return Check("selector", "ok", f"{found}, cannot cache: each process compiles anew", fix, probed.facts)
    return Check("selector", "ok", f"{found}, its cache can be written", facts=probed.facts)


def _onnxruntime(probed: Probed) -> Check:
    if probed.state != "ok":
        return Check("onnxruntime", probed.state, probed.why, fixes.package("onnxruntime", probed))
    return Check("onnxruntime", "ok", f"{probed.facts['version']} on the CPU", facts=probed.facts)


def _provider(this: Machine, gpu: Check, runtime: Probed, name: str, tried: Future[Probed] | None) -> Check:
    if runtime.state != "ok" or gpu.state != "ok":
        return Check(name, "note", "needs onnxruntime-gpu and an NVIDIA GPU")
    if tried is None:
        fix = "" if this.jetson else "`pip uninstall -y onnxruntime && pip install onnxruntime-gpu`"
        return Check(name, "note", f"this onnxruntime is built without {PROVIDERS[name]}", fix)
    if tried.result().state != "ok":
        needs = "TensorRT, CUDA and cuDNN" if name == "onnxruntime-tensorrt" else "CUDA and cuDNN"
        fix = f"install the {needs} that onnxruntime-gpu {runtime.facts['version']} is built for, and add them to "
        return Check(name, "broken", tried.result().why, f"{fix}LD_LIBRARY_PATH")
    return Check(name, "ok", f"{PROVIDERS[name]} runs")


def _gpu(this: Machine, probed: Probed) -> Check:
    facts = probed.facts
    if probed.state != "ok":
        return Check("gpu", "broken", f"libcuda {probed.why}", fixes.driver(this, 999), {"error": "crash"})
    error = facts.get("error")
    if error == "absent" and not this.nvidia_device and not this.libcuda:
        return Check("gpu", "note", "no NVIDIA GPU and no driver: TensorRT cannot run here", facts=facts)
    if error == "absent":
        return Check("gpu", "missing", f"no driver: {facts['reason']}", fixes.driver(this, "absent"), facts)
    version = f"driver {this.driver}".strip() + f" for CUDA {facts['driver'] // 1000}.{facts['driver'] % 1000 // 10}"
    if error or not facts["gpus"]:
        code = error or 100
        return Check("gpu", "broken", f"{version}, does not start: CUresult {code}", fixes.driver(this, code), facts)
    names = ", ".join(
        f"{gpu['name']} (compute capability {gpu['compute_capability']}, {gpu['mib']} MiB)" for gpu in facts["gpus"]
    )
    return Check("gpu", "ok", f"{names}; {version}", facts=facts)


def _toolkit(this: Machine, host: Host, found: Toolkit, gpu: Check, pycuda: Probed) -> Check:
    facts = asdict(found)
    if found.root:
        text = f"{found.version} in {found.root}"
        if found.nvcc and not found.nvcc_fits:
            text += f"; {found.nvcc} on PATH is a wrapper outside of it"
        return Check("cuda toolkit", "ok", text, facts=facts)
    needless = pycuda.state == "ok" or gpu.state != "ok"
    fix = "" if needless else fixes.toolkit(this, gpu.facts["driver"])
    return Check("cuda toolkit", "note" if needless else "missing", "none; only installing PyCUDA needs it", fix, facts)


def _pycuda(host: Host, found: Toolkit, gpu: Check, probed: Probed) -> Check:
    if probed.state == "ok":
        text = f"{probed.facts['version']}, compiled with CUDA {probed.facts['cuda']}"
        return Check(
            "pycuda", "ok", text + ("" if gpu.state == "ok" else "; not tried, there is no GPU"), facts=probed.facts
        )
    if gpu.state == "note":
        return Check("pycuda", "note", f"{probed.why}; needed with an NVIDIA GPU only")
    if gpu.state != "ok" and "libcuda" in probed.why:
        return Check("pycuda", "broken", probed.why, "mend the driver first, see gpu")
    return Check("pycuda", probed.state, probed.why, fixes.pycuda(host, found, probed))


def _tensorrt(this: Machine, host: Host, gpu: Check, name: str, probed: Probed) -> Check:
    driver = gpu.facts.get("driver", 0) if gpu.state == "ok" else 0
    capability = gpu.facts["gpus"][0]["compute_capability"] if gpu.state == "ok" else ""
    if probed.state == "ok":
        did = "builds and runs" if probed.facts["ran"] else "builds" if probed.facts["built"] else "not tried"
        why = "" if gpu.state == "ok" else "; there is no GPU to run plans"
        return Check(name, "ok", f"{probed.facts['version']}, {did}{why}", facts=probed.facts)
    if gpu.state != "ok" and (probed.state == "missing" or name == "tensorrt"):
        return Check(name, "note", f"{probed.why}; needed with an NVIDIA GPU only")
    if name == "tensorrt":
        return Check(name, probed.state, probed.why, fixes.tensorrt(this, host, driver, probed))
    fix = fixes.tensorrt_rtx(this, driver, capability)
    if not fix:
        return Check(name, "note", f"{probed.why}; not offered for this GPU, use tensorrt")
    # One of the two libraries is enough, so the lesser known one is no fault where it is not there.
    return Check(name, "note" if probed.state == "missing" else "broken", probed.why, fix)
