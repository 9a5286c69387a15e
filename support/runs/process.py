"""What a run's process does beside training: claims the run's folder, bears writes that fail, ends in one sentence."""

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import time

from support import terminal
from support.pages.pictures import NOT_OURS
from support.runs.resume import describe_saved, draws, goes_on_in_place
from support.saved.checkpoint import Mismatch
from support.saved.paths import clear_leftovers, foreign_grids, holds_run, lock_path, make_folders
from support.terminal import PROCESSES, RANK, refuse

WAITS = (1, 5, 15)  # seconds, before a checkpoint or log that could not be written is tried again
held = {}  # {output_dir: the open lock file} of this process, and {PYTHON: that file}
PYTHON = "/proc/self/exe"  # a file that the runs of one machine have in common, to lock


def lock_run(output_dir):
    """Makes the folders of a run and locks them until let_go() or the end of the process, however it ends.

    Returns None if that worked, or else which process holds the lock. Raises OSError if a folder cannot be made.
    A file is locked, not its folder, as network file systems lock only what is open for writing.
    """
    let_go()  # of what a run that was stopped left locked, in a notebook
    make_folders(output_dir)
    lock = open(lock_path(output_dir), "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            return lock.read(1000).strip() or "a process that has just begun"
    except OSError as error:  # a file system without locks
        print(f"{output_dir} cannot be locked ({error.strerror}): start no second run there.", file=sys.stderr)
    held[output_dir] = lock
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()
    clear_leftovers(output_dir)
    return None


def let_go(*_):
    """Unlocks the folder of this process's run, which another one may then go on with."""
    while held:
        _, lock = held.popitem()
        with lock, contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone does not: a process that compiles may hold it too


def greet_neighbour():
    """Says what helps if another run trains on this machine: both would share the cores with all their threads."""
    try:
        held[PYTHON] = open(PYTHON, "rb")
        fcntl.flock(held[PYTHON], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if os.environ.get("OMP_NUM_THREADS") != "1":
            print(
                "Another run is training on this machine, and they slow each other down: put OMP_NUM_THREADS=1 before "
                "both commands (docs/performance.md)."
            )
    except OSError:  # a file system without locks, or no Linux
        pass


def holds_lock(output_dir):
    """Returns whether the lock that lies in a run's folder is the one that this process holds."""
    with contextlib.suppress(OSError, KeyError):
        return os.path.samestat(os.fstat(held[output_dir].fileno()), os.stat(lock_path(output_dir)))
    return False


def check_lock(output_dir):
    """Ends the program with one sentence if its run's folder was taken away while it trained.

    A run that was never locked, as a test trains it, has nothing to lose.
    """
    if output_dir in held and not holds_lock(output_dir):
        sys.exit(f"Stopped. {what_is_saved(output_dir)}")


def what_is_saved(output_dir):
    """Returns one sentence: which epochs of this process's run are saved, or why none are any more."""
    if output_dir in held and not holds_lock(output_dir):
        what = f"{lock_path(output_dir)} is not this run's any more: its folder was deleted or moved away"
        return f"{what}, and another run may be writing there."
    return describe_saved(output_dir)


def insist(output_dir, write):
    """Calls write(), and once more after each of WAITS if a file cannot be written; then raises that OSError.

    Ends the program if the folder is no longer this run's.
    """
    for wait in (*WAITS, None):
        check_lock(output_dir)
        try:
            return write()
        except OSError as error:
            check_lock(output_dir)
            if wait is None:
                raise
            what = f"{error.filename or output_dir}: {error.strerror or error}"
            print(f"{what}; trying again in {wait} s.", file=sys.stderr)
            time.sleep(wait)


def attempt(output_dir, write, *arguments):
    """Returns write(*arguments); if a file cannot be written, one line says so, and the run goes on without it.

    Ends the program if the folder is no longer this run's.
    """
    check_lock(output_dir)
    try:
        return write(*arguments)
    except OSError as error:
        check_lock(output_dir)
        print(f"{error.filename or output_dir}: {error.strerror or error}. The run goes on.", file=sys.stderr)


def check_free(opt):
    """Ends the program with one sentence if opt.output_dir holds what this run would delete, and may not."""
    if goes_on_in_place(opt):
        return
    if holds_run(opt.output_dir) and not opt.overwrite:
        refuse(
            f"argument --output_dir: {opt.output_dir} holds a run already: --resume goes on with it, another "
            "--output_dir keeps it, --overwrite deletes it"
        )
    foreign = foreign_grids(opt.output_dir)
    if foreign:
        refuse(
            f"argument --output_dir: {foreign[0]} has the name of a sample grid, but {NOT_OURS}: move it away, or give "
            "another --output_dir"
        )


def start_run(opt):
    """Claims opt.output_dir for this process (for the first of several).

    Ends the program with one sentence if the folder holds a run that this one is neither to go on with nor to replace,
    if it holds pictures of the user's with the names of sample grids, if another run is writing there, or if it cannot
    be made.
    """
    output_dir = opt.output_dir
    if PROCESSES > 1 and not shutil.which(os.environ.get("mpicc_path", "mpicc")):
        refuse("several processes need Open MPI's compiler mpicc; on Debian or Ubuntu: sudo apt install libopenmpi-dev")
    check_free(opt)
    if RANK:
        return
    try:
        holder = lock_run(output_dir)
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}") from None
    if holder:
        refuse(f"Another run is writing to {output_dir} ({holder}): give this one an --output_dir of its own.")
    if PROCESSES == 1:
        greet_neighbour()
    terminal.last_words[:] = [lambda: what_is_saved(output_dir)]
    if terminal.in_ipython():  # a cell that is stopped while it imports never comes to one_sentence()
        from IPython import get_ipython

        get_ipython().events.register("post_run_cell", let_go)


@contextlib.contextmanager
def one_sentence(opt):
    """Ends the program with one sentence if what is inside fails: what happened and what is saved of the run."""
    try:
        yield
    except Mismatch as error:
        refuse(error)
    except (FloatingPointError, OSError, KeyboardInterrupt) as error:
        what = f"Training diverged in {error}. A smaller --lr may help."
        if isinstance(error, KeyboardInterrupt):  # in a notebook
            what = "Ctrl-C: stopped."
        if isinstance(error, OSError):
            what = f"{error.filename or opt.output_dir}: {error.strerror or error}."
        if isinstance(error, BrokenPipeError):  # head, or a terminal that was closed: nobody reads on
            what = "Nobody reads the output any more."
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(what if draws(opt) else f"{what} {what_is_saved(opt.output_dir)}") from None
    except Exception:  # in what a user changed: the traceback says where
        if not draws(opt) and not RANK:
            print(what_is_saved(opt.output_dir), file=sys.stderr)
        raise
    finally:
        let_go()
