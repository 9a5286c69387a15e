"""A training run that is iterated, as tqdm is: around the experiment, everything that is not the experiment.

    run = Run(opt, networks, optimizers)
    for epoch in run.epochs():
        for images, labels in run.batches(dataloader):
            ...
            run.record(d_loss, g_loss)

It starts or goes on; shows progress; ends where a loss is not finite; after every epoch writes log and checkpoint, and
after an evaluation the page.
"""

import itertools
import json
import os
import platform
import re
import time

import numpy as np
from tqdm import tqdm

from support.pages import page
from support.saved import checkpoint
from support.device import jt
from support.saved.paths import clear_run, grid_path, log_path, make_folders, page_path, atomic_write
from support.saved.log import read_log

PROGRESS_INTERVAL = 50  # batches between two lines of progress (report: every 50 batches)
PAGE_SHARE = 0.01  # of the time between two evaluations, for the run's page


def describe_processor():
    """Returns the processor's name and its widest vectors, which decide in which order sums are added."""
    try:
        with open("/proc/cpuinfo") as file:
            facts = dict(re.findall(r"^(model name|flags)\s*: (.*)$", file.read(), re.MULTILINE))
    except OSError:  # not Linux
        facts = {}
    vectors = [name for name in ("avx512f", "avx2", "avx") if name in facts.get("flags", "").split()]
    return ", ".join([facts.get("model name") or platform.machine(), *vectors[:1]])


def describe_environment():
    """Returns what a run's numbers may depend on beside its flags."""
    return {
        "jittor": jt.__version__,
        "python": platform.python_version(),
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        "processor": describe_processor(),
        "processes": jt.world_size,
        "threads": os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))),
    }


def changed(before, now):
    return {name: value for name, value in now.items() if before.get(name) != value}


class Run:
    """The run in opt.output_dir, from its start or from the checkpoint opt.checkpoint.

    opt: cgan.py's flags; networks, optimizers: as support.saved.checkpoint.save_checkpoint takes them.
    Under mpirun only the first process prints and writes. Raises checkpoint.Mismatch where the checkpoint is of other
    networks; its methods raise FloatingPointError where training diverges, OSError where a file cannot be written.
    """

    def __init__(self, opt, networks, optimizers):
        self.opt, self.networks, self.optimizers = opt, networks, optimizers
        self.first_process = jt.rank == 0
        for network in networks.values():
            network.mpi_param_broadcast()  # several processes begin with the first one's
        self.epochs_done, self.environment = 0, describe_environment()
        self.page_seconds, self.evaluated_at = 0, time.time()
        self.log = {"config": opt.config, "environment": self.environment, "changes": []}
        self.log.update({"epochs": [], "evaluations": []})
        if opt.checkpoint:
            checkpoint.load_checkpoint(opt.resume, opt.checkpoint, networks, optimizers)
            self.epochs_done, self.log = opt.checkpoint["epoch"], opt.checkpoint["log"]
            self.log_changes()
        if self.first_process:
            if opt.overwrite:
                clear_run(opt.output_dir)
            make_folders(opt.output_dir)
            if opt.checkpoint:
                self.save()  # a run that goes on elsewhere, or whose log was behind
                self.write_page()

    def log_changes(self):
        """Notes what differs from here on: flags, and what the run's numbers may depend on beside them."""
        self.log["config"]["n_epochs"] = self.opt.n_epochs  # how far it goes changes nothing before
        first = self.epochs_done + 1
        # An earlier resume may have noted a change for an epoch that it then did not finish
        changes = self.log["changes"] = [change for change in self.log["changes"] if change["epoch"] < first]
        change = {"epoch": first}
        for part, now in (("config", self.opt.config), ("environment", self.environment)):
            held = dict(self.log[part])
            for earlier in changes:
                held.update(earlier.get(part, {}))
            if changed(held, now):
                change[part] = changed(held, now)
        if len(change) > 1 and first <= self.opt.n_epochs:
            changes.append(change)

    def epochs(self):
        """Yields the number of every epoch still to train, from 1; what follows it is done when the epoch has ended.

        An epoch that became the last one after it had ended comes once more, without batches, to be evaluated.
        """
        first = self.epochs_done + 1
        if self.epochs_done == self.opt.n_epochs and not self.evaluated():
            first = self.epochs_done
        for epoch in range(first, self.opt.n_epochs + 1):
            self.epoch = epoch
            yield epoch
            self.epochs_done = epoch
            if self.first_process:
                self.save()
                self.write_page()
        if self.first_process:
            print(f"Done: samples, log and checkpoint are in images/ and results/ under {self.opt.output_dir}.")

    def batches(self, dataloader):
        """Yields the batches of an epoch behind a progress bar; then logs the epoch."""
        if self.epoch == self.epochs_done:
            return
        self.n_batches = min(len(dataloader), self.opt.max_batches or len(dataloader))
        self.losses, start = [], time.time()
        self.bar = tqdm(
            itertools.islice(dataloader, self.n_batches),
            total=self.n_batches,
            desc=f"Epoch {self.epoch}/{self.opt.n_epochs}",
            leave=False,
            disable=None if self.first_process else True,  # None: no bar where the output goes to a file
        )
        yield from self.bar
        checkpoint.check_finite(checkpoint.weights_of(self.networks), self.epoch)
        losses = np.array(self.losses)
        d_loss, g_loss = self.over_processes(losses.mean(axis=0))
        d_last, g_last = self.over_processes(losses[-1])
        row = {"epoch": self.epoch, "batches": self.n_batches, "d_loss": d_loss, "g_loss": g_loss}
        row.update(d_loss_last=d_last, g_loss_last=g_last, seconds=round(time.time() - start, 2))
        self.log["epochs"].append(row)

    @staticmethod
    def over_processes(values):
        """Returns the mean of `values` over the processes of the run, as a list."""
        return (jt.array(values).mpi_all_reduce("mean").numpy() if jt.in_mpi else values).tolist()

    @property
    def batches_done(self):
        """The number of batches before the one that was recorded last, counted over all epochs from 0 (report)."""
        return (self.epoch - 1) * self.n_batches + len(self.losses) - 1

    def record(self, d_loss, g_loss):
        """Takes a batch's losses, shows them, and raises FloatingPointError where one is not finite."""
        self.losses.append((d_loss.item(), g_loss.item()))
        (d, g), batch = self.losses[-1], len(self.losses) - 1
        if not np.isfinite((d, g)).all():
            raise FloatingPointError(f"epoch {self.epoch}, batch {batch}: a loss is not finite")
        self.bar.set_postfix_str(f"D loss: {d:.4f}, G loss: {g:.4f}", refresh=False)
        if batch % PROGRESS_INTERVAL == 0:
            self.say(f"[Batch {batch}/{self.n_batches}] [D loss: {d:.4f}] [G loss: {g:.4f}]")

    def say(self, text):
        if self.first_process:
            tqdm.write(f"[Epoch {self.epoch}/{self.opt.n_epochs}] {text}")

    def grid_due(self):
        """Returns whether a sample grid belongs after this batch."""
        return self.first_process and self.batches_done % self.opt.sample_interval == 0

    def grid_path(self):
        return grid_path(self.opt.output_dir, self.batches_done)

    def evaluation_due(self):
        """Returns whether this epoch ends with an evaluation: every fid_interval-th and the last."""
        return self.first_process and (self.epoch % self.opt.fid_interval == 0 or self.epoch == self.opt.n_epochs)

    def evaluated(self):
        """Returns whether the last finished epoch is evaluated."""
        return bool(self.log["evaluations"]) and self.log["evaluations"][-1]["epoch"] == self.epochs_done

    def log_scores(self, scores):
        """Takes what an evaluation measured, {figure: value}, and shows it."""
        self.log["evaluations"].append({"epoch": self.epoch, **scores})
        shown = ["fid", "kid", "digit_fid", "label_accuracy"]
        self.say(" ".join(f"[{name}: {scores[name]:.4g}]" for name in shown if scores[name] is not None))

    def save(self):
        """Writes checkpoint and log; raises FloatingPointError where a parameter is not finite."""
        folder, data = self.opt.output_dir, self.opt.data_sha256
        checkpoint.save_checkpoint(folder, self.networks, self.optimizers, self.epochs_done, self.log, data)
        save_log(folder, self.log)

    def write_page(self):
        """Writes results/run.html after an evaluation, to be looked at while the run goes on.

        Not where that would take more than PAGE_SHARE of the time since the last one, but always in the end.
        """
        evaluated = self.evaluated()
        start, last = time.time(), self.epochs_done == self.opt.n_epochs
        if evaluated and (last or self.page_seconds < PAGE_SHARE * (start - self.evaluated_at)):
            log = log_path(self.opt.output_dir)
            page.write_page(page_path(self.opt.output_dir), {self.opt.output_dir: (log, read_log(log))})
            self.page_seconds = time.time() - start
        if evaluated:
            self.evaluated_at = time.time()


def save_log(output_dir, log):
    """Writes `log` (dictionaries, lists, numbers, strings) as JSON."""
    text = json.dumps(log, indent=1, allow_nan=False) + "\n"
    atomic_write(log_path(output_dir), lambda file: file.write(text.encode()))
