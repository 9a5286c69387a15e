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
FOLDERS = ("images", "results")  # that a run writes to, under its output_dir
BESIDE = ".new"  # how the name of a file ends while it is being written


def checkpoint_path(output_dir):
    return os.path.join(output_dir, "results", "checkpoint.npz")


def log_path(output_dir):
    return os.path.join(output_dir, "results", "log.json")


def page_path(output_dir):
    return os.path.join(output_dir, "results", "run.html")


def lock_path(output_dir):
    return os.path.join(output_dir, "results", ".lock")


def grid_path(output_dir, batches_done):
    return os.path.join(output_dir, "images", f"{batches_done}.png")


def digits_path(output_dir):
    return os.path.join(output_dir, "images", "digits.png")


def find_grids(folder):
    """Returns {batches done: path} of the sample grids in `folder`, a run's images/, in the order of training."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = {int(match[1]): os.path.join(folder, match[0]) for match in map(GRID.fullmatch, names) if match}
    return dict(sorted(found.items()))


def make_folders(output_dir):
    """Makes the folders that a run writes to; raises OSError."""
    for name in FOLDERS:
        os.makedirs(os.path.join(output_dir, name), exist_ok=True)


def single_files(output_dir):
    return [checkpoint_path(output_dir), log_path(output_dir), page_path(output_dir)]


def holds_run(output_dir):
    return os.path.exists(checkpoint_path(output_dir)) or os.path.exists(log_path(output_dir))


def clear_run(output_dir):
    """Deletes the files of the run in `output_dir`, checkpoint, log, page and sample grids, and nothing else."""
    for path in [*single_files(output_dir), *find_grids(os.path.join(output_dir, "images")).values()]:
        if os.path.exists(path):
            os.remove(path)


def clear_leftovers(output_dir):
    """Deletes what a run that was killed left half written, and nothing else."""
    images = os.path.join(output_dir, "images")
    grids = [os.path.join(images, name) for name in os.listdir(images) if re.fullmatch(GRID.pattern + BESIDE, name)]
    for path in [path + BESIDE for path in single_files(output_dir)] + grids:
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
