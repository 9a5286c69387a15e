"""Where the project and a run keep their files, and how a file is written so that no kill can leave half of it."""

import contextlib
import os
import re

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BEST_GENERATOR, REFERENCE_GENERATOR = (
    os.path.join(PROJECT, "results", name, "generator.npz") for name in ("best", "reference")
)
REFERENCE_LOG = os.path.join(PROJECT, "results", "reference", "log.json")
GRID = re.compile(r"(0|[1-9][0-9]*)\.png")  # a sample grid's name: the batches done
KEPT = re.compile(r"([1-9][0-9]*)\.npz")  # a kept generator's: the epochs done
FOLDERS = ("images", "results")  # that a run writes to, under its output_dir
BESIDE = ".new"  # how the name of a file ends while it is being written


def checkpoint_path(output_dir):
    return os.path.join(output_dir, "results", "checkpoint.npz")


def log_path(output_dir):
    return os.path.join(output_dir, "results", "log.json")


def table_path(output_dir):
    return os.path.join(output_dir, "results", "log.csv")


def best_path(output_dir):
    return os.path.join(output_dir, "results", "best.npz")


def kept_path(output_dir, epochs_done):
    return os.path.join(output_dir, "results", "kept", f"{epochs_done}.npz")


def page_path(output_dir):
    return os.path.join(output_dir, "results", "run.html")


def lock_path(output_dir):
    return os.path.join(output_dir, "results", ".lock")


def grid_path(output_dir, batches_done):
    return os.path.join(output_dir, "images", f"{batches_done}.png")


def digits_path(output_dir):
    return os.path.join(output_dir, "images", "digits.png")


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


def single_files(output_dir):
    return [path(output_dir) for path in (checkpoint_path, log_path, table_path, page_path, best_path)]


def holds_run(output_dir):
    own = [*find_kept(output_dir).values(), *(path(output_dir) for path in (checkpoint_path, log_path, best_path))]
    return any(map(os.path.exists, own))


def clear_run(output_dir):
    """Deletes the files of the run in `output_dir`, sample grids and kept generators among them, and nothing else."""
    grids = find_grids(os.path.join(output_dir, "images"))
    for path in [*single_files(output_dir), *grids.values(), *find_kept(output_dir).values()]:
        if os.path.exists(path):
            os.remove(path)


def clear_leftovers(output_dir):
    """Deletes what a run that was killed left half written, and nothing else."""
    numbered = []
    for folder, pattern in (("images", GRID), (os.path.join("results", "kept"), KEPT)):
        half_written = re.compile(pattern.pattern + re.escape(BESIDE))
        numbered += find_numbered(os.path.join(output_dir, folder), half_written).values()
    for path in [path + BESIDE for path in single_files(output_dir)] + numbered:
        if os.path.exists(path):
            os.remove(path)


def write_if_new(path, text):
    """Writes a file of Jittor's cache, in one move, unless it has this text already: another process may read it."""
    with contextlib.suppress(OSError), open(path) as file:
        if file.read() == text:
            return
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w") as file:
        file.write(text)
    os.replace(beside, path)


def atomic_write(path, write):
    """Writes a file beside its place, flushes it to disk and moves it into its place.

    path: where the file goes; write: a function that takes the open binary file and fills it.
    Raises OSError if that fails; what was there before stays whole.
    """
    beside = f"{path}{BESIDE}"
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        if os.path.exists(beside):
            os.remove(beside)
        raise
