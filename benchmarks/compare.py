"""Trains several configurations of cgan.py with several seeds each, and compares them.

    python -m benchmarks.compare                trains what is missing, a run on every core, then prints the tables
    python -m benchmarks.compare --table        the tables of the logs that are there, and what is missing

Every run has a folder of its own, compared/<configuration>/seed<seed>, and goes on there where it was stopped; what it
prints is in seed<seed>.txt beside it. The log of a finished one is copied to
results/compared/<configuration>/seed<seed>.json; the tables read these. The number of threads changes no loss, and runs
of one thread each use the cores best. Every run also scores the running average of its generator, which trains nothing:
it is the configuration's second row. Jittor's own layers and Adam (benchmarks/plain.py) are compared after a few
epochs.
A configuration is called better or worse than the report's only if the means of their seeds differ by more than two
standard errors (Welch's: the root of the sum of both variances over their n). With 3 and 5 seeds, chance alone exceeds
that in about one of ten comparisons.
"""

import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

from benchmarks.common import markdown
from support import limits
from support.flags import Parser, command_line
from support.saved.log import name_of, read_log
from support.saved.paths import PROJECT, checkpoint_path, log_path

EPOCHS, FEW_EPOCHS = 100, 10
# With --ema, a run trains as without; a GPU is not for many runs at once
SHARED = {"n_epochs": EPOCHS, "ema": 0.999, "cpu": True}
REPORT, PLAIN = "report", "plain"
# {name: (flags beside or instead of SHARED, how many seeds)}
CONFIGURATIONS = {
    REPORT: ({}, 5),
    "lr_d": ({"lr_d": 0.00015}, 3),
    "hidden_d": ({"hidden_d": 256}, 3),
    "dropout": ({"dropout": True}, 3),
    "two_rates": ({"lr_d": 0.0004}, 3),
    PLAIN: ({"n_epochs": FEW_EPOCHS}, 5),
}
EMA = ", ema"  # how the row of the running average ends
LOGS = os.path.join(PROJECT, "results", "compared")
# {metric: (digits, whether higher is better; None: neither)}
METRICS = {"d_loss": (3, None), "g_loss": (3, None), "label_accuracy": (4, True), "digit_fid": (1, False)}


def planned():
    """Returns [(configuration, {flag: value})] of all runs, in the tables' order."""
    planned = ((name, flags, seed) for name, (flags, n) in CONFIGURATIONS.items() for seed in range(n))
    return [(name, {**SHARED, **flags, "seed": seed}) for name, flags, seed in planned]


def kept_log(name, seed):
    return os.path.join(LOGS, name, f"seed{seed}.json")


def missing():
    """Returns the planned runs that have no kept log yet; seeds come in turn, so that every row fills up early."""
    runs = [(name, flags) for name, flags in planned() if not os.path.exists(kept_log(name, flags["seed"]))]
    return sorted(runs, key=lambda run: run[1]["seed"])


def words(name, flags):
    """Returns what is behind `python` for a configuration with these flags."""
    program = ["-m", "benchmarks.plain"] if name == PLAIN else ["cgan.py"]
    return program + command_line({f"--{flag}": value for flag, value in flags.items()})


def start(name, flags, output_dir):
    """Starts one run on one core, from where it stopped; returns its process."""
    command = [sys.executable, *words(name, {"output_dir": output_dir, **flags}), "--inception_weights", "none"]
    command += ["--resume"] if os.path.exists(checkpoint_path(output_dir)) else []
    os.makedirs(output_dir, exist_ok=True)
    print(" ".join(command), flush=True)
    with open(f"{output_dir}.txt", "a") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def train(runs, folder, cores):
    """Trains runs to their ends, as many at once as there are cores, and keeps their logs.

    If one fails, the others go on. Whatever ends the program stops the runs, which can be gone on with.
    """
    waiting, processes = list(runs), {}
    try:
        while waiting or processes:
            while waiting and len(processes) < cores:
                name, flags = waiting.pop(0)
                output_dir = os.path.join(folder, name, f"seed{flags['seed']}")
                processes[start(name, flags, output_dir)] = output_dir, kept_log(name, flags["seed"])
            time.sleep(0.5)
            for process in [process for process in processes if process.poll() is not None]:
                output_dir, log = processes.pop(process)
                if process.returncode:
                    print(f"status {process.returncode}: {output_dir}.txt says why", file=sys.stderr, flush=True)
                    continue
                os.makedirs(os.path.dirname(log), exist_ok=True)
                shutil.copyfile(log_path(output_dir), log)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def flags_of(row):
    """Returns the flags that make a row another than the report's; with the program if there are none, or another."""
    name = row.replace(EMA, "")
    flags = {flag: value for flag, value in CONFIGURATIONS[name][0].items() if flag != "n_epochs"}
    if row.endswith(EMA):
        flags["ema"] = SHARED["ema"]
    command = ["python", *words(name, flags)]
    return " ".join(command[2:] if flags and name != PLAIN else command).replace("=", " ")


def read_rows():
    """Returns {row: {epoch: {metric: its values over the seeds}}} of the finished runs, rows in the tables' order.

    Ends the program with one line if a log is of other flags.
    """
    rows = {}
    for name, flags in planned():
        path = kept_log(name, flags["seed"])
        if not os.path.exists(path):
            continue
        log = read_log(path)
        others = {flag for flag, value in flags.items() if log["config"].get(flag) != value}
        others.update(*(change.get("config", ()) for change in log["changes"]))
        if others:
            sys.exit(f"{path} is of another {' and '.join(sorted(others))}")
        losses = {row["epoch"]: row for row in log["epochs"]}
        for scores in log["evaluations"]:
            epoch = scores["epoch"]
            for row, own in {name: scores["generator"], name + EMA: scores}.items():
                values = {**losses[epoch], **own}
                metrics = rows.setdefault(row, {}).setdefault(epoch, {metric: [] for metric in METRICS})
                for metric in METRICS:
                    metrics[metric].append(values[metric])
    return rows


def verdict(values, others, higher_is_better):
    """Returns "better" or "worse" if the means differ by more than two standard errors, else ""."""
    if higher_is_better is None or min(len(values), len(others)) < 2:
        return ""
    difference = statistics.mean(values) - statistics.mean(others)
    error = math.sqrt(sum(statistics.variance(seeds) / len(seeds) for seeds in (values, others)))
    if abs(difference) <= 2 * error:
        return ""
    return "better" if (difference > 0) == higher_is_better else "worse"


def cell(values, digits, judged=""):
    """Returns mean ± standard deviation, and a verdict on it."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread} {judged}".rstrip()


def table(rows, epoch):
    """Returns the Markdown table of the runs that reached an epoch; averages are judged beside the report's."""
    body = []
    for row, metrics in ((row, epochs[epoch]) for row, epochs in rows.items() if epoch in epochs):
        body.append([row, f"`{flags_of(row)}`", str(len(metrics["digit_fid"]))])
        others = rows.get(REPORT + row.endswith(EMA) * EMA, {epoch: metrics})[epoch]
        for metric, (digits, higher) in METRICS.items():
            body[-1].append(cell(metrics[metric], digits, verdict(metrics[metric], others[metric], higher)))
    return markdown(["", "flags", "n", *(name_of(metric)[0] for metric in METRICS)], body)


def course(rows, metric="digit_fid"):
    """Returns the Markdown table of one metric over the epochs, of the runs that reached the last."""
    last = max(max(epochs) for epochs in rows.values())
    rows = {row: epochs for row, epochs in rows.items() if last in epochs}
    digits = METRICS[metric][0]
    shown = sorted(next(iter(rows.values())))
    body = [[str(epoch), *(cell(row[epoch][metric], digits) for row in rows.values())] for epoch in shown]
    return markdown(["epoch", *rows], body)


def main():
    parser = Parser("Trains configurations with several seeds and compares them.")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--output_dir", default="compared", help="where the runs go")
    opt = parser.parse_args()
    if not opt.table:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        train(missing(), opt.output_dir, limits.cores())
    rows = read_rows()
    if rows:
        print("Mean ± standard deviation over the seeds")
        for epoch in [epoch for epoch in (EPOCHS, FEW_EPOCHS) if any(epoch in row for row in rows.values())]:
            print(f"\nafter {epoch} epochs:\n\n{table(rows, epoch)}")
        print(f"\n{name_of('digit_fid')[0]} over the epochs:\n\n{course(rows)}")
    left = [f"{name} seed {flags['seed']}" for name, flags in missing()]
    if left:
        print("\nmissing: " + ", ".join(left), file=sys.stderr)
        return 0 if opt.table else 1


if __name__ == "__main__":
    sys.exit(main())
