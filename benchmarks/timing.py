"""How the rows of benchmarks/epoch_time.py are timed: each in a process of its own, and in turns.

A row's process says what it runs on. Then it answers every line that it reads, while the others wait for one: first
when it is ready, then each time with what it has timed. So rows that are compared are timed one right after the other,
as often as one likes. All of them are in memory meanwhile.

PyTorch's and JAX's environment imports this too, so it needs no other package.
"""

import contextlib
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


def answers():
    """Returns a function that prints what was found, as JSON, and then waits for a line of standard input.

    If there is none any more, the program ends. What else it prints on standard output is dropped.
    """
    output = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def answer(found):
        print(json.dumps(found), file=output, flush=True)
        if not sys.stdin.readline():
            sys.exit()

    return answer


def time_epochs(train, batches, answer, warm_up=WARM_UP):
    """Answers, turn by turn, with what is measured of one row.

    train(batches): a step for each; batches(): an epoch's; answer: of answers(); warm_up: batches at most before the
    first answer, which holds nothing (None: an epoch).
    """
    train(itertools.islice(batches(), warm_up))
    answer({})
    while True:
        start = time.perf_counter()
        train(batches())
        answer(measured(time.perf_counter() - start, batches()))


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


def start_row(row, peers, folder):
    """Returns a row's process, or its processes that run at once; folder: what peers need."""
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
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for _ in range(row.at_once)]


def hear(row, processes):
    """Returns what a row's processes have answered."""
    found = [json.loads(process.stdout.readline() or sys.exit(f"{row} has ended")) for process in processes]
    print(row, found, file=sys.stderr, flush=True)
    if STEP in found[0]:
        found[0][BOTH] = statistics.mean(one[STEP] for one in found) * 2 / row.at_once
    return found[0]


def ask(row, processes):
    """Gives a row its turn; returns what it takes."""
    with contextlib.suppress(BrokenPipeError):  # of a process that has ended, which hear() says
        for process in processes:
            print(file=process.stdin, flush=True)
    return hear(row, processes)


def take_turns(rows, turns, peers, folder):
    """Returns [{row: what is measured of it}] for each of `turns`, and {name: the environment of rows of this name}.

    turns: numbers, of which each gives another order.
    """
    processes, environments = {}, {}
    with contextlib.ExitStack() as at_end:
        for row in rows:
            processes[row] = start_row(row, peers, folder)
            for process in processes[row]:
                at_end.callback(process.communicate)
            environments[row.name] = hear(row, processes[row])
            ask(row, processes[row])  # which warms it up
        orders = ((rows[i % len(rows) :] + rows[: i % len(rows)])[:: 1 - i % 2 * 2] for i in turns)
        return [{row: ask(row, processes[row]) for row in order} for order in orders], environments


class Rounds:
    """What rows take, in rounds: in each, every row is timed once, right after the others of its group."""

    def __init__(self, groups, opt):
        """groups: of rows that are compared; opt: how many starts, and turns after each, and the peers' Python."""
        groups = [list(rows) for rows in groups]
        self.rows, self.starts = list(itertools.chain(*groups)), opt.starts
        self.rounds, self.environments = [{} for _ in range(opt.starts * opt.turns)], {}
        with tempfile.TemporaryDirectory() as folder:
            if any(map(is_peer, self.rows)):
                subprocess.run([*JITTOR_ROWS, "save", os.path.join(folder, "experiment.npz")], check=True)
            if any(row.name.startswith("jax") and not row.avx512 for row in self.rows):
                copy_jaxlib(opt.peers, folder)
            for start, rows in itertools.product(range(opt.starts), groups):
                turns = range(start * opt.turns, (start + 1) * opt.turns)
                found, environments = take_turns(rows, turns, opt.peers, folder)
                for i, more in zip(turns, found):
                    self.rounds[i].update(more)
                self.environments.update(environments)
        print(f"{limits.cores()} cores, medians of {len(self.rounds)} rounds\n")

    def median(self, row, what):
        return statistics.median(found[row][what] for found in self.rounds)

    def ratio(self, row, other, what, span=False):
        """Returns the median ratio of a row to another of the same round; with `span` where the middle half is, too."""
        ratios = [found[row][what] / found[other][what] for found in self.rounds]
        if len(ratios) == 1 or not span:
            return f"{statistics.median(ratios):.2f}"
        low, middle, high = statistics.quantiles(ratios, method="inclusive")
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    def facts(self):
        """Returns what a kept table says beside its own: what each row ran on, and its milliseconds round by round."""
        rows = [row for row in self.rows if STEP in self.rounds[0][row]]
        steps = [{**row._asdict(), STEP: [round(found[row][STEP], 2) for found in self.rounds]} for row in rows]
        return {"environments": self.environments, "starts": self.starts, "steps": steps}
