"""A run's process: its terminal may go away, its folder is its own, its launcher is known."""

import os
import re
import signal
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, read_log, refused, run, started

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "cgan.py"
FLAGS = "--n_epochs 1 --max_batches 120 --output_dir run".split()


def trained(folder):
    return [row["epoch"] for row in read_log(folder / "run")["epochs"]] == [1]


@pytest.mark.parametrize("closed", [[1], [2], [1, 2]], ids=["1", "2", "both"])
def test_a_run_without_an_output_to_write_to(tmp_path, closed):
    process = run(SCRIPT, *FLAGS, cwd=tmp_path, preexec_fn=lambda: [os.close(number) for number in closed])
    assert process.returncode == 0 and trained(tmp_path)


@pytest.mark.parametrize("words", [["plot_curves.py", "results/reference/log.json"], ["fid.py", "mnist", "mnist"]])
def test_no_program_needs_an_output(tmp_path, words):
    more = ["--output_dir", tmp_path] if words[0] == "plot_curves.py" else ["--features", "digits"]
    process = run(*words, *more, preexec_fn=lambda: os.close(1))
    assert process.returncode == 0 and "Error" not in process.stderr


def test_a_reader_that_ends_ends_the_output_and_not_the_run(tmp_path):
    with started(SCRIPT, *FLAGS, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert b"[Batch 0/120]" in process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 0 and not errors and trained(tmp_path)


def test_a_terminal_that_is_closed_ends_the_output_and_not_the_run(tmp_path):
    ours, theirs = os.openpty()
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with started(SCRIPT, *FLAGS, cwd=tmp_path, start_new_session=True, **terminal) as process:
        os.close(theirs)
        seen = b""
        while b"[Batch 0/120]" not in seen:
            seen += os.read(ours, 1000)
        os.close(ours)
        process.send_signal(signal.SIGHUP)  # what the shell sends
        assert process.wait() == 0 and trained(tmp_path)


def test_a_path_that_is_no_text(tmp_path):
    """Also in the sentence behind Ctrl-C."""
    folder = os.fsencode(tmp_path) + b"/\xff run"
    flags = ["--n_epochs", "99", "--max_batches", "60", "--output_dir", os.fsdecode(folder)]
    with started(SCRIPT, *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert any(b"[Epoch 2/99] [Batch 0" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130 and b"Saved up to epoch 1" in errors and errors.count(b"\n") == 2
    assert os.path.exists(folder + b"/results/log.json")


@pytest.mark.parametrize(
    "launcher, names",
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, ["4 times", "Open MPI", "mpirun -np"]),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, ["2 times", "sbatch"]),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "mpicc_path": "none"}, ["mpicc", "libopenmpi-dev"]),
    ],
)
def test_launchers_that_jittor_does_not_see(tmp_path, monkeypatch, launcher, names):
    for name, value in launcher.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    refused(tmp_path, SCRIPT, names=names)


@pytest.mark.parametrize("processes, sizes", [("3", "64"), ("12", "64"), ("64", "64 and of the last batch, 32")])
def test_a_batch_that_the_processes_cannot_share_equally(tmp_path, monkeypatch, processes, sizes):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", processes)
    refused(tmp_path, SCRIPT, names=["--batch_size", f"{processes} processes", sizes])


def test_only_the_first_process_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_RANK", "1")
    process = run(SCRIPT, cwd=tmp_path)
    assert process.returncode == 2 and not process.stderr and not process.stdout


def test_one_process_of_slurm_is_a_run_like_any(tmp_path):
    process = run(SCRIPT, *FLAGS, cwd=tmp_path, SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="8")
    assert process.returncode == 0 and re.search("Done", process.stdout)
