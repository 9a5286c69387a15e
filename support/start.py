"""Jittor's start, and what goes wrong in it or when it compiles a kernel later. Needs no Jittor.

What Jittor, the compiler and their commands say is kept from the terminal. If something goes wrong, all of it goes
into a file, and the person reads one sentence: the cause, what to do, and that file's name. A damaged cache is
compiled again, once; a path that Jittor's commands do not bear gets a link; nothing waits for a compiling process that
was killed.
"""

import contextlib
import ctypes
import fcntl
import functools
import glob
import importlib.util
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from tempfile import NamedTemporaryFile, TemporaryFile

from support import limits, terminal
from support.terminal import PROCESSES

# What went wrong, by what was said: the first pattern that is found. {line} is the text that it finds.
SPACE = "free 1 GB, or set JITTOR_HOME to a folder on another disk"
FOLDER = "set JITTOR_HOME to a folder that can be written"
CAUSES = [
    (r"No space left on device", f"the disk is full: {SPACE}"),
    (r"Disk quota exceeded", f"your disk quota is used up: {SPACE}"),
    (
        r"Cannot allocate memory|MemoryError|bad_alloc|memory exhausted|(?<!or )out of memory|"
        r"start new thread|Resource temporarily unavailable|Thread creation failed|\bKilled\b|signal 9\b",
        "{compiler} or Jittor could get no more memory ({free} MB are free now) or start no more processes: close "
        "other programs, or use another machine",
    ),
    (r".*failed to map segment", f"{{line}}, as programs may not run on that disk (noexec): {FOLDER}"),
    (r"Could not determine home directory", f"HOME is not set, and the system knows none for you: {FOLDER}"),
    (
        r".*: (Permission denied|Read-only file system|File exists|Not a directory|Operation not permitted|"
        r"is in the way)",
        f"{{line}}: {FOLDER}",
    ),
    (r"error: .*|undefined reference to .*|cannot find -l.*|ended by signal.*", "{compiler} failed ({line})"),
    (r"Run cmd failed", "{compiler} failed"),
    (r"\S.*(?=\s*\Z)", "{line}"),
]
# What a loader or linker says of a damaged file.
DAMAGED = r"undefined symbol|invalid ELF|file too short|file truncated|format not recognized|does not define module"
AGAIN = "CGAN_STARTED_AGAIN"  # set in the environment of a program that was: it gives up where the first did not
# What this program sets or explains of Jittor's settings in the environment
OWN = "nvcc_path cc_path python_config_path mpicc_path cache_name use_mpi log_silent gdb_path disable_lock".split()
OWN += "use_parallel_op_compiler use_cutlass use_cutt cc_flags cuda_arch".split()
MARK = "ended-a-program"  # a file in a cache that is to be compiled again
# A process dies of a signal in a kernel, in whatever thread, where Python cannot say a word
CRASH = r"""
#include <fcntl.h>
#include <initializer_list>
#include <signal.h>
#include <string.h>
#include <unistd.h>
static const char *mark, *words;
static char **line;
static int process, out, err;
static void end(int number) {
    signal(number, SIG_DFL);
    if (getpid() == process && write(err, words, strlen(words)) > 0) {
        if (line || number == SIGILL) close(open(mark, O_CREAT | O_WRONLY, 0600));
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, 0);
        dup2(out, 1);
        dup2(err, 2);
        if (line) execv(line[0], line);
    }
    raise(number);
}
extern "C" void watch(const char* file, const char* said, char** command, int to, int errors) {
    mark = file, words = said, line = command, process = getpid(), out = to, err = errors;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = end, action.sa_flags = SA_NODEFER;
    for (int number : {SIGILL, SIGBUS, SIGSEGV, SIGFPE}) sigaction(number, &action, 0);
    signal(SIGCHLD, SIG_DFL);  // when a child dies of a signal, Jittor would end the program
}
"""
STRANGE = re.compile(r"[^\w./+~@-]")  # in a path: what Jittor's shell commands do not bear
PATIENCE = 5  # seconds without a word for another program that compiles
copies = {}  # {1: a copy of standard output, 2: of standard error} while what is said is caught
running = set()  # the processes that compile for this one, each with a group of its own
second = []  # not empty in a program that was started again
kept = []  # what CRASH holds
said = []  # the file without a name that holds what was said


def say(line):
    """Prints a line on standard error, also while what is said is caught."""
    if copies:
        os.write(copies[2], os.fsencode(f"{line}\n"))
    else:
        print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- before
def plain(path):
    """Returns a folder's path, or if that is STRANGE, of a link to it in /tmp, the same every time; raises OSError."""
    if not STRANGE.search(path):
        return path
    link = f"/tmp/cgan-{os.getuid()}-{zlib.crc32(os.fsencode(path)):08x}"
    with contextlib.suppress(FileExistsError):
        os.symlink(path, link)
    if os.lstat(link).st_uid != os.getuid() or not os.path.islink(link) or os.readlink(link) != path:
        raise FileExistsError(17, "is in the way", link)
    return link


@contextlib.contextmanager
def plain_paths():
    """Has Jittor, imported inside, find its cache, itself and Python by paths that its commands bear.

    Raises OSError, or RuntimeError if there is no home. If JITTOR_HOME is set, HOME is the same inside: Jittor would
    keep a note of the first in the second.
    """
    before, program = os.environ.get("HOME"), sys.executable
    home = os.environ.get("JITTOR_HOME") or os.path.expanduser("~")
    if home == "~":  # Jittor's import would fail, too, in words that each Python has for itself
        raise RuntimeError("Could not determine home directory")
    if os.environ.get("JITTOR_HOME") or (os.path.isabs(home) and STRANGE.search(home)):
        home = os.path.abspath(home)
        os.makedirs(home, exist_ok=True)
        os.environ["JITTOR_HOME"] = os.environ["HOME"] = plain(home)
    spec = importlib.util.find_spec("jittor_utils")
    site = spec and os.path.dirname(os.path.dirname(spec.origin))
    if site and STRANGE.search(site):
        sys.path.insert(0, plain(site))
    folder, name = os.path.split(program)
    if STRANGE.search(folder):  # Python looks for its environment's pyvenv.cfg in the folder above
        sys.executable = os.path.join(plain(os.path.dirname(folder)), os.path.basename(folder), name)
    try:
        yield
    finally:
        sys.executable = program
        if before is not None:
            os.environ["HOME"] = before
        elif "HOME" in os.environ:
            del os.environ["HOME"]


def drop_settings():
    """Takes Jittor's settings, such as no_grad=1, out of the environment, and names them: a run's are its flags."""
    names = {name for name in os.environ if name.islower() and not name.endswith("_proxy")}.difference(OWN)
    spec = importlib.util.find_spec("jittor") if names else None
    if not spec:
        return
    folder, known = glob.escape(os.path.dirname(spec.origin)), set()
    for path in glob.glob(f"{folder}/src/**/*.cc", recursive=True) + glob.glob(f"{folder}/comp*.py"):
        with open(path, encoding="utf-8", errors="replace") as file:
            known.update(re.findall(r'(?:FLAG\w*\([^,]+, *|environ(?:\.get\(|\[)")(\w+)', file.read()))
    dropped = sorted(names & {*known, "debug", "log_v"})
    for name in dropped:
        del os.environ[name]
    if dropped:
        say(f"Ignored, as Jittor would compute in another way: {', '.join(dropped)} in the environment.")


def check_lock(utils):
    """Says whom this program waits for; without locks in the cache's file system, does without Jittor's.

    utils: the module jittor_utils, with lock.
    """
    lock, end = utils.lock.jittor_lock.handle, time.monotonic() + PATIENCE
    while not utils.lock.disable_lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                return say("Another program compiles here with Jittor: waiting for it.")
            time.sleep(0.1)
        except OSError as error:
            say(f"{lock.name} cannot be locked ({error.strerror}): start no second program while one compiles.")
            utils.lock.disable_lock, os.environ["disable_lock"] = True, "1"


def check_version(utils):
    """Ends the program with one sentence if the compiler cannot compile Jittor; utils: the module jittor_utils."""
    version = utils.run_cmd(f'"{utils.cc_path}" --version')
    if "clang" in version or utils.get_int_version(utils.cc_path)[0] < 7:
        sys.exit(
            f"{utils.cc_path} is {version.splitlines()[0].strip()}; Jittor needs GNU's g++ 7 or newer: install one, "
            "and name it in cc_path, as in cc_path=g++-12 python cgan.py"
        )


def is_whole(path):
    """Returns whether a compiled file, .so or .o, has its last part, which says where all others are."""
    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or not head.startswith(b"\x7fELF"):
            return False
        start, (size, count) = struct.unpack_from("Q", head, 40)[0], struct.unpack_from("HH", head, 58)
        file.seek(start + size * max(count - 1, 0))
        last = file.read(size)
    return len(last) == size and any(last)


def clear(folder):
    """Deletes what Jittor has compiled into a cache, and not what was fetched into it."""
    for path in (os.path.join(folder, name) for name in os.listdir(folder) if name != "checkpoints"):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def drop_damaged(utils):
    """Deletes damaged files, which would kill the process that loads them: Jittor compiles anew what is missing.

    Of a cache whose code has killed a process, everything. Does nothing while another program writes there.
    """
    with utils.lock.lock_scope(), open(utils.lock.lock_path, "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as Jittor locks when it compiles a kernel
        except OSError:  # held by another program, or no locks: one may be writing there
            return
        if os.path.exists(os.path.join(utils.cache_path, MARK)):
            if not second:
                say(f"{utils.cache_path} ended a program: it is compiled again.")
            clear(utils.cache_path)
        mkl = os.path.join(utils.home(), ".cache", "jittor", "mkl")
        for folder, _, names in [*os.walk(utils.cache_path), *os.walk(mkl)]:
            for path in (os.path.join(folder, name) for name in names if name.endswith((".so", ".o"))):
                if os.path.exists(path) and not is_whole(path):
                    say(f"{path} is damaged: it is made anew.")
                    if folder.startswith(mkl):
                        shutil.rmtree(mkl)  # Jittor unpacks it again
                    stem = os.path.join(folder, os.path.basename(path).split(".")[0])
                    for part in glob.glob(f"{glob.escape(stem)}.*"):
                        os.remove(part)  # also its key, without which Jittor does not take it as done


# ---------------------------------------------------------------- while Jittor is imported
def flush():
    """Has Python write what it still holds of standard output and errors: the second, too, where 3.8 writes a file."""
    with contextlib.suppress(OSError, RuntimeError):  # as a signal came while they were written
        sys.stdout.flush()
        sys.stderr.flush()


def give_back():
    """Ends what `caught` began: what is said is seen again."""
    flush()
    for number in list(copies):
        copy = copies.pop(number)
        os.dup2(copy, number)
        os.close(copy)


def new_file():
    """Returns a new file without a name, open for reading and writing."""
    if hasattr(os, "memfd_create"):  # not in conda's Pythons
        return os.memfd_create("said")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


@contextlib.contextmanager
def caught():
    """Jittor's import goes inside: what is said there is not seen, and what goes wrong ends in one sentence."""
    drop_settings()
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= allowed < 1 << 30:
        sys.exit(f"ulimit -v allows this program {allowed >> 20} MB of memory; Jittor needs 1,024 at least.")
    os.environ["LANGUAGE"] = "en"  # the compiler's, whose words CAUSES knows
    sys.stdout.flush()
    sys.stderr.flush()
    said[:] = [new_file()]
    second.extend({AGAIN} & set(os.environ))
    os.environ[AGAIN] = "1"
    for number in (1, 2):
        copies[number] = os.dup(number)
        os.dup2(said[0], number)
    try:
        with signals(), plain_paths():
            yield
    except SystemExit as end:
        give_back()
        if end.code:  # this program's own sentence
            raise
        start_again("Jittor's settings have changed here, and it compiled itself anew: starting again.")
        words = "Jittor's settings have changed here, and it compiled itself anew: run the same command again."
        raise SystemExit(words) from None
    except Exception as error:
        if isinstance(error, AssertionError):  # Jittor passes over what an import of this says
            try:
                importlib.import_module("jit_utils_core")
            except ImportError as cause:
                error = cause
        text = whole_text(error)
        give_back()
        sys.unraisablehook = lambda *args: None  # what Jittor's half made objects say when they go
        if re.search(DAMAGED, text) and "jittor_utils" in sys.modules:
            folder = sys.modules["jittor_utils"].cache_path
            start_again(f"{folder} is damaged: it is compiled again, once.", folder)
        raise SystemExit(explain(text)) from None
    finally:
        os.environ.pop(AGAIN, None)
        give_back()


@contextlib.contextmanager
def signals():
    """Keeps Jittor from taking over signals; inside, Ctrl-C ends the program with one line, in a notebook the cell."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers cannot be set there
        return
    before = {number: handler for number in signal.valid_signals() if callable(handler := signal.getsignal(number))}

    def end(number, frame):
        signal.signal(number, signal.SIG_IGN)  # a second one, which would come in between
        kill_compilers()
        give_back()
        pythons = before[number] is signal.default_int_handler and not terminal.in_ipython()
        (terminal.end if pythons else before[number])(number, frame)  # a run's says what is saved

    for number in before:
        signal.signal(number, end)
    jupyter = os.environ.setdefault("JPY_PARENT_PID", "")  # in Jupyter, Jittor leaves Ctrl-C alone
    try:
        yield
    finally:
        if not jupyter:
            del os.environ["JPY_PARENT_PID"]
        for number, handler in before.items():
            signal.signal(number, handler)


def run_cmds(cmds, cache_path, jittor_path, msg=""):
    """Stands in for jittor_utils.run_cmds, whose pool waits for ever for a process that was killed.

    Each command that compiles Jittor runs in a process of its own, as many at once as there are cores and GB. The first
    that fails ends all, and RuntimeError is raised.
    """
    waiting, most = list(cmds), max(1, min(limits.cores(), limits.memory() >> 30))
    progress = sys.modules["jittor_utils"].DelayProgress(msg, len(cmds))
    try:
        while waiting or running:
            while waiting and len(running) < most:
                running.add(start_compiling((waiting.pop(0), cache_path, jittor_path)))
            time.sleep(0.002)  # at every start most commands have nothing to do
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended:
                    continue
                running.remove(pid)
                if status:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # its compiler
                    how = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "failed"
                    raise RuntimeError(f"Run cmd failed: a process that compiles {how}")
                with open(copies.get(2, 2), "w", closefd=False) as seen, contextlib.redirect_stderr(seen):
                    progress.update(len(cmds) - len(waiting) - len(running) - 1)
    finally:
        kill_compilers()


def start_compiling(job):
    """Returns the number of a new process, in a group of its own, that does a job of jittor_utils.do_compile."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # so that it can be ended with its compiler, and Ctrl-C does not reach it first
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        utils = sys.modules["jittor_utils"]
        if utils.cc:
            utils.cc.init_subprocess()  # it ends with its parent
        utils.try_import_jit_utils_core = lambda *args: None
        utils.do_compile(job)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_compilers():
    """Ends all processes that compile for this one."""
    while running:
        pid = running.pop()
        for kill in (os.killpg, os.kill):  # it may not have its group yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # a signal came right after it was waited for
            os.waitpid(pid, 0)


def watch_crashes(utils, started=False):
    """Has a program that is ended by Jittor's compiled code say so; before it has `started`, it is started again, once.

    utils: the module jittor_utils.
    """
    library = os.path.join(utils.cache_path, f"crash{zlib.crc32(CRASH.encode()):08x}.so")
    if not os.path.exists(library):
        new = f"{library}.{os.getpid()}"
        command = [utils.cc_path, "-shared", "-fPIC", "-x", "c++", "-", "-o", new]
        if subprocess.run(command, input=CRASH.encode(), stderr=subprocess.DEVNULL).returncode:
            return  # Jittor will say more of this compiler
        os.replace(new, library)
    words = f"Jittor's compiled code in {utils.cache_path} ended this program"
    line = [] if started or second else command_line()
    words += ": it is compiled again, once." if line else ": give the same command again, or delete that folder first."
    kept[:] = [
        ctypes.c_char_p(os.fsencode(os.path.join(utils.cache_path, MARK))),
        ctypes.c_char_p(os.fsencode(f"{words}\n")),
        (ctypes.c_char_p * (len(line) + 1))(*line) if line else None,
    ]
    ctypes.CDLL(library).watch(*kept, copies.get(1, 1), copies.get(2, 2))
    if not started:
        load = utils.try_import_jit_utils_core  # after which Jittor's own handlers are there

        def load_and_watch(*args):
            load(*args)
            ctypes.CDLL(library).watch(*kept, copies.get(1, 1), copies.get(2, 2))

        utils.try_import_jit_utils_core = load_and_watch


# ---------------------------------------------------------------- what went wrong
def whole_text(error):
    """Returns all that was said, and the error's traceback, without colours."""
    flush()
    text = os.pread(said[0], os.fstat(said[0]).st_size, 0).decode(errors="replace")
    text += "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, OSError) and error.filename:
        text += f"{error.filename}: {error.strerror}\n"
    return re.sub(r"\x1b\[[\d;]*[mK]|\0", "", text)


def explain(text, what="Jittor did not start"):
    """Keeps `text`, which tells what went wrong, in a file; returns the sentence for the person."""
    utils, free = sys.modules.get("jittor_utils"), limits.memory()
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        free = min(free, int(re.search(r"MemAvailable: *(\d+)", file.read())[1]) * 1024)
    match, cause = next((found, cause) for found, cause in ((re.search(p, text), c) for p, c in CAUSES) if found)
    compiler = getattr(utils, "cc_path", "g++")
    cause = cause.format(line=match[0].strip()[:300], free=free >> 20, compiler=compiler)
    for folder in (getattr(utils, "cache_path", None), None):  # or that for temporary files
        settings = {"prefix": "error-", "suffix": ".txt", "dir": folder, "delete": False, "errors": "replace"}
        with contextlib.suppress(OSError):
            with NamedTemporaryFile("w", **settings) as file:
                file.write(text)
            cause += f". All that was said is in {file.name}"
            break
    return f"{what}: {cause}."


def start_again(why, folder=None):
    """Starts this program again, once, without the cache `folder`; returns if it cannot, as in a notebook."""
    if second:
        return
    if folder:
        clear(folder)
    line = command_line()
    if line:
        say(why)
        os.execv(sys.executable, line)


def command_line():
    """Returns the words with which this program was started; none if it lives on, as a notebook's or the tests'."""
    if terminal.in_ipython() or "pytest" in sys.modules:
        return []
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsencode(sys.executable), *file.read().split(b"\0")[1:-1]]


def watch(jittor):
    """Keeps what Jittor says later, when it compiles kernels, and has an error there end the program in a sentence."""
    if PROCESSES == 1:  # Jittor would look for a file of each process's
        jittor.flags.log_file = f"/proc/self/fd/{said[0]}"
    watch_crashes(sys.modules["jittor_utils"], started=True)

    def hook(kind, error, trace, otherwise=sys.__excepthook__):
        if kind is RuntimeError and re.search("Run cmd failed|Cannot open library", str(error)):
            print(explain(whole_text(error), "Jittor could not compile a kernel"), file=sys.stderr)
        else:
            otherwise(kind, error, trace)

    sys.excepthook = hook
    shell = terminal.in_ipython() and sys.modules["IPython"].get_ipython()
    if shell:  # a notebook's, which does not ask sys.excepthook
        seen = functools.partial(hook, otherwise=lambda *error: shell.showtraceback(error))
        shell.set_custom_exc((RuntimeError,), lambda shell, *error, tb_offset=None: seen(*error))
