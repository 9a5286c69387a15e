"""Importing a module does nothing but import; Jittor comes on a device that works."""

import os
import sys

import pytest
from conftest import ROOT, run

from support import device

MODULES = ["cgan", "fid", "plot_curves", "support.device", "support.checkpoint", "support.flags"]
MODULES += ["support.inception_weights", "support.digit_classifier"]


@pytest.mark.parametrize("module", MODULES)
def test_import_has_no_side_effect(tmp_path, module):
    """No output, no file in the working folder, the command line unread."""
    process = run("-B", "-c", f"import {module}", "--n_epochs", "x", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_jittor_runs_without_a_gpu(tmp_path):
    """An nvcc without a GPU, on which a bare `import jittor` dies, is left alone."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    code = "from support.device import count_gpus, jt; print(jt.flags.use_cuda, count_gpus(), jt.ones(3).sum().item())"
    process = run("-c", code, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert process.returncode == 0, process.stderr
    use_cuda, gpus, total = process.stdout.split()
    assert total == "3.0" and (use_cuda == "0" or int(gpus) > 0)


def test_cpu_flag_keeps_off_the_gpu(tmp_path):
    process = run(*"cgan.py --cpu --n_epochs 1 --max_batches 2 --output_dir".split(), tmp_path)
    assert process.returncode == 0, process.stderr
    assert '"device": "cpu"' in (tmp_path / "results" / "log.json").read_text()


def test_a_cuda_that_fails_costs_no_cpu_run(monkeypatch, tmp_path):
    """A driver that promises a GPU which is not there: the probe fails, the run goes on on the CPU."""
    if device.count_gpus():
        pytest.skip("this machine has a GPU")
    code = (
        "import ctypes, sys; sys.modules['probed'] = ctypes\n"
        "class Cuda:\n"
        "    def __init__(self, name): pass\n"
        "    def cuInit(self, flags): return 0\n"
        "    def cuDeviceGetCount(self, count): count._obj.value = 1; return 0\n"
        "real, ctypes.CDLL = ctypes.CDLL, Cuda\n"
        "import subprocess; run = subprocess.run\n"
        "def probe(*a, **k): ctypes.CDLL = real; return run(*a, **k)\n"
        "subprocess.run = probe\n"
        "from support.device import jt; print(jt.flags.use_cuda, jt.ones(3).sum().item())"
    )
    process = run("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["0", "3.0"]
    assert "running on the CPU" in process.stderr and process.stderr.count("\n") == 1


def test_missing_compiler_is_one_sentence(tmp_path):
    process = run("-c", "import support.device", PATH=str(tmp_path), JITTOR_HOME=str(tmp_path))
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "C++ compiler" in process.stderr and device.PREREQUISITES in process.stderr


def test_missing_headers_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=f"headers of Python 3.{sys.version_info.minor}.*apt install"):
        device.check_compiler()


def test_a_jittor_that_compiles_itself_anew_asks_for_another_run():
    """Jittor ends the program with status 0 and no word on the terminal where its settings have changed."""
    code = (
        "import builtins\n"
        "real = builtins.__import__\n"
        "def stop(name, *args, **kw):\n"
        "    if name == 'jittor': raise SystemExit(0)\n"
        "    return real(name, *args, **kw)\n"
        "builtins.__import__ = stop\n"
        "import support.device"
    )
    process = run("-c", code)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "run the same command again" in process.stderr


def test_first_run_says_that_kernels_are_compiled(tmp_path):
    """Only the announcement is run: compiling would take minutes."""
    code = (
        "import builtins, os\n"
        "real = builtins.__import__\n"
        "def stop(name, *args, **kw):\n"
        "    if name == 'jittor': os._exit(0)\n"
        "    return real(name, *args, **kw)\n"
        "builtins.__import__ = stop\n"
        "import support.device"
    )
    process = run("-c", code, JITTOR_HOME=str(tmp_path), HOME=str(tmp_path))
    assert process.returncode == 0 and process.stdout == ""
    assert process.stderr.count("\n") == 1 and "about 3 minutes" in process.stderr
