"""The generators that a run keeps beside its checkpoint: the best so far, and every so many epochs' (--keep)."""

import os

import numpy as np

from support.saved.checkpoint import read_checkpoint, read_scores, save_generator
from support.saved.log import best_epoch
from support.saved.paths import atomic_write, best_path, checkpoint_path, find_kept, kept_path


def keep_generator(output_dir, log, epoch, every):
    """Keeps the generator of the saved `epoch` if its digit FID is the log's lowest, and if epoch divides by `every`.

    every: a number of epochs; 0 or None for never. Raises OSError.
    """
    due = [best_path(output_dir)] if best_epoch(log) == epoch else []
    due += [kept_path(output_dir, epoch)] if every and epoch % every == 0 else []
    saved = read_checkpoint(checkpoint_path(output_dir)) if due else None
    for path in due:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        save_generator(path, saved, np.float32)  # not in float16, which ends at 65504: the checkpoint's own numbers


def bring_best(log, epoch, source, output_dir):
    """Brings a run's best generator from the folder `source`, and deletes what is of epochs that are no longer done.

    log, epoch: the run's, which now goes on in output_dir after this epoch; source: where its checkpoint was. If the
    log's best epoch is not what the file in `source` is of, there is no best generator until an epoch is better still.
    Raises OSError.
    """
    best = best_path(output_dir)
    try:
        with open(os.path.join(source, os.path.basename(best)), "rb") as file:
            data, scores = file.read(), read_scores(file.name)
    except (FileNotFoundError, ValueError):
        data, scores = None, None
    if scores in [row for row in log["evaluations"] if row["epoch"] == best_epoch(log)]:
        atomic_write(best, lambda file: file.write(data))
    elif os.path.exists(best):
        os.remove(best)
    for kept, path in find_kept(output_dir).items():
        if kept > epoch:
            os.remove(path)
