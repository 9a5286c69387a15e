"""Has Jittor compile itself and its kernels in less than half the time. Needs no Jittor.

What takes g++ long is to read headers, again and again. So Jittor's 150 sources become a dozen (`join`), and all
kernels share headers that g++ has read before (`share_header`). patches.py has Jittor call what is here.
"""

import gzip
import os
import re
import sys
import time
import zlib

from support.saved.paths import write_if_new

# Joined for themselves, as the last: their use_cuda is a variable; a header of the others has it as a constant
APART = (
    "gen/pyjt_jit_flags.cc",
    "misc/cuda_flags.cc",
    "pyjt/py_array_op.cc",
    "tuner/conv_tuner.cc",
    "type/common_op_type.cc",
    "type/fp16_op_type.cc",
)
LONGEST = "pyjt_jit_op_maker.cc"  # takes a fifth of the time: begun last, it would keep one core alone busy
MOST_BYTES, FIRSTS = 160_000, (LONGEST, APART[0], "src/init.cc", "cpu_atomic.cc", "fetch_op.cc")
# What several sources have for their own: so it gets another name in each
OWN_NAMES = re.compile(r"^static [\w ]*?\b(make_\w+|_|isvar)\b", re.MULTILINE)
# Jittor's own tests
TESTS = re.compile(r"src/test/|pyjt_jit_tests")
NO_TESTS = "#include <Python.h>\nnamespace jittor { void pyjt_def_jit_tests(PyObject*) {} }\n"
KERNEL_HEADERS = """#define JIT 1
#define JIT_cpu 1
#include <algorithm>
#include <assert.h>
#include <cmath>
#include <limits>
#include <memory>
#include <omp.h>
#include "var.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "ops/op_register.h"
#include "ops/array_op.h"
#include "ops/binary_op.h"
#include "ops/broadcast_to_op.h"
#include "ops/code_op.h"
#include "ops/reduce_op.h"
#include "ops/ternary_op.h"
#include "ops/unary_op.h"
"""
# In place of Python with Jittor's asm_tuner.py, whose path comes first: that has g++ write assembly for debugging, and
# edits it if an option asks for it that nothing here sets. Where g++ cannot map its own header into memory, as older
# ones now and then in a container, it goes without.
KERNEL_SCRIPT = """shift
compiler=${{1#--cc_path=}}
shift
"$compiler" -include "{header}" "$@" -w 2>/dev/null || exec "$compiler" "$@" -w
"""


def join(files, jittor, cache):
    """Returns paths of a few sources that include all C++ sources of Jittor, and of its others.

    files: absolute paths, or relative to the folder `jittor`, in the order in which they are initialised, which stays;
    cache: the folder in which the few are written.
    """
    paths = [os.path.join(jittor, file) for file in files if not TESTS.search(file)]
    paths.sort(key=lambda path: path.endswith(APART))
    joined, others, name, size = {}, [], None, MOST_BYTES
    for path in paths:
        if not path.endswith(".cc"):
            others.append(path)
            continue
        if size >= MOST_BYTES or path.endswith(FIRSTS):
            name, size = os.path.join(cache, f"joined_{os.path.basename(path)}"), 0
            joined[name] = "" if joined or len(paths) == len(files) else NO_TESTS
        with open(path, encoding="utf-8") as file:
            source = file.read()
        own, stem = sorted(set(OWN_NAMES.findall(source))), os.path.basename(path)[:-3]
        joined[name] += "".join(f"#define {word} {word}_in_{stem}\n" for word in own)
        joined[name] += f'#include "{path}"\n' + "".join(f"#undef {word}\n" for word in [*own, "fill"])
        if "visibility push(hidden)" in source:  # to its end: not of what follows
            joined[name] += "#pragma GCC visibility push(default)\n"
        size += len(source)
    for name, text in joined.items():
        write_if_new(name, text)
    return [*joined, *others]


def core_sources(files, jittor, cache):
    """Returns what `join` does, and the source that Jittor brings compressed and would compile before all others."""
    path = os.path.join(cache, "gen", "data.cc")
    with gzip.open(os.path.join(jittor, "utils", "data.gz"), "rt", encoding="utf-8") as file:
        # Not with -O2, as Jittor compiles it: there g++ 14 does not come to an end within minutes
        write_if_new(path, f'#include "{jittor}/src/utils/vdp"\n{file.read()}')
    return [*join(files, jittor, cache), path]


def write_key(compile, compiler, flags, files, output, combined):
    """Stands in for a second compile of `output`, which only gives it the key by which Jittor knows it as done."""
    compile("true", flags, files, output, combined)
    with open(f"{output}.key") as file:
        text = file.read()
    write_if_new(f"{output}.key", text.replace('"true"', f'"{compiler}"', 1))


class Progress:
    """Stands in for DelayProgress of jittor_utils: tells how far a compile that takes longer is."""

    def __init__(self, message, total):
        self.what = "Jittor" if "jittor_core" in message else "Jittor's libraries"
        self.total, self.start = total, time.monotonic()

    def update(self, index):
        """Says that so many of the parts are compiled, and one: on a terminal in place, in a file now and then."""
        done, terminal = index + 1, sys.stderr.isatty()
        if time.monotonic() - self.start > 2 and (terminal or 4 * done // self.total > 4 * index // self.total):
            end = "\r" if terminal and done < self.total else "\n"
            print(f"Compiling {self.what}: {done} of {self.total} parts", end=end, file=sys.stderr, flush=True)


def speed_up(utils):
    """Has g++ read the kernels' headers when Jittor compiles itself, and shows how far it is; utils: jittor_utils."""
    run_all = utils.run_cmds

    def run_cmds(cmds, cache_path, jittor_path, msg=""):
        if msg == "Compiling jittor_core":
            jittor = sys.modules["jittor.compiler"]
            header = os.path.join(cache_path, "kernels.h")
            write_if_new(header, KERNEL_HEADERS)
            flags = jittor.remove_flags(jittor.cc_flags + jittor.kernel_opt_flags, ["-l", "-L", "-shared"])
            cmds = [f'"{jittor.cc_path}" -x c++-header "{header}" {flags} -o "{header}.gch"', *cmds]
            cmds.sort(key=lambda cmd: LONGEST not in cmd and " -x cu " not in cmd)
        return run_all(cmds, cache_path, jittor_path, msg)

    utils.run_cmds, utils.DelayProgress = run_cmds, Progress


def share_header(jittor):
    """Has the kernels of Jittor, just imported, compiled with the headers that g++ has read already."""
    folder = jittor.flags.cache_path
    script = os.path.join(folder, "kernel.sh")
    write_if_new(script, KERNEL_SCRIPT.format(header=os.path.join(folder, "kernels.h")))
    jittor.flags.python_path = f'/bin/sh "{script}"'  # which runs asm_tuner.py


def operators(jittor):
    """Returns the module of the operators in support/fast, compiled from copies beside the kernels of `jittor`.

    So a path need not be one that Jittor's commands bear, and another version of this project has others.
    """
    folder, texts = os.path.join(os.path.dirname(__file__), "fast"), {}
    for name in sorted(os.listdir(folder)):
        if name.endswith((".cc", ".cuh", ".h")):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                texts[name] = file.read()
    version = f"{zlib.crc32(repr(texts).encode()):08x}"
    folder = os.path.join(jittor.flags.cache_path, f"fast_{version}")
    os.makedirs(folder, exist_ok=True)
    for name, text in texts.items():
        write_if_new(os.path.join(folder, name), text)
    paths = [os.path.join(folder, name) for name in texts if "_op." in name]
    settings = {"extra_flags": f" -DFAST_VERSION=0x{version} ", "gen_name_": f"fast_{version}"}
    return jittor.compile_custom_ops(paths, return_module=True, **settings)
