"""What goes wrong in Jittor's start, or when it compiles a kernel later, is one sentence; nothing waits for ever."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, STOP, ended, run, started, wait_for

from support import start

VERSION = "g++ (Debian 12.2.0-14) 12.2.0"
KERNEL = "import time; jt.code([1], 'int32', [], cpu_src=f'@out(0) = {time.time_ns() % 10**9};').sync()"


def make_compiler(folder, does, version=VERSION):
    """Puts a g++ into a new folder that says its version and else does what a shell's words say; returns PATH."""
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "g++"
    asked = f'case "$*" in *--version*) echo "{version}"; exit;; *--help*|*-print*) exit;; esac'
    script.write_text(f"#!/bin/sh\n{asked}\n{does}\n")
    script.chmod(0o755)
    return f"{folder}/bin{os.pathsep}{os.environ['PATH']}"


def sentence(process, *words):
    """Asserts that a program has ended in one sentence, the last line, with all words; returns what the file holds."""
    assert process.returncode == 1, process.stderr
    *before, line = process.stderr.splitlines()
    assert not [text for text in before if not text.startswith("First run here")]
    for word in words:
        assert word in line
    name = re.search(r" All that was said is in (\S+)\.$", line)[1]
    assert "Traceback" in Path(name).read_text()
    return Path(name)


@pytest.mark.parametrize(
    "does, words",
    [
        ("exit 1", ["g++ failed"]),
        ("echo 'x.cc:1:2: fatal error: omp.h: No such file'; exit 1", ["error: omp.h: No such file"]),
        ("echo 'error: cannot write: No space left on device'; exit 1", ["disk is full", "JITTOR_HOME"]),
        ("echo 'error: cannot write: Disk quota exceeded'; exit 1", ["quota", "JITTOR_HOME"]),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus'; exit 1", ["memory", " MB are free"]),
        ("kill -9 $$", ["memory", " MB are free"]),
    ],
)
def test_a_compiler_that_fails_in_the_first_run(tmp_path, does, words):
    process = run("-c", "import cgan", JITTOR_HOME=str(tmp_path), PATH=make_compiler(tmp_path, does))
    file = sentence(process, "Jittor did not start", *words)
    assert tmp_path in file.parents and "Run cmd failed" in file.read_text()


@pytest.mark.parametrize("version", ["g++ (GNU) 6.5.0", "Debian clang version 14.0.6"])
def test_a_compiler_that_is_too_old_or_another(tmp_path, version):
    process = run("-c", "import cgan", JITTOR_HOME=str(tmp_path), PATH=make_compiler(tmp_path, "exit 1", version))
    ended(process, 1, version, "g++ 7 or newer", "cc_path=")


@pytest.mark.parametrize("does, words", [("exit 1", ["g++ failed"]), ("kill -9 $$", ["memory"])])
def test_a_kernel_that_cannot_be_compiled(tmp_path, does, words):
    make_compiler(tmp_path, does)
    code = f"from support.device import jt\njt.flags.cc_path = '{tmp_path}/bin/g++'\n{KERNEL}"
    sentence(run("-c", code), "could not compile a kernel", *words).unlink()


def test_ctrl_c_in_the_first_compile(tmp_path):
    """Sent to all that the terminal's line has started; nothing of it goes on."""
    env = {"JITTOR_HOME": str(tmp_path), "PATH": make_compiler(tmp_path, f"touch {tmp_path}/on; sleep 60")}
    own = ["-c", "import cgan"]  # a program of the user's
    for command in (["fid.py", "mnist", "mnist"], ["cgan.py", "--digits", "7", "--output_dir", tmp_path], own):
        with started(*command, env=env, cwd=ROOT, start_new_session=True) as process:
            wait_for((tmp_path / "on").exists)
            (tmp_path / "on").unlink()
            os.killpg(process.pid, signal.SIGINT)
            output, errors = process.communicate(timeout=20)
            assert process.returncode == 130 and not output, errors
        first, empty, line = errors.splitlines()
        assert first.startswith("First run here") and "once, for half a minute or longer" in first
        assert not empty and line == "Ctrl-C: stopped."


def compile_with(command):
    """Calls run_cmds for eight sources whose compiler is `command`."""
    utils = type(sys)("jittor_utils")
    sys.modules["jittor_utils"] = utils
    utils.cc, utils.DelayProgress = None, lambda *args: type("Bar", (), {"update": print})
    utils.do_compile = lambda job: subprocess.run(job[0], shell=True, check=True)
    start.run_cmds([command] * 8, "", "")


@pytest.mark.parametrize(
    "command, words",
    [("kill -9 $PPID; sleep 60", "ended by signal 9"), ("exit 1", "compiles failed"), ("true", "")],
)
def test_a_process_that_compiles_is_killed_or_fails(command, words, tmp_path):
    """Nothing of it goes on. Also where there is no /dev/shm, which Python's own pools need."""
    code = "import _multiprocessing as m, test_start\nm.SemLock = None\n"
    code += f"test_start.compile_with({command!r})"
    process = run("-c", code, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", timeout=30)
    assert (process.returncode == 0) == (command == "true")
    assert words in process.stderr and not start.running


def test_what_a_compiled_file_lacks(tmp_path):
    """Jittor deletes neither: a file that was cut, or whose end never came to the disk."""
    file = tmp_path / "kernel_op.so"
    subprocess.run(["g++", "-shared", "-x", "c++", "-", "-o", file], input=b"int answer() { return 42; }", check=True)
    whole = file.read_bytes()
    assert start.is_whole(file)
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], whole[:-4096] + bytes(4096)):
        file.write_bytes(damaged)
        assert not start.is_whole(file)


@pytest.mark.slow
def test_a_damaged_kernel_is_compiled_again():
    code = (
        "from support.device import jt; print(jt.flags.cache_path, jt.code([1], 'int32', [], cpu_src='@out(0)=418;'))"
    )
    first = run("-c", code).stdout
    sources = Path(first.split()[0], "jit").glob("code_*_op.cc")
    path = str(next(path.with_suffix(".so") for path in sources if "=418;" in path.read_text()))
    os.truncate(path, os.path.getsize(path) // 2)
    second = run("-c", code)
    assert second.stdout == first and "418" in first and second.stderr == f"{path} is damaged: it is made anew.\n"
    assert run("-c", code).stderr == ""


def test_a_cache_whose_parts_do_not_fit_is_compiled_again_once(tmp_path):
    """By the same command, which is started again by itself; if that does not help either, it says so."""
    does = "raise ImportError('jittor_core.so: undefined symbol: _ZN6jittor')"
    process = run("-c", STOP.format(does), JITTOR_HOME=str(tmp_path))
    first, again, second, line = process.stderr.splitlines()
    assert first == second and first.startswith("First run here") and process.returncode == 1
    assert "is damaged: it is compiled again, once" in again and "Jittor did not start" in line and "symbol" in line


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_python_has_not_written_yet(tmp_path, stream):
    """As Python 3.8 does with standard error: what was said before is seen, what Jittor says names the cause."""
    code = "import sys\nsys.stderr = open(2, 'w', closefd=False)\nprint('mine', file=sys.stderr)\n"
    does = f"sys.{stream}.write('Killed\\n'); raise ValueError"
    process = run("-c", code + STOP.format(does), JITTOR_HOME=str(tmp_path))
    mine, process.stderr = process.stderr.split("\n", 1)
    assert mine == "mine" and "Killed" in sentence(process, "no more memory").read_text()


def test_a_cache_path_with_letters_that_jittors_commands_do_not_bear(tmp_path):
    """A link stands in for it, and what is compiled lies in it."""
    home = tmp_path / "a'b \"c$(d[e&f#g,h:i%j;k"
    code = STOP.format("sys.exit(sys.modules['jittor_utils'].cache_path)")
    process = run("-c", code, JITTOR_HOME=str(home))
    path = process.stderr.splitlines()[-1]
    assert not start.STRANGE.search(path) and home.resolve() in Path(path).resolve().parents
    (link,) = [path for path in Path("/tmp").glob("cgan-*") if path.is_symlink() and os.readlink(path) == str(home)]
    link.unlink()


def test_settings_of_jittor_in_the_environment_are_named_and_left_out():
    code = "from support.device import jt; print(jt.flags.no_grad, jt.flags.use_cuda, jt.flags.lazy_execution)"
    process = run("-c", code, no_grad="1", use_cuda="1", lazy_execution="0", http_proxy="x", mine="1")
    assert process.stdout == "False 0 1\n"
    assert process.stderr.count("\n") == 1 and ": lazy_execution, no_grad, use_cuda in the env" in process.stderr


def test_a_file_system_without_locks(tmp_path):
    """Jittor does without its own, and a line says so."""
    library = tmp_path / "flock.so"
    source = b"#include <errno.h>\nint flock(int file, int how) { errno = ENOLCK; return -1; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, check=True)
    process = run("-c", "from support.device import jt; print(jt.ones(3).sum().item())", LD_PRELOAD=str(library))
    assert process.stdout == "3.0\n", process.stderr
    assert process.stderr.count("\n") == 1 and "jittor.lock cannot be locked (No locks available)" in process.stderr


def test_who_is_waited_for(tmp_path):
    """Another program that compiles for longer than some seconds."""
    code = f"import fcntl\nfrom support import start\nstart.PATIENCE = 0.3\n{STOP.format('os._exit(0)')}"
    env = {"JITTOR_HOME": str(tmp_path)}
    run("-c", code, **env)
    (lock,) = tmp_path.rglob("jittor.lock")
    with subprocess.Popen(["flock", lock, "sleep", "2"]) as other:
        time.sleep(0.3)
        process = run("-c", code, **env)
    assert other.returncode == 0 and "waiting for it" in process.stderr


@pytest.mark.parametrize("helped", [True, False])
def test_a_user_without_a_home(tmp_path, helped):
    """Neither HOME nor a line in /etc/passwd: JITTOR_HOME is enough, and asked for."""
    code = "import os, pwd\npwd.getpwuid = {}.__getitem__\ndel os.environ['HOME']\n"
    code += "" if helped else "os.environ.pop('JITTOR_HOME', None)\n"
    process = run("-c", code + STOP.format("os._exit(3)"), JITTOR_HOME=str(tmp_path))
    if helped:
        assert process.returncode == 3
    else:
        sentence(process, "HOME is not set", "JITTOR_HOME").unlink()


def test_little_memory():
    """Of what ulimit -v leaves, some libraries would wait for ever for threads that they did not get."""
    command = ["sh", "-c", 'ulimit -v 600000; exec "$0" -c "from support.device import jt"', sys.executable]
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    ended(process, 1, "ulimit -v", "585 MB")


@pytest.mark.parametrize("fatal", ["SIGILL", "SIGSEGV", "SIGBUS"])
def test_compiled_code_that_ends_the_program_in_its_start_is_compiled_again_once(tmp_path, fatal):
    """As that of another processor does; the program starts again by itself, with an empty cache."""
    does = f"open(sys.modules['jittor_utils'].cache_path + '/a', 'x'); os.kill(os.getpid(), {getattr(signal, fatal):d})"
    process = run("-c", STOP.format(does), JITTOR_HOME=str(tmp_path))
    first, again, second, line = process.stderr.splitlines()
    assert first == second and first.startswith("First run here") and "compiled again, once" in again
    assert process.returncode == -getattr(signal, fatal) and "ended this program" in line


def test_a_kernel_that_ends_the_program(tmp_path):
    """As one of another processor does: a line says so, and at the next start everything is compiled again."""
    code = "from support.device import jt; print(jt.flags.cache_path, flush=True)\n"
    process = run("-c", f"{code}jt.code([1], 'int32', [], cpu_src='@out(0)=419; __builtin_trap();').sync()")
    ended(process, -signal.SIGILL, "ended this program", "same command again")
    Path(process.stdout.strip(), start.MARK).unlink()  # other tests need the cache
