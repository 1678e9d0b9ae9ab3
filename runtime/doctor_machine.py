"""What kind of machine this is, from its files: processor, Jetson release, CUDA toolkit. Nothing is imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .doctor_host import Host

# Jetson Linux (L4T) to JetPack, from NVIDIA's archive (developer.nvidia.com/embedded/jetpack-archive and the pages of
# JetPack 7.0 and 7.1); 36.4.7, 36.5 and 39.2 as boards report them.
JETPACKS = {
    "35": "5",
    "36": "6",
    "36.2": "6.0 DP",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38": "7",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
    "39": "7",
    "39.2": "7.2",
}
# Instructions that decide how fast the CPU is, by the names that /proc/cpuinfo has for them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_DRIVER_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/nvidia",
    "/usr/lib/aarch64-linux-gnu/tegra",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)


@dataclass(frozen=True)
class Machine:
    """The machine.

    Attributes:
        architecture: Such as ``x86_64`` or ``aarch64``.
        system: Name of the distribution.
        cpu: Model of the processor.
        instructions: Those of its instruction sets that matter to an engine.
        board: Device tree's model, such as a Jetson's name.
        l4t: Release of Jetson Linux, such as ``36.4.3``.
        jetpack: JetPack's release, such as ``6.2``, or only ``6``.
        power_mode: As ``nvpmodel -q`` names it.
        nvidia_device: Whether an NVIDIA GPU is to be seen on the PCI bus or in a Jetson.
        libcuda: Folder of the driver's library, empty where none was found.
        driver: Version of the kernel's driver, such as ``550.54.15``.
    """

    architecture: str
    system: str
    cpu: str
    instructions: tuple[str, ...]
    board: str
    l4t: str
    jetpack: str
    power_mode: str
    nvidia_device: bool
    libcuda: str
    driver: str = ""

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson."""
        return bool(self.l4t) or "jetson" in self.board.lower()

    @property
    def jetpack_major(self) -> int:
        """JetPack's major version, 0 where it is none or not known."""
        return int(self.jetpack.split(".")[0]) if self.jetpack else 0


@dataclass(frozen=True)
class Toolkit:
    """The CUDA toolkit.

    Attributes:
        root: A folder with ``include/cuda.h``, empty where there is none.
        version: Such as ``12.6``.
        nvcc: The compiler on PATH.
        nvcc_fits: Whether ``include/cuda.h`` stands beside the folder of that nvcc, where PyCUDA's build looks for it.
    """

    root: str = ""
    version: str = ""
    nvcc: str = ""
    nvcc_fits: bool = False


def machine(host: Host) -> Machine:
    """Look at the machine."""
    board = host.read("/proc/device-tree/model")
    l4t = _l4t(host)
    processor = host.read("/proc/cpuinfo")
    flags = set(_field(processor, "flags").split()) | set(_field(processor, "Features").split())
    return Machine(
        architecture=host.architecture,
        system=_os_name(host),
        cpu=_field(processor, "model name"),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        board=board,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        power_mode=power_mode(host),
        nvidia_device=bool(l4t) or "jetson" in board.lower() or _on_pci(host),
        libcuda=next((folder for folder in _DRIVER_FOLDERS if host.path(f"{folder}/libcuda.so.1").exists()), ""),
        driver=_driver(host),
    )


def power_mode(host: Host) -> str:
    """Name of a Jetson's power mode, empty where there is none or it may not be asked for."""
    nvpmodel = host.which("nvpmodel") or ("/usr/sbin/nvpmodel" if host.path("/usr/sbin/nvpmodel").is_file() else "")
    if not nvpmodel:
        return ""
    found = re.search(r"NV Power Mode:\s*(\S+)", host.run([nvpmodel, "-q"], 10).out)
    return found[1] if found else ""


def toolkit(host: Host) -> Toolkit:
    """Look for the CUDA toolkit: that of nvcc on PATH, of the usual variables, then the usual folders."""
    nvcc = host.which("nvcc")
    beside = os.path.normpath(os.path.join(os.path.dirname(nvcc), "..")) if nvcc else ""
    named = [host.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")]
    versioned = sorted(_names(host, "/usr/local", "cuda-*"), key=_numbers, reverse=True)
    candidates = [beside, *named, "/usr/local/cuda", *(f"/usr/local/{name}" for name in versioned), "/opt/cuda", "/usr"]
    roots = [root for root in candidates if root and host.path(f"{root}/include/cuda.h").is_file()]
    if not roots:
        return Toolkit(nvcc=nvcc)
    found = re.search(r"#define\s+CUDA_VERSION\s+(\d+)", host.read(f"{roots[0]}/include/cuda.h"))
    version = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else ""
    return Toolkit(roots[0], version, nvcc, bool(nvcc) and roots[0] == beside)


def _l4t(host: Host) -> str:
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", host.read("/etc/nv_tegra_release"))
    if not found:
        return ""
    return f"{found[1]}.{found[2]}".removesuffix(".0")


def _jetpack(l4t: str) -> str:
    """The JetPack of a release, or only its major version where the release is not listed."""
    return JETPACKS.get(l4t) or JETPACKS.get(l4t.split(".")[0], "")


def _driver(host: Host) -> str:
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", host.read("/proc/driver/nvidia/version") + " ")
    return found[1] if found else ""


def _os_name(host: Host) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', host.read("/etc/os-release"), re.MULTILINE)
    return found[1] if found else ""


def _on_pci(host: Host) -> bool:
    devices = _names(host, "/sys/bus/pci/devices", "*")
    return any(host.read(f"/sys/bus/pci/devices/{device}/vendor") == "0x10de" for device in devices)


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _names(host: Host, folder: str, pattern: str) -> list[str]:
    return [path.name for path in host.path(folder).glob(pattern)]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))
