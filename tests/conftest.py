"""What several tests share. The tests run the project's own scripts, on real MNIST, as a user would."""

import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
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

from support import inception_sources
from support.inception_weights import NONE

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "reference"
inception_sources.SOUGHT = (NONE,)  # FID takes seconds each time: only runs that name weights have it
MNIST = Path(jittor_offline.__file__).parent  # the real one's files, which FILES in support/idx.py names


def command(args):
    """Returns `python *args` as words; a new run of cgan.py that names no weights has no FID either."""
    words = [str(word) for word in args]
    own = {"--resume", "--digits", "--inception_weights"} & set(words)
    return [sys.executable, *words, *["--inception_weights", NONE] * (words[0].endswith("cgan.py") and not own)]


def run(*args, cwd=ROOT, timeout=600, preexec_fn=None, **env):
    """Runs `command(args)`; returns the finished process with its output as text."""
    return subprocess.run(
        command(args),
        cwd=cwd,
        env={**ENVIRONMENT, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=preexec_fn,
    )


def command_of(function, *args):
    """Returns the command line that calls a function of a test module in a process of its own, with words as `args`."""
    folders = [str(ROOT), str(ROOT / "tests")]
    call = f"import sys; sys.path[:0] = {folders!r}; import {function.__module__} as module; "
    return [sys.executable, "-c", f"{call}module.{function.__name__}(*sys.argv[1:])", *map(str, args)]


@contextlib.contextmanager
def started(*args, seconds=300, **settings):
    """Starts `command(args)`, gives the process, and kills it if it is not done after so many seconds."""
    settings = {"env": ENVIRONMENT, **settings}
    process = subprocess.Popen(command(args), **settings)
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


def refused(tmp_path, *args, names):
    """Runs a script as on a fresh machine and asserts that it refuses, in one line with all of `names`."""
    home = tmp_path / "empty home"
    home.mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    process = run(*args, cwd=tmp_path, JITTOR_HOME=str(home), HOME=str(home))
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1 and not process.stdout
    for name in names:
        assert name in process.stderr
    assert sorted(tmp_path.rglob("*")) == before  # neither output nor Jittor's cache, which its import would make


@pytest.fixture
def refuses(capsys):
    """A function that asserts, in this process, that cgan.py refuses flags, in one line with all of `names`."""
    import cgan

    def check(*flags, names):
        with pytest.raises(SystemExit) as end:
            cgan.parse_flags([str(flag) for flag in flags])
        output, line = capsys.readouterr()
        assert end.value.code == 2 and not output and line.count("\n") == 1
        for name in names:
            assert name in line

    return check


def train(folder, *flags):
    """Trains as cgan.py does, but in this process, which is quicker and can be watched; returns the log."""
    import cgan

    cgan.train(cgan.parse_flags([*map(str, flags), "--output_dir", str(folder)]))
    return read_log(folder)


@pytest.fixture(params=["cpu", "cuda"])
def processor(request):
    """On what Jittor computes: the test is run on the CPU, and on a GPU if there is one."""
    from support.device import jt

    if request.param == "cuda" and not jt.has_cuda:
        pytest.skip("no GPU here")
    jt.set_global_seed(0)
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
    """Sets flags in the log of a checkpoint or generator."""
    arrays = read_npz(path)
    log = json.loads(str(arrays["log"]))
    log["config"].update(config)
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


def draw_inception_weights(seed):
    """Returns {name: float32 array} for Inception-v3, drawn from a seed, with activations in a sane range.

    reference/inception_pool3_seed1.npz holds what torchvision 0.29.1 (float32, CPU) computes with seed 1:
    images (8, 1, 32, 32) in [-1, 1], MNIST's first test images, and pool3 (8, 2048), the features of these
    images repeated to 3 channels and resized to 299 x 299 (bilinear, align_corners=False).
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(json.loads((ROOT / "support" / "inception_shapes.json").read_text()).items()):
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bn.weight"):
            value = rng.uniform(0.8, 1.2, shape)
        elif name.endswith(("running_mean", "bias")):
            value = rng.normal(0, 0.05, shape)
        else:  # convolution and linear weights: He initialisation
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        weights[name] = value.astype(np.float32)
    return weights


@pytest.fixture(scope="session")
def inception_weights():
    return draw_inception_weights(seed=1)


@pytest.fixture(scope="session")
def inception_file(inception_weights, tmp_path_factory):
    """The drawn weights in a file, as --inception_weights takes it."""
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    np.savez(path, **inception_weights)
    return path


@pytest.fixture(scope="session")
def finished_run(inception_file, tmp_path_factory):
    """A real run of cgan.py: (its folder, the finished process)."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--n_epochs 2 --max_batches 60 --sample_interval 50 --fid_interval 1 --fid_samples 10".split()
    process = run("cgan.py", *flags, "--inception_weights", inception_file, "--output_dir", folder)
    assert process.returncode == 0, process.stderr
    return folder, process
