"""Importing a module does nothing but import; Jittor comes on a device that works."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import venv
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, STOP, done, ended, read_log, run

from support import compile, device, patches, start, system
from support.device import jt as jittor
from support.fast import layers  # noqa: F401  compiles what an import would, the first time
from support.jittor_numpy2 import build_jittor

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
    process = done("-c", code, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    use_cuda, gpus, total = process.stdout.split()
    assert total == "3.0" and (use_cuda == "0" or int(gpus) > 0)


@pytest.mark.slow
def test_cpu_flag_keeps_off_the_gpu(tmp_path):
    done(*"cgan.py --cpu --n_epochs 1 --max_batches 2 --output_dir".split(), tmp_path)
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
def test_a_cuda_that_fails_costs_no_cpu_run(tmp_path, toolkit, monkeypatch):
    """The probe fails, or there is no nvcc: the run goes on on the CPU, and one line says why."""
    monkeypatch.delitem(ENVIRONMENT, "nvcc_path", raising=False)
    if device.count_gpus():
        pytest.skip("this machine has a GPU")
    code = f"{GPU}hidden = {not toolkit}\nfrom support.device import jt; import os\n"
    code += "print(jt.flags.use_cuda, jt.ones(3).sum().item(), os.environ['use_parallel_op_compiler'])"
    env = {"nvcc_path": str(make_nvcc(tmp_path))} if toolkit else {}
    process = done("-c", code, **env)
    assert process.stdout.split() == ["0", "3.0", "0"]
    *before, line = process.stderr.splitlines()
    assert "running on the CPU" in line and ("libcudart.so" if toolkit else "no nvcc") in line
    assert ["tried on the GPU" in text for text in before] == [True] * toolkit


def test_the_reason_against_cuda_is_not_jittors_last_hint(monkeypatch):
    said = "RuntimeError: \x1b[38;5;1m[f 1] failed\n[Reason]: \x1b[m no algorithm\n**\n>>> export trace_py_var=3\n\n"
    monkeypatch.setattr(device.subprocess, "run", lambda *args, **more: SimpleNamespace(returncode=1, stdout=said))
    assert device.why_not_cuda() == "[Reason]:  no algorithm"


def test_nvcc_is_given_what_it_knows(tmp_path):
    """Of the flags that g++ needs; tried on a file if there is an nvcc."""
    source = Path(jittor.compiler.__file__).read_bytes()
    for before, after in patches.MENDS["jittor.compiler"]:
        source = source.replace(before, after)
    text = re.search(r"    def convert_nvcc_flags.*?        return nvcc_flags\n", source.decode(), re.DOTALL)[0]
    names = {"os": os, "sys": sys, "nvcc_version": [13, 0], "cc_path": "g++", "jittor_path": "jittor"}
    exec(textwrap.dedent(text), names)
    flags = names["convert_nvcc_flags"](f" -std=c++14 -fPIC -march=native {patches.compiler_flags(str(tmp_path))}")
    assert patches.GXX_FLAGS not in flags and "-std=c++17" in flags
    (tmp_path / "kernel.cu").write_text("int main() { return 0; }\n")
    if shutil.which("nvcc"):
        subprocess.run(["nvcc", "kernel.cu", "-c", *shlex.split(flags)], cwd=tmp_path, check=True)


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
    ended(process, 1, "C++ compiler (g++)")
    monkeypatch.setattr(system.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=f"headers of Python 3.{sys.version_info[1]} .*Python.h"):
        system.check_compiler()


@pytest.mark.parametrize(
    "manager, base, user, command",
    [
        ("apt-get", "/usr", 1000, "sudo apt update && sudo apt install g++ python3.9-dev"),
        ("apt-get", "/opt/python", 0, "apt update && apt install g++"),
        ("dnf", "/usr", 1000, "sudo dnf install gcc-c++ python3-devel"),
        ("dnf of 3.6", "/usr", 0, "dnf install gcc-c++ python3.9-devel"),
        ("zypper of 3.6", "/usr", 0, "zypper install gcc-c++ python39-devel"),
        ("pacman", "/usr", 0, "pacman -S --needed gcc python"),
        ("none", "/usr", 0, "package manager"),
        ("apt-get", "conda", 1000, "conda install -c conda-forge gxx"),
    ],
)
def test_the_command_that_brings_what_is_missing_fits_the_system(monkeypatch, tmp_path, manager, base, user, command):
    (tmp_path / "conda/conda-meta").mkdir(parents=True)
    manager, _, system_python = manager.partition(" of ")
    there = {manager: "", "python3": f"/usr/bin/python{system_python or 3.9}"}
    monkeypatch.setattr(system.shutil, "which", lambda name, path: there.get(name))
    monkeypatch.setitem(there, manager, f"/usr/bin/{manager}")
    monkeypatch.setattr(system.sys, "version_info", (3, 9, 0))
    monkeypatch.setattr(system.sys, "base_prefix", str(tmp_path / base) if base == "conda" else base)
    monkeypatch.setattr(system.os, "geteuid", lambda: user)
    assert system.how_to_install().endswith((f": {command}", f"{command} brings both."))


def test_help_needs_no_packages_and_their_lack_is_one_sentence(tmp_path):
    """As in a new terminal, in which the environment is not active; with them, nothing is compiled either."""
    for script in system.PACKAGES:
        help, whole = run("-S", script, "--help"), run(script, "--help", JITTOR_HOME=str(tmp_path), HOME=str(tmp_path))
        assert (help.returncode, help.stderr, help.stdout) == (0, "", whole.stdout)
        assert not (tmp_path / ".cache" / "jittor").exists()
        assert ("--features" if script == "fid.py" else "--output_dir") in help.stdout
        process = run("-S", script)
        assert process.returncode == 1 and process.stdout == "" and process.stderr.count("\n") == 1
        assert ", numpy, " in f", {process.stderr}" and ("jittor" in process.stderr) == (script != "plot_curves.py")


def test_the_environment_beside_the_project_is_named(monkeypatch, tmp_path):
    project = tmp_path / "my project"
    (project / ".venv/bin").mkdir(parents=True)
    monkeypatch.setattr(system, "PROJECT", str(project))
    monkeypatch.setattr(system.sys, "prefix", "/usr")
    monkeypatch.setattr(system.sys, "base_prefix", "/usr")
    monkeypatch.chdir(tmp_path)
    make = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
    assert system.how_to_import().endswith(f": cd '{project}' && {make}")
    (project / ".venv/bin/activate").touch()
    assert system.how_to_import().endswith(": . 'my project/.venv/bin/activate'")
    monkeypatch.chdir(project)
    assert system.how_to_import().endswith(": . .venv/bin/activate")
    monkeypatch.setattr(system.sys, "prefix", str(project / ".venv"))
    assert system.how_to_import().endswith(": pip install -r requirements.txt")


@pytest.mark.parametrize("script", system.PACKAGES)
@pytest.mark.parametrize("platform, said", [("win32", "`wsl --install`"), ("darwin", "macOS: with Docker, ")])
def test_another_system_than_linux_is_one_sentence(script, platform, said):
    """Before any of the modules that only Unix has is asked for."""
    code = "import ctypes, runpy, shutil, subprocess, sys, sysconfig; sys.platform = sys.argv.pop(1)\n"
    code += "sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'numpy', 'PIL', 'scipy', 'tqdm')))\n"
    process = run("-c", f"{code}runpy.run_path({script!r}, run_name='__main__')", platform)
    assert process.returncode == 1 and process.stdout == "" and process.stderr.count("\n") == 1, process.stderr
    assert "needs Linux" in process.stderr and said in process.stderr


def test_warnings_of_packages_stay_with_them(tmp_path):
    (tmp_path / "noisy.py").write_text("import warnings; 1 is 1; '\\d'; warnings.warn('old', FutureWarning)\n")
    for flags, said in ([], False), (["-W", "default"], True):
        process = run(*flags, "-c", "import support, noisy", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
        assert process.returncode == 0 and bool(process.stderr) == said


def test_a_libstdcxx_older_than_the_compilers(tmp_path):
    """As conda's: what Jittor compiled asks for symbols that it does not have."""
    library = (Path(system.compiler_says("-print-file-name=libstdc++.so.6"))).read_bytes()
    (tmp_path / "libstdc++.so.6").write_bytes(re.sub(rb"GLIBCXX_3\.4\.29", rb"GLIBCXX_3.4.79", library))
    code = "from support.device import jt; print(jt.ones(3).sum().item())"
    process = run("-c", code, LD_LIBRARY_PATH=str(tmp_path))
    assert process.stdout == "3.0\n", process.stderr
    late = run("-c", f"import ctypes; ctypes.CDLL('libstdc++.so.6'); {code}", LD_LIBRARY_PATH=str(tmp_path))
    assert late.returncode == 1 and late.stderr.count("\n") == 1 and "LD_PRELOAD=/" in late.stderr


@pytest.mark.parametrize(
    "dtype", "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()
)
def test_arrays_come_and_go(dtype):
    """Of every kind and layout, as of NumPy 2, which Jittor does not know, so of NumPy 1."""
    whole = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    for array in (whole, whole.T, whole[::2, 1::2], whole[0, 0:0]):
        with jittor.flag_scope(auto_convert_64_to_32=0):
            back = jittor.array(array).numpy()
        assert (back.dtype, back.shape) == (array.dtype, array.shape) and (back == array).all()
    scalar = whole.dtype.type(1)
    assert dtype == "bool" or jittor.array(scalar).numpy() == 1
    if whole.dtype.kind in "iu":
        assert (jittor.array(whole)[scalar, :].numpy() == whole[1]).all()
    if dtype == "float32":
        changed = jittor.array(whole)
        changed[1] = whole.T[:, 2]
        assert (changed.numpy()[1] == whole[2]).all()


def test_jittors_wheel_for_numpy_2_differs_in_its_pin_only(monkeypatch, tmp_path):
    """And in its version; the Jittor that is installed here has the pin, or not, as the Python asks."""
    setup = 'setup(version=version, install_requires=["numpy<2.0", "tqdm"])'
    (tmp_path / "jittor-1/").mkdir()
    (tmp_path / "jittor-1/setup.py").write_text(setup)

    def download(command, check):
        command[-2].mkdir()
        with tarfile.open(command[-2] / "jittor-1.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "jittor-1", "jittor-1")
        assert command[-1] == "jittor==" + metadata.version("jittor").split("+")[0]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build_jittor.subprocess, "run", download)
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(build_meta=SimpleNamespace(build_wheel=os.listdir)))
    assert build_jittor.build_wheel(str(tmp_path)) == os.listdir(tmp_path)
    expected = setup.replace("<2.0", "").replace("=version", '=version + "+numpy2"')
    assert Path("setup.py").read_text() == expected
    assert ("numpy" in metadata.requires("jittor")) == (sys.version_info >= (3, 13))


def test_the_archive_that_pip_takes_is_what_lies_beside_it():
    folder = ROOT / "support" / "jittor_numpy2"
    name = f"jittor-{build_jittor.VERSION}{build_jittor.LOCAL}"
    with tarfile.open(folder / f"{name}.tar.gz") as tar:
        held = {file.name: tar.extractfile(file).read() for file in tar if file.isfile()}
    assert held == {
        f"{name}/{part}": (folder / part).read_bytes() for part in ("build_jittor.py", "pyproject.toml", "PKG-INFO")
    }
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert any(line.startswith(name.replace("jittor-", "jittor==")) for line in lines)
    assert "--find-links support/jittor_numpy2" in lines  # which pip takes relative to the file


def import_until_jittor(report="''", before="", **env):
    """Imports support.device up to `import jittor`; returns the process, `report` (a Python expression) in stderr."""
    does = f"os.write(sys.modules['support.start'].copies[2], str({report}).encode()); os._exit(0)"
    return run("-c", f"{before}\n{STOP.format(does)}", **env)


def test_a_jittor_that_compiles_itself_anew_is_started_again_once():
    """Jittor ends the program with status 0 and no word on the terminal if its settings have changed."""
    process = run("-c", STOP.format("raise SystemExit(0)"))
    again, line = process.stderr.splitlines()
    assert process.returncode == 1 and "starting again" in again and "run the same command again" in line


def test_jittors_cache_is_this_projects_own_and_mpi_is_for_mpirun():
    """A plain Jittor program has other settings: in one cache, each would compile Jittor anew after the other."""
    report = "sys.modules['jittor_utils'].cache_path + ' ' + os.environ['use_mpi']"
    assert re.search(r"\bcgan\d* 0$", import_until_jittor(report, use_mpi="1").stderr)
    assert re.search(r"\bcgan\d* 1$", import_until_jittor(report, use_mpi="0", OMPI_COMM_WORLD_SIZE="2").stderr)


def test_the_name_of_a_cache_is_the_same_on_another_host(monkeypatch):
    """As of a container, which is another host each time, or in another terminal; another processor has another."""
    report = "sys.modules['jittor_utils'].cache_path"
    other = "import platform; platform.node = platform.platform = lambda *args: 'other'"
    path = import_until_jittor(report).stderr
    assert import_until_jittor(report, other).stderr == path and f"/{system.processor()}/" in path
    assert import_until_jittor(report, COLUMNS="200", LANGUAGE="de").stderr == path  # the terminal's
    monkeypatch.setattr(system, "compiler_says", lambda *flags: "-mavx512f [disabled]")
    assert f"/{system.processor()}/" not in path


def test_a_home_that_jittor_cannot_use_is_one_sentence(monkeypatch, tmp_path):
    """Files in the place of folders, as root may write to every folder."""
    home, writable = tmp_path / "home", tmp_path / "writable"
    home.write_text("")
    monkeypatch.delitem(ENVIRONMENT, "JITTOR_HOME", raising=False)
    for env in ({"HOME": home}, {"HOME": writable, "JITTOR_HOME": home}):
        process = run("-c", "import support.device", TMPDIR=str(tmp_path), **{name: str(env[name]) for name in env})
        ended(process, 1, f"Jittor did not start: {home}", "set JITTOR_HOME to a folder")


@pytest.mark.parametrize("version", [(3, 7), (3, 15), (4, 0)])
def test_a_python_too_old_or_too_new_is_one_sentence(version):
    process = run("-c", f"import sys; sys.version_info = {(*version, 0, 'final', 0)}; import cgan")
    ended(process, 1, f"Python {version[0]}.{version[1]}", "3.8 to 3.14", "uv ", "conda ")


@pytest.mark.parametrize("module", patches.MENDS)
def test_jittors_lines_that_newer_pythons_and_cudas_broke_are_mended_in_memory(module):
    package = module.rpartition(".")[0]
    spec = patches.MendingFinder.find_spec(module, sys.modules[package].__path__ if package else None)
    before = {path: path.read_bytes() for path in Path(spec.origin).parent.rglob("*.py")}
    for old, new in patches.MENDS[module]:
        assert before[Path(spec.origin)].count(old) == 1 and old != new
    functions = {getattr(part, "co_name", ""): part for part in spec.loader.get_code(module).co_consts}
    if module in ("jittor.compiler", "jittor_utils"):
        code = functions["compile_custom_ops" if module == "jittor.compiler" else "compile_module"]
        assert "locals" not in code.co_names and "modules" in code.co_names
    assert {path: path.read_bytes() for path in before} == before
    assert patches.MendingFinder in sys.meta_path


def test_a_virtual_environment_whose_path_jittors_commands_do_not_bear(monkeypatch, tmp_path):
    """Links stand in for it, the same at every start, from which Python finds the environment's packages, too."""
    environment = tmp_path / "my (project)'s" / ".venv"
    venv.create(environment, symlinks=True)
    site = next(environment.glob("lib/*/site-packages"))
    (site / "jittor_utils").mkdir()
    (site / "jittor_utils/__init__.py").write_text("")
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.delitem(sys.modules, "jittor_utils")
    with start.plain_paths():
        command = [sys.executable, "-c", "import jittor_utils, sys; print(sys.prefix)"]
        assert not start.STRANGE.search(sys.executable + sys.path[0]) and Path(sys.path[0]).samefile(site)
        assert Path(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()).samefile(environment)
        with start.plain_paths():
            links = {Path(sys.executable).parent.parent, Path(sys.path[0])}
    assert sys.executable == str(environment / "bin" / "python")
    for link in links:
        link.unlink()


def test_jittors_sources_are_joined(tmp_path):
    """Each stands in one of a few, in Jittor's order, with its own names; what g++ does not compile stays as it is."""
    sources = {
        "src/first.cc": "#define fill(a) a\nstatic int make_it = 1;\nint first() { return make_it; }\n",
        "src/misc/cuda_flags.cc": "int use_cuda = 3;\n",
        "src/second.cc": "#include <algorithm>\nstatic long make_it = 2;\nint second() { return make_it; }\n",
        "src/test/test_it.cc": "#error is left out\n",
        "src/third.cc": "constexpr int use_cuda = 0;\nint third() { return use_cuda; }\n" + "//\n" * compile.MOST_BYTES,
        "src/fourth.cc": "int first(), second(), third(); extern int use_cuda;\n"
        "int main() { return 100 * first() + 10 * second() + third() + use_cuda - 123; }\n",
        "src/kernel.cu": "left as it is",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    *joined, cu = compile.join(list(sources), str(tmp_path), str(tmp_path))
    names = [re.findall(r"(\w+)\.cc", Path(path).read_text()) for path in joined]
    assert names == [["first", "second", "third"], ["fourth", "cuda_flags"]] and cu == str(tmp_path / "src/kernel.cu")
    headers = [f"-I{system.sysconfig.get_path('include')}"]
    subprocess.run(["g++", *joined, *headers, "-o", tmp_path / "program"], check=True)
    subprocess.run([tmp_path / "program"], check=True)


def test_jittor_is_made_of_joined_sources_and_knows_them_again(tmp_path):
    """All that Jittor would compile by itself is in them; a later start compiles nothing."""
    cache = Path(jittor.flags.cache_path)
    ours = re.compile(r".*mkl_|fast_|stack_|lookup_|adam_|gen_ops_")
    names = [path.name for path in (cache / "obj_files").glob("*.cc.o") if not ours.match(path.name)]
    assert 5 < len(names) < 20 and all(name.startswith(("joined_", "data.", "jittor_mpi_", "mpi_")) for name in names)
    assert (cache / "kernels.h.gch").stat().st_size > 1e6 and (cache / "kernels.h.gch.key").exists()
    key = next(cache.glob("jit_utils_core*.key")).read_text()
    assert key.startswith(f'"{jittor.flags.cc_path}"') and "joined_cache_compile.cc" in key
    assert not hasattr(jittor.core, "tests") or not vars(jittor.core.tests)


def test_kernels_share_a_header(tmp_path):
    """The header that g++ has read already, without which nothing of this would compile."""
    flags = SimpleNamespace(cache_path=str(tmp_path))
    compile.share_header(SimpleNamespace(flags=flags))
    (tmp_path / "kernels.h").write_text("#error was read again\n")
    (tmp_path / "read.h").write_text("inline int answer() { return 42; }\n")
    (tmp_path / "kernel.cc").write_text("int main() { return answer() - 42; }\n")
    subprocess.run(["g++", "-x", "c++-header", tmp_path / "read.h", "-o", tmp_path / "kernels.h.gch"], check=True)
    command = f'{flags.python_path} asm_tuner.py --cc_path="g++" "{tmp_path}/kernel.cc" -o "{tmp_path}/kernel.so"'
    subprocess.run(command, shell=True, check=True)
    subprocess.run([tmp_path / "kernel.so"], check=True)
    (tmp_path / "kernel.cc").write_text("int main() {}\n")
    (tmp_path / "kernels.h.gch").unlink()
    subprocess.run(command, shell=True, check=True)  # without it


@pytest.mark.parametrize("terminal, lines", [(False, 4), (True, 39)])
def test_the_first_run_tells_how_far_it_is(monkeypatch, capsys, terminal, lines):
    now = iter(range(0, 1000, 2))  # seconds, of which the first two pass without a word
    monkeypatch.setattr(compile.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    progress = compile.Progress("Compiling jittor_core", 40)
    for index in range(40):
        progress.update(index)
    said = capsys.readouterr().err
    assert said.count("\n" if not terminal else "\r") + terminal == lines and said.endswith("Jittor: 40 of 40 parts\n")
