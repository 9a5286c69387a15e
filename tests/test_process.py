"""A run's process: its reader may go away, its folder is its own, its launcher is known."""

import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, command_of, ended, handles, read_log, refused, run, started, wait_for
from PIL import Image

from support import terminal
from support.pages.pictures import save_picture
from support.runs import process
from support.saved import paths
from support.saved.paths import REFERENCE_LOG, atomic_write, make_folders

SCRIPT = ROOT / "cgan.py"


def test_a_reader_that_ends_ends_the_run_with_its_last_epoch_saved(tmp_path):
    """As in python cgan.py | head."""
    flags = "--n_epochs 99 --max_batches 51 --output_dir run".split()
    with started(SCRIPT, *flags, cwd=tmp_path) as process:
        assert any("[Epoch 2/99] [Batch 0" in line for line in process.stdout)
        process.stdout.close()
        (line,) = process.stderr.read().splitlines()
        assert process.wait() == 1
    epoch = len(read_log(tmp_path / "run")["epochs"])
    assert line.startswith("Nobody reads the output any more. ") and f"Saved up to epoch {epoch} " in line
    assert line.endswith(f"to go on: python {shlex.quote(str(SCRIPT))} --resume --output_dir {tmp_path}/run")


def test_several_processes_without_jittors_compiler(tmp_path):
    env = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "mpicc_path": "none"}
    refused(tmp_path, SCRIPT, names=["mpicc", "libopenmpi-dev"], **env)


@pytest.mark.slow
@pytest.mark.parametrize("processes, sizes", [("3", "64"), ("12", "64"), ("64", "64 and 32")])
def test_a_batch_that_the_processes_cannot_share_equally(tmp_path, processes, sizes):
    names = ["--batch_size", f"{processes} processes", sizes]
    refused(tmp_path, SCRIPT, names=names, OMPI_COMM_WORLD_SIZE=processes)


def test_only_the_first_process_says_what_is_wrong(tmp_path):
    process = run(SCRIPT, cwd=tmp_path, OMPI_COMM_WORLD_SIZE="3", OMPI_COMM_WORLD_RANK="1")
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
    assert os.listdir(tmp_path) == ["log"] and path.read_text() == "old" and not terminal.unfinished
    assert getattr(raised.value, "errno", None) is None or raised.value.filename == str(path)


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "not a file that can be replaced"), ("folder", "Is a directory")):
        with pytest.raises(OSError, match=what):
            atomic_write(str(tmp_path / name), lambda file: file.write(b"new"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_write_that_is_still_going_on_is_no_leftover(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "results" / ".cgan-0123456789abcdef.new").write_text("half")
    atomic_write(str(tmp_path / "results" / "fid.png"), lambda file: paths.clear_leftovers(tmp_path))
    assert os.listdir(tmp_path / "results") == ["fid.png"]


def opt_of(folder):
    return SimpleNamespace(output_dir=folder, overwrite=False, resume=None, digits=None, export=None, npz=None)


def test_ctrl_c_in_a_write_leaves_nothing(tmp_path):
    child = os.fork()
    if not child:
        terminal.take_over()
        process.start_run(opt_of(str(tmp_path)))
        atomic_write(f"{tmp_path}/results/log.json", lambda file: os.kill(os.getpid(), signal.SIGINT))
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 130
    assert os.listdir(tmp_path / "results") == [".lock"]


def test_a_clone_whose_path_has_any_letters_and_a_file_named_as_one_of_pythons(tmp_path):
    clone = tmp_path / "it's a (clone) & #1 100% $HOME 手写"
    clone.mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / name, clone)
    for name in ("support", "results"):
        os.symlink(ROOT / name, clone / name)
    (clone / "random.py").write_text("raise SystemExit('the wrong random')")
    for words in (["cgan.py", "--digits", "7"], ["plot_curves.py", "results/reference/log.json"]):
        process = run(*words, "--output_dir", "out's (1) & #2 50% 输出", cwd=clone)
        assert (process.returncode, process.stderr) == (0, ""), process.stderr


SCRIPTS = {
    "cgan.py": ["--digits", "7"],
    "fid.py": ["mnist", "mnist", "--features", "digits"],
    "plot_curves.py": [REFERENCE_LOG, "--output_dir", "out"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_at_any_moment_is_one_line_and_leaves_nothing_half_written(tmp_path, script):
    """Also at the first imports, and Ctrl-C to all processes of the script, as a terminal sends it."""
    for number, seconds in ((signal.SIGUSR1, 0), *((signal.SIGINT, 0.2 * i) for i in range(6))):
        with started(ROOT / script, *SCRIPTS[script], cwd=tmp_path, start_new_session=True) as process:
            wait_for(lambda: handles(process, signal.SIGUSR1) or process.poll() is not None)
            time.sleep(seconds)
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=20)
        done = process.returncode in (0, -number)  # of the interpreter, which takes its time to end
        name = {signal.SIGINT: "Ctrl-C"}.get(number, "SIGUSR1")
        assert done or (process.returncode, errors) == (128 + number, f"\n{name}: stopped.\n")
        assert not [path for path in tmp_path.rglob("*") if path.suffix not in ("", ".png", ".html")]


def test_a_signal_ends_the_processes_that_a_script_has_started(tmp_path):
    code = "from support import terminal; import os, subprocess; terminal.take_over(); "
    code += "print(subprocess.Popen(['sleep', '99']).pid, flush=True); os.kill(os.getpid(), 15)"
    process = run("-c", code)
    assert process.returncode == 143 and process.stderr == "\nSIGTERM: stopped.\n"
    assert not os.path.exists(f"/proc/{process.stdout.strip()}")


# What differs in a notebook: its streams, and a thread in which no signal can be handled
NOTEBOOK = """
import builtins, io, sys, threading
from support import terminal
class Stream(io.TextIOBase):
    def write(self, text): return sys.__stdout__.write(text)
builtins.__IPYTHON__ = {ipython}
sys.stdout = Stream()
thread = threading.Thread(target=terminal.take_over)
thread.start() if {thread} else terminal.take_over()
import signal
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("ipython, thread", [(True, False), (False, True)])
def test_a_notebook_keeps_its_ctrl_c(ipython, thread):
    code = NOTEBOOK.format(ipython=ipython, thread=thread)
    process = run("-c", code if ipython else code.replace("builtins.__IPYTHON__ = False", ""))
    assert (process.stdout, process.stderr) == ("True\n", "")


# Cells that follow those of the notebook: a run is stopped as its first epoch is saved, then another takes over.
# An interrupt within ipykernel's write would leave its lock taken. One that reaches a __del__ is dropped by Python: if
# nothing has come of it after half a minute, another is sent
STOP = """import os, signal, sys, threading, time, traceback
def writes():
    return "iostream" in str(traceback.extract_stack(sys._current_frames()[threading.main_thread().ident]))
def stop():
    while not os.path.exists("trial/stopped/results/log.json"): time.sleep(0.01)
    while sys.modules["support.runs.process"].held:
        while writes(): time.sleep(0.001)
        os.killpg(0, signal.SIGINT)
        for _ in range(300): sys.modules["support.runs.process"].held and time.sleep(0.1)
threading.Thread(target=stop).start()
%run cgan.py --n_epochs 99 --max_batches 20 --inception_weights none --output_dir trial/stopped"""
QUICK = "--overwrite --n_epochs 2 --max_batches 60 --inception_weights none"
AFTER = [STOP, f"!'{{sys.executable}}' cgan.py {QUICK} --output_dir trial/stopped"]


@pytest.mark.slow
def test_the_notebook(tmp_path):
    """It runs as it is shown; a run in it can be stopped; one by ! beside it shows its progress on one line."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    shown = nbformat.read(ROOT / "examples" / "cgan.ipynb", 4)
    notebook = nbformat.from_dict(shown)
    notebook.cells += map(nbformat.v4.new_code_cell, AFTER)
    for cell in notebook.cells:
        cell.source = cell.source.replace("trial", str(tmp_path))
    settings = {"resources": {"metadata": {"path": str(ROOT / "examples")}}, "allow_errors": True, "timeout": 300}
    nbclient.NotebookClient(notebook, kernel_name="python3", **settings).execute(env=ENVIRONMENT)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]

    def pictures(cells):
        return [sum("image/png" in part.get("data", ()) for part in cell) for cell in cells]

    assert pictures(outputs[:-2]) == pictures(cell.outputs for cell in shown.cells if cell.cell_type == "code")
    assert not [part for cell in outputs[:-2] for part in cell if part.output_type == "error"]
    stopped = [part.evalue for part in outputs[-2] if part.output_type == "error"]
    assert len(stopped) == 1 and stopped[0].startswith("Ctrl-C: stopped. Saved up to epoch ")
    text = "".join(part.text for part in outputs[-1])
    assert "Epoch 2/2" in text and text.count("\n") < 12 and "Done" in text, text


# Where a cell is stopped while the script in it imports what it needs
SHELL = """import builtins, sys
from IPython.core.interactiveshell import InteractiveShell
real = builtins.__import__
def stop(name, *args, **kw):
    if name == "fid":
        print(len(sys.modules["support.runs.process"].held))
        raise KeyboardInterrupt
    return real(name, *args, **kw)
builtins.__import__ = stop
InteractiveShell.instance().run_cell("%run cgan.py --inception_weights none --output_dir " + sys.argv[1])
print(len(sys.modules["support.runs.process"].held))"""


def test_a_cell_that_is_stopped_before_training_begins_unlocks_its_folder(tmp_path):
    pytest.importorskip("IPython")
    process = run("-c", SHELL, tmp_path)
    assert [line for line in process.stdout.splitlines() if line.isdigit()] == ["2", "0"], process.stdout


def test_a_second_run_in_a_notebook_takes_over_the_folder_of_one_that_was_stopped(claimed):
    assert process.lock_run(claimed) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError("epoch 1")])
def test_what_ends_a_run_is_one_sentence_and_unlocks_its_folder(claimed, error):
    with pytest.raises(SystemExit, match="Nothing is saved yet") as end, process.one_sentence(opt_of(claimed)):
        raise error
    assert not process.held and end.value.__suppress_context__


def test_an_error_in_what_was_changed_is_its_own_and_says_what_is_saved(claimed, capsys):
    with pytest.raises(ValueError, match="mine"), process.one_sentence(opt_of(claimed)):
        raise ValueError("mine")
    assert not process.held and capsys.readouterr().err == "Nothing is saved yet.\n"


@pytest.fixture
def claimed(tmp_path):
    """A folder that this process has locked for a run."""
    folder = str(tmp_path / "run")
    assert process.lock_run(folder) is None
    yield folder
    process.let_go()


def test_a_second_run_hears_who_holds_the_folder(claimed):
    second = run(SCRIPT, "--output_dir", claimed)
    ended(second, 2, f"Another run is writing to {claimed} (process {os.getpid()} on {platform.node()})")


def test_a_second_run_on_the_machine_hears_what_helps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "PYTHON", str(tmp_path / "python"))
    with open(process.PYTHON, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for threads, lines in (("2", 1), ("1", 0)):
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
            process.greet_neighbour()
            assert capsys.readouterr().out.count("OMP_NUM_THREADS=1 before both") == lines
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    process.greet_neighbour()
    process.let_go()
    assert not capsys.readouterr().out


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
    refused(tmp_path, SCRIPT, "--digits", "7", names=["cgan.py: argument --digits", "digits.png lacks this program's"])


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
