"""Times training steps and epochs of cgan.py beside the same experiment in other frameworks.

    python -m benchmarks.epoch_time                 some minutes on 2 cores
    python -m benchmarks.epoch_time --help          what else can be timed, by a flag

PyTorch and JAX want an environment of their own; without --peers their rows are left out. docs/performance.md says how
to make it and what each row is, timing.py how rows take turns: all are in memory, with the peers some 5 GB. The floor
moves once what Adam reads and writes, 7 arrays of all parameters.

An epoch is timed after one that is not counted, or after a part of one if nothing is compiled; cgan.py's includes log
and checkpoint. Milliseconds a step: the epoch (cgan.py's without its checkpoint) less an epoch of reading batches only.
Ratios are medians over the rounds, a range in brackets is that of their middle half.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.common import KEEP, show
from benchmarks.timing import (
    BOTH,
    CHANGES,
    EVALUATION,
    INCEPTION,
    JITTOR_ROWS,
    PEAK,
    PEERS,
    SCORING,
    SECONDS,
    SHARE,
    STEP,
    Rounds,
    Row,
)
from support import limits
from support.flags import whole_number

JAX_SCAN = "jax scan"


def epochs(opt):
    """An epoch and a step of all rows."""
    ours, *_ = rows = [Row(name, steps=opt.steps) for name in ("cgan", "plain", *(PEERS if opt.peers else []))]
    rounds, body = Rounds([rows], opt), []
    for row in rows:
        found = [f"{rounds.median(row, what):.{digits}f}" for what, digits in ((SECONDS, 1), (STEP, 1), (PEAK, 0))]
        body.append([row.name, *found, *(rounds.ratio(ours, row, what) for what in (SECONDS, STEP))])
    head = ["", SECONDS, STEP, PEAK, "cgan.py's epoch to this", "its step to this"]
    show(opt.keep, "epoch_time", head, body, **rounds.facts())
    print(f"cgan.py's epoch, with loader and checkpoint, to its steps: {rounds.median(ours, SHARE):.2f}")


def changes(opt):
    """What each change to the plain loop gains."""
    names = ["plain loop", *(f"+ {change}" for change in CHANGES)]
    first, *_ = rows = [Row(str(i), steps=opt.steps) for i in range(len(names))]
    rounds = Rounds([rows], opt)
    columns = [[f"{rounds.median(row, SECONDS):.1f}", rounds.ratio(row, first, SECONDS)] for row in rows]
    body = [[name, *cells] for name, cells in zip(names, columns)]
    show(opt.keep, "gains", ["", SECONDS, "to the plain loop"], body, **rounds.facts())


def reach(opt):
    """A step beside the strongest peers and the floor: 1, 2, 4 ... threads, with and without AVX-512."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split()
    names = ["cgan", *([JAX_SCAN, "pytorch tuned"] if opt.peers else []), "floor"]
    kinds = ["AVX-512"] * ("avx512f" in flags) + ["AVX2"]  # the first is the processor as it is
    groups = {
        (kind, n): [Row(name, n, steps=opt.steps, avx512=kind == kinds[0]) for name in names]
        for kind, n in itertools.product(kinds, (2**i for i in range(limits.cores().bit_length())))
    }
    rounds, body = Rounds(groups.values(), opt), []
    for (kind, n), (ours, *others) in groups.items():
        steps = [f"{rounds.median(row, STEP):.1f}" for row in (ours, *others)]
        ratios = [rounds.ratio(ours, row, STEP, span=True) for row in others]
        body.append([kind, str(n), *steps, *ratios])
    head = ["", "threads", *(f"{name}, ms" for name in names), *(f"cgan to {name}" for name in names[1:])]
    show(opt.keep, "reach", head, body, **rounds.facts(), flags=[x for x in flags if x.startswith(("avx", "fma"))])


def sizes(opt):
    """A step beside JAX's: batches of 32 to 1024, layers 1 to 4 times as wide, in epochs of about the same time."""
    widths, pairs = (1, 2, 4), {}
    for n, width in itertools.product((32, 64, 256, 1024), widths):
        steps = opt.steps or 60000 // n // width**2
        pairs[n, width] = [Row(name, batch_size=n, steps=steps, width=width) for name in ("cgan", JAX_SCAN)]
    rounds, lines = Rounds(pairs.values(), opt), {}
    for (n, _), (ours, scan) in pairs.items():
        cell = f"{rounds.ratio(ours, scan, STEP)} ({rounds.median(ours, STEP):.1f} ms)"
        lines.setdefault(n, [str(n)]).append(cell)
    head = ["batch", *(f"layers {width} times as wide" for width in widths)]
    show(opt.keep, "sizes", head, list(lines.values()), **rounds.facts())


def two(opt):
    """Two runs at once, beside one after the other."""
    half = max(1, limits.cores() // 2)
    alone = Row("cgan", steps=opt.steps)
    rows = {
        "one after the other": alone,
        "at once": Row("cgan", steps=opt.steps, at_once=2),
        f"at once, OMP_NUM_THREADS={half}": Row("cgan", half, steps=opt.steps, at_once=2),
    }
    rounds, body = Rounds([rows.values()], opt), []
    for name, row in rows.items():
        body.append([name, f"{rounds.median(row, BOTH):.1f}", rounds.ratio(row, alone, BOTH)])
    show(opt.keep, "two_at_once", ["", BOTH, "to one after the other"], body, **rounds.facts())


def scores(opt):
    """An evaluation, in parts: seconds, and what they add to ten epochs."""
    epoch, *rows = [Row("cgan"), *map(Row, list(SCORING) if opt.peers else ["scores"])]
    rounds, body = Rounds([[epoch, *rows]], opt), []
    ours = rows[0]
    for row, what in [(row, INCEPTION) for row in rows] + [(ours, EVALUATION)]:
        shares = [found[row][what] / (10 * found[epoch][SECONDS]) for found in rounds.rounds]
        cells = f"{rounds.median(row, what):.2f}", f"{median(shares):.1%}", f"{rounds.median(row, PEAK):.0f}"
        body.append([f"{what}: {SCORING[row.name]}", *cells])
    show(opt.keep, "scores", ["", "seconds", "of ten epochs of cgan.py", PEAK], body, **rounds.facts())


def first(opt):
    """The README's first commands, each from the command to its end: the very first compiles Jittor. 3 minutes."""
    draw, look = "--digits 31415926 --output_dir", "--n_epochs 3 --inception_weights none --output_dir"
    commands = {"the first run: digits are drawn": draw, "later: digits are drawn": draw, "a quick look": look}
    seconds = {name: [] for name in commands}
    for _ in range(opt.starts):
        with tempfile.TemporaryDirectory() as home:
            for name, flags in commands.items():
                start = time.perf_counter()
                command = [sys.executable, "cgan.py", *flags.split(), os.path.join(home, name)]
                subprocess.run(command, check=True, env={**os.environ, "JITTOR_HOME": home}, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - start)
    body = [[name, f"{median(found):.0f}"] for name, found in seconds.items()]
    show(opt.keep, "first_run", ["", "seconds"], body)


def profile(opt):
    """Where a step of cgan.py goes, by Jittor's profiler: half a minute."""
    subprocess.run([*JITTOR_ROWS, "profile", *(["--keep"] if opt.keep else [])], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=whole_number(1), default=3, help="how often each is started (default: 3)")
    parser.add_argument("--turns", type=whole_number(1), default=1, help="how often it is then timed (default: 1)")
    parser.add_argument("--steps", type=whole_number(2), help="end every epoch after so many (default: all)")
    tables = {"--changes": changes, "--reach": reach, "--sizes": sizes, "--two": two, "--scores": scores}
    for flag, table in {**tables, "--first": first, "--profile": profile}.items():
        parser.add_argument(flag, dest="table", action="store_const", const=table, help=table.__doc__)
    parser.add_argument("--peers", metavar="PYTHON", help="the Python that has PyTorch and JAX")
    parser.add_argument("--keep", action="store_true", help=KEEP)
    opt = parser.parse_args()
    if opt.table is sizes and not opt.peers:
        parser.error("argument --sizes: --peers is needed, too")
    (opt.table or epochs)(opt)


if __name__ == "__main__":
    main()
