"""Times a training epoch of cgan.py beside the same experiment in other frameworks.

    python -m benchmarks.epoch_time                 3 rounds of about 4 minutes on 2 cores
    python -m benchmarks.epoch_time --changes       the report's loop in Jittor, and what each change adds to it
    python -m benchmarks.epoch_time --profile       where a step of cgan.py goes, by Jittor's profiler: half a minute

PyTorch and JAX are in requirements-bench.txt. They want another NumPy than Jittor, and so an environment of their own:

    python3 -m venv peers && peers/bin/pip install -r requirements-bench.txt
    python -m benchmarks.epoch_time --peers peers/bin/python

Without --peers their rows are left out. docs/performance.md says what each row is. The floor moves once what Adam reads
and writes, 7 arrays of all parameters.

Every round runs all rows, one after the other, each in a process of its own. PyTorch and JAX have their images in
memory, transformed, as cgan.py does. An epoch is timed after one that is not counted, or after a part of one if nothing
is compiled; cgan.py's includes log and checkpoint. Milliseconds a step: the epoch (cgan.py's without its checkpoint)
less an epoch of reading batches only; JAX gathers its batches within a step. The machine's speed drifts, so only
numbers of one round are compared: ratios are medians over the rounds.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.common import KEEP, show
from support import limits
from support.flags import whole_number

SECONDS, STEP, SHARE = "s an epoch", "ms a step", "epoch to its steps"
WARM_UP = 100  # batches
PEERS = ["pytorch", "pytorch tuned", "pytorch compiled", "jax", "jax scan"]
JITTOR_ROWS = [sys.executable, "-m", "benchmarks.jittor_rows"]
CHANGES = ["images transformed once", "Adam in one operator", "layers in one operator"]


def time_epochs(train, batches, warm_up=WARM_UP):
    """Returns what is measured of one row.

    train(batches): a step for each; batches(): an epoch's; warm_up: how many are not counted before (None: an epoch).
    """
    train(itertools.islice(batches(), warm_up))
    start = time.perf_counter()
    train(batches())
    return measured(time.perf_counter() - start, batches())


def measured(seconds, batches, whole_epoch=None):
    start = time.perf_counter()
    n_batches = sum(1 for _ in batches)
    loading = time.perf_counter() - start
    seconds_a_step = (seconds - loading) / n_batches
    whole_epoch = whole_epoch or seconds
    return {SECONDS: whole_epoch, STEP: 1000 * seconds_a_step, SHARE: whole_epoch / (n_batches * seconds_a_step)}


def run_row(row, peers, experiment):
    """Returns what is measured of a row, in a process of its own."""
    if row in PEERS:
        command = [peers, "-m", "benchmarks.peer_rows", row, experiment]
    else:
        command = [*JITTOR_ROWS, row]
    # The floor's threads wait as without support/device.py: the libraries at their best
    environment = {**({"GOMP_SPINCOUNT": "300000"} if row == "floor" else {}), **os.environ}
    output = subprocess.check_output(command, text=True, env=environment)
    print(row, output.splitlines()[-1], file=sys.stderr, flush=True)
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole_number(1), default=3, help="how often each is run (default: 3)")
    parser.add_argument("--changes", action="store_true", help="what each change to the plain loop gains")
    parser.add_argument("--profile", action="store_true", help="where a step of cgan.py goes")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python that has PyTorch and JAX")
    parser.add_argument("--keep", action="store_true", help=KEEP)
    opt = parser.parse_args()
    if opt.profile:
        return subprocess.run([*JITTOR_ROWS, "profile"]).returncode
    changes = {str(i): name for i, name in enumerate(["plain loop", *(f"+ {change}" for change in CHANGES)])}
    rows = changes if opt.changes else ["plain", "cgan", *(PEERS if opt.peers else []), "floor"]
    with tempfile.TemporaryDirectory() as folder:
        experiment = os.path.join(folder, "experiment.npz")
        if opt.peers:
            subprocess.run([*JITTOR_ROWS, "save", experiment], check=True)
        rounds = [{row: run_row(row, opt.peers, experiment) for row in rows} for _ in range(opt.rounds)]

    def median(row, what):
        return statistics.median(results[row][what] for results in rounds)

    def ratio(row, other, what):
        return f"{statistics.median(results[row][what] / results[other][what] for results in rounds):.2f}"

    print(f"{limits.cores()} cores, medians of {opt.rounds} rounds\n")
    if opt.changes:
        body = [[name, f"{median(row, SECONDS):.1f}", ratio(row, "0", SECONDS)] for row, name in changes.items()]
        show(opt.keep, "gains", ["", SECONDS, "to the plain loop"], body)
        return 0
    body = []
    for row in rows:
        epoch = ["-", "-"] if row == "floor" else [f"{median(row, SECONDS):.1f}", ratio("cgan", row, SECONDS)]
        body.append([row, epoch[0], f"{median(row, STEP):.1f}", epoch[1], ratio("cgan", row, STEP)])
    show(opt.keep, "epoch_time", ["", SECONDS, STEP, "cgan.py's epoch to this", "its step to this"], body)
    products, adam = median("floor", "products"), median("floor", "adam")
    print(f"floor: products {products:.1f} ms, moving Adam's arrays {adam:.1f} ms")
    print(f"cgan.py's epoch, with loader and checkpoint, to its steps: {median('cgan', SHARE):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
