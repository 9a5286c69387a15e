"""Jittor's own sources, loaded as Python 3.13 needs it and compiled in less time; no file of Jittor is changed."""

import contextlib
import glob
import importlib.machinery
import os
import shlex
import subprocess

# Since Python 3.13 locals() no longer has what exec("import name") brought in; sys.modules always had it.
LINES_BEFORE_3_13 = {
    "jittor.compiler": (b"mod = locals()[gen_name]", b"mod = sys.modules[gen_name]"),
    "jittor_utils": (b"mod = locals()[hash]", b"mod = sys.modules[hash]"),
}
# What most of Jittor's own sources include; none of them minds the others' headers.
SHARED_HEADERS = ["op.h", "var.h", "var_holder.h", "executor.h", "ops/op_register.h", "pyjt/py_converter.h"]
LONGEST = "pyjt_jit_op_maker.cc"  # takes as long as twenty others: begun last, it would keep one core alone busy


class MendingLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of Jittor with one line replaced; its file stays as it is."""

    def get_code(self, fullname):
        source = self.get_data(self.path).replace(*LINES_BEFORE_3_13[fullname])
        return compile(source, self.path, "exec", dont_inherit=True)


class MendingFinder:
    """Stands in sys.meta_path and has the modules of LINES_BEFORE_3_13 loaded by MendingLoader."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname not in LINES_BEFORE_3_13:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec:
            spec.loader = MendingLoader(fullname, spec.origin)
        return spec


def share_headers(utils):
    """When Jittor compiles itself, has g++ read SHARED_HEADERS once, not with each of 150 sources, and use -O1.

    utils: the module jittor_utils. The precompiled header goes afterwards, as g++ would not see that it is outdated.
    """
    header = os.path.join(utils.cache_path, "shared.h")
    compile_all = utils.run_cmds

    def run_cmds(cmds, cache_path, jittor_path, msg=""):
        if msg != "Compiling jittor_core":
            return compile_all(cmds, cache_path, jittor_path, msg)
        # A fifth less time than with -O2, and no step takes longer: kernels are compiled apart, with -Ofast
        cmds = [cmd.replace(" -O2 ", " -O1 ") for cmd in cmds]
        with open(header, "w") as file:
            file.writelines(f'#include "{name}"\n' for name in SHARED_HEADERS)
        try:
            if not glob.glob(os.path.join(glob.escape(cache_path), "jittor_core*.so")):
                compiler, _, *flags = shlex.split(cmds[0].split(" -c -o ")[0])
                command = [compiler, "-x", "c++-header", header, *flags, "-o", f"{header}.gch"]
                subprocess.run(command, capture_output=True)  # if it fails, the headers are read as text
            # The same commands at every start: Jittor compiles anew what had another.
            cmds = [cmd.replace(" -c -o ", f' -include"{header}" -c -o ') for cmd in cmds]
            cmds.sort(key=lambda cmd: LONGEST not in cmd)
            return compile_all(cmds, cache_path, jittor_path, msg)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(f"{header}.gch")

    utils.run_cmds = run_cmds
