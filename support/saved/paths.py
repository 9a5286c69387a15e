"""Where the project and a run keep their files, and how a file is written so that no kill can leave half of it."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat

from support.terminal import unfinished

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BEST_GENERATOR, REFERENCE_GENERATOR = (
    os.path.join(PROJECT, "results", name, "generator.npz") for name in ("best", "reference")
)
REFERENCE_LOG = os.path.join(PROJECT, "results", "reference", "log.json")
GRID = re.compile(r"(0|[1-9][0-9]*)\.png")  # a sample grid's name: the batches done
KEPT = re.compile(r"([1-9][0-9]*)\.npz")  # a kept generator's: the epochs done
FOLDERS = ("images", "results")  # that a run writes to, under its output_dir
CURVES = ("loss.png", "fid.png")  # that plot_curves.py draws of a run into its results/
MARK = ("Source", "cgan.py")  # a PNG text chunk of every picture of this program: only these are replaced or deleted
TEMPORARY = re.compile(r"\.cgan-[0-9a-f]{16}\.new")  # the names of files that are being written


def below(folder, name):
    """Returns a function: a run's output_dir, and the number that stands for {}, -> the path of a file below it."""
    return lambda output_dir, *number: os.path.join(output_dir, folder, name.format(*number))


checkpoint_path = below("results", "checkpoint.npz")
log_path = below("results", "log.json")
table_path = below("results", "log.csv")
best_path = below("results", "best.npz")
kept_path = below("results/kept", "{}.npz")  # of so many epochs
page_path = below("results", "run.html")
lock_path = below("results", ".lock")
grid_path = below("images", "{}.png")  # of so many batches
digits_path = below("images", "digits.png")


def find_numbered(folder, pattern):
    """Returns {number: path} of the files in `folder` whose names match, in the order of their numbers."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = {int(match[1]): os.path.join(folder, match[0]) for match in map(pattern.fullmatch, names) if match}
    return dict(sorted(found.items()))


def find_grids(folder):
    """Returns {batches done: path} of the sample grids in `folder`, a run's images/, in the order of training."""
    return find_numbered(folder, GRID)


def find_kept(output_dir):
    """Returns {epochs done: path} of the generators that a run kept on the way (--keep), in the order of training."""
    return find_numbered(os.path.join(output_dir, "results", "kept"), KEPT)


def make_folders(output_dir):
    """Makes the folders that a run writes to; raises OSError."""
    for name in FOLDERS:
        os.makedirs(os.path.join(output_dir, name), exist_ok=True)


def holds_run(output_dir):
    own = [*find_kept(output_dir).values(), *(path(output_dir) for path in (checkpoint_path, log_path, best_path))]
    return any(map(os.path.exists, own))


def is_own_picture(path):
    """Returns whether a file is a PNG with this program's MARK, which stands before the pixels."""
    try:
        with open(path, "rb") as file:
            return b"tEXt" + "\0".join(MARK).encode() in file.read(500)
    except OSError:  # such as a folder of that name
        return False


def foreign_grids(output_dir):
    """Returns the paths in a run's images/ that have a sample grid's name but are none of this program's."""
    return [path for path in find_grids(os.path.join(output_dir, "images")).values() if not is_own_picture(path)]


def clear_run(output_dir):
    """Deletes the files of the run in `output_dir`, with its curves, sample grids and kept generators; nothing else."""
    curves = [os.path.join(output_dir, "results", name) for name in CURVES]
    single = [path(output_dir) for path in (checkpoint_path, log_path, table_path, page_path, best_path)]
    for path in [*single, *curves, *find_kept(output_dir).values()]:
        if os.path.exists(path):
            os.remove(path)
    clear_grids(output_dir, 0)


def clear_grids(output_dir, batches_done):
    """Deletes the sample grids that were drawn when so many batches or more were done."""
    for batches, path in find_grids(os.path.join(output_dir, "images")).items():
        if batches >= batches_done and is_own_picture(path):
            os.remove(path)


def clear_leftovers(output_dir):
    """Deletes what a run that was killed left half written, and nothing else."""
    folders = [os.path.join(output_dir, name) for name in (*FOLDERS, os.path.join("results", "kept"))]
    for folder in filter(os.path.isdir, folders):
        for path in (os.path.join(folder, name) for name in os.listdir(folder) if TEMPORARY.fullmatch(name)):
            with contextlib.suppress(OSError), open(path, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another program is still writing it
                os.remove(path)


def write_if_new(path, text):
    """Writes a file of Jittor's cache, in one move, unless it has this text already: another process may read it."""
    with contextlib.suppress(OSError), open(path) as file:
        if file.read() == text:
            return
    atomic_write(path, lambda file: file.write(text.encode()))


def atomic_write(path, write):
    """Writes a file under a name of its own, flushes it to disk and moves it into its place.

    path: where the file goes; write: a function that takes the open binary file and fills it.
    A link there stays one, and the file that it leads to is replaced; a file's mode stays. Another hard link to it,
    such as a backup, keeps what it holds. Raises OSError that names `path` if that fails, or if something else than a
    file is there. Whatever is raised, what was there before stays whole, and nothing is left beside it.
    """
    target = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(target), f".cgan-{secrets.token_hex(8)}.new")
    unfinished.add(beside)
    try:
        mode = os.stat(target).st_mode if os.path.exists(target) else None
        if mode is not None and not stat.S_ISREG(mode):
            what = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "is not a file that can be replaced"
            raise OSError(errno.EINVAL, what, path)
        with open(beside, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write(file)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = path, None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):  # it is in its place
            os.remove(beside)
        unfinished.discard(beside)
