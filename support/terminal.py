"""What a script owes the person who started it: every line at once, and one line when a signal ends it."""

import builtins
import contextlib
import glob
import os
import shutil
import signal
import sys
import threading

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))  # of this process among those that mpirun started
PROCESSES = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # the last three a batch system's, before it kills
unfinished = set()  # paths of the files and folders that this process is writing: they go if a signal ends it
last_words = []  # functions whose sentences are said then


def refuse(message):
    """Ends the program with one line and status 2; of several processes only the first one prints it.

    Here and elsewhere SystemExit comes from None: IPython for Python 3.8 cannot show one that has an error behind it.
    """
    if not RANK:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2) from None


def in_ipython():
    """Returns whether this process is a notebook's or another IPython's, which lives on when a script has ended."""
    return hasattr(builtins, "__IPYTHON__")


def take_over():
    """Has standard output and errors show every line at once, and signals end the program with one line.

    For the top of a script, before its imports take time. In IPython, Ctrl-C stays Python's KeyboardInterrupt.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's streams have it not, and need it not
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a path need not be text
    if not in_ipython() and threading.current_thread() is threading.main_thread():
        # Also for the threads that NumPy starts: at a child's death, Jittor's import would end the process in one
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        for name in SIGNALS:
            signal.signal(getattr(signal, name), end)
        os.register_at_fork(after_in_child=hand_back)  # the processes that Jittor compiles in end by SIGTERM


def hand_back():
    """Leaves signals to the system."""
    for name in (*SIGNALS, "SIGCHLD"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def end(signum, frame):
    """Ends the process there and then: no exception has to find its way through compiled code."""
    hand_back()  # a second signal is obeyed at once
    end_children()
    for path in list(unfinished):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    try:
        words = [f"{name}: stopped.", *(say() for say in last_words)]
        if not RANK:  # of several processes one speaks
            os.write(2, os.fsencode(f"\n{' '.join(words)}\n"))
    finally:  # the terminal may be gone
        os._exit(128 + signum)


def end_children():
    """Kills the processes that this one has started: nobody else would, and some would wait for it for ever."""
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            for child in map(int, file.read().split()):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
