"""Jittor, imported on the device that this machine can really run: `from support.device import jt`.

A bare `import jittor` dies where nvcc is installed without a CUDA runtime or a GPU, and in a virtual
environment of a Python whose `python3.X-config` is not in /usr/bin. Both are settled here, through
environment variables that Jittor reads at its import:

    nvcc_path           the empty string keeps Jittor on the CPU
    python_config_path  where the interpreter's python3.X-config is
    log_silent          keeps Jittor's own log lines off the terminal
    use_parallel_op_compiler    0: kernels are compiled one after the other. Jittor's threads for it crash now and
                        then with "Segfault happen, main thread exit" (seen once in about 150 starts; JGAN issue 9)
"""

import contextlib
import ctypes
import glob
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading

PREREQUISITES = "sudo apt install g++ python3-dev"
# What a GPU must do before a run is trusted to it: the kinds of kernel that training and FID need.
PROBE = (
    "import jittor as jt; jt.flags.use_cuda = jt.has_cuda; "
    "jt.nn.Conv(3, 8, 3)(jt.randn(2, 3, 8, 8)).sync(); jt.matmul(jt.randn(4, 4), jt.randn(4, 4)).sync(); "
    "raise SystemExit(not jt.has_cuda)"
)


def count_gpus():
    """Returns how many CUDA devices the driver offers; 0 where there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def cuda_works():
    """Tries CUDA in a process of its own: an import that fails half way cannot be undone in this one."""
    # The probe is no part of an MPI job, even where this process is.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    return subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True).returncode == 0


def check_compiler():
    """Ends the program with one sentence where Jittor could not compile its kernels."""
    compiler = os.environ.get("cc_path", "clang++" if sys.platform == "darwin" else "g++")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    name = f"python3.{sys.version_info.minor}-config"
    folders = [os.path.dirname(sys.executable), os.path.join(sys.base_prefix, "bin"), "/usr/bin", "/usr/local/bin"]
    configs = [path for path in (os.path.join(folder, name) for folder in folders) if os.path.isfile(path)]
    missing = None
    if not shutil.which(compiler):
        missing = f"a C++ compiler ({compiler})"
    elif not os.path.isfile(header) or not (configs or "python_config_path" in os.environ):
        missing = f"the headers of Python {sys.version_info.major}.{sys.version_info.minor}"
    if missing:
        sys.exit(
            f"Jittor compiles its kernels and needs {missing}, not found here; on Debian or Ubuntu: {PREREQUISITES}"
        )
    if configs:
        os.environ.setdefault("python_config_path", configs[0])


@contextlib.contextmanager
def quiet():
    """Keeps off the terminal what is printed inside, also by compiled code and child processes; not errors."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


@contextlib.contextmanager
def own_signals():
    """Keeps Jittor, imported inside, from ending the program at Ctrl-C or when a child of it dies of a signal."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where handlers cannot be set
        return
    jupyter = os.environ.setdefault("JPY_PARENT_PID", "")  # in Jupyter, Jittor leaves Ctrl-C alone
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        if not jupyter:
            del os.environ["JPY_PARENT_PID"]


def import_jittor():
    """Returns the module jittor, on CUDA where a GPU works, on the CPU otherwise.

    Jittor compiles itself at its first import; one line on standard error says so and how long it takes.
    """
    if "jittor" in sys.modules:
        return sys.modules["jittor"]
    check_compiler()
    os.environ.setdefault("log_silent", "1")
    os.environ.setdefault("use_parallel_op_compiler", "0")
    if not count_gpus():
        os.environ["nvcc_path"] = ""
    import jittor_utils

    if not glob.glob(os.path.join(glob.escape(jittor_utils.cache_path), "**", "jittor_core*.so"), recursive=True):
        print(
            "First run here: Jittor compiles itself and its kernels, once, for about 3 minutes on 2 cores; "
            "later runs start within seconds.",
            file=sys.stderr,
            flush=True,
        )
    if os.environ.get("nvcc_path") != "" and not cuda_works():
        print("CUDA does not work with Jittor on this machine: running on the CPU.", file=sys.stderr, flush=True)
        os.environ["nvcc_path"] = ""
    try:
        # Jittor prints which helper archives it unpacks and how oneDNN's example runs
        with own_signals(), quiet():
            import jittor
    except SystemExit:  # it compiled a part of itself anew that it had already loaded
        sys.exit("Jittor's settings on this machine have changed and it was compiled anew: run the same command again.")
    if jittor.has_cuda:
        jittor.flags.use_cuda = 1
    return jittor


jt = import_jittor()
