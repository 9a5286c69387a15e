"""What a run's process does before Jittor is imported: it claims the run's folder, and outlives its terminal.

Jittor shares a run among processes that Open MPI started; they are told apart here by its environment variables.
"""

import fcntl
import os
import shutil
import signal
import sys

from support.saved.checkpoint import describe_saved
from support.saved.paths import checkpoint_path, clear_leftovers, holds_run, lock_path, make_folders

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))  # of this process among those that mpirun started
PROCESSES = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
# How other launchers tell a process its rank, and how many there are
OTHER_LAUNCHERS = [("PMI_RANK", "PMI_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")]


def refuse(message):
    """Ends the program with one line and status 2; of several processes only the first one prints it."""
    if not RANK:
        print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)


def check_launcher():
    """Ends the program with one sentence where Jittor would not see that it was started several times."""
    if PROCESSES > 1 and not shutil.which(os.environ.get("mpicc_path", "mpicc")):
        refuse("several processes need Open MPI's compiler mpicc; on Debian or Ubuntu: sudo apt install libopenmpi-dev")
    for rank, processes in OTHER_LAUNCHERS:
        if "OMPI_COMM_WORLD_SIZE" not in os.environ and int(os.environ.get(processes) or 1) > 1:
            if os.environ.get(rank) != "0":
                sys.exit(2)
            refuse(
                f"started {os.environ[processes]} times, but not by Open MPI, which is what Jittor knows: "
                "mpirun -np N python cgan.py (under Slurm, inside sbatch or salloc)"
            )


class LastingStream:
    """A text stream whose reader may go away: what is written to it from then on is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()  # progress is seen at once, also in a file
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)

    def flush(self):
        self.write("")


def outlive_terminal():
    """Lets the program go on where its terminal is closed or the reader of its output ends."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")  # a path need not be text
        setattr(sys, name, LastingStream(stream))


def check_folder(opt):
    """Ends the program where --output_dir holds a run that this one is neither to go on with nor to replace."""
    own = opt.resume and os.path.realpath(opt.resume) == os.path.realpath(checkpoint_path(opt.output_dir))
    if holds_run(opt.output_dir) and not (own or opt.overwrite):
        refuse(
            f"argument --output_dir: {opt.output_dir} holds a run already: --resume goes on with it, another "
            "--output_dir keeps it, --overwrite deletes it"
        )
    opt.overwrite = opt.overwrite and not own


def lock_run(output_dir):
    """Makes the folders of a run and locks them until the process ends, however it ends.

    Returns whether that worked, or False where another process holds the lock. Raises OSError where a folder cannot be
    made. A file is locked, not its folder, as network file systems lock only what is open for writing.
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

    Ends the program with one sentence where the folder holds a run, another run is writing there, or it cannot be made.
    """
    output_dir = opt.output_dir
    check_launcher()
    check_folder(opt)
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
