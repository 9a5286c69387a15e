"""A run's process: its reader may go away, its folder is its own, its launcher is known."""

import os
import signal
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, read_log, refused, run, started

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "cgan.py"
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_a_reader_that_ends_ends_the_run_with_its_last_epoch_saved(tmp_path):
    """As in python cgan.py | head."""
    flags = "--n_epochs 99 --max_batches 51 --output_dir run".split()
    with started(SCRIPT, *flags, cwd=tmp_path, **PIPES) as process:
        assert any(b"[Epoch 2/99] [Batch 0" in line for line in process.stdout)
        process.stdout.close()
        (line,) = process.stderr.read().decode().splitlines()
        assert process.wait() == 1
    epoch = len(read_log(tmp_path / "run")["epochs"])
    assert line.startswith("Nobody reads the output any more. ") and f"Saved up to epoch {epoch} " in line
    assert line.endswith("python cgan.py --resume --output_dir run")


def test_a_path_that_is_no_text(tmp_path):
    """Also in the sentence behind Ctrl-C."""
    folder = os.fsencode(tmp_path) + b"/\xff run"
    flags = ["--n_epochs", "99", "--max_batches", "60", "--output_dir", os.fsdecode(folder)]
    with started(SCRIPT, *flags, **PIPES) as process:
        assert any(b"[Epoch 2/99] [Batch 0" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130 and b"Saved up to epoch 1" in errors and errors.count(b"\n") == 2
    assert os.path.exists(folder + b"/results/log.json")


def test_several_processes_without_jittors_compiler(tmp_path, monkeypatch):
    for name, value in {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "mpicc_path": "none"}.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    refused(tmp_path, SCRIPT, names=["mpicc", "libopenmpi-dev"])


@pytest.mark.parametrize("processes, sizes", [("3", "64"), ("12", "64"), ("64", "64 and of the last batch, 32")])
def test_a_batch_that_the_processes_cannot_share_equally(tmp_path, monkeypatch, processes, sizes):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", processes)
    refused(tmp_path, SCRIPT, names=["--batch_size", f"{processes} processes", sizes])


def test_only_the_first_process_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_RANK", "1")
    process = run(SCRIPT, cwd=tmp_path)
    assert process.returncode == 2 and not process.stderr and not process.stdout
