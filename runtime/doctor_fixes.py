"""What to do about a part that is missing or broken, on the machine at hand.

Sources: NVIDIA's JetPack pages (components come by ``apt install nvidia-jetpack``; on JetPack 7 ``nvidia-cuda-dev`` and
not Ubuntu's ``nvidia-cuda-toolkit``), TensorRT 10.16.1 "Method 1: pip", TensorRT 11.4.1 "Migrating on Jetson/JetPack",
the TensorRT-RTX support matrices 1.0 to 1.5, and the setup.py of PyCUDA 2026.1, which looks for nvcc on PATH and takes
the folder above it as CUDA's; the variable CUDA_ROOT alone does not change that (tried).
"""

from __future__ import annotations

import sys

from .doctor_host import Host, Probed
from .doctor_machine import Machine, Toolkit

RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")
_CU_RESULTS = {
    2: "the GPU has no memory left: end other programs that use it",
    100: "no GPU is given to this process: check CUDA_VISIBLE_DEVICES; start a container with `--gpus all` "
    "(`--runtime nvidia` on a Jetson)",
    802: "the driver is still starting, or NVIDIA's fabric manager does not run: `sudo systemctl start "
    "nvidia-fabricmanager`",
    803: "libcuda and the kernel's driver are of different versions: reboot; in a container, remove its own libcuda",
    804: "the CUDA compatibility package does not support this GPU: remove it from LD_LIBRARY_PATH",
    999: "the kernel's driver does not answer: `sudo modprobe nvidia_uvm`, or reboot",
}


def driver(machine: Machine, error: int | str) -> str:
    """For libcuda that is absent, or does not start with a CUresult."""
    if error != "absent":
        return _CU_RESULTS.get(int(error), f"look up CUresult {error} in CUDA's driver API, and reboot first")
    if machine.libcuda:
        return f"export LD_LIBRARY_PATH={machine.libcuda}:$LD_LIBRARY_PATH"
    if machine.jetson:
        return (
            "the driver is part of Jetson Linux: start a container with `--runtime nvidia`; outside of one, "
            "flash the board again with NVIDIA's SDK Manager"
        )
    if not machine.nvidia_device:
        return ""
    return "install NVIDIA's driver (Ubuntu: `sudo ubuntu-drivers install`, then reboot); in a container `--gpus all`"


def toolkit(machine: Machine, version: int) -> str:
    """For a CUDA toolkit that is missing; PyCUDA is compiled with it."""
    if machine.jetpack_major >= 7:
        return "`sudo apt update && sudo apt install nvidia-cuda-dev` (not Ubuntu's nvidia-cuda-toolkit)"
    if machine.jetson:
        return (
            "`sudo apt update && sudo apt install nvidia-jetpack`, or only CUDA: `sudo apt install cuda-toolkit-12-6`"
        )
    newest = f"{version // 1000}.{version % 1000 // 10}"
    return (
        f"install a CUDA toolkit of version {newest} or older, which is what the driver supports, from "
        "https://developer.nvidia.com/cuda-toolkit-archive (with NVIDIA's repository "
        f"`sudo apt install cuda-toolkit-{newest.replace('.', '-')}`)"
    )


def tensorrt(machine: Machine, host: Host, version: int, probed: Probed) -> str:
    """For TensorRT that is missing or broken. ``version`` is the driver's CUDA version, such as 12060."""
    if machine.jetpack_major == 5:
        return "JetPack 5 has Python 3.8, glocal needs 3.10: flash JetPack 6 or newer"
    if machine.jetson:
        return _jetpack_tensorrt(machine, host)
    package = f"tensorrt-cu{13 if version >= 13000 else 12}"
    if version < 12000:
        return f"update the driver: it supports CUDA {version // 1000}, and glocal was written for CUDA 12 and 13"
    if probed.state == "broken" and "libnvinfer" in probed.why:
        return (
            f"the bindings are there, the libraries are not: `pip install --force-reinstall {package}`; after an "
            "installation from a tar file add its lib folder to LD_LIBRARY_PATH"
        )
    first = "pip uninstall -y tensorrt tensorrt-cu1{2,3}{,-libs,-bindings} && " if probed.state == "broken" else ""
    return f"`{first}pip install {package}` (its libraries come from NVIDIA's index, pypi.nvidia.com)"


def tensorrt_rtx(machine: Machine, version: int, capability: str) -> str:
    """For TensorRT-RTX that is missing or broken; empty where it does not support the GPU."""
    if machine.jetson or (capability and capability not in RTX_CAPABILITIES):
        return ""
    return f"`pip install tensorrt-rtx-cu{13 if version >= 13000 else 12}`"


def pycuda(host: Host, found: Toolkit, probed: Probed) -> str:
    """For PyCUDA that is missing or broken, where there is a toolkit."""
    if not found.root:
        return "install the CUDA toolkit first"
    nvcc = host.path(f"{found.root}/bin/nvcc").is_file()
    curand = host.path(f"{found.root}/include/curand.h").is_file()
    again = "--force-reinstall --no-cache-dir " if probed.state == "broken" else ""
    if nvcc and curand:
        parts = [f"`PATH={found.root}/bin:$PATH pip install {again}pycuda`"]
    else:
        options = f"--cuda-root={found.root}{'' if curand else ' --no-cuda-enable-curand'}"
        parts = [
            "`pip download --no-deps --no-binary pycuda pycuda && tar xzf pycuda-*.tar.gz && cd pycuda-*/ && "
            f"{host.python} configure.py {options} && pip install {again}.`"
        ]
    if found.nvcc and not found.nvcc_fits:
        parts.append(f"{found.nvcc} is a wrapper: a plain pip install ends with `fatal error: cuda.h`")
    major, minor = host.python_version
    compilers = host.which("g++") or host.which("c++")
    headers = any(host.path(f"{folder}/include/python{major}.{minor}/Python.h").is_file() for folder in _prefixes(host))
    if not compilers or not headers:
        parts[0] = f"`sudo apt install build-essential python{major}.{minor}-dev`, then {parts[0]}"
    return "; ".join(parts)


def package(name: str, probed: Probed) -> str:
    """For one of glocal's own dependencies."""
    if "libGL.so.1" in probed.why:
        return "`sudo apt install libgl1`, or `pip uninstall opencv-python && pip install opencv-python-headless`"
    if name == "onnxruntime" and probed.state == "broken":
        return "`pip uninstall -y onnxruntime onnxruntime-gpu`, then install one of them again"
    return f"`pip install {'--force-reinstall ' if probed.state == 'broken' else ''}{name}`"


def _jetpack_tensorrt(machine: Machine, host: Host) -> str:
    six = machine.jetpack_major == 6
    copies = sorted(path.parents[1].name for path in host.path("/usr/lib").glob("python3*/dist-packages/tensorrt"))
    wanted = copies[-1] if copies else "python3.10" if six else "python3"
    environment = f"`{wanted} -m venv --system-site-packages .venv && .venv/bin/pip install .` in glocal's checkout"
    if not copies:
        which = "TensorRT 10.3 for Python 3.10" if six else "TensorRT"
        return f"`sudo apt update && sudo apt install nvidia-jetpack` ({which} comes with JetPack); then {environment}"
    here = f"python{host.python_version[0]}.{host.python_version[1]}"
    if wanted not in ("python3", here):
        return f"JetPack's TensorRT is for {wanted}, this is {here}: {environment}"
    if host.venv == "closed":
        return f"JetPack's TensorRT is there, but this environment does not see the system's packages: {environment}"
    return "JetPack's TensorRT is there and does not load: `sudo apt install --reinstall python3-libnvinfer`"


def _prefixes(host: Host) -> tuple[str, ...]:
    return ("/usr", "/usr/local", sys.base_prefix) if str(host.root) == "/" else ("/usr", "/usr/local")
