"""The doctor's probes as real processes, with libraries that crash, hang or lie."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from fake_host import BARE, make_host
from glocal.runtime import doctor_probes
from glocal.runtime.doctor import examine
from glocal.runtime.doctor_host import Host, run_command

START = "from glocal.benchmarks.start import main; main()"
LIBRARIES = {
    "crash": ("tensorrt", "import ctypes\nctypes.string_at(0)\n", "crashed the process with SIGSEGV"),
    "hang": ("tensorrt", "import time\ntime.sleep(600)\n", "did not answer within"),
    "raise": ("tensorrt", "raise OSError('libcudart.so.12: cannot open')\n", "OSError: libcudart.so.12"),
    "exit": ("tensorrt", "import os\nos._exit(7)\n", "exit code 7"),
    "quit": ("tensorrt", "raise SystemExit('no licence')\n", "SystemExit: no licence"),
    "empty": ("tensorrt", "__version__ = '10.3.0'\n", "Logger"),
    "need": ("tensorrt", "import no_such_library\n", "No module named 'no_such_library'"),
}


def install(tmp_path, monkeypatch, name, text):
    (tmp_path / "site" / name).mkdir(parents=True)
    (tmp_path / "site" / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_broken_library_is_a_line_in_the_report(kind, tmp_path, monkeypatch):
    name, text, why = LIBRARIES[kind]
    install(tmp_path, monkeypatch, name, text)
    probed = Host(seconds=2 if kind == "hang" else 60).probe("tensorrt", name, "gpu")
    assert probed.state == "broken"
    assert why in probed.why


def test_a_crash_and_a_hang_do_not_stop_the_rest(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "tensorrt_rtx", LIBRARIES["crash"][1])
    fake = make_host(tmp_path, {}, BARE)

    def run(command, seconds):
        if "tensorrt_rtx" in command:
            return run_command([sys.executable, *command[1:]], seconds)
        return fake.run(command, seconds)

    report = examine(make_host(tmp_path, {}, BARE, run=run, seconds=60))
    check = {line.name: line for line in report.checks}["tensorrt_rtx"]
    assert check.state == "broken"
    assert "SIGSEGV" in check.found
    assert report.ready


def test_what_a_library_started_ends_with_it(tmp_path):
    started = tmp_path / "started"
    assert run_command(["sh", "-c", f"sleep 600 & echo $! > {started}; wait"], 2).hung
    state = Path(f"/proc/{started.read_text().strip()}/stat")
    deadline = time.monotonic() + 20  # it is killed at once; a busy machine may take a while to see it
    while state.exists() and state.read_text().split(")")[1].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_ctrl_c_ends_a_library_that_hangs(tmp_path, monkeypatch):
    started = tmp_path / "started"
    text = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n"
    install(tmp_path, monkeypatch, "tensorrt_rtx", text)
    command = [sys.executable, "-m", "glocal.runtime.doctor_cli"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0  # of the 90 s that the library would be given


def test_files_of_the_present_folder_are_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise OSError('not NumPy')")
    assert Host(seconds=60).probe("module", "numpy").state == "ok"


def test_a_command_that_does_not_exist():
    assert run_command(["/no/such/command"], 1).code is None


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("result", [0, 803])
def test_the_driver_is_asked_through_libcuda(result, tmp_path, monkeypatch):
    source = tmp_path / "cuda.c"
    source.write_text(
        f"int cuInit(unsigned f) {{ return {result}; }}\n"
        "int cuDriverGetVersion(int *v) { *v = 12060; return 0; }\n"
        "int cuDeviceGetCount(int *n) { *n = 1; return 0; }\n"
        "int cuDeviceGet(int *d, int i) { *d = i; return 0; }\n"
        "int cuDeviceGetName(char *s, int n, int d) { s[0] = 'O'; s[1] = 0; return 0; }\n"
        "int cuDeviceTotalMem_v2(unsigned long *b, int d) { *b = 8ul << 30; return 0; }\n"
        "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : 1; return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    probed = Host(seconds=60).probe("cuda")
    assert probed.state == "ok"
    if result:
        assert probed.facts == {"error": 803, "driver": 12060}
    else:
        assert probed.facts["gpus"] == [{"name": "O", "compute_capability": "8.7", "mib": 8192, "integrated": True}]


def test_the_graph_of_one_operator_is_what_onnx_writes():
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[1] x) => (float[1] y) { y = Identity(x) }'
    assert onnx.parser.parse_model(text).SerializeToString() == doctor_probes.IDENTITY_ONNX


@pytest.mark.parametrize(
    ("probe", "fact"), [(["images"], "pillow"), (["selector"], "cache"), (["onnxruntime"], "version")]
)
def test_the_libraries_of_this_environment_work(probe, fact):
    probed = Host().probe(*probe)
    assert (probed.state, probed.why) == ("ok", "")
    assert probed.facts[fact]


def test_the_doctor_runs_where_opencv_cannot_be_imported(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "cv2", "raise ImportError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", START, "doctor", "--json"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["ready"]
    assert report["backends"]["onnxruntime"]["lacking"] == ["images"]
    (images,) = [check for check in report["checks"] if check["name"] == "images"]
    assert "libgl1" in images["fix"]
    done = subprocess.run([sys.executable, "-c", START, "run", "a", "b"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "glocal doctor" in done.stderr
    assert "Traceback" not in done.stderr
