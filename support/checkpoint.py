"""What a run keeps on disk, written so that no kill can leave half a file."""

import json
import os

import numpy as np


def replace_file(path, write):
    """Writes a file beside its place, flushes it to disk and moves it into its place.

    path: where the file goes; write: a function that takes the open binary file and fills it.
    """
    beside = f"{path}.new"
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def save_log(path, log):
    """Writes `log` (dictionaries, lists, numbers, strings) as JSON."""
    text = json.dumps(log, indent=1, allow_nan=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def save_checkpoint(path, networks, optimizers, epoch, log):
    """Writes what training needs to go on after `epoch`; numpy.load(path, allow_pickle=False) reads it.

    networks, optimizers: {name: jittor Module}, {name: jittor Adam}.
    Arrays: '<network>/<parameter>'; '<optimizer>/m/<i>' and '<optimizer>/v/<i>', Adam's first and second
    moments; '<optimizer>/step'; 'epoch'; 'log', the run's log with its flags as JSON text.
    """
    arrays = {"epoch": np.array(epoch), "log": np.array(json.dumps(log))}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            arrays[f"{name}/{key}"] = value.numpy()
    for name, optimizer in optimizers.items():
        arrays[f"{name}/step"] = np.array(optimizer.n_step)
        for kind, moments in (("m", "m"), ("v", "values")):
            for i, value in enumerate(optimizer.param_groups[0][moments]):
                arrays[f"{name}/{kind}/{i}"] = value.numpy()
    replace_file(path, lambda file: np.savez(file, **arrays))
