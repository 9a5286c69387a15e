"""What a run's process does before Jittor is imported: it claims the run's folder and takes over Ctrl-C."""

import fcntl
import os
import shutil
import signal
import sys

from support.mpi import PROCESSES, RANK, refuse
from support.runs.resume import describe_saved, draws, goes_on_in_place
from support.saved.paths import clear_leftovers, holds_run, lock_path, make_folders


def lock_run(output_dir):
    """Makes the folders of a run and locks them until the process ends, however it ends.

    Returns whether that worked, or False if another process holds the lock. Raises OSError if a folder cannot be made.
    A file is locked, not its folder, as network file systems lock only what is open for writing.
    """
    make_folders(output_dir)
    lock = os.open(lock_path(output_dir), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    except OSError as error:  # a file system without locks
        print(f"{output_dir} cannot be locked ({error.strerror}): start no second run there.", file=sys.stderr)
    clear_leftovers(output_dir)
    return True


def start_run(opt):
    """Claims opt.output_dir for this process (for the first of several) and takes over Ctrl-C and SIGTERM.

    Ends the program with one sentence if the folder holds a run that this one is neither to go on with nor to replace,
    if another run is writing there, or if it cannot be made.
    """
    output_dir = opt.output_dir
    if PROCESSES > 1 and not shutil.which(os.environ.get("mpicc_path", "mpicc")):
        refuse("several processes need Open MPI's compiler mpicc; on Debian or Ubuntu: sudo apt install libopenmpi-dev")
    if holds_run(output_dir) and not (opt.overwrite or goes_on_in_place(opt)):
        refuse(
            f"argument --output_dir: {output_dir} holds a run already: --resume goes on with it, another --output_dir "
            "keeps it, --overwrite deletes it"
        )
    for name in ("stdout", "stderr"):  # progress is seen at once, also in a file; a path need not be text
        getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)
    if RANK:
        return
    try:
        locked = lock_run(output_dir)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    if not locked:
        refuse(f"Another run is writing to {output_dir}: give this one an --output_dir of its own.")
    signals = (signal.SIGINT, signal.SIGTERM)

    def hand_back():
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    def end(signum, frame):
        """Ends the process there and then: no exception has to find its way through compiled code."""
        hand_back()  # a second signal is obeyed by the system
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signum]
        try:
            os.write(2, os.fsencode(f"\n{name}: stopped. {describe_saved(output_dir)}\n"))
        finally:  # the terminal may be gone
            os._exit(128 + signum)

    for number in signals:
        signal.signal(number, end)
    os.register_at_fork(after_in_child=hand_back)  # the processes that Jittor compiles in end by SIGTERM


def end_run(opt, error):
    """Ends the program, whose run `error` has stopped, with one sentence that says what is saved."""
    what = f"Training diverged in {error}. A smaller --lr helps."
    if isinstance(error, OSError):
        what = f"{error.filename or opt.output_dir}: {error.strerror or error}."
    if isinstance(error, BrokenPipeError):  # head, or a terminal that was closed: nobody reads on
        what = "Nobody reads the output any more."
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(what if draws(opt) else f"{what} {describe_saved(opt.output_dir)}")
