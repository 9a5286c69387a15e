"""The only door to Jittor, on the device that this machine can really run: `from support.device import jt, nn`.

A bare `import jittor` dies if there is nvcc but no CUDA runtime or no GPU. Environment variables that Jittor reads at
its import settle that:

    nvcc_path           the empty string keeps Jittor on the CPU; otherwise CUDA's compiler, looked for if not set
    cache_name          a cache of this project's own: a plain Jittor program has other settings, and in a common one
                        each would compile Jittor anew after the other
    use_mpi             0 outside mpirun: Jittor's MPI support is neither compiled nor loaded
    log_silent          keeps Jittor's own log lines off the terminal
    gdb_path            the empty string: no debugger's words when the program dies
    use_parallel_op_compiler    0: kernels are compiled one after the other. Jittor's threads for it crash now and
                        then with "Segfault happen, main thread exit" (seen once in about 150 starts; JGAN issue 9)

On CUDA, where a kernel takes 5 s, the last is the number of cores, 16 at most, as long as there are few kernels yet:
what crashes are threads that load compiled kernels, all at a time (2 of some 20 starts). And there are besides:

    use_cutlass, use_cutt   0: two libraries for CUDA that nothing here uses, and that Jittor would download
    FIX_TORCH_ERROR         0: PyTorch, if it is there, is not imported with Jittor
    NVIDIA_TF32_OVERRIDE    0: products in full float32, without which FID on a GPU has 3 right digits

and two that OpenMP's threads read:

    OMP_NUM_THREADS     how many there are: by default the cores that this process may use (support/__init__.py)
    GOMP_SPINCOUNT      how long a thread that waits for the others keeps its core busy: by default for milliseconds,
                        which made a step beside a busy core take 50 times as long
"""

import ctypes
import glob
import os
import re
import shutil
import subprocess
import sys

from support import compile, limits, start, system
from support.patches import MendingFinder
from support.saved.paths import PROJECT
from support.start import say

NVCC_PLACES = ["/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc"]  # where Jittor looks, after PATH
FEW_KERNELS = 40  # a first run has compiled more when it has scored its first epoch
GPU_WORKS = 42  # an exit status that Jittor itself does not end with


def count_gpus():
    """Returns how many CUDA devices the driver offers; 0 if there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return 0 if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) else count.value


def describe_gpu():
    """Returns which GPU computes, and the versions of CUDA's parts."""
    cuda, name, driver = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(256), ctypes.c_int()
    cuda.cuDeviceGetName(name, 256, 0)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    cudnn = getattr(ctypes.CDLL(None), "cudnnGetVersion", None) if jt.cudnn else None
    return {
        "gpu": f"{name.value.decode()}, driver for CUDA {driver.value // 1000}.{driver.value % 1000 // 10}",
        "cuda": ".".join(map(str, jt.compiler.nvcc_version)),
        "cudnn": cudnn() if cudnn else "none",
    }


def find_nvcc():
    """Returns nvcc's path: nvcc_path, or the first toolkit where Jittor looks; None if there is none.

    A script in PATH that only calls nvcc does not count: Jittor takes CUDA's headers and libraries from beside it.
    """
    if "nvcc_path" in os.environ:
        return shutil.which(os.environ["nvcc_path"])
    home = os.environ.get("JITTOR_HOME") or os.path.expanduser("~")
    installed = glob.glob(os.path.join(glob.escape(home), ".cache/jittor/jtcuda/*/bin/nvcc"))  # by Jittor, once
    for path in filter(None, map(shutil.which, ["nvcc", *NVCC_PLACES, *installed])):
        if os.path.isfile(os.path.join(os.path.dirname(os.path.realpath(path)), "../include/cuda_runtime.h")):
            return path
    return None


def prepare_cuda():
    """Readies this process, in which jittor is not imported yet, for a Jittor on CUDA."""
    cores = str(min(limits.cores(), 16))
    zeros = dict.fromkeys(("use_cutlass", "use_cutt", "FIX_TORCH_ERROR", "NVIDIA_TF32_OVERRIDE"), "0")
    for name, value in {**zeros, "use_parallel_op_compiler": cores}.items():
        os.environ.setdefault(name, value)


def why_not_cuda():
    """Tries CUDA in a process of its own: an import that fails half way cannot be undone in this one.

    Returns None if it works, otherwise the last line in which that process said why not.
    """
    # The probe is no part of an MPI job, even if this process is
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    command = [sys.executable, "-m", "support.device"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True, "errors": "replace"}
    for _ in range(2):  # Jittor ends with 0 if it has compiled a part of itself anew, and asks for a second start
        try:
            process = subprocess.run(command, cwd=PROJECT, env={**env, "use_mpi": "0"}, timeout=1800, **pipes)
        except subprocess.TimeoutExpired:
            return "a first try took more than half an hour"
        if process.returncode:
            break
    if process.returncode == GPU_WORKS:
        return None
    said = re.sub(r"\x1b\[[\d;]*m", "", process.stdout)  # without colours
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    telling = [line for line in lines if re.search("Error|Reason", line)]  # Jittor ends with hints
    return (telling or lines or [f"exit status {process.returncode}"])[-1][:300]


def probe():
    """Ends the program with GPU_WORKS if a GPU computes what training and FID need, one of each kind of kernel."""
    with start.plain_paths():
        import jittor_utils

        jittor_utils.run_cmds = start.run_cmds
        prepare_cuda()
        compile.speed_up(jittor_utils)
        import jittor

    use_cuda(jittor)
    together = ctypes.c_int()
    if jittor.has_cuda and ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(together), 95, 0) == 0:
        if not together.value:  # blocks that wait for each other, which layers.cuh needs
            sys.exit("Error: this GPU has no cooperative launch; NVIDIA's of 2016 and later have")
        jittor.nn.Conv(3, 8, 3)(jittor.randn(2, 3, 8, 8)).sync()
        jittor.matmul(jittor.randn(4, 4), jittor.randn(4, 4)).sync()
        sys.exit(GPU_WORKS)


def use_cuda(jittor):
    """Has Jittor, just imported, compute on the GPU if it can, without fast math, whose tanh has 11 right bits."""
    if jittor.has_cuda:
        jittor.flags.use_cuda = 1
        if len(glob.glob(os.path.join(glob.escape(jittor.flags.cache_path), "jit", "*.so"))) > FEW_KERNELS:
            jittor.flags.use_parallel_op_compiler = 0
        jittor.flags.nvcc_flags = jittor.flags.nvcc_flags.replace("--use_fast_math", "")
        set_seed, jittor.set_seed = jittor.set_seed, lambda seed: (set_seed(seed), renew_curand(seed))


def renew_curand(seed):
    """Has cuRAND's numbers follow from a seed: the generator that Jittor made would go on where it is."""
    library = ctypes.CDLL(None)
    generator = ctypes.c_void_p.in_dll(library, "_ZN6jittor3genE")
    library.curandDestroyGenerator(generator)
    library.curandCreateGenerator(ctypes.byref(generator), 100)  # CURAND_RNG_PSEUDO_DEFAULT
    library.curandSetPseudoRandomGeneratorSeed(generator, ctypes.c_ulonglong(seed))


@start.caught()
def import_jittor():
    """Returns the module jittor, on CUDA if a GPU works, on the CPU otherwise, and that of support/fast's operators.

    Jittor compiles itself at its first import; one line on standard error says so and how long it takes. Whatever goes
    wrong ends the program with one sentence.
    """
    if "jittor" in sys.modules:
        return sys.modules["jittor"], compile.operators(sys.modules["jittor"])
    system.check_compiler()
    os.environ.setdefault("cache_name", "cgan3")  # another number if compile.py or patches.py do it in another way
    os.environ["use_mpi"] = "1" if "OMPI_COMM_WORLD_SIZE" in os.environ else "0"
    os.environ.setdefault("log_silent", "1")
    os.environ.setdefault("gdb_path", "")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if os.environ.get("nvcc_path") != "":
        nvcc = find_nvcc() if count_gpus() else ""
        if nvcc is None:
            places = os.environ.get("nvcc_path") or f"PATH or {', '.join(NVCC_PLACES)}"
            say(
                f"There is a GPU, but no nvcc with CUDA's headers beside it in {places}: running on the CPU. "
                "NVIDIA's CUDA toolkit brings both."
            )
        os.environ["nvcc_path"] = nvcc or ""
    import jittor_utils

    start.check_lock(jittor_utils)
    start.drop_damaged(jittor_utils)
    folder, what = "", "First run here: Jittor compiles itself and its kernels, once, for half a minute or longer"
    if os.environ["nvcc_path"]:
        folder, what = "cu[0-9]*", "Jittor is tried on the GPU: it compiles itself for it once, for a minute or longer"
    if not glob.glob(os.path.join(glob.escape(jittor_utils.cache_path), folder, "jittor_core*.so")):
        start.check_version(jittor_utils)
        say(f"{what}; later runs start within seconds.")
    reason = why_not_cuda() if os.environ["nvcc_path"] else None
    if reason:
        say(f"CUDA does not work with Jittor on this machine: running on the CPU ({reason}).")
        os.environ["nvcc_path"] = ""
    jittor_utils.run_cmds = start.run_cmds
    start.watch_crashes(jittor_utils)
    if os.environ["nvcc_path"]:
        prepare_cuda()
    compile.speed_up(jittor_utils)
    os.environ.setdefault("use_parallel_op_compiler", "0")
    import jittor
    import jittor.dataset
    import jittor.models
    import jittor.transform

    compile.share_header(jittor)
    use_cuda(jittor)
    return jittor, compile.operators(jittor)


def set_seed(seed):
    """Has all random numbers from here on follow from a seed, whatever has been done in this process before.

    What was made and not computed draws its numbers first. A step or an evaluation that was stopped may leave gradients
    off, or another order of operators.
    """
    jt.flags.no_grad = jt.flags.node_order = 0
    jt.sync_all()
    jt.set_global_seed(seed)


sys.meta_path.insert(0, MendingFinder)
if __name__ == "__main__":
    probe()
else:
    jt, graph = import_jittor()
    start.watch(jt)
    nn = jt.nn
