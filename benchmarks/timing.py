"""How the rows of benchmarks/epoch_time.py are timed: in rounds, each row in a process of its own.

PyTorch's and JAX's environment imports this too, so it needs no other package.
"""

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from timeit import repeat
from typing import NamedTuple, Optional

from support import limits

SECONDS, STEP, SHARE, PEAK = "s an epoch", "ms a step", "epoch to its steps", "MB at most"
BOTH = "ms for a step of two runs"
INCEPTION, EVALUATION = "Inception, 100 images", "a whole evaluation"
WARM_UP = 100  # batches
PEERS = ["pytorch", "pytorch tuned", "pytorch compiled", "jax", "jax scan"]
SCORING = {"scores": "cgan.py", "pytorch scores": "PyTorch", "pytorch scores channels_last": "PyTorch, channels last"}
JITTOR_ROWS = [sys.executable, "-m", "benchmarks.jittor_rows"]
CHANGES = ["images transformed once", "Adam in one operator", "layers in one operator"]
WITHOUT_AVX512 = {
    **{"cc_flags": "-mno-avx512f", "cache_name": "cgan_avx2"},  # Jittor, which compiles all anew the first time,
    **{"DNNL_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},  # its oneDNN, NumPy's OpenBLAS,
    **{"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},  # PyTorch, its MKL
}


class Row(NamedTuple):
    """What is timed, and with what."""

    name: str  # one of PEERS or SCORING, or what jittor_rows.py knows
    threads: Optional[int] = None  # on as many cores; None: on all, with as many threads as OMP_NUM_THREADS says
    batch_size: int = 64
    steps: Optional[int] = None  # of an epoch at most
    width: int = 1  # of the hidden layers, in multiples of cgan.py's
    avx512: bool = True  # whether it may be used
    at_once: int = 1  # how many run at once


def is_peer(row):
    return row.name.startswith(("pytorch", "jax"))


def time_epochs(train, batches, warm_up=WARM_UP):
    """Returns what is measured of one row.

    train(batches): a step for each; batches(): an epoch's; warm_up: how many are not counted before (None: an epoch).
    """
    train(itertools.islice(batches(), warm_up))
    start = time.perf_counter()
    train(batches())
    return measured(time.perf_counter() - start, batches())


def best_of_two(function):
    """Returns the seconds of the faster of two calls; a call that is not counted comes first."""
    function()
    return min(repeat(function, number=1, repeat=2))


def measured(seconds, batches, whole_epoch=None):
    start = time.perf_counter()
    n_batches = sum(1 for _ in batches)
    loading = time.perf_counter() - start
    seconds_a_step = (seconds - loading) / n_batches
    whole_epoch = whole_epoch or seconds
    share = whole_epoch / (n_batches * seconds_a_step)
    return {SECONDS: whole_epoch, STEP: 1000 * seconds_a_step, SHARE: share, PEAK: peak()}


def peak():
    """Returns the most memory that this process has taken so far, in megabytes."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def copy_jaxlib(peers, folder):
    """Copies the peers' jaxlib into a folder, for JAX without AVX-512; XLA_FLAGS leave its matrix products as they are.

    It asks which registers the system saves: XGETBV with ECX = 0. The copy answers: x87's, SSE's and AVX's.
    """
    found = subprocess.check_output([peers, "-c", "import jaxlib; print(jaxlib.__path__[0])"], text=True).strip()
    asks, answer, count = b"\x31\xc9\x0f\x01\xd0", b"\xb8\x07\x00\x00\x00", 0
    for path in Path(shutil.copytree(found, os.path.join(folder, "jaxlib"))).rglob("*.so"):
        code = path.read_bytes()
        count += code.count(asks)
        path.write_bytes(code.replace(asks, answer))
    if not count:
        sys.exit("This jaxlib asks in another way what the processor can do, so that it cannot be kept from AVX-512.")


def run_row(row, peers, folder):
    """Returns what is measured of a row, in a process of its own or in several at once; folder: what peers need."""
    command = [peers, "-m", "benchmarks.peer_rows"] if is_peer(row) else JITTOR_ROWS
    cores = sorted(os.sched_getaffinity(0))[: row.threads and row.threads * row.at_once]
    command = ["taskset", "-c", ",".join(map(str, cores)), *command, json.dumps(row._asdict()), folder]
    environment = dict(os.environ)
    if row.threads:
        environment["OMP_NUM_THREADS"] = str(row.threads)
    if row.name == "floor":  # its threads wait as without support/device.py: the libraries at their best
        environment.setdefault("GOMP_SPINCOUNT", "300000")
    if not row.avx512:
        environment.update(WITHOUT_AVX512, PYTHONPATH=folder)
    with ThreadPoolExecutor(row.at_once) as pool:
        outputs = pool.map(lambda _: subprocess.check_output(command, text=True, env=environment), range(row.at_once))
        found = [json.loads(output.splitlines()[-1]) for output in outputs]
    print(row, found, file=sys.stderr, flush=True)
    if STEP in found[0]:
        found[0][BOTH] = statistics.mean(one[STEP] for one in found) * 2 / row.at_once
    return found[0]


class Rounds:
    """What rows take in n rounds, each of all rows one after the other."""

    def __init__(self, rows, opt):
        """opt: how many rounds, and the peers' Python, as benchmarks/epoch_time.py takes them."""
        self.rows = list(rows)
        with tempfile.TemporaryDirectory() as folder:
            if any(map(is_peer, self.rows)):
                subprocess.run([*JITTOR_ROWS, "save", os.path.join(folder, "experiment.npz")], check=True)
            if any(row.name.startswith("jax") and not row.avx512 for row in self.rows):
                copy_jaxlib(opt.peers, folder)
            self.rounds = [{row: run_row(row, opt.peers, folder) for row in self.rows} for _ in range(opt.rounds)]
        print(f"{limits.cores()} cores, medians of {opt.rounds} rounds\n")

    def median(self, row, what):
        return statistics.median(found[row][what] for found in self.rounds)

    def ratio(self, row, other, what, span=False):
        """Returns the median ratio of a row to another of the same round; with `span` how far it goes, too."""
        ratios = [found[row][what] / found[other][what] for found in self.rounds]
        text = f"{statistics.median(ratios):.2f}"
        return text + (f" ({min(ratios):.2f} to {max(ratios):.2f})" if span else "")

    def facts(self):
        """Returns what a kept table says beside its own: what each row ran on, and its milliseconds round by round."""
        environments = {row.name: found["environment"] for row, found in self.rounds[0].items()}
        rows = [row for row in self.rows if STEP in self.rounds[0][row]]
        steps = [{**row._asdict(), STEP: [round(found[row][STEP], 2) for found in self.rounds]} for row in rows]
        return {"environments": environments, "steps": steps}
