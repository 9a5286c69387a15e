"""Importing a module does nothing but import; Jittor comes on a device that works."""

import ast
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ENVIRONMENT, ROOT, read_log, run

from support import device, patches
from support.device import jt as jittor

FILES = [path.relative_to(ROOT) for folder in ("support", "benchmarks") for path in (ROOT / folder).rglob("[a-z]*.py")]
MODULES = ["cgan", "fid", "plot_curves", *(".".join(path.with_suffix("").parts) for path in FILES)]
NEED_JITTOR = ("device", "mnist", "evaluation", "digit_classifier", "inception", "fast", "runs.run", "runs.export")
ORDER = ["saved", "pages", "runs"]  # of folders in support/: each imports from itself and from those before it


IMPORTS = """import importlib, os, sys
for jittor in (0, 1):  # each module in a process of its own, which has imported nothing else, or Jittor alone
    for module in sys.argv[jittor + 1].split(","):
        if not os.fork():
            importlib.import_module(module)
            os._exit("jittor" in sys.modules)
        assert os.wait()[1] == jittor << 8, module
    import support.device
"""


def test_import_has_no_side_effect(tmp_path):
    """No output, no file in the working folder, the command line unread; Jittor only where it is needed."""
    needs = re.compile(rf"(cgan|fid|benchmarks)\b|support\.({'|'.join(map(re.escape, NEED_JITTOR))})(\.|$)")
    lists = [",".join(name for name in MODULES if bool(needs.match(name)) == jittor) for jittor in (False, True)]
    process = run("-B", "-c", IMPORTS, *lists, "--n_epochs", "x", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "support"], ids=str)
def test_arrows_go_down(path):
    """Nothing in support/ imports a script; runs stand on pages, pages on saved; the rest on neither of the two."""
    imported = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {"cgan", "fid", "plot_curves", "benchmarks"} & {name.split(".")[0] for name in imported}
    above = ORDER[ORDER.index(path.parts[1]) + 1 :] if path.parts[1] in ORDER else ["pages", "runs"]
    assert not [name for name in imported if f"{name}.".startswith(tuple(f"support.{folder}." for folder in above))]


@pytest.mark.slow
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


@pytest.mark.slow
def test_cpu_flag_keeps_off_the_gpu(tmp_path):
    process = run(*"cgan.py --cpu --n_epochs 1 --max_batches 2 --output_dir".split(), tmp_path)
    assert process.returncode == 0, process.stderr
    assert read_log(tmp_path)["environment"]["device"] == "cpu"


# A driver that promises a GPU which is not there, until nvcc has been looked for.
GPU = (
    "import ctypes, shutil\n"
    "class Cuda:\n"
    "    def __init__(self, name): pass\n"
    "    def cuInit(self, flags): return 0\n"
    "    def cuDeviceGetCount(self, count): count._obj.value = 1; return 0\n"
    "real, ctypes.CDLL, find = ctypes.CDLL, Cuda, shutil.which\n"
    "def which(name):\n"
    "    if not name.endswith('nvcc'): return find(name)\n"
    "    ctypes.CDLL = real; return None if hidden else find(name)\n"
    "shutil.which = which\n"
)


def make_nvcc(folder, version="13.0"):
    """Writes a program that says it is nvcc, in a toolkit with nothing else in it; returns its path."""
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n")
    (folder / "bin/nvcc").chmod(0o755)
    return folder / "bin/nvcc"


@pytest.mark.parametrize("toolkit", [True, False])
def test_a_cuda_that_fails_costs_no_cpu_run(tmp_path, toolkit):
    """The probe fails, or there is no nvcc: the run goes on on the CPU, and one line says why."""
    if device.count_gpus():
        pytest.skip("this machine has a GPU")
    code = f"{GPU}hidden = {not toolkit}\nfrom support.device import jt; import os\n"
    code += "print(jt.flags.use_cuda, jt.ones(3).sum().item(), os.environ['use_parallel_op_compiler'])"
    env = {"nvcc_path": str(make_nvcc(tmp_path))} if toolkit else {}
    process = run("-c", code, **env)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["0", "3.0", "0"]
    *before, line = process.stderr.splitlines()
    assert "running on the CPU" in line and ("libcudart.so" if toolkit else "no nvcc") in line
    assert ["tried on the GPU" in text for text in before] == [True] * toolkit


def test_the_reason_against_cuda_is_not_jittors_last_hint(monkeypatch):
    said = "RuntimeError: \x1b[38;5;1m[f 1] failed\n[Reason]: \x1b[m no algorithm\n**\n>>> export trace_py_var=3\n\n"
    monkeypatch.setattr(device.subprocess, "run", lambda *args, **more: SimpleNamespace(returncode=1, stdout=said))
    assert device.why_not_cuda() == "[Reason]:  no algorithm"


def test_the_first_toolkit_with_its_headers_is_taken(monkeypatch, tmp_path):
    """Not a script in PATH that calls another nvcc; nvcc_path goes before all."""
    script, toolkit, own = (make_nvcc(tmp_path / name) for name in ("script", "toolkit", "own"))
    (tmp_path / "script/include/cuda_runtime.h").unlink()
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.delenv("nvcc_path", raising=False)
    monkeypatch.setattr(device, "NVCC_PLACES", [str(tmp_path / "nowhere"), str(toolkit)])
    assert device.find_nvcc() == str(toolkit)
    monkeypatch.setattr(device, "NVCC_PLACES", [])
    assert device.find_nvcc() is None
    monkeypatch.setenv("nvcc_path", str(own))
    assert device.find_nvcc() == str(own)


@pytest.mark.parametrize("version, pip", [(13, True), (13, False), (12, True)])
def test_what_a_cuda_toolkit_lacks(monkeypatch, tmp_path, version, pip):
    """npp.h, and pip's libraries for this CUDA and no other, under the names that a linker wants."""
    for path in ("cu13/include/cublas.h", "cu13/lib/libcublas.so.13", "cudnn/lib/libcudnn.so.9") if pip else ():
        (tmp_path / "nvidia" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / path).write_text("")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")]) if pip else None
    monkeypatch.setattr(patches.importlib.util, "find_spec", lambda name: spec)
    for _ in range(2):
        flags = patches.cuda_flags(str(tmp_path), version).split()
    assert flags[0] == f"-I{tmp_path}/cuda" and ("-DclockRate=major" in flags) == (version >= 13)
    names = "cublas.h libcublas.so libcublas.so.13 libcudnn.so libcudnn.so.9 " * (pip and version == 13) + "npp.h"
    assert sorted(path.name for path in (tmp_path / "cuda").iterdir()) == names.split()
    limits = re.findall(r"#define (NPP_M(?:IN|AX)_\d\d[US]) \(", (tmp_path / "cuda/npp.h").read_text())
    assert len(set(limits)) == 8


def test_a_missing_compiler_or_header_is_one_sentence(monkeypatch, tmp_path):
    process = run("-c", "import support.device", PATH=str(tmp_path), JITTOR_HOME=str(tmp_path))
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "C++ compiler" in process.stderr and device.PREREQUISITES in process.stderr
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=f"headers of Python 3.{sys.version_info.minor}.*apt install"):
        device.check_compiler()


# For a process that must not compile: `import jittor` calls the function jittor() instead.
STOP = (
    "import builtins, os, sys\n"
    "real = builtins.__import__\n"
    "def stop(name, *args, **kw):\n"
    "    if name == 'jittor': jittor()\n"
    "    return real(name, *args, **kw)\n"
    "builtins.__import__ = stop\n"
)


def import_until_jittor(report="''", **env):
    """Imports support.device up to `import jittor`; returns the process, `report` (a Python expression) in stderr."""
    code = f"{STOP}def jittor(): os.write(2, str({report}).encode()); os._exit(0)\nimport support.device"
    return run("-c", code, **env)


def test_first_run_says_that_kernels_are_compiled(tmp_path):
    process = import_until_jittor(JITTOR_HOME=str(tmp_path), HOME=str(tmp_path))
    assert process.returncode == 0 and process.stdout == ""
    assert process.stderr.count("\n") == 1 and "minutes on 2 cores" in process.stderr


def test_a_jittor_that_compiles_itself_anew_asks_for_another_run():
    """Jittor ends the program with status 0 and no word on the terminal if its settings have changed."""
    process = run("-c", f"{STOP}def jittor(): raise SystemExit(0)\nimport support.device")
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "run the same command again" in process.stderr


def test_jittors_cache_is_this_projects_own_and_mpi_is_for_mpirun():
    """A plain Jittor program has other settings: in one cache, each would compile Jittor anew after the other."""
    report = "os.path.basename(sys.modules['jittor_utils'].cache_path) + ' ' + os.environ['use_mpi']"
    assert re.search(r"\bcgan\d* 0$", import_until_jittor(report, use_mpi="1").stderr)
    assert re.search(r"\bcgan\d* 1$", import_until_jittor(report, use_mpi="0", OMPI_COMM_WORLD_SIZE="2").stderr)


def test_a_home_that_jittor_cannot_use_is_one_sentence(monkeypatch, tmp_path):
    """Files in the place of folders, as root may write to every folder; or a space in the path."""
    home, writable = tmp_path / "home", tmp_path / "writable"
    home.write_text("")
    monkeypatch.delitem(ENVIRONMENT, "JITTOR_HOME", raising=False)
    for env in ({"HOME": home}, {"HOME": writable, "JITTOR_HOME": home}, {"JITTOR_HOME": tmp_path / "my cache"}):
        process = run("-c", "import support.device", **{name: str(path) for name, path in env.items()})
        assert process.returncode == 1 and process.stderr.count("\n") == 1, process.stderr
        assert process.stderr.startswith(str([*env.values()][-1])) and "JITTOR_HOME" in process.stderr


@pytest.mark.parametrize("version", [(3, 7), (3, 14), (4, 0)])
def test_a_python_too_old_or_too_new_is_one_sentence(version):
    process = run("-c", f"import sys; sys.version_info = {(*version, 0, 'final', 0)}; import cgan")
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    for words in (f"Python {version[0]}.{version[1]}", "3.8 to 3.13", "uv ", "conda "):
        assert words in process.stderr


@pytest.mark.parametrize("module", patches.MENDS)
def test_jittors_lines_that_newer_pythons_and_cudas_broke_are_mended_in_memory(module):
    package = module.rpartition(".")[0]
    spec = patches.MendingFinder.find_spec(module, sys.modules[package].__path__ if package else None)
    before = {path: path.read_bytes() for path in Path(spec.origin).parent.rglob("*.py*")}
    for old, new in patches.MENDS[module]:
        assert before[Path(spec.origin)].count(old) == 1 and old != new
    functions = {getattr(part, "co_name", ""): part for part in spec.loader.get_code(module).co_consts}
    if module in ("jittor.compiler", "jittor_utils"):
        code = functions["compile_custom_ops" if module == "jittor.compiler" else "compile_module"]
        assert "locals" not in code.co_names and "modules" in code.co_names
    assert {path: path.read_bytes() for path in Path(spec.origin).parent.rglob("*.py*")} == before
    assert (patches.MendingFinder in sys.meta_path) == (sys.version_info >= (3, 13) or jittor.has_cuda)


def test_a_virtual_environment_whose_path_has_a_space(monkeypatch, tmp_path):
    """Jittor's shell commands do not quote it; a link stands in for it, the same at every start."""
    environment, cache = tmp_path / "my project" / ".venv", tmp_path / "cache"
    (environment / "bin").mkdir(parents=True)
    cache.mkdir()
    monkeypatch.setattr(sys, "prefix", str(environment))
    links = []
    for _ in range(2):
        paths = {"python_path": environment / "bin" / "python", "jittor_path": environment / "lib" / "jittor"}
        flags = SimpleNamespace(**{name: str(path) for name, path in paths.items()})
        device.hide_space(SimpleNamespace(flags=flags), str(cache))
        assert " " not in flags.python_path + flags.jittor_path
        assert Path(flags.python_path).parent.samefile(environment / "bin")
        links.append(flags.jittor_path)
    assert links[0] == links[1]


def test_headers_are_precompiled_for_the_first_run_only(monkeypatch, tmp_path):
    """The commands are the same later, or Jittor would compile itself anew."""
    monkeypatch.setattr(patches, "SHARED_HEADERS", ["small.h"])
    (tmp_path / "small.h").write_text("inline int answer() { return 42; }\n")
    core, precompiled = tmp_path / "jittor_core.so", tmp_path / "shared.h.gch"
    seen = []

    def run_cmds(cmds, *args):
        seen.append((cmds, precompiled.exists()))

    utils = SimpleNamespace(cache_path=str(tmp_path), cc_path=shutil.which("g++"), run_cmds=run_cmds)
    patches.share_headers(utils)
    cmds = [
        f'"{utils.cc_path}" "{name}.cc" -I"{tmp_path}" -O2  -c -o "{name}.o"' for name in ("a", "pyjt_jit_op_maker")
    ]
    nvcc = 'nvcc "c.cu" -O2 -x cu  -c -o "c.o"'  # left as it is
    for message in ("Compiling jittor_core", "Compiling jittor_core", "Compiling mkl"):
        utils.run_cmds([*cmds, nvcc], str(tmp_path), "", message)
        assert not precompiled.exists()
        core.touch()
    shared = [cmd.replace("-O2", "-O1").replace(" -c", f' -include"{tmp_path}/shared.h" -c') for cmd in reversed(cmds)]
    assert seen == [([nvcc, *shared], True), ([nvcc, *shared], False), ([*cmds, nvcc], False)]
