"""What the doctor says of machines that are not at hand; see fake_host.py."""

import json

import pytest
from fake_host import BARE, ORIN_ANSWERS, WITH_GPU, answer, gpu, make_host, missing
from glocal.runtime.backends import BACKENDS as RUNTIME_BACKENDS
from glocal.runtime.doctor import BACKENDS, examine
from glocal.runtime.doctor_host import Ran

COMPILER = {"/usr/bin/g++": "", "/usr/include/python3.11/Python.h": ""}
CUDA_12_4 = "#define CUDA_VERSION 12040\n"
SERVER = {**WITH_GPU, "cuda": gpu("NVIDIA L4", "8.9", 12040)}
TRT = answer(version="10.16.1.11", built=True, ran=True)


def lines(host):
    report = examine(host)
    json.dumps(report.to_json(), allow_nan=False)
    return report, {check.name: check for check in report.checks}


def test_a_bare_cpu_machine_is_ready_and_nothing_is_to_be_mended(tmp_path):
    files = {
        "/proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n",
        "/etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    }
    report, check = lines(make_host(tmp_path, files, BARE))
    assert report.ready
    assert report.backends["onnxruntime"] == ()
    assert report.backends["tensorrt"] == ("gpu", "pycuda", "tensorrt")
    assert [line.fix for line in report.checks if line.fix] == []
    assert {line.state for line in report.checks} == {"ok", "note"}
    assert check["cpu"].found == "Some CPU, avx2 avx512_vnni; int8 runs fast on it"
    assert check["machine"].found == "Debian GNU/Linux 12, x86_64"


ORIN = {
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\n",
    "/usr/sbin/nvpmodel": "",
    "/usr/local/cuda-12.6/include/cuda.h": "#define CUDA_VERSION 12060\n",
    "/usr/local/cuda-12.6/include/curand.h": "",
    "/usr/local/cuda-12.6/bin/nvcc": "",
    "/usr/bin/g++": "",
    "/usr/include/python3.10/Python.h": "",
}
JETPACK_6 = {"architecture": "aarch64", "python_version": (3, 10)}


def test_jetpack_6_without_the_systems_packages(tmp_path):
    files = {**ORIN, "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""}
    report, check = lines(make_host(tmp_path, files, ORIN_ANSWERS, **JETPACK_6))
    assert "Jetson Linux 36.4.3 (JetPack 6.2), power mode MAXN_SUPER" in check["machine"].found
    assert check["gpu"].found.startswith("Orin (compute capability 8.7")
    assert "`python3.10 -m venv --system-site-packages .venv" in check["tensorrt"].fix
    assert "apt" not in check["tensorrt"].fix
    assert check["pycuda"].fix == "`PATH=/usr/local/cuda-12.6/bin:$PATH pip install pycuda`"
    assert check["tensorrt_rtx"].state == "note"
    assert check["tensorrt_rtx"].fix == ""
    assert report.backends["tensorrt"] == ("pycuda", "tensorrt")
    assert report.ready  # ONNX Runtime


def test_jetpack_6_with_another_python_and_without_tensorrt(tmp_path):
    files = {**ORIN, "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""}
    host = make_host(tmp_path / "a", files, ORIN_ANSWERS, architecture="aarch64", python_version=(3, 12))
    assert "is for python3.10, this is python3.12" in lines(host)[1]["tensorrt"].fix
    host = make_host(tmp_path / "b", ORIN, ORIN_ANSWERS, **JETPACK_6)
    fix = lines(host)[1]["tensorrt"].fix
    assert "apt install nvidia-jetpack` (TensorRT 10.3 for Python 3.10 comes with JetPack)" in fix
    assert "--system-site-packages" in fix


def test_jetpack_6_complete(tmp_path):
    answers = {
        **ORIN_ANSWERS,
        "tensorrt tensorrt gpu": answer(version="10.3.0", built=True, ran=True),
        "pycuda gpu": answer(version="2026.1", cuda="12.6"),
    }
    report, check = lines(make_host(tmp_path, ORIN, answers, **JETPACK_6, venv="open"))
    assert report.backends["tensorrt"] == ()
    assert check["tensorrt"].found == "10.3.0, builds and runs"


def test_jetpack_7_thor_without_a_toolkit(tmp_path):
    files = {
        "/etc/nv_tegra_release": "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "/usr/bin/g++": "",
    }
    answers = {
        **WITH_GPU,
        "cuda": gpu("NVIDIA Thor", "11.0", 13000),
        "tensorrt tensorrt gpu": answer(version="10.13.3.9", built=True, ran=True),
    }
    _, check = lines(make_host(tmp_path, files, answers, architecture="aarch64", python_version=(3, 12)))
    assert "Jetson Linux 38.2.2 (JetPack 7), power mode unknown" in check["machine"].found
    assert "nvidia-cuda-dev" in check["cuda toolkit"].fix
    assert check["pycuda"].fix == "install the CUDA toolkit first"


def test_jetpack_5_is_too_old(tmp_path):
    files = {"/etc/nv_tegra_release": "# R35 (release), REVISION: 4.1\n"}
    answers = {**WITH_GPU, "cuda": gpu("Orin", "8.7", 11040)}
    _, check = lines(make_host(tmp_path, files, answers, architecture="aarch64"))
    assert "JetPack 6 or newer" in check["machine"].fix
    assert "JetPack 6 or newer" in check["tensorrt"].fix


def test_a_cuda_12_server_without_pycuda_whose_nvcc_is_a_wrapper(tmp_path):
    files = {
        **COMPILER,
        "/usr/local/bin/nvcc": "",
        "/usr/local/cuda-12.4/include/cuda.h": CUDA_12_4,
        "/usr/local/cuda-12.4/include/curand.h": "",
        "/usr/local/cuda-12.4/bin/nvcc": "",
        "/usr/local/cuda-9.2/include/cuda.h": "#define CUDA_VERSION 9020\n",
    }
    report, check = lines(make_host(tmp_path, files, {**SERVER, "tensorrt tensorrt gpu": TRT}))
    fix = check["pycuda"].fix
    assert fix.startswith("`PATH=/usr/local/cuda-12.4/bin:$PATH pip install pycuda`")
    assert "/usr/local/bin/nvcc is a wrapper" in fix
    assert "12.4 in /usr/local/cuda-12.4; /usr/local/bin/nvcc on PATH is a wrapper" in check["cuda toolkit"].found
    assert report.backends["tensorrt"] == ("pycuda",)
    assert check["tensorrt_rtx"].fix == "`pip install tensorrt-rtx-cu12`"


def test_pycuda_without_a_compiler_and_without_nvcc(tmp_path):
    files = {"/usr/local/cuda/include/cuda.h": CUDA_12_4}
    fix = lines(make_host(tmp_path, files, SERVER))[1]["pycuda"].fix
    assert fix.startswith("`sudo apt install build-essential python3.11-dev`, then ")
    assert "configure.py --cuda-root=/usr/local/cuda --no-cuda-enable-curand" in fix


@pytest.mark.parametrize(("driver", "package"), [(12040, "tensorrt-cu12"), (13020, "tensorrt-cu13")])
def test_a_driver_without_a_toolkit(driver, package, tmp_path):
    answers = {**WITH_GPU, "cuda": gpu("NVIDIA L4", "8.9", driver)}
    report, check = lines(make_host(tmp_path, {}, answers))
    newest = f"{driver // 1000}.{driver % 1000 // 10}"
    assert check["cuda toolkit"].state == "missing"
    assert f"version {newest} or older" in check["cuda toolkit"].fix
    assert check["pycuda"].fix == "install the CUDA toolkit first"
    assert f"`pip install {package}`" in check["tensorrt"].fix
    assert report.ready


def test_a_gpu_that_tensorrt_rtx_does_not_support(tmp_path):
    answers = {**WITH_GPU, "cuda": gpu("NVIDIA H100", "9.0", 13000)}
    check = lines(make_host(tmp_path, {}, answers))[1]["tensorrt_rtx"]
    assert (check.state, check.fix) == ("note", "")
    assert "use tensorrt" in check.found


def test_bindings_without_their_libraries(tmp_path):
    why = "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory"
    answers = {**SERVER, "tensorrt tensorrt gpu": answer("broken", why)}
    check = lines(make_host(tmp_path, {}, answers))[1]["tensorrt"]
    assert check.state == "broken"
    assert "pip install --force-reinstall tensorrt-cu12" in check.fix


def test_tensorrt_for_a_newer_cuda_than_the_driver(tmp_path):
    told = answer("broken", "TypeError: pybind11::init(): factory function returned nullptr")
    told = Ran(0, told.out, "[11/25/2026-10:00:00] [TRT] [E] CUDA initialization failure with error: 35\n")
    check = lines(make_host(tmp_path, {}, {**SERVER, "tensorrt tensorrt gpu": told}))[1]["tensorrt"]
    assert check.found.endswith("nullptr (CUDA initialization failure with error: 35)")
    assert "pip uninstall -y tensorrt " in check.fix
    assert check.fix.count("pip install tensorrt-cu12`") == 1


@pytest.mark.parametrize(
    ("files", "found", "fix"),
    [
        ({"/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n"}, "no driver", "sudo ubuntu-drivers install"),
        ({"/usr/local/nvidia/lib64/libcuda.so.1": ""}, "no driver", "LD_LIBRARY_PATH=/usr/local/nvidia/lib64"),
        ({"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n"}, "no driver", "--runtime nvidia"),
    ],
)
def test_a_gpu_without_a_driver(files, found, fix, tmp_path):
    report, check = lines(make_host(tmp_path, files, BARE))
    assert check["gpu"].state == "missing"
    assert found in check["gpu"].found
    assert fix in check["gpu"].fix
    assert report.ready


@pytest.mark.parametrize(("error", "fix"), [(803, "reboot"), (100, "--gpus all"), (5, "CUresult 5")])
def test_a_driver_that_does_not_start(error, fix, tmp_path):
    _, check = lines(make_host(tmp_path, {}, {**BARE, "cuda": answer(error=error, driver=12040)}))
    assert check["gpu"].state == "broken"
    assert fix in check["gpu"].fix


def test_providers_of_onnxruntime(tmp_path):
    why = "TensorrtExecutionProvider cannot be loaded, ONNX Runtime falls back to CPUExecutionProvider"
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    version = "1.31.1"
    answers = {
        **SERVER,
        "onnxruntime": answer(version=version, providers=providers),
        "onnxruntime CUDAExecutionProvider": answer(version=version, providers=providers),
        "onnxruntime TensorrtExecutionProvider": answer("broken", why),
    }
    report, check = lines(make_host(tmp_path, {}, answers))
    assert report.backends["onnxruntime"] == report.backends["onnxruntime-cuda"] == ()
    assert report.backends["onnxruntime-tensorrt"] == ("onnxruntime-tensorrt",)
    assert "falls back" in check["onnxruntime-tensorrt"].found
    assert "built for" in check["onnxruntime-tensorrt"].fix
    report, check = lines(make_host(tmp_path, {}, SERVER))
    assert report.backends["onnxruntime-cuda"] == ("onnxruntime-cuda",)
    assert "pip install onnxruntime-gpu" in check["onnxruntime-cuda"].fix


def test_every_backend_of_the_runtime_is_judged():
    assert set(BACKENDS) == set(RUNTIME_BACKENDS)


def test_a_bundle_is_not_looked_at_without_pydantic(tmp_path):
    host = make_host(tmp_path, {}, {**BARE, "module pydantic": missing("pydantic")})
    report = examine(host, tmp_path)
    assert [(check.name, check.state) for check in report.checks][-1] == ("bundle", "note")
    assert not report.ready


@pytest.mark.parametrize(
    ("probe", "told", "fix"),
    [
        ("module numpy", missing("numpy"), "`pip install numpy`"),
        ("selector", missing("numba"), "`pip install numba`"),
        ("images", answer("broken", "ImportError: libGL.so.1: cannot open shared object file"), "libgl1"),
        ("onnxruntime", answer("broken", "AttributeError"), "pip uninstall -y onnxruntime onnxruntime-gpu"),
    ],
)
def test_without_a_common_package_no_backend_is_ready(probe, told, fix, tmp_path):
    report, check = lines(make_host(tmp_path, {}, {**BARE, probe: told}))
    name = probe.split()[-1]
    assert not report.ready
    assert name in report.backends["onnxruntime"]
    assert fix in check[name].fix


def test_a_cache_that_cannot_be_written_is_told_and_harmless(tmp_path):
    answers = {**BARE, "selector": answer(version="0.68.1", cached=False, cache="")}
    report, check = lines(make_host(tmp_path, {}, answers))
    assert report.ready
    assert "NUMBA_CACHE_DIR" in check["selector"].fix


def test_garbage_in_files_and_answers_is_survived(tmp_path):
    files = {
        "/etc/nv_tegra_release": "\0\0 garbage",
        "/proc/cpuinfo": "flags",
        "/usr/local/cuda-12.4/include/cuda.h": "no version",
        "/usr/local/cuda-x/README": "",
    }
    answers = {**BARE, "images": Ran(0, "glocal-doctor {cut"), "module numpy": Ran(3, "", "Traceback\nboom\n")}
    report, check = lines(make_host(tmp_path, files, answers))
    assert not report.ready
    assert "exit code 3: boom" in check["numpy"].found
    assert check["images"].state == "broken"
