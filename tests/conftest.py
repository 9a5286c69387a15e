"""What several tests share. The tests run the project's own scripts, on real MNIST, as a user would."""

import atexit
import contextlib
import functools
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jittor_offline
import numpy as np
import pytest
from PIL import Image

# The user's, before an import of support or Jittor in this process adds to it; a proxy that refuses: no test needs a
# network
ENVIRONMENT = {**os.environ, "https_proxy": "http://127.0.0.1:9"}

from support import idx, inception_sources
from support.inception_weights import NONE, SHAPES
from support.saved.classifier import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "reference"
inception_sources.SOUGHT = (NONE,)  # FID takes seconds each time: only runs that name weights have it
MNIST = Path(jittor_offline.__file__).parent  # the real one's files, which FILES in support/idx.py names
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
# For a process that must not compile: its `import jittor` does this instead
STOP = """import builtins, os, sys
real = builtins.__import__
def stop(name, *args, **kw):
    if name == 'jittor': {}
    return real(name, *args, **kw)
builtins.__import__ = stop
import support.device"""


def pytest_configure(config):
    """Leaves the slow tests out where the command line names no tests."""
    if config.args_source is not config.ArgsSource.ARGS and not config.option.keyword:
        config.option.markexpr = config.option.markexpr or "not slow"


def pytest_report_collectionfinish(config, items):
    """Says what is run and what is left; pytest itself says how many are deselected."""
    if config.option.markexpr == "not slow":
        more = "the slower ones are left to: python -m pytest -m 'slow or not slow', about 12 minutes"
        return f"{len(items)} tests of every contract, about 2 minutes on 2 cores; {more}"


def slow(*values):
    """Returns a case of a parametrized test that the default leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


@functools.lru_cache(maxsize=None)
def few():
    """Returns a folder with MNIST's first 4,000 training and 1,000 test images, and a classifier that reads them."""
    folder = Path(tempfile.mkdtemp(prefix="few-mnist-"))
    atexit.register(shutil.rmtree, folder)
    for (images, labels), n in zip(idx.FILES, (4000, 1000)):
        write_idx(folder / images, [2051, n, 28, 28], next(idx.read_idx(MNIST / images, idx.IMAGE_MAGIC, n)))
        write_idx(folder / labels, [2049, n], next(idx.read_idx(MNIST / labels, idx.LABEL_MAGIC, n)))
    np.savez(folder / "classifier.npz", **{**read_npz(WEIGHTS), "data": idx.data_facts(str(folder)).sha256})
    return folder


def own(args):
    """Returns flags of cgan.py as words; a new run has few images and no FID unless these say otherwise."""
    words, data = [str(word) for word in args], str(few())
    if not {"--resume", "--digits", "--export", "--npz", "--help"} & set(words):
        words += ["--inception_weights", NONE] * ("--inception_weights" not in words)
        words += ["--data_root", data, "--classifier", f"{data}/classifier.npz"] * ("--data_root" not in words)
    return words


def command(args):
    """Returns `python *args` as words, with what `own` adds; a function of a test module may stand for a script."""
    if callable(args[0]):
        return command_of(*args)
    script, *flags = map(str, args)
    return [sys.executable, script, *(own(flags) if script.endswith("cgan.py") else flags)]


def run(*args, cwd=ROOT, timeout=600, preexec_fn=None, **env):
    """Runs `command(args)`; returns the finished process with its output as text."""
    settings = {"cwd": cwd, "env": {**ENVIRONMENT, **env}, "timeout": timeout, "preexec_fn": preexec_fn}
    return subprocess.run(command(args), capture_output=True, text=True, **settings)


def done(*args, **settings):
    """Returns what `run` does, of a program that must succeed."""
    process = run(*args, **settings)
    assert process.returncode == 0, process.stderr
    return process


def command_of(function, *args):
    """Returns the command line that calls a function of a test module in a process of its own, with words as `args`."""
    folders = [str(ROOT), str(ROOT / "tests")]
    call = f"import sys; sys.path[:0] = {folders!r}; import {function.__module__} as module; "
    return [sys.executable, "-c", f"{call}module.{function.__name__}(*sys.argv[1:])", *map(str, args)]


@contextlib.contextmanager
def started(*args, seconds=300, env=None, **settings):
    """Starts `command(args)`, its output as text in pipes, gives the process, and kills it after so many seconds."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "surrogateescape"}
    process = subprocess.Popen(command(args), env={**ENVIRONMENT, **(env or {})}, **{**pipes, **settings})
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def wait_for(condition, seconds=120):
    """Waits until `condition()` holds, and fails if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def handles(process, number):
    """Returns whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)  # a process that has ended has none
    return caught and int(caught[1], 16) >> (number - 1) & 1


def ended(process, status, *words):
    """Asserts that a program has ended with a status and one line with all words."""
    assert process.returncode == status and process.stderr.count("\n") == 1, process.stderr
    for word in words:
        assert word in process.stderr


def refused(tmp_path, *args, names, **env):
    """Runs a script as on a fresh machine and asserts that it refuses, in one line with all of `names`."""
    home = tmp_path / "empty home"
    home.mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    process = run(*args, cwd=tmp_path, JITTOR_HOME=str(home), HOME=str(home), **env)
    ended(process, 2, *names)
    assert not process.stdout
    assert sorted(tmp_path.rglob("*")) == before  # neither output nor Jittor's cache, which its import would make


@pytest.fixture
def refuses(capsys, monkeypatch):
    """A function that asserts, in this process, that a program refuses flags, in one line with all of `names`.

    program: a function that reads the command line, by default cgan.py's.
    """
    import cgan

    def check(*flags, names, program=cgan.parse_flags):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            program()
        output, line = capsys.readouterr()
        assert end.value.code == 2 and end.value.__suppress_context__ and not output and line.count("\n") == 1
        for name in names:
            assert name in line

    return check


def train(folder, *flags):
    """Trains as cgan.py does, but in this process, which is quicker and can be watched; returns the log."""
    import cgan

    cgan.train(cgan.parse_flags([*own(flags), "--output_dir", str(folder)]))
    return read_log(folder)


@pytest.fixture(params=["cpu", "cuda"])
def processor(request):
    """On what Jittor computes: the test is run on the CPU, and on a GPU if there is one."""
    from support.device import jt, set_seed

    if request.param == "cuda" and not jt.has_cuda:
        pytest.skip("no GPU here")
    set_seed(0)
    with jt.flag_scope(use_cuda=request.param == "cuda"):
        yield request.param


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch hostile",)


def memory(name):
    """Returns a figure of this process's memory in bytes, by its name in /proc/self/status, such as VmHWM, the peak.

    Unlike getrusage's, that peak does not begin with what the parent held.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def read_log(folder):
    return json.loads((folder / "results" / "log.json").read_text())


def read_npz(path):
    """Returns {name: array} of a checkpoint or generator."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def change_log(path, **config):
    """Sets flags in the log of a checkpoint or generator; of its labels' names there are no more than labels."""
    arrays = read_npz(path)
    log = json.loads(str(arrays["log"]))
    log["config"].update(config)
    if "labels" in log:
        log["labels"] = log["labels"][: log["config"]["n_classes"]]
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})


def write_idx(path, header, values):
    """Writes a gzipped idx file: whole numbers, the magic one first, then bytes."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(np.array(header, ">i4").tobytes() + np.asarray(values, np.uint8).tobytes())


def tiles(path):
    """Returns the digits of a sample grid, (rows, columns, S, S) in gray levels; S = 32."""
    with Image.open(path) as grid:
        pixels = np.asarray(grid).astype(float)
    return pixels[2:, 2:].reshape(10, 34, -1, 34).transpose(0, 2, 1, 3)[:, :, :32, :32]


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Inception-v3's weights in a file, as --inception_weights takes it, drawn from seed 1: sane activations.

    reference/inception_pool3_seed1.npz holds what torchvision 0.29.1 (float32, CPU) computes with seed 1:
    images (8, 1, 32, 32) in [-1, 1], MNIST's first test images, and pool3 (8, 2048), the features of these
    images repeated to 3 channels and resized to 299 x 299 (bilinear, align_corners=False).
    """
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in sorted(SHAPES.items()):
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            value = rng.uniform(0.8, 1.2, shape)
        elif name.endswith(("running_mean", "bias")):
            value = rng.normal(0, 0.05, shape)
        else:  # convolution and linear weights: He initialisation
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        weights[name] = value.astype(np.float32)
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    np.savez(path, **weights)
    return path


@pytest.fixture(scope="session")
def finished_run(inception_file, tmp_path_factory):
    """A real run of cgan.py: (its folder, the finished process)."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--n_epochs 2 --max_batches 60 --sample_interval 50 --fid_interval 1 --fid_samples 3".split()
    flags += ["--data_root", "default"]  # the whole of MNIST
    process = done("cgan.py", *flags, "--inception_weights", inception_file, "--output_dir", folder)
    return folder, process
