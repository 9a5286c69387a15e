"""What a run's process does before all else: it claims the run's folder, and ends on Ctrl-C in one sentence."""

import os
import signal
import sys

from support.checkpoint import describe_saved, lock_run

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))  # of this process among those that mpirun started


def start_run(output_dir):
    """Locks the folder for this process (for the first of several) and takes over Ctrl-C and SIGTERM.

    Ends the program with one sentence where another run is writing there, or the folder cannot be made.
    """
    if RANK:
        return
    try:
        locked = lock_run(output_dir)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    if not locked:
        print(f"Another run is writing to {output_dir}: give this one an --output_dir of its own.", file=sys.stderr)
        sys.exit(2)
    signals = (signal.SIGINT, signal.SIGTERM)

    def hand_back():
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    def end(signum, frame):
        """Ends the process there and then: no exception has to find its way through compiled code."""
        hand_back()  # a second signal is obeyed by the system
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signum]
        os.write(2, f"\n{name}: stopped. {describe_saved(output_dir)}\n".encode())
        os._exit(128 + signum)

    for number in signals:
        signal.signal(number, end)
    os.register_at_fork(after_in_child=hand_back)  # the processes that Jittor compiles in end by SIGTERM
