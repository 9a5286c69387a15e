"""Several processes: one run, shared. Skipped where mpirun is missing (Debian: openmpi-bin, libopenmpi-dev)."""

import hashlib
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, command_of, done, own, read_log, wait_for

import cgan
from support.device import jt
from support.runs.resume import describe_saved

missing = not (shutil.which("mpirun") and shutil.which("mpicc"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing, reason="mpirun or mpicc is not installed")]
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
FLAGS = "--n_epochs 5 --max_batches 60 --sample_interval 100 --fid_interval 5 --output_dir".split()


def train_watched(*flags):
    """cgan.py's training, and at its end the sum of every process's own parameters."""
    networks = []

    def watch(kind):
        def make(*args):
            networks.append(kind(*args))
            return networks[-1]

        return make

    cgan.Generator, cgan.Discriminator = watch(cgan.Generator), watch(cgan.Discriminator)
    cgan.train(cgan.parse_flags(flags))
    parameters = b"".join(value.numpy().tobytes() for net in networks for value in net.state_dict().values())
    print(f"RANK {jt.rank} {hashlib.sha256(parameters).hexdigest()}", flush=True)


def train_shared(*flags):
    """cgan.py's training on noise and labels that are drawn for the whole batch, each process taking its part."""
    rng, seed_epoch = np.random.default_rng(0), cgan.seed_epoch

    def share(whole):
        n = len(whole) // jt.world_size
        return jt.array(whole[n * jt.rank : n * (jt.rank + 1)])

    def seed_and_share(opt, epoch, dataloader):
        seed_epoch(opt, epoch, dataloader)
        if epoch:
            jt.randn = lambda n, width: share(rng.standard_normal((n * jt.world_size, width)).astype(np.float32))
            jt.randint = lambda low, high, n: share(rng.integers(low, high, n[0] * jt.world_size).astype(np.int32))

    cgan.seed_epoch = seed_and_share
    cgan.train(cgan.parse_flags(flags))


def train_and_die(*flags):
    """cgan.py's training, in which the second process is killed at the start of epoch 3, once the first has saved."""
    seed_epoch = cgan.seed_epoch

    def seed_or_die(opt, epoch, dataloader):
        if epoch == 3 and jt.rank == 1:
            wait_for(lambda: "up to epoch 2" in describe_saved(opt.output_dir))
            os.kill(os.getpid(), 9)
        seed_epoch(opt, epoch, dataloader)

    cgan.seed_epoch = seed_or_die
    cgan.train(cgan.parse_flags(flags))


def start(function, *flags, cwd, processes):
    mpirun = ["mpirun", "-np", str(processes), "--oversubscribe"] if processes > 1 else []
    command = [*mpirun, *command_of(function, *own(flags))]
    return subprocess.run(command, cwd=cwd, env={**ENVIRONMENT, **AS_ROOT}, capture_output=True, text=True, timeout=900)


def losses(folder):
    return np.array([(row["d_loss"], row["g_loss"]) for row in read_log(folder)["epochs"]])


def test_two_processes_are_one_run(tmp_path):
    process = start(train_watched, *FLAGS, "two", cwd=tmp_path, processes=2)
    assert process.returncode == 0, process.stderr
    parameters = dict(re.findall(r"RANK (\d) (\w+)", process.stdout))
    assert parameters.keys() == {"0", "1"} and parameters["0"] == parameters["1"]
    assert process.stdout.count("[Epoch 3/5] [Batch 50/60]") == 1  # only the first process prints
    assert read_log(tmp_path / "two")["environment"]["processes"] == 2
    assert [row["epoch"] for row in read_log(tmp_path / "two")["evaluations"]] == [5]


def test_two_processes_train_what_one_does(tmp_path):
    """Given halves of the same noise and labels, they have its losses, but for rounding."""
    arguments = "--n_epochs 2 --max_batches 15 --output_dir".split()
    for name, processes in (("two", 2), ("one", 1)):
        process = start(train_shared, *arguments, name, cwd=tmp_path, processes=processes)
        assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_a_process_that_dies_ends_the_run_and_the_checkpoint_stays(tmp_path):
    assert start(train_and_die, *FLAGS, "run", cwd=tmp_path, processes=2).returncode != 0
    done(ROOT / "cgan.py", "--resume", "--output_dir", "run", "--n_epochs", "5", cwd=tmp_path)
    assert len(read_log(tmp_path / "run")["epochs"]) == 5
    (change,) = read_log(tmp_path / "run")["changes"]
    assert change["epoch"] == 3 and change["environment"]["processes"] == 1
