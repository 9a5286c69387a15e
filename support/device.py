"""The only door to Jittor, on the device that this machine can really run: `from support.device import jt, nn`.

A bare `import jittor` dies if there is nvcc but no CUDA runtime or no GPU, and in a virtual environment of a Python
whose `python3.X-config` is not in /usr/bin. Environment variables that Jittor reads at its import settle both:

    nvcc_path           the empty string keeps Jittor on the CPU
    python_config_path  where the interpreter's python3.X-config is
    cache_name          a cache of this project's own: a plain Jittor program has other settings, and in a common one
                        each would compile Jittor anew after the other
    use_mpi             0 outside mpirun: Jittor's MPI support is neither compiled nor loaded
    log_silent          keeps Jittor's own log lines off the terminal
    use_parallel_op_compiler    0: kernels are compiled one after the other. Jittor's threads for it crash now and
                        then with "Segfault happen, main thread exit" (seen once in about 150 starts; JGAN issue 9)

and one that OpenMP's threads read:

    GOMP_SPINCOUNT      how long a thread that waits for the others keeps its core busy: by default for milliseconds,
                        which made a step beside a busy core take 50 times as long
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
import zlib

from support.patches import MendingFinder, share_headers
from support.saved.paths import PROJECT

PREREQUISITES = "sudo apt install g++ python3-dev"
GPU_WORKS = 42  # an exit status that Jittor itself does not end with


def count_gpus():
    """Returns how many CUDA devices the driver offers; 0 if there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return 0 if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) else count.value


def cuda_works():
    """Tries CUDA in a process of its own: an import that fails half way cannot be undone in this one."""
    # The probe is no part of an MPI job, even if this process is
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    probe = [sys.executable, "-m", "support.device"]
    for _ in range(2):  # Jittor ends with 0 if it has compiled a part of itself anew, and asks for a second start
        status = subprocess.run(probe, cwd=PROJECT, env={**env, "use_mpi": "0"}, capture_output=True).returncode
        if status:
            break
    return status == GPU_WORKS


def probe():
    """Ends the program with GPU_WORKS if a GPU computes what training and FID need, one of each kind of kernel."""
    import jittor
    import jittor_utils

    hide_space(jittor, jittor_utils.cache_path)
    if jittor.has_cuda:
        jittor.flags.use_cuda = 1
        jittor.nn.Conv(3, 8, 3)(jittor.randn(2, 3, 8, 8)).sync()
        jittor.matmul(jittor.randn(4, 4), jittor.randn(4, 4)).sync()
        sys.exit(GPU_WORKS)


def check_compiler():
    """Ends the program with one sentence if Jittor could not compile its kernels."""
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


def hide_space(jittor, folder):
    """Gives Jittor a link in `folder` to a virtual environment whose path has a space.

    Its commands that compile kernels hold the paths of Python and of its own sources without quotes.
    """
    if " " in sys.prefix and " " not in folder:
        link = os.path.join(folder, f"prefix{zlib.crc32(os.fsencode(sys.prefix))}")
        with contextlib.suppress(FileExistsError):
            os.symlink(sys.prefix, link)
        for flag in ("python_path", "jittor_path"):
            setattr(jittor.flags, flag, getattr(jittor.flags, flag).replace(sys.prefix, link))


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
        yield  # handlers cannot be set there
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
    """Returns the module jittor, on CUDA if a GPU works, on the CPU otherwise.

    Jittor compiles itself at its first import; one line on standard error says so and how long it takes.
    """
    if "jittor" in sys.modules:
        return sys.modules["jittor"]
    check_compiler()
    os.environ.setdefault("cache_name", "cgan1")  # another number if patches.py compiles in another way
    os.environ["use_mpi"] = "1" if "OMPI_COMM_WORLD_SIZE" in os.environ else "0"
    os.environ.setdefault("log_silent", "1")
    os.environ.setdefault("use_parallel_op_compiler", "0")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not count_gpus():
        os.environ["nvcc_path"] = ""
    try:
        import jittor_utils
        import jittor_utils.lock
    except OSError as error:
        sys.exit(
            f"{error.filename}: {error.strerror}. Jittor keeps its compiled code there: set HOME and JITTOR_HOME to "
            "folders that can be written."
        )
    if " " in jittor_utils.cache_path:
        sys.exit(
            f"{jittor_utils.cache_path}: Jittor keeps its compiled code there, and cannot if the path has a space: "
            "set JITTOR_HOME to a folder without one."
        )
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
    if os.environ.get("nvcc_path") == "" and jittor_utils.cc_type == "g++":
        share_headers(jittor_utils)
    try:
        # Jittor prints which helper archives it unpacks and how oneDNN's example runs
        with own_signals(), quiet():
            import jittor
            import jittor.dataset
            import jittor.models
            import jittor.transform
    except SystemExit:  # it compiled a part of itself anew that it had already loaded
        sys.exit("Jittor's settings have changed here, and it compiled itself anew: run the same command again.")
    hide_space(jittor, jittor_utils.cache_path)
    if jittor.has_cuda:
        jittor.flags.use_cuda = 1
    return jittor


if sys.version_info >= (3, 13):
    sys.meta_path.insert(0, MendingFinder)
if __name__ == "__main__":
    probe()
else:
    jt = import_jittor()
    nn = jt.nn
