"""What a run keeps to go on from: written whole or not at all, and read without running what is in it.

python -m support.saved.checkpoint results/checkpoint.npz generator.npz       keeps a checkpoint's generator alone
"""

import contextlib
import io
import json
import os
import sys

import numpy as np

from support.saved.log import check_log
from support.saved.paths import atomic_write, checkpoint_path

NO_MOMENTS = ("params", "grads")  # the lists of Vars in an optimizer's groups that are not its state


class Mismatch(ValueError):
    """A file that is sound in itself but does not belong to the networks and optimizers in cgan.py."""


# ---------------------------------------------------------------- writing
def weights_of(networks):
    """Returns {'<network>/<parameter>': array} of {name: jittor Module}, running statistics among them."""
    states = {name: network.state_dict() for name, network in networks.items()}
    return {f"{name}/{key}": value.numpy() for name, state in states.items() for key, value in state.items()}


def moments_of(optimizers):
    """Returns {'<optimizer>/<class>/<group>/<list>/<i>': Var} of {name: jittor optimizer}.

    Those are all lists of Vars beside a group's parameters, such as Adam's first and second moments, m and values.
    """
    return {
        f"{name}/{type(optimizer).__name__}/{i}/{key}/{j}": var
        for name, optimizer in optimizers.items()
        for i, group in enumerate(optimizer.param_groups)
        for key, moments in group.items()
        if key not in NO_MOMENTS and isinstance(moments, list)
        for j, var in enumerate(moments)
    }


def save_checkpoint(output_dir, networks, optimizers, layers, epoch, log, data):
    """Writes what training needs to go on after `epoch`; numpy.load(path, allow_pickle=False) reads it.

    networks, optimizers: {name: jittor Module}, {name: jittor optimizer}; layers: what a page may compute of each
    network, see support.pages.networks; data: SHA-256 of the training data.
    Arrays: what weights_of and moments_of name; '<optimizer>/step'; 'epoch'; 'data'; and as JSON text 'log', the run's
    log with its flags, and 'layers'.
    Raises FloatingPointError if a number is not finite, OSError if the file cannot be written.
    """
    arrays = {"epoch": epoch, "data": data, "log": json.dumps(log, default=str), "layers": json.dumps(layers)}
    arrays.update(weights_of(networks))
    arrays.update({f"{name}/step": optimizer.n_step for name, optimizer in optimizers.items()})
    arrays.update({name: var.numpy() for name, var in moments_of(optimizers).items()})
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    check_finite(arrays, epoch)
    save_arrays(checkpoint_path(output_dir), arrays)


def check_finite(arrays, epoch):
    """Raises FloatingPointError that names the epoch and the array if a number is not finite."""
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise FloatingPointError(f"epoch {epoch}: {name} is not finite")


def save_arrays(path, arrays, save=np.savez):
    """Writes {name: array} as an .npz; raises OSError."""
    whole = io.BytesIO()  # a zip file that a full disk interrupts complains a second time when it is closed
    save(whole, **arrays)
    atomic_write(path, lambda file: file.write(whole.getbuffer()))


def as_kind(array, kind):
    """Returns an array in floats of a kind, or as it is if a number is too large for that."""
    return array if abs(array).max() > np.finfo(kind).max else array.astype(kind)


def save_generator(path, checkpoint, kind=np.float16):
    """Writes the generator that a checkpoint draws with, as `read_checkpoint` returns it, in floats of a kind."""
    name, scores = drawing_name(checkpoint), scores_of(checkpoint)
    log = {"config": latest(checkpoint["log"], "config"), "evaluations": [scores] if len(scores) > 1 else []}
    log["labels"] = label_names(checkpoint["log"])
    arrays = {"data": checkpoint["data"], "epoch": checkpoint["epoch"], "log": json.dumps(log)}
    arrays["layers"] = json.dumps({"generator": checkpoint["layers"].get(name)})
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    arrays.update({f"generator/{key}": as_kind(value, kind) for key, value in part(checkpoint, name).items()})
    save_arrays(path, arrays, np.savez_compressed)


# ---------------------------------------------------------------- reading
@contextlib.contextmanager
def blaming(statement):
    """Turns any error raised inside into a ValueError: the statement, then what is wrong."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{statement}: {error} is missing")
    except Exception as error:  # a file may hold anything
        raise ValueError(f"{statement}: {error or type(error).__name__}")


def read_arrays(path):
    """Returns {name: array} of an .npz of this module; 'log' and 'layers' as dictionaries, numbers as float32.

    Nothing that the file may carry is run. Raises ValueError that names it and says what is wrong with it.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path} is missing")
    with blaming(f"{path} is not a checkpoint of cgan.py"):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for name in ("log", "layers"):
            arrays[name] = json.loads(str(arrays[name]))
            if not isinstance(arrays[name], dict):
                raise ValueError(f"'{name}' is not a dictionary")
        for name, value in arrays.items():
            if "/" in name and value.dtype.kind == "f":
                arrays[name] = value.astype(np.float32, copy=False)
                if not np.isfinite(arrays[name]).all():
                    raise ValueError(f"{name} holds a number that is not finite")
    return arrays


def latest(log, part):
    """Returns a log's "config" or "environment" as it is at the end, its "changes" applied."""
    held = dict(log[part])
    for change in log.get("changes", ()):
        held.update(change.get(part, {}))
    return held


def label_names(log):
    """Returns the names of a run's labels: their numbers, in logs of before they had names; raises ValueError."""
    n_classes = latest(log, "config")["n_classes"]
    names = list(map(str, log.get("labels") or range(n_classes)))
    if len(names) != n_classes:
        raise ValueError(f"it has {len(names)} names for {n_classes} labels")
    return names


def part(arrays, name):
    """Returns those of {'<name>/<key>': value} that belong to `name`, as {key: value}."""
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(f"{name}/")}


def drawing_name(arrays):
    """Returns the name of the network that draws: the generator's running average if there is one."""
    return "ema" if part(arrays, "ema") else "generator"


def read_checkpoint(path):
    """Returns {name: array} of a checkpoint, 'log' and 'layers' as dictionaries, checked against itself.

    Raises ValueError that names the file and says what is wrong with it.
    """
    checkpoint = read_arrays(path)
    with blaming(f"{path} is not a checkpoint of cgan.py"):
        if "epochs" not in checkpoint["log"]:
            raise ValueError("it holds a generator alone, which can draw but not go on training")
        log, epoch = checkpoint["log"], int(checkpoint["epoch"])
        checkpoint.update(epoch=epoch, data=str(checkpoint["data"]))
        check_log(log)
        if not 1 <= epoch == len(log["epochs"]) == log["epochs"][-1]["epoch"]:
            raise ValueError("its log does not hold its epochs")
    return checkpoint


def read_generator(path):
    """Returns ({flag: value} of its run, {name: float32 array}, SHA-256 of its training data) of a trained generator.

    Beside the flags, "labels" lists the names of the labels.
    path: a checkpoint, or what save_generator wrote. Raises ValueError that names the file and what is wrong with it.
    """
    arrays = read_arrays(path)
    with blaming(f"{path} holds no generator of cgan.py"):
        config, weights, data = latest(arrays["log"], "config"), part(arrays, drawing_name(arrays)), str(arrays["data"])
        if not weights or type(config["n_classes"]) is not int:
            raise ValueError("it has no weights" if not weights else "its n_classes is not a whole number")
        config["labels"] = label_names(arrays["log"])
        scores_of(arrays)  # raises what drawing would trip over
    return config, weights, data


def scores_of(arrays):
    """Returns {"epoch": ..., metric: value} of the epoch after which a network of read_arrays was saved.

    There is the epoch alone if it was not scored.
    """
    epoch = int(arrays["epoch"])
    rows = (row for row in arrays["log"].get("evaluations", ()) if row["epoch"] == epoch)
    return next(rows, {"epoch": epoch})


def read_scores(path):
    """Returns what scores_of does, of a checkpoint or generator; raises ValueError that names it and what is wrong."""
    arrays = read_arrays(path)
    with blaming(f"{path} holds no generator of cgan.py"):
        return scores_of(arrays)


def keep_generator(path, target):
    """Writes the generator of the checkpoint in `path` alone to `target`, which must not exist.

    Raises ValueError that names the file and what is wrong, OSError if it cannot be written; then nothing is left.
    """
    if os.path.lexists(target):
        raise ValueError(f"{target} exists already: name a file that does not")
    read_generator(path)  # raises what save_generator would trip over
    save_generator(target, read_checkpoint(path))


def check_same(kind, found, expected, path):
    """Raises Mismatch, which names `path`, if {name: shape} of a file are not those expected."""
    for name in {**found, **expected}:
        if found.get(name) != expected.get(name):
            what = f"{name} has {found.get(name)}, not {expected.get(name)}"
            raise Mismatch(f"{path} does not fit the {kind} in cgan.py: {what}")


def load_weights(network, weights, path):
    """Sets a network to {name: array}; raises Mismatch, which names `path`, if it has other parameters."""
    shapes, own = ({name: tuple(value.shape) for name, value in x.items()} for x in (weights, network.state_dict()))
    check_same(type(network).__name__, shapes, own, path)
    network.load_state_dict(weights)


def load_checkpoint(path, checkpoint, networks, optimizers):
    """Sets networks and optimizers, as save_checkpoint takes them, to what read_checkpoint returned for `path`.

    Raises Mismatch if they are others.
    """
    known = tuple(f"{name}/" for name in (*networks, *optimizers))
    others = {name.split("/")[0] for name in checkpoint if "/" in name and not name.startswith(known)}
    if others:
        raise Mismatch(f"{path} also holds {', '.join(sorted(others))}, which this script has not handed to Run")
    for name, network in networks.items():
        load_weights(network, part(checkpoint, name), path)
    moments = moments_of(optimizers)
    steps = [f"{name}/step" for name in optimizers]
    found = {f"{name}/{key}": value.shape for name in optimizers for key, value in part(checkpoint, name).items()}
    expected = {**{name: tuple(var.shape) for name, var in moments.items()}, **dict.fromkeys(steps, ())}
    check_same("optimizers", found, expected, path)
    for name, var in moments.items():
        var.assign(checkpoint[name])
    for name, optimizer in optimizers.items():
        optimizer.n_step = int(checkpoint[f"{name}/step"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m support.saved.checkpoint CHECKPOINT GENERATOR")
    try:
        keep_generator(*sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"support.saved.checkpoint: {error}", file=sys.stderr)
        sys.exit(2)
