"""A run's process: its reader may go away, its folder is its own, its launcher is known."""

import os
import platform
import shutil
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, command_of, read_log, refused, run, started
from PIL import Image

from support.pages.pictures import save_picture
from support.runs import process
from support.runs.resume import version_of
from support.saved import paths
from support.saved.paths import atomic_write, make_folders

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("processes, sizes", [("3", "64"), ("12", "64"), ("64", "64 and of the last batch, 32")])
def test_a_batch_that_the_processes_cannot_share_equally(tmp_path, monkeypatch, processes, sizes):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", processes)
    refused(tmp_path, SCRIPT, names=["--batch_size", f"{processes} processes", sizes])


def test_only_the_first_process_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setitem(ENVIRONMENT, "OMPI_COMM_WORLD_RANK", "1")
    process = run(SCRIPT, cwd=tmp_path)
    assert process.returncode == 2 and not process.stderr and not process.stdout


def write_again(path, letter):
    """Writes a file of 100,000 equal letters 100 times."""
    for _ in range(100):
        atomic_write(path, lambda file: file.write(letter.encode() * 100000))


def test_two_writers_of_one_file(tmp_path):
    """One of them is the last, as a whole, and neither fails."""
    path = tmp_path / "file"
    writers = [subprocess.Popen(command_of(write_again, path, letter)) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_bytes() in (b"a" * 100000, b"b" * 100000) and os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_replaced_stays_what_it_was(tmp_path):
    """Its mode; a link stays a link; another hard link to it keeps what it holds."""
    (tmp_path / "elsewhere").mkdir()
    target, link, backup = tmp_path / "elsewhere" / "log", tmp_path / "log", tmp_path / "backup"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("elsewhere/log")
    os.link(target, backup)
    atomic_write(str(link), lambda file: file.write(b"new"))
    assert link.is_symlink() and link.read_text() == target.read_text() == "new" and backup.read_text() == "old"
    assert target.stat().st_mode & 0o777 == 0o640
    atomic_write(str(tmp_path / ("l" * 255)), lambda file: file.write(b"new"))  # the longest name


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, OSError("disk"), OSError(28, "full")])
def test_whatever_ends_a_write_leaves_what_was_there(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    path = tmp_path / "log"
    path.write_text("old")
    with pytest.raises(error if isinstance(error, type) else OSError) as raised:
        atomic_write(str(path), fail)
    assert os.listdir(tmp_path) == ["log"] and path.read_text() == "old" and not paths.UNFINISHED
    assert getattr(raised.value, "errno", None) is None or raised.value.filename == str(path)


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "no file that can be replaced"), ("folder", "Is a directory")):
        with pytest.raises(OSError, match=what):
            atomic_write(str(tmp_path / name), lambda file: file.write(b"new"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_write_that_is_still_going_on_is_no_leftover(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "results" / ".cgan-0123456789abcdef.new").write_text("half")
    atomic_write(str(tmp_path / "results" / "fid.png"), lambda file: paths.clear_leftovers(tmp_path))
    assert os.listdir(tmp_path / "results") == ["fid.png"]


def test_ctrl_c_in_a_write_leaves_nothing(tmp_path):
    def write(folder):
        process.start_run(SimpleNamespace(output_dir=folder, overwrite=False, resume=None))
        atomic_write(f"{folder}/results/log.json", lambda file: os.kill(os.getpid(), signal.SIGINT))

    child = os.fork()
    if not child:
        write(str(tmp_path))
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 130
    assert os.listdir(tmp_path / "results") == [".lock"]


@pytest.fixture
def claimed(tmp_path):
    """A folder that this process has locked for a run."""
    folder = str(tmp_path / "run")
    assert process.lock_run(folder) is None
    yield folder
    process.held.pop(folder).close()


def test_a_second_run_hears_who_holds_the_folder(claimed):
    code = f"from support.runs.process import lock_run; print(lock_run({claimed!r}))"
    assert run("-c", code).stdout == f"process {os.getpid()} on {platform.node()}\n"


@pytest.mark.parametrize("taken", ["results", "."])
def test_a_run_writes_nothing_into_a_folder_that_was_taken(claimed, tmp_path, taken):
    """Deleted under it, and perhaps another run's by now: neither checkpoint nor grid nor page."""
    shutil.rmtree(os.path.normpath(os.path.join(claimed, taken)))
    for lock in (process.insist, process.attempt):
        for _ in range(2):
            with pytest.raises(SystemExit, match=r"results/\.lock is not this run's any more"):
                lock(claimed, lambda: pytest.fail("it wrote"))
            make_folders(claimed)
            (tmp_path / "run" / "results" / ".lock").touch()  # another run's
    np.savez(tmp_path / "run" / "results" / "checkpoint.npz", epoch=7)
    assert "Saved up to" not in process.what_is_saved(claimed)


def test_a_write_that_fails_is_tried_again(claimed, monkeypatch, capsys):
    waits, results = [], iter([OSError(28, "No space left on device", "log"), OSError(28, "full"), None])

    def write():
        result = next(results)
        if result:
            raise result
        return "written"

    monkeypatch.setattr(process.time, "sleep", waits.append)
    assert process.insist(claimed, write) == "written" and waits == [1, 5]
    first, second = capsys.readouterr().err.splitlines()
    assert first == "log: No space left on device; trying again in 1 s." and second.startswith(f"{claimed}: full;")


def test_a_checkpoint_that_another_run_has_gone_on_with_is_not_resumed(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "checkpoint.npz"
    path.write_text("epoch 5")
    opt = SimpleNamespace(output_dir=str(tmp_path), overwrite=False, resume=str(path))
    opt.resume_version = version_of(str(path))
    atomic_write(str(path), lambda file: file.write(b"epoch 6"))
    with pytest.raises(SystemExit):
        process.start_run(opt)
    process.held.pop(str(tmp_path)).close()
    assert "has just gone on with it: give the same command again" in capsys.readouterr().err


def test_only_this_programs_pictures_are_replaced_or_deleted(tmp_path):
    make_folders(tmp_path)
    ours, theirs = (paths.grid_path(str(tmp_path), batches) for batches in (1000, 2000))
    for gray in (0, 1):
        save_picture(ours, np.full((4, 4), gray))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(theirs)
    with pytest.raises(FileExistsError, match="lacks this program's mark"):
        save_picture(theirs, np.zeros((4, 4)))
    assert paths.foreign_grids(str(tmp_path)) == [theirs]
    paths.clear_grids(str(tmp_path), 1001)
    assert os.path.exists(ours)
    paths.clear_run(str(tmp_path))
    assert os.listdir(tmp_path / "images") == ["2000.png"]


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_folder_with_the_users_own_numbered_pictures_is_refused(tmp_path, flags):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1000.png").write_text("mine")
    names = ["--output_dir", "1000.png has the name of a sample grid", "another --output_dir"]
    refused(tmp_path, SCRIPT, *flags, names=names)


def test_the_users_own_picture_of_digits_is_not_replaced(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "digits.png").write_text("mine")
    refused(tmp_path, SCRIPT, "--digits", "7", names=["--digits", "digits.png lacks this program's mark"])


@pytest.mark.slow
def test_grids_of_a_run_that_was_stopped_in_its_first_epoch_are_not_the_next_ones(tmp_path):
    """Nor a grid of an epoch that is no longer done; a picture of the user's that has come between costs no run."""
    flags = "--n_epochs 1 --max_batches 4 --output_dir".split()
    make_folders(tmp_path)
    for batches in (1, 3):
        save_picture(paths.grid_path(str(tmp_path), batches), np.zeros((4, 4)))
    assert run(SCRIPT, *flags, tmp_path).returncode == 0
    assert os.listdir(tmp_path / "images") == ["0.png"]
    save_picture(paths.grid_path(str(tmp_path), 5), np.zeros((4, 4)))
    (tmp_path / "images" / "6.png").write_text("mine")
    words = "--resume --n_epochs 2 --sample_interval 2 --output_dir".split()
    resumed = run(SCRIPT, *words, tmp_path)
    assert resumed.returncode == 0 and sorted(os.listdir(tmp_path / "images")) == ["0.png", "4.png", "6.png"]
    _, line = resumed.stderr.splitlines()  # and the page leaves it out
    assert "6.png: lacks this program's mark" in line and line.endswith("is not replaced. The run goes on.")


@pytest.mark.slow
def test_a_page_that_cannot_be_written_costs_no_run(tmp_path):
    (tmp_path / "results" / "run.html").mkdir(parents=True)
    process = run(SCRIPT, *"--n_epochs 1 --max_batches 2 --output_dir".split(), tmp_path)
    assert process.returncode == 0 and read_log(tmp_path)["evaluations"]
    (line,) = process.stderr.splitlines()
    assert "run.html: Is a directory. The run goes on." in line
