"""A training run that is iterated, as tqdm is: around the experiment, everything that is not the experiment.

    run = Run(opt, networks, optimizers, evaluate)
    for epoch in run.epochs():
        for images, labels in run.batches(dataloader):
            ...
            run.record(d_loss=d_loss, g_loss=g_loss)

It starts or goes on; shows progress; ends if a loss is not finite; after every epoch writes log and checkpoint; then
evaluates, if that is due, and writes them again, with the scores, and the page.
"""

import hashlib
import itertools
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from support import idx, limits
from support.device import describe_gpu, jt
from support.evaluation import evaluation_mode, null_if_it_fails
from support.pages.networks import page_layers
from support.pages.page import write_page
from support.runs import process
from support.runs.resume import goes_on_in_place
from support.saved import checkpoint, kept
from support.saved.log import NOT_DRAWN, ON_INCEPTION, is_number, run_name, save_log, save_table
from support.saved.paths import PROJECT, clear_grids, clear_run, grid_path, log_path, make_folders, page_path

PROGRESS_INTERVAL = 50  # batches between two lines of progress (report: every 50 batches)
LARGEST = 1e30  # number that a training which has not diverged may record: their sums are finite in float32 too
PAGE_SHARE = 0.01  # of the time between two evaluations, for the run's page


def describe_processor():
    """Returns the processor's name and its widest vectors, which decide in which order sums are added."""
    facts = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    vectors = [name for name in ("avx512f", "avx2", "avx") if name in facts.get("flags", "").split()]
    return ", ".join([facts.get("model name") or platform.machine(), *vectors[:1]])


def output_of(*command):
    """Returns what a command prints, as bytes, or None if it fails or is not there."""
    try:
        return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_code():
    """Returns which code runs: the git commit with a hash of local changes, and which copy of cgan.py if it is one.

    Without a repository, it is that script's name and hash.
    """
    commit = os.path.exists(os.path.join(PROJECT, ".git")) and output_of("git", "rev-parse", "--short", "HEAD")
    path = Path(sys.argv[0]).resolve()
    is_ours = path.parent == Path(PROJECT).resolve() and path.is_file()
    script = path.name if is_ours else "cgan.py"  # which something else has imported
    if not commit:
        return f"{script} {hashlib.sha256(Path(PROJECT, script).read_bytes()).hexdigest()[:12]}"
    changes = output_of("git", "diff", "HEAD", "--", "*.py", "*.h", "*.cc", "*.cuh")
    beside = ("--", ":(glob)*.py", "support")  # and not all of an environment that lies in the folder
    for name in output_of("git", "ls-files", "-z", "--others", "--exclude-standard", *beside).split(b"\0")[:-1]:
        changes += name + Path(PROJECT, os.fsdecode(name)).read_bytes()  # such as a my_cgan.py beside cgan.py
    found = commit.decode().strip() + (f", changed ({hashlib.sha256(changes).hexdigest()[:12]})" if changes else "")
    return found if script == "cgan.py" else f"{found}, {script}"


def describe_environment():
    """Returns what a run's numbers may depend on beside its flags."""
    compiler = output_of(jt.flags.cc_path, "-dumpfullversion") or b"?"
    return {
        "code": describe_code(),
        "jittor": jt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "compiler": f"{os.path.basename(jt.flags.cc_path)} {compiler.decode().strip()}",
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        **(describe_gpu() if jt.flags.use_cuda else {}),
        "processor": describe_processor(),
        "processes": jt.world_size,
        "threads": os.environ.get("OMP_NUM_THREADS") or str(limits.cores()),
    }


def plain(value, name, lost):
    """Returns a score as JSON can hold it: Python's own numbers, and None for one that is not finite.

    name: the score's, which is then appended to the list `lost`.
    """
    if isinstance(value, dict):
        return {str(name): plain(part, name, lost) for name, part in value.items()}
    if isinstance(value, jt.Var):
        value = value.item() if value.numel() == 1 else value.numpy()
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, (list, tuple)):
        return [plain(part, name, lost) for part in value]
    if type(value) in (int, float) and not is_number(value):
        lost.append(name)
        return None
    return value


def four_digits(value):
    """Returns a number as it is shown: 0.2000, but 2.0e-05 if it is below 0.0001."""
    return f"{value:.4f}" if abs(value) >= 1e-4 or not value else f"{value:.1e}"


def changed(before, now):
    return {name: value for name, value in now.items() if before.get(name) != value}


class Run:
    """The run in opt.output_dir, from its start or from the checkpoint opt.resume.

    opt: cgan.py's flags; networks, optimizers: as support.saved.checkpoint.save_checkpoint takes them; evaluate:
    (networks, epoch) -> {metric: value}, called when an evaluation is due, its epoch saved.
    Under mpirun only the first process prints and writes. Raises checkpoint.Mismatch if the checkpoint is of other
    networks; its methods raise FloatingPointError if training diverges, OSError if a file cannot be written.
    """

    def __init__(self, opt, networks, optimizers, evaluate):
        self.opt, self.networks, self.optimizers, self.evaluate = opt, networks, optimizers, evaluate
        self.first_process = jt.rank == 0
        for network in networks.values():
            network.mpi_param_broadcast()  # several processes begin with the first one's
        self.facts = idx.data_facts(opt.data_root)
        if self.first_process:
            process.check_free(opt)  # again, for whoever imports cgan.py and calls train
        self.epochs_done, self.environment = 0, describe_environment()
        self.page_seconds, self.evaluated_at, self.problems = 0, time.monotonic(), []
        self.log = {"config": opt.config, "environment": self.environment, "changes": []}
        self.log["labels"] = self.facts.labels
        self.log.update({"epochs": [], "evaluations": []})
        if opt.resume is not None:
            saved = checkpoint.read_checkpoint(opt.resume)
            checkpoint.load_checkpoint(opt.resume, saved, networks, optimizers)
            self.epochs_done, self.log = saved["epoch"], saved["log"]
            self.log_changes()
        self.log["data"] = self.facts.checksums()
        if self.first_process:
            if goes_on_in_place(opt):
                clear_grids(opt.output_dir, self.epochs_done * self.log["epochs"][-1].get("batches", math.inf))
            else:
                clear_run(opt.output_dir) if opt.overwrite else clear_grids(opt.output_dir, 0)
            make_folders(opt.output_dir)
            if opt.resume is not None:
                kept.bring_best(self.log, self.epochs_done, os.path.dirname(opt.resume), opt.output_dir)

    def log_changes(self):
        """Notes what differs from here on: flags, and what the run's numbers may depend on beside them."""
        self.log["config"]["n_epochs"] = self.opt.n_epochs  # how far it goes changes nothing before
        first = self.epochs_done + 1
        # An earlier resume may have noted a change for an epoch that it then did not finish
        self.log["changes"] = [change for change in self.log["changes"] if change["epoch"] < first]
        gone = dict.fromkeys(checkpoint.latest(self.log, "config"))  # flags that this script does not know
        now = {"config": {**gone, **self.opt.config}, "environment": self.environment}
        change = {part: changed(checkpoint.latest(self.log, part), values) for part, values in now.items()}
        change = {part: values for part, values in change.items() if values}
        if change and first <= self.opt.n_epochs:
            self.log["changes"].append({"epoch": first, **change})

    def epochs(self):
        """Yields the number of every epoch still to train, from 1; what follows it is done when the epoch has ended."""
        self.epoch, rows = self.epochs_done, self.log["evaluations"]
        if self.epoch:  # a run that goes on: perhaps elsewhere, its log behind, or stopped before it was scored
            last = rows[-1] if rows else {}
            due = self.evaluation_due() and last.get("epoch") != self.epoch
            self.end_epoch(due or last == {"epoch": self.epoch})
        for epoch in range(self.epochs_done + 1, self.opt.n_epochs + 1):
            self.epoch = epoch
            yield epoch
            self.epochs_done = epoch
            self.end_epoch(self.evaluation_due())
        if self.first_process:
            print(f"Done: samples, log and checkpoint are in images/ and results/ under {self.opt.output_dir}.")

    def batches(self, dataloader):
        """Yields the batches of an epoch behind a progress bar; then logs the epoch."""
        self.n_batches = min(len(dataloader), self.opt.max_batches or len(dataloader))
        self.recorded, self.fetched, start = [], 0, time.monotonic()
        self.bar = tqdm(
            itertools.islice(dataloader, self.n_batches),
            total=self.n_batches,
            desc=f"Epoch {self.epoch}/{self.opt.n_epochs}",
            leave=False,
            disable=None if self.first_process else True,  # None: no bar if the output goes to a file
        )
        for batch in self.bar:
            self.recorded.append({})
            yield batch
        self.fetch()
        checkpoint.check_finite(checkpoint.weights_of(self.networks), self.epoch)
        names = list(dict.fromkeys(name for batch in self.recorded for name in batch))
        recorded = [[batch[name] for batch in self.recorded if name in batch] for name in names]
        means = self.over_processes([float(np.cumsum(values)[-1]) / len(values) for values in recorded])
        last = self.over_processes([values[-1] for values in recorded])
        row = {"epoch": self.epoch, "batches": self.n_batches, **dict(zip(names, means))}
        row.update({f"{name}_last": value for name, value in zip(names, last)})
        self.log["epochs"].append({**row, "seconds": round(time.monotonic() - start, 2)})

    @staticmethod
    def over_processes(values):
        """Returns the mean of `values` over the processes of the run, as a list."""
        return jt.array(np.array(values)).mpi_all_reduce("mean").numpy().tolist() if jt.in_mpi else values

    @property
    def batches_done(self):
        """The number of batches before this one, counted over all epochs from 0 (report)."""
        return (self.epoch - 1) * self.n_batches + len(self.recorded) - 1

    def record(self, **values):
        """Takes a batch's numbers, such as d_loss=d_loss: Jittor Vars or floats; not every batch need have all of them.

        Each one's mean over the epoch and its last value are logged and drawn, whatever its name, except those that the
        log uses itself. Raises FloatingPointError if one is not finite or beyond LARGEST; on a GPU, which would have to
        stop for that, at the latest PROGRESS_INTERVAL batches later.
        """
        for name, value in values.items():
            if name in (*NOT_DRAWN, *ON_INCEPTION) or name.endswith("_last"):
                raise ValueError(f"{name}: the log has a number of this name already")
            self.recorded[-1][name] = value.detach() if isinstance(value, jt.Var) else float(value)
        batch = len(self.recorded) - 1
        if jt.flags.use_cuda and batch % PROGRESS_INTERVAL and batch - self.fetched < PROGRESS_INTERVAL:
            return
        self.fetch()
        shown = self.recorded[-1].items()
        shown = {f"{name[:1].upper()}{name[1:].replace('_', ' ')}": four_digits(value) for name, value in shown}
        self.bar.set_postfix_str(", ".join(f"{name}: {value}" for name, value in shown.items()), refresh=False)
        if batch % PROGRESS_INTERVAL == 0:
            self.say(f"[Batch {batch}/{self.n_batches}] " + " ".join(f"[{name}: {x}]" for name, x in shown.items()))

    def fetch(self):
        """Makes floats of the numbers that were recorded since the last time."""
        for batch, recorded in enumerate(self.recorded[self.fetched :], self.fetched):
            for name, value in recorded.items():
                recorded[name] = float(value.item() if isinstance(value, jt.Var) else value)
                if not abs(recorded[name]) <= LARGEST:  # also if it is NaN
                    raise FloatingPointError(f"epoch {self.epoch}, batch {batch}: {name} is {recorded[name]:.3g}")
        self.fetched = max(0, len(self.recorded) - 1)  # more may come of the last batch

    def say(self, text):
        if self.first_process:
            tqdm.write(f"[Epoch {self.epoch}/{self.opt.n_epochs}] {text}")

    def grid_due(self):
        """Returns whether a sample grid belongs after this batch; raises FloatingPointError as record does."""
        due = self.first_process and self.batches_done % self.opt.sample_interval == 0
        if due:
            self.fetch()  # of networks that have diverged there is none
        return due

    def write_grid(self, save, network):
        """Calls save(path, network, opt) for a sample grid; if it cannot be written, one line says so."""
        path = grid_path(self.opt.output_dir, self.batches_done)
        process.attempt(self.opt.output_dir, save, path, network, self.opt)

    def evaluation_due(self):
        """Returns whether this epoch ends with an evaluation: every fid_interval-th and the last."""
        return self.epoch % self.opt.fid_interval == 0 or self.epoch == self.opt.n_epochs

    def end_epoch(self, due):
        """Saves the epoch and then, if an evaluation is due, scores it and saves it again with its scores."""
        if not self.first_process:
            return
        if due:
            self.log_scores({})  # an evaluation without scores, as it is found on a resume if this one is cut off
        layers = self.page_layers()
        self.save(layers)
        if due:
            scores = {"fid": None}
            with null_if_it_fails(f"epoch {self.epoch}: the evaluation"):
                scores = self.evaluate(self.networks, self.epoch)
            self.log_scores(scores)
            self.save(layers)
        self.keep_generator()
        self.write_page()

    def log_scores(self, scores):
        """Takes what an evaluation measured, {metric: value}, and shows its numbers; one that is not finite is None."""
        if "epoch" in scores:
            raise ValueError("epoch: the log has a number of this name already")
        lost, rows = [], self.log["evaluations"]
        scores = plain(scores, None, lost)
        if lost:
            print(f"epoch {self.epoch}: not finite, and so null: {', '.join(dict.fromkeys(lost))}", file=sys.stderr)
        if not rows or rows[-1]["epoch"] != self.epoch:
            rows.append({"epoch": self.epoch})
        rows[-1].update(scores)
        shown = {name: f"{value:.4g}" for name, value in scores.items() if isinstance(value, float)}
        if "inception" in scores:
            shown["fid"] = f"{shown.get('fid')} ({scores['inception']})"  # whose weights
        if shown:
            self.say(" ".join(f"[{name}: {value}]" for name, value in shown.items()))

    def save(self, layers):
        """Writes checkpoint and log; raises FloatingPointError if a parameter is not finite. layers: of page_layers."""
        folder, log = self.opt.output_dir, self.log
        saved = folder, self.networks, self.optimizers, layers, self.epochs_done, log, self.facts.sha256
        process.insist(folder, lambda: checkpoint.save_checkpoint(*saved))
        process.insist(folder, lambda: save_log(folder, log))
        process.attempt(folder, save_table, folder, log)

    def keep_generator(self):
        folder = self.opt.output_dir
        process.attempt(folder, kept.keep_generator, folder, self.log, self.epochs_done, self.opt.keep)

    def page_layers(self):
        """Returns {network: what a page may compute of it, or why it cannot}, after a try on two inputs."""
        noise = np.random.default_rng(0).standard_normal((2, self.opt.latent_dim)).astype(np.float32)
        labels, images, found = np.arange(2, dtype=np.int32) % self.opt.n_classes, None, {}
        for name in ("ema", "generator", "discriminator"):
            if name not in self.networks:
                continue
            network, given = self.networks[name], images if name == "discriminator" else noise
            try:
                with evaluation_mode(network):
                    outputs = network(jt.array(given), jt.array(labels)).numpy()
                images = outputs if images is None else images
                arrays = {key: value.numpy() for key, value in network.state_dict().items()}
                found[name] = page_layers(network, arrays, (given, labels), outputs)
            except Exception as error:  # of a network whose class has been changed in whatever way
                found[name] = f"it cannot be asked for two images: {error}"
        return found

    def write_page(self):
        """Writes results/run.html after an evaluation, to be looked at while the run goes on.

        Not if that would take more than PAGE_SHARE of the time since the last one, but always in the end.
        """
        evaluated = bool(self.log["evaluations"]) and self.log["evaluations"][-1]["epoch"] == self.epochs_done
        start, last = time.monotonic(), self.epochs_done == self.opt.n_epochs
        if evaluated and (last or self.page_seconds < PAGE_SHARE * (start - self.evaluated_at)):
            folder = self.opt.output_dir
            runs = {run_name(folder): (log_path(folder), self.log)}
            for problem in process.attempt(folder, write_page, page_path(folder), runs) or []:
                if problem not in self.problems:
                    print(problem, file=sys.stderr)
                    self.problems.append(problem)
            self.page_seconds = time.monotonic() - start
        if evaluated:
            self.evaluated_at = time.monotonic()
