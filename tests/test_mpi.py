"""Several processes: one run, shared. Skipped where mpirun is missing (Debian: openmpi-bin, libopenmpi-dev)."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run

pytestmark = pytest.mark.skipif(
    not (shutil.which("mpirun") and shutil.which("mpicc")), reason="mpirun or mpicc is not installed"
)
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
FLAGS = "--n_epochs 5 --max_batches 60 --sample_interval 100 --fid_interval 5 --output_dir".split()
# cgan.py's training, and at its end the sum of every process's own parameters
WATCHED = """
import hashlib, cgan, sys
from support.device import jt
networks = []
for kind in ("Generator", "Discriminator"):
    def make(*args, network=getattr(cgan, kind)):
        networks.append(network(*args))
        return networks[-1]
    setattr(cgan, kind, make)
cgan.train(cgan.parse_flags(sys.argv[1:]))
parameters = b"".join(value.numpy().tobytes() for net in networks for value in net.state_dict().values())
print(f"RANK {jt.rank} {hashlib.sha256(parameters).hexdigest()}", flush=True)
"""
# cgan.py's training on noise and labels that are drawn for the whole batch, each process taking its part
SHARED = """
import cgan, numpy as np, sys
from support.device import jt
rng = np.random.default_rng(0)
def part(draw):
    def drawn(*args):
        n = next(n for n in np.ravel(args[-1:] if draw is labels else args))
        whole = draw(n * jt.world_size)
        return jt.array(whole[n * jt.rank : n * (jt.rank + 1)])
    return drawn
noise = lambda n: rng.standard_normal((n, 100)).astype(np.float32)
labels = lambda n: rng.integers(0, 10, n).astype(np.int32)
seed_epoch = cgan.seed_epoch
def shared(opt, epoch, dataloader):
    if epoch:
        jt.sync_all()  # the networks are drawn now, as in the other run
    seed_epoch(opt, epoch, dataloader)
    if epoch:
        jt.randn, jt.randint = part(noise), part(labels)
cgan.seed_epoch = shared
cgan.train(cgan.parse_flags(sys.argv[1:]))
"""


def mpirun(*args, cwd):
    command = ["mpirun", "-np", "2", "--oversubscribe", sys.executable, *map(str, args)]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**ENVIRONMENT, **AS_ROOT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def losses(folder):
    return np.array([(row["d_loss"], row["g_loss"]) for row in log(folder)["epochs"]])


def log(folder):
    return json.loads((folder / "results" / "log.json").read_text())


def test_two_processes_are_one_run(tmp_path):
    process = mpirun("-c", WATCHED, *FLAGS, "two", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    parameters = dict(re.findall(r"RANK (\d) (\w+)", process.stdout))
    assert parameters.keys() == {"0", "1"} and parameters["0"] == parameters["1"]
    assert process.stdout.count("[Epoch 3/5] [Batch 50/60]") == 1  # only the first process prints
    assert log(tmp_path / "two")["environment"]["processes"] == 2
    assert [row["epoch"] for row in log(tmp_path / "two")["evaluations"]] == [5]


def test_two_processes_train_what_one_does(tmp_path):
    """Given halves of the same noise and labels, they have its losses, but for rounding."""
    arguments = "--n_epochs 2 --max_batches 15 --output_dir".split()
    process = mpirun("-c", SHARED, *arguments, "two", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    process = run("-c", SHARED, *arguments, "one", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_a_process_that_dies_ends_the_run_and_the_checkpoint_stays(tmp_path):
    code = WATCHED.replace("cgan.train(", "from test_mpi_dying import train; train(", 1)
    (tmp_path / "test_mpi_dying.py").write_text(
        "import os, cgan\n"
        "from support.device import jt\n"
        "seed_epoch = cgan.seed_epoch\n"
        "def dying(opt, epoch, dataloader):\n"
        "    if epoch == 3 and jt.rank == 1: os.kill(os.getpid(), 9)\n"
        "    seed_epoch(opt, epoch, dataloader)\n"
        "cgan.seed_epoch = dying\n"
        "train = cgan.train\n"
    )
    process = mpirun("-c", f"import sys; sys.path.insert(0, '.')\n{code}", *FLAGS, "run", cwd=tmp_path)
    assert process.returncode != 0
    process = run(ROOT / "cgan.py", "--resume", "--output_dir", "run", "--n_epochs", "5", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert len(log(tmp_path / "run")["epochs"]) == 5
