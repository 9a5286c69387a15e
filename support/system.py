"""What the programs need of the machine, asked before it is used: one sentence says what is missing and what brings it.

Needs nothing but Python itself.
"""

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
import zlib

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What each script imports beside support/; curves are drawn without Jittor, too.
PACKAGES = {"plot_curves.py": ("numpy", "scipy", "PIL", "tqdm", "matplotlib")}
PACKAGES["cgan.py"] = PACKAGES["fid.py"] = ("jittor", *PACKAGES["plot_curves.py"])
# How a package manager brings a compiler, and what it calls the headers of the system's Python and of another one.
MANAGERS = {
    "apt-get": ("apt update && {sudo}apt install g++", "python{version}-dev", "python{version}-dev"),
    "zypper": ("zypper install gcc-c++", "python3-devel", "python{short}-devel"),
    "dnf": ("dnf install gcc-c++", "python3-devel", "python{version}-devel"),
    "pacman": ("pacman -S --needed gcc", "python", "python"),
}
PLACES = "/usr/bin:/bin:/usr/sbin:/sbin"  # where the system's own programs are, whatever PATH is


def check_python():
    """Ends the program with one sentence on another system than Linux, or with a Python that Jittor does not run on."""
    if sys.platform == "win32":
        sys.exit(
            "This program needs Linux, which Windows has inside it: in PowerShell, run `wsl --install`, restart, open "
            "Ubuntu from the start menu, and follow the README there."
        )
    if sys.platform != "linux":
        name = {"darwin": "macOS"}.get(sys.platform, sys.platform)
        sys.exit(
            f"This program needs Linux, and this is {name}: with Docker, `docker run -it python:3.12 bash` starts one, "
            "in which the README can be followed."
        )
    if not (3, 8) <= sys.version_info[:2] <= (3, 14):
        sys.exit(
            f"This is Python {sys.version_info[0]}.{sys.version_info[1]}; Jittor needs Python 3.8 to 3.14, which uv "
            "(uv venv --seed --python 3.12 .venv) or conda (conda create -n cgan python=3.12) brings."
        )


def hide_warnings():
    """Keeps to themselves what packages are warned of when Python compiles them, unless -W asks for it."""
    if not sys.warnoptions:
        for kind in (SyntaxWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)


class StandIns:
    """Has a module in sys.meta_path for each of `packages`; whatever is asked of it is there and does nothing."""

    packages = ()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.split(".")[0] in cls.packages
        return importlib.machinery.ModuleSpec(name, cls, is_package=True) if known else None

    @staticmethod
    def create_module(spec):
        return None  # Python's own kind of module

    @staticmethod
    def exec_module(module):
        from unittest.mock import MagicMock

        module.__getattr__ = lambda name: MagicMock()


def check_packages():
    """Ends a script with one sentence if packages are missing; --help needs none."""
    missing = [name for name in PACKAGES.get(os.path.basename(sys.argv[0]), ()) if not importlib.util.find_spec(name)]
    if missing and {"-h", "--help"} & set(sys.argv):
        StandIns.packages = missing
        sys.meta_path.append(StandIns)
    elif missing:
        sys.exit(f"{', '.join(missing)} cannot be imported: {how_to_import()}")


def how_to_import():
    """Returns which environment is active, and the command that activates the project's, fills it or makes one."""
    folders = [os.path.join(PROJECT, name) for name in sorted(os.listdir(PROJECT))]
    own = [folder for folder in folders if os.path.isfile(os.path.join(folder, "bin", "activate"))]
    if own and os.path.realpath(sys.prefix) not in map(os.path.realpath, own):
        activate = shlex.quote(os.path.join(os.path.relpath(own[0]), "bin", "activate"))
        return f"this project's environment is not active in this terminal. To activate it: . {activate}"
    what, make = f"the environment {sys.prefix} lacks what this project needs. To install it: ", ""
    if sys.prefix == sys.base_prefix and not is_conda():
        what, make = (
            "this project's environment is not made yet. To make it: ",
            "python3 -m venv .venv && . .venv/bin/activate && ",
        )
    folder = "" if os.path.samefile(os.curdir, PROJECT) else f"cd {shlex.quote(PROJECT)} && "
    return f"{what}{folder}{make}pip install -r requirements.txt"


def is_conda():
    """Returns whether this Python is one of conda's."""
    return os.path.isdir(os.path.join(sys.base_prefix, "conda-meta"))


def compiler_says(*flags):
    """Returns what the C++ compiler that Jittor takes prints, "" if there is none or it fails."""
    command = [os.environ.get("cc_path", "g++"), *flags]
    settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    same = {**os.environ, "COLUMNS": "80", "LC_ALL": "C"}  # it speaks the user's language, to the terminal's width
    try:
        return subprocess.run(command, env=same, **settings).stdout.strip()
    except OSError:
        return ""


def check_compiler():
    """Ends the program with one sentence if Jittor could not compile its kernels."""
    compiler = os.environ.get("cc_path", "g++")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    missing = [] if shutil.which(compiler) else [f"a C++ compiler ({compiler})"]
    if not os.path.isfile(header):
        missing.append(f"the headers of Python {sys.version_info[0]}.{sys.version_info[1]} ({header})")
    if missing:
        sys.exit(f"Jittor compiles its kernels and needs {' and '.join(missing)}, not found here. {how_to_install()}")
    newer = newer_libstdcxx(loaded_libstdcxx())
    if newer:
        sys.exit(
            f"An older libstdc++ is loaded ({loaded_libstdcxx()[0]}), with which nothing that Jittor compiles can run. "
            f"Put LD_PRELOAD={newer} before the command, or: conda install -c conda-forge libstdcxx-ng"
        )


def how_to_install():
    """Returns the command that brings a C++ compiler, and this Python's headers, on this kind of system."""
    if is_conda():  # its Python has its headers
        return "To install what is missing: conda install -c conda-forge gxx"
    manager = next((name for name in MANAGERS if shutil.which(name, path=PLACES)), None)
    if not manager:
        return "The system's package manager brings both."
    command, own, other = MANAGERS[manager]
    if sys.base_prefix == "/usr":  # the system has no package for another Python
        version = "{}.{}".format(*sys.version_info)
        system = os.path.realpath(shutil.which("python3", path=PLACES) or "").endswith(version)
        command = f"{command} {own if system else other}"
        command = command.replace("{version}", version).replace("{short}", version.replace(".", ""))
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"To install what is missing: {sudo}{command.replace('{sudo}', sudo)}"


def processor():
    """Returns a short name of this processor as the compiler sees it, for which code is compiled."""
    return f"{zlib.crc32(compiler_says('-march=native', '-Q', '--help=target').encode()):08x}"


def prefer_newest_libstdcxx():
    """Loads the compiler's libstdc++ before a package loads one that lacks symbols of it, such as conda's.

    A process has one, the first, and what Jittor compiles would not load beside an older.
    """
    folders = [os.path.join(sys.base_prefix, "lib"), *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
    others = [os.path.join(folder, "libstdc++.so.6") for folder in folders if folder]
    others = [path for path in others if os.path.isfile(path)]
    newer = others and not loaded_libstdcxx() and newer_libstdcxx(others)
    if newer:
        ctypes.CDLL(newer)


def loaded_libstdcxx():
    """Returns [the path of the libstdc++ that this process has], empty if it has none."""
    with open("/proc/self/maps") as file:
        return re.findall(r"/\S*/libstdc\+\+\.so\S*", file.read())[:1]


def newer_libstdcxx(paths):
    """Returns the path of the compiler's libstdc++ if one of those in `paths` lacks symbols of it, else ""."""
    own = os.path.realpath(compiler_says("-print-file-name=libstdc++.so.6"))
    others = [path for path in paths if os.path.isfile(own) and not os.path.samefile(path, own)]
    return own if any(symbols(own) - symbols(path) for path in others) else ""


def symbols(path):
    """Returns the versions of the symbols that a libstdc++ has."""
    with open(path, "rb") as file:
        return set(re.findall(rb"GLIBCXX_[\d.]+", file.read()))
