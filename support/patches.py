"""Jittor's own sources, loaded as newer Pythons and CUDAs need it, compiled in less time; no file of it is changed."""

import contextlib
import glob
import importlib.machinery
import importlib.util
import os
import zlib

from support.saved.paths import write_if_new

# What is replaced in Jittor's modules: {module: [(before, after), ...]}; each `before` is there once.
MENDS = {
    # Since Python 3.13 locals() no longer has what exec("import name") brought in; sys.modules always had it.
    "jittor_utils": [
        (b"mod = locals()[hash]", b"mod = sys.modules[hash]"),
        # A cache's name has the versions of Jittor, Python and the compiler, and the processor; not the host and its
        # kernel, which are new in every container
        (b"osv = platform.platform() + platform.node()", b"osv = sys.modules['support.system'].processor()"),
        (b"cpuv = get_cpu_version()", b"cpuv = platform.machine()"),
        # Where /bin/sh is bash, nobody else says that the compiler was killed
        (b'f"Run cmd failed: {cmd}"', b'f"Run cmd failed: {cmd}" + "\\nended by signal 9" * (r.returncode == -9)'),
        # Python knows itself where its headers are; python3.X-config may be missing
        (
            b"_py3_include_path = None\n_py3_extension_suffix = None",
            b"import sysconfig\n_py3_include_path = '-I\"' + sysconfig.get_path('include') + '\"'\n"
            b"_py3_extension_suffix = sysconfig.get_config_var('EXT_SUFFIX')",
        ),
    ],
    # If there is no nvcc, or another than Jittor would install, nothing is downloaded.
    "jittor_utils.install_cuda": [(b"def install_cuda():\n", b"def install_cuda():\n    return None\n")],
    "jittor.compiler": [
        (
            b"# 3. User specified flags",
            b"cc_flags += sys.modules['support.patches'].compiler_flags(jit_utils.cache_path)",
        ),
        (b"mod = locals()[gen_name]", b"mod = sys.modules[gen_name]"),
        # A fifth less time than with -O2, and no step takes longer: kernels are compiled apart, with -Ofast
        (b'opt_flags += " -O2 "', b'opt_flags += " -O1 "'),
        # Few large sources instead of 150; what stands first does so on every file system
        (
            b"    jit_utils_core_files = files\n",
            b"    jit_utils_core_files = files\n"
            b"    files = sys.modules['support.compile'].join(files, jittor_path, jit_utils.cache_path)\n",
        ),
        (
            b"# recompile, generate cache key\n        compile(",
            b"sys.modules['support.compile'].write_key(compile, ",
        ),
        (b"files2 = pyjt_gen_src", b"files2 = sorted(pyjt_gen_src)"),
        (b"[ f[len(jittor_path)+1:] for f in files4 ]", b"sorted(f[len(jittor_path)+1:] for f in files4)"),
        (
            b'LOG.vv("compile order:", files)',
            b"files = sys.modules['support.compile'].core_sources(files, jittor_path, cache_path)",
        ),
        (b'if os.environ.get("use_data_gz", "1") == "0":', b"if True:  # it is among the sources"),
        (
            b"is_cuda = has_cuda = 1",
            b"is_cuda = has_cuda = 1\n"
            b"    cc_flags += sys.modules['support.patches'].cuda_flags(jit_utils.cache_path, nvcc_version[0])",
        ),
        # Jittor for the CPU lies in a folder that is searched before, as of a run with --cpu
        (
            b"cache_path = os.path.join(cache_path, cu)\n    sys.path.append(cache_path)",
            b"cache_path = os.path.join(cache_path, cu)\n    sys.path.insert(0, cache_path)",
        ),
        # CUDA 13's headers are C++17; the last of two -std counts. What g++ needs since 15, nvcc does not know
        (
            b'nvcc_flags += " -w "',
            b'nvcc_flags = nvcc_flags.replace(sys.modules["support.patches"].GXX_FLAGS, " --pre-include=cstdint ")\n'
            b'        nvcc_flags += " -w " + " -std=c++17 " * (nvcc_version[0] >= 13)',
        ),
        # Beside the machine code, which ends at sm_90, what the driver translates for a newer GPU
        (b'f" -arch=compute_{min(archs)} "', b'f" -arch=compute_{min(archs)} -code=compute_{min(archs)} "'),
    ],
    "jittor.compile_extern": [
        # An example of oneDNN's, and a test, which are compiled to be run once, or never
        (
            b'else:\n            assert 0 == os.system(f"cd {dirname}/examples',
            b'elif False:\n            assert 0 == os.system(f"cd {dirname}/examples',
        ),
        (
            b"for name in os.listdir(mkl_op_dir)]",
            b"for name in sorted(os.listdir(mkl_op_dir)) if name.startswith('mkl_') and 'test' not in name]",
        ),
        (b"    for d in dirs:", b'    for d in [*dirs, jit_utils.cache_path + "/cuda"]:'),
        # cuDNN 9 has no _infer and _train libraries, and none of the functions that Jittor's recurrent layers call
        (b"for l in libs:", b'for l in libs * os.path.isfile(culib_path.replace("libcudnn", "libcudnn_ops_infer")):'),
        (
            b'"cuda", lib_name)\n    culib_src_files = []\n    for r, _, f in os.walk(culib_src_dir):\n'
            b"        for fname in f:",
            b'"cuda", lib_name)\n    culib_src_files = []\n    for r, _, f in os.walk(culib_src_dir):\n'
            b'        for fname in [name for name in f if "rnn" not in name]:',
        ),
    ],
}
# g++ 15 and later mind a header that Jittor's sources forget, and warn of what became an error.
GXX_FLAGS = "-includecstdint -Wno-template-body"
# All that Jittor's kernels take from npp.h, a header that a toolkit may lack.
NPP = {"32U": "4294967295U", "32S": "2147483647", "64U": "18446744073709551615ULL", "64S": "9223372036854775807LL"}


class MendingLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of Jittor with its MENDS; its file stays as it is, and so does what Python compiled of it."""

    def source_to_code(self, data, path, **settings):
        for before, after in MENDS[self.name]:
            data = data.replace(before, after)
        return super().source_to_code(data, path, **settings)

    def own(self, path):
        """Returns where Python keeps the compiled module, for the path where it would without MENDS."""
        return path.replace(".pyc", f".mended-{zlib.crc32(repr(MENDS[self.name]).encode())}.pyc")

    def get_data(self, path):
        return super().get_data(self.own(path))

    def set_data(self, path, data, **settings):
        super().set_data(self.own(path), data, **settings)


class MendingFinder:
    """Stands in sys.meta_path and has the modules of MENDS loaded by MendingLoader."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname not in MENDS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec:
            spec.loader = MendingLoader(fullname, spec.origin)
        return spec


def compiler_flags(cache):
    """Returns what Jittor's commands need beside its own flags: numpy2.h first, written into the folder `cache`."""
    folder = os.path.join(cache, "numpy2")
    os.makedirs(os.path.join(folder, "pyjt"), exist_ok=True)
    with open(os.path.join(os.path.dirname(__file__), "numpy2.h")) as file:
        write_if_new(os.path.join(folder, "pyjt", "numpy.h"), file.read())
    return f' -I"{folder}" {GXX_FLAGS} '


def cuda_flags(cache, version):
    """Returns what Jittor's commands need beside its own flags, for CUDA `version`; fills the folder `cache`/cuda.

    There lies what the toolkit may lack and Jittor then takes: npp.h, and links to what pip installed for that CUDA,
    cuDNN with it (PyTorch brings it, without the names lib*.so that a linker wants).
    """
    folder = os.path.join(cache, "cuda")
    os.makedirs(folder, exist_ok=True)
    least = {name: "0" if name.endswith("U") else f"-{most} - 1" for name, most in NPP.items()}
    lines = [f"#define NPP_MIN_{name} ({least[name]})\n#define NPP_MAX_{name} ({NPP[name]})\n" for name in NPP]
    write_if_new(os.path.join(folder, "npp.h"), "".join(lines))
    spec = importlib.util.find_spec("nvidia")
    for pip in map(glob.escape, spec.submodule_search_locations if spec else []):
        parts = glob.glob(f"{pip}/cu{version}/*/*")
        for path in parts and parts + glob.glob(f"{pip}/cudnn/*/*"):  # whose name does not say for which CUDA it is
            name = os.path.basename(path)
            for link in {name, name.split(".so.")[0] + ".so"} if ".so." in name else {name}:
                with contextlib.suppress(FileExistsError):
                    os.symlink(path, os.path.join(folder, link))
    # Two fields that cudaDeviceProp lost in CUDA 13, in functions that nobody calls
    return f" -I{folder} " + " -DcomputeMode=major -DclockRate=major " * (version >= 13)
