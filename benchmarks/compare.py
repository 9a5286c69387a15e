"""Trains several configurations of cgan.py with several seeds each, and compares them.

    python -m benchmarks.compare                trains what is missing, a run on every core, then prints the tables
    python -m benchmarks.compare --table        the tables of the logs that are there, and what is missing
    python -m benchmarks.compare --search       the same of the flags that were tried for a best

Every run has a folder of its own, compared/<configuration>/seed<seed>, and goes on there where it was stopped; what it
prints is in seed<seed>.txt beside it. The log of a finished one is copied to
results/compared/<configuration>/seed<seed>.json; the tables read these. The number of threads changes no loss, and runs
of one thread each use the cores best. Every run also scores the running average of its generator, which trains nothing:
it is the configuration's second row. Jittor's own layers and Adam (benchmarks/plain.py) are compared after a few
epochs.
A run counts with its mean over the last three evaluations. Differences between configurations are Welch's, changes
within the report's are Student's, run by run. Their intervals of 95% hold each by itself. "Higher" or "lower" stands
only where p is below 0.05 after Holm's correction over the whole table.
"""

import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

from benchmarks import differences
from benchmarks.common import markdown, read_kept
from support import limits
from support.flags import Parser, command_line
from support.inception_weights import sha256
from support.saved.classifier import WEIGHTS
from support.saved.log import name_of, read_log
from support.saved.paths import PROJECT, checkpoint_path, log_path

EPOCHS, FEW_EPOCHS, LAST = 100, 10, (80, 90, 100)
MIDDLE = 40  # the epoch from which on the report sees the discriminator win
# With --ema, a run trains as without; a GPU is not for many runs at once
SHARED = {"n_epochs": EPOCHS, "ema": 0.999, "cpu": True}
REPORT, PLAIN, BEST = "report", "plain", "best"
# {name: (flags beside or instead of SHARED, how many seeds)}
CONFIGURATIONS = {
    REPORT: ({}, 8),
    "lr_d": ({"lr_d": 0.00015}, 5),
    "lr_d_half": ({"lr_d": 0.0001}, 5),
    "hidden_d_384": ({"hidden_d": 384}, 5),
    "hidden_d": ({"hidden_d": 256}, 5),
    "dropout": ({"dropout": True}, 5),
    "two_rates": ({"lr_d": 0.0004}, 5),
    BEST: ({"lr_d": 0.0004, "b2": 0.99}, 5),
    PLAIN: ({"n_epochs": FEW_EPOCHS}, 5),
}
# What was tried for a best, in the same way but with other seeds
SEARCH = {
    "search/rate": ({"lr_d": 0.0004}, 1),
    "search/rate_b2": ({"lr_d": 0.0004, "b2": 0.99}, 3),
    "search/rate8_b2": ({"lr_d": 0.0008, "b2": 0.99}, 1),
    "search/rate_dropout": ({"lr_d": 0.0004, "dropout": True}, 1),
}
FIRST_SEARCHED = 10
EMA = ", ema"  # how the row of the running average ends
LOGS = os.path.join(PROJECT, "results", "compared")
# {metric: digits}; balance is the discriminator's loss over the generator's
SCORES = {"label_accuracy": 4, "digit_fid": 1}
METRICS = {"d_loss": 3, "g_loss": 3, "balance": 2, "d_accuracy": 2, "breakdowns": 0, **SCORES}


def planned(search=False):
    """Returns [(configuration, {flag: value})] of all runs, in the tables' order."""
    configurations, first, shared = (SEARCH, FIRST_SEARCHED, {"keep": 10}) if search else (CONFIGURATIONS, 0, {})
    planned = ((name, flags, first + i) for name, (flags, n) in configurations.items() for i in range(n))
    return [(name, {**SHARED, **shared, **flags, "seed": seed}) for name, flags, seed in planned]


def kept_log(name, seed):
    return os.path.join(os.path.dirname(LOGS) if name in SEARCH else LOGS, name, f"seed{seed}.json")


def missing(planned):
    """Returns the planned runs that have no kept log yet; seeds come in turn, so that every row fills up early."""
    runs = [(name, flags) for name, flags in planned if not os.path.exists(kept_log(name, flags["seed"]))]
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
    flags = {flag: value for flag, value in {**CONFIGURATIONS, **SEARCH}[name][0].items() if flag != "n_epochs"}
    if row.endswith(EMA):
        flags["ema"] = SHARED["ema"]
    command = ["python", *words(name, flags)]
    return " ".join(command[2:] if flags and name != PLAIN else command).replace("=", " ")


def measures(log):
    """Returns [(epoch, {name: number})] of a log's evaluations: losses, scores and what follows from them.

    "breakdowns" is how many epochs of the whole run have at least twice the discriminator loss of the epoch before.
    """
    losses, found = {row["epoch"]: row for row in log["epochs"]}, []
    breakdowns = sum(row["d_loss"] >= 2 * last["d_loss"] for last, row in zip(log["epochs"], log["epochs"][1:]))
    for scores in log["evaluations"]:
        values = {**losses[scores["epoch"]], **scores, "breakdowns": breakdowns}
        values["balance"] = values["d_loss"] / values["g_loss"]
        values["d_accuracy"] = (values["d_accuracy_real"] + values["d_accuracy_generated"]) / 2
        found.append((scores["epoch"], values))
    return found


def kept_logs(planned, classifier=None):
    """Yields (configuration, log) of these runs that are finished.

    classifier: the SHA-256 of the one that scored them; by default they are to have one in common. Ends the program
    with one line if a log is of other flags, or scored by another classifier.
    """
    classifiers = {classifier} if classifier else set()
    for name, flags in planned:
        path = kept_log(name, flags["seed"])
        if not os.path.exists(path):
            continue
        log = read_log(path)
        others = {flag for flag, value in flags.items() if log["config"].get(flag) != value}
        others.update(*(change.get("config", ()) for change in log["changes"]))
        if others:
            sys.exit(f"{path} is of another {' and '.join(sorted(others))}")
        classifiers.update(row.get("classifier_sha256") for row in log["evaluations"] if row.get("digit_fid"))
        if len(classifiers) > 1:
            sys.exit(f"{path} is scored by another classifier than {'today' if classifier else 'the logs before it'}")
        yield name, log


def read_rows():
    """Returns {row: {epoch: {metric: its values over the seeds}}} of the finished runs, rows in the tables' order."""
    rows = {}
    for name, log in kept_logs(planned()):
        for epoch, scores in measures(log):
            for row, values in {name: {**scores, **scores["generator"]}, name + EMA: scores}.items():
                metrics = rows.setdefault(row, {}).setdefault(epoch, {})
                for metric in METRICS:
                    metrics.setdefault(metric, []).append(values[metric])
    return rows


def means(rows, epochs):
    """Returns {row: {metric: each run's mean over these epochs}} of the rows that reached them."""
    reached = {row: [found[epoch] for epoch in epochs] for row, found in rows.items() if set(epochs) <= set(found)}
    return {
        row: {metric: [*map(statistics.mean, zip(*(values[metric] for values in found)))] for metric in found[0]}
        for row, found in reached.items()
    }


def mean_and_spread(values, digits):
    """Returns mean ± standard deviation; a single value as it is."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def far_apart(values):
    """Returns whether one run's is at least twice another's: a mean would lie where no run does."""
    return max(values) >= 2 * min(values)


def cell(metrics, metric):
    """Returns mean ± standard deviation of a row's metric; scores run by run if one digit FID is twice another's."""
    each = metric == "breakdowns" or (metric in SCORES and far_apart(metrics["digit_fid"]))
    return (differences.run_by_run if each else mean_and_spread)(metrics[metric], METRICS[metric])


def table(rows, epochs):
    """Returns the Markdown table of the runs that reached these epochs."""
    body = []
    for row, metrics in means(rows, epochs).items():
        cells = [cell(metrics, metric) for metric in METRICS]
        body.append([row, f"`{flags_of(row)}`", str(len(metrics["digit_fid"])), *cells])
    return markdown(["", "flags", "n", *(name_of(metric)[0] for metric in METRICS)], body)


def as_good(metric, metrics):
    """Returns whether a label accuracy is at least that of real digits, which the classifier never saw."""
    return metric == "label_accuracy" and statistics.mean(metrics[metric]) >= real_accuracy()


@functools.lru_cache(None)
def real_accuracy():
    _, ((_, accuracy, _), *_) = read_kept("scale")
    return float(accuracy)


def beside_report(rows, epochs):
    """Returns what differences.table takes: every row beside the report's. An average has the balance of its run."""
    found, compared = means(rows, epochs), {}
    for row, metrics in found.items():
        base = REPORT + row.endswith(EMA) * EMA
        for metric in SCORES if row.endswith(EMA) else ("balance", *SCORES):
            others = None if row == base else found[base][metric]
            compared[row, name_of(metric)[0]] = metrics[metric], others, METRICS[metric], as_good(metric, metrics)
    return compared


def within_report(rows):
    """Returns what differences.table takes: how the report's runs change, and what their averages change."""
    average, compared, course = REPORT + EMA, {}, f"epoch {MIDDLE} to the end"
    steps = {course: (REPORT, [MIDDLE], REPORT, LAST), course + EMA: (average, [MIDDLE], average, LAST)}
    for when, epochs in ((f"epoch {MIDDLE // 2}", [MIDDLE // 2]), (f"epoch {MIDDLE}", [MIDDLE]), ("the end", LAST)):
        steps[f"generator to ema, {when}"] = REPORT, epochs, average, epochs
    for what, (row, epochs, other, others) in steps.items():
        before, after = means(rows, epochs)[row], means(rows, others)[other]
        for metric in ("balance", "d_accuracy", *SCORES) if what == course else SCORES:
            changes = [later - earlier for earlier, later in zip(before[metric], after[metric])]
            zeros = [0.0] * len(changes)
            compared[what, name_of(metric)[0]] = changes, zeros, METRICS[metric], as_good(metric, after)
    return compared


def course(rows, columns=None):
    """Returns the Markdown table of columns, {head: (row, metric)}, over the epochs; by default all rows' digit FID."""
    shown = sorted(rows[REPORT])
    columns = columns or {row: (row, "digit_fid") for row in rows if set(shown) <= set(rows[row])}
    body = [[str(epoch), *(cell(rows[row][epoch], name) for row, name in columns.values())] for epoch in shown]
    return markdown(["epoch", *columns], body)


def search_table():
    """Returns the Markdown table of what was tried for a best: the scores of the running averages, run by run."""
    body = []
    for name, log in kept_logs(planned(search=True)):
        found = measures(log)
        lowest, scores = min(found, key=lambda epoch: epoch[1]["digit_fid"])
        end = differences.run_by_run([values["digit_fid"] for epoch, values in found if epoch in LAST], 1)
        row = [f"`{flags_of(name + EMA)}`", log["config"]["seed"], f"{scores['digit_fid']:.1f}", lowest, end]
        body.append([*map(str, row), str(scores["breakdowns"])])
    end = f"digit FID at epochs {', '.join(map(str, LAST))}"
    return markdown(["flags", "seed", "lowest digit FID", "at epoch", end, "breakdowns"], body)


def tables():
    """Returns {name: Markdown table} of the logs that are there; none before the report's first run is."""
    rows = read_rows()
    if REPORT not in means(rows, LAST):
        return {}
    columns = {name_of(metric)[0]: (REPORT, metric) for metric in METRICS if metric != "breakdowns"}
    beside = ["each run", "difference to the report's"]
    few = {row: rows[row] for row in (REPORT, PLAIN) if row in rows}
    return {
        "seeds": table(rows, LAST),
        "differences": differences.table(beside, beside_report(rows, LAST)),
        "questions": course(rows, {**columns, f"digit FID{EMA}": (REPORT + EMA, "digit_fid")}),
        "changes": differences.table(["each run's change", "mean change"], within_report(rows)),
        "course": course(rows),
        "plain": differences.table(beside, beside_report(few, [FEW_EPOCHS])),
    }


def main():
    parser = Parser("Trains configurations with several seeds and compares them.")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--search", action="store_true", help="what was tried for a best")
    parser.add_argument("--output_dir", default="compared", help="where the runs go")
    opt = parser.parse_args()
    runs = planned(opt.search)
    if not opt.table:
        list(kept_logs(runs, sha256(WEIGHTS)))  # what is trained now would not go with them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        train(missing(runs), opt.output_dir, limits.cores())
    for name, text in ({"search": search_table()} if opt.search else tables()).items():
        print(f"{name}:\n\n{text}\n")
    left = [f"{name} seed {flags['seed']}" for name, flags in missing(runs)]
    if left:
        print("missing: " + ", ".join(left), file=sys.stderr)
        return 0 if opt.table else 1


if __name__ == "__main__":
    sys.exit(main())
