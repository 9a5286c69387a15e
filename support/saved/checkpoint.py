"""What a run keeps to go on from: written whole or not at all, and read without running what is in it.

python -m support.saved.checkpoint results/checkpoint.npz generator.npz       keeps a checkpoint's generator alone
"""

import contextlib
import io
import json
import os
import shlex
import sys
import zipfile

import numpy as np

from support.saved.paths import checkpoint_path, machine_memory, atomic_write
from support.saved.log import check_log

MOMENTS = {"m": "m", "v": "values"}  # name in the file: Adam's first and second moments in jittor.nn.Adam
TRAINED = {"generator": "optimizer_G", "discriminator": "optimizer_D"}  # each network and its optimizer
SIZES = ("latent_dim", "n_classes", "img_size")  # the flags that a generator is built from
LAYER_NUMBERS = ("scale", "eps", "p")  # a slope, an epsilon, a probability
STEP = "step"  # what a row of whole numbers is multiplied by, in a generator that is kept alone


class Mismatch(ValueError):
    """A file that is sound in itself but does not belong to the networks in cgan.py."""


def describe_saved(output_dir):
    """Returns one sentence: which epochs are saved, and the command that goes on from there."""
    try:
        with np.load(checkpoint_path(output_dir), allow_pickle=False) as file:
            epoch = int(file["epoch"])
    except OSError:
        return "Nothing is saved yet."
    except Exception:  # whatever a damaged file makes its reader raise; --overwrite may have met one
        return f"{checkpoint_path(output_dir)} is not a checkpoint of cgan.py."
    where = "" if output_dir == "." else f" --output_dir {shlex.quote(output_dir)}"
    return f"Saved up to epoch {epoch} in {checkpoint_path(output_dir)}; to go on: python cgan.py --resume{where}"


# ---------------------------------------------------------------- writing
def describe_layer(layer):
    """Returns {"kind": class name, and the number beside its parameters, such as "scale", LeakyReLU's slope}."""
    numbers = {name: getattr(layer, name) for name in LAYER_NUMBERS if hasattr(layer, name)}
    if getattr(layer, "args", ()):  # where jittor.nn keeps the slope
        numbers["scale"] = layer.args[0]
    return {"kind": type(layer).__name__, **numbers}


def save_checkpoint(output_dir, networks, optimizers, epoch, log, data):
    """Writes what training needs to go on after `epoch`; numpy.load(path, allow_pickle=False) reads it.

    networks, optimizers: {name: jittor Module}, {name: jittor Adam}; data: SHA-256 of the training data.
    Arrays: '<network>/<parameter>'; '<optimizer>/m/<i>' and '<optimizer>/v/<i>', Adam's first and second
    moments; '<optimizer>/step'; 'epoch'; 'data'; as JSON text 'log', the run's log with its flags, and 'layers',
    {network: its layers from first to last}.
    Raises FloatingPointError where a number is not finite, OSError where it cannot be written.
    """
    layers = {name: [describe_layer(layer) for layer in network.model] for name, network in networks.items()}
    arrays = {"epoch": epoch, "data": data, "log": json.dumps(log), "layers": json.dumps(layers)}
    arrays.update(weights_of(networks))
    for name, optimizer in optimizers.items():
        arrays[f"{name}/step"] = optimizer.n_step
        for kind, moments in MOMENTS.items():
            for i, value in enumerate(optimizer.param_groups[0][moments]):
                arrays[f"{name}/{kind}/{i}"] = value.numpy()
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    check_finite(arrays, epoch)
    save_arrays(checkpoint_path(output_dir), arrays)


def weights_of(networks):
    """Returns {'<network>/<parameter>': array}, running statistics among them."""
    states = {name: network.state_dict() for name, network in networks.items()}
    return {f"{name}/{key}": value.numpy() for name, state in states.items() for key, value in state.items()}


def check_finite(arrays, epoch):
    """Raises FloatingPointError that names the epoch and the array where a number is not finite."""
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise FloatingPointError(f"epoch {epoch}: {name} is not finite")


def save_arrays(path, arrays, save=np.savez):
    """Writes {name: array} as an .npz; raises OSError."""
    whole = io.BytesIO()  # a zip file that a full disk interrupts complains a second time when it is closed
    save(whole, **arrays)
    atomic_write(path, lambda file: file.write(whole.getbuffer()))


def save_generator(path, checkpoint):
    """Writes the generator of a checkpoint, as `read_checkpoint` returns it, in a quarter of its size in float32.

    Each row of a weight matrix is kept as whole numbers from -127 to 127 and the step between them, all else in
    float16. Where the run has a running average of the generator, it is that which is kept.
    """
    name = artist(checkpoint)
    config = {key: checkpoint["log"]["config"][key] for key in SIZES}
    arrays = {"log": {"config": config}, "layers": {"generator": checkpoint["layers"].get(name)}}
    arrays = {key: np.array(json.dumps(value)) for key, value in arrays.items()}
    for key, value in part(checkpoint, name).items():
        if value.ndim == 2:
            largest = np.abs(value).max(1, keepdims=True, initial=0)
            step = largest / 127 + np.finfo(np.float32).tiny  # a row may be all 0
            arrays[f"{STEP}/{key}"] = step
            arrays[f"generator/{key}"] = np.round(value / step).astype(np.int8)
        else:
            arrays[f"generator/{key}"] = value.astype(np.float16)
    save_arrays(path, arrays, np.savez_compressed)


# ---------------------------------------------------------------- reading
@contextlib.contextmanager
def blaming(statement):
    """Has whatever a file makes its reader raise inside end as ValueError: the statement, and what is wrong."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{statement}: {error} is missing")
    except Exception as error:  # a file may hold anything
        raise ValueError(f"{statement}: {error or type(error).__name__}")


def read_arrays(path):
    """Returns {name: array} of an .npz of this module, steps multiplied in; 'log' and 'layers' as dictionaries.

    All numbers beside the counts are float32. Nothing that the file may carry is run.
    Raises ValueError that names it and says what is wrong with it.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path} is missing")
    # No warning of a number that overflows: it is refused by its name
    with blaming(f"{path} is not a checkpoint of cgan.py"), np.errstate(all="ignore"):
        if 8 * os.path.getsize(path) > machine_memory():  # a byte may unpack to two, and those to a float each
            raise ValueError("it does not fit into this machine's memory")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        known = all(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members)
        if not known or sum(member.file_size for member in members) > 2 * os.path.getsize(path):
            raise ValueError("it is compressed more than any that this program writes")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for name in ("log", "layers"):
            arrays[name] = json.loads(str(arrays[name]), parse_constant=refuse_constant)
            if not isinstance(arrays[name], dict):
                raise ValueError(f"'{name}' is no dictionary")
        for key, step in part(arrays, STEP).items():
            rows = arrays[f"generator/{key}"]
            if (rows.dtype, rows.ndim, step.dtype, step.shape) != (np.int8, 2, np.float32, (len(rows), 1)):
                raise ValueError(f"{STEP}/{key} is not a step for each row of generator/{key}")
            arrays[f"generator/{key}"] = rows * arrays.pop(f"{STEP}/{key}")
        for name, value in arrays.items():
            kind = "i" if name.endswith("/step") else "f"
            if "/" in name and value.dtype.kind == kind == "f":
                value = arrays[name] = value.astype(np.float32, copy=False)
            if "/" in name and (value.dtype.kind != kind or not np.isfinite(value).all()):
                raise ValueError(f"{name} holds what is no finite number")
    return arrays


def refuse_constant(name):
    raise ValueError(f"its log holds {name}, which is no number")


def artist(arrays):
    """Returns who draws: the running average of the generator where there is one, else the generator."""
    return "average" if part(arrays, "average") else "generator"


def part(arrays, name):
    """Returns those of {'<name>/<key>': value} that belong to `name`, as {key: value}."""
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(f"{name}/")}


def read_checkpoint(path):
    """Returns {name: array} of a checkpoint, 'log' and 'layers' as dictionaries, checked against itself.

    Raises ValueError that names the file and says what is wrong with it.
    """
    checkpoint = read_arrays(path)
    with blaming(f"{path} is not a checkpoint of cgan.py"):
        log, epoch = checkpoint["log"], int(checkpoint["epoch"])
        checkpoint.update(epoch=epoch, data=str(checkpoint["data"]))
        check_log(log)
        if not 1 <= epoch == len(log["epochs"]) == log["epochs"][-1]["epoch"]:
            raise ValueError("its log does not hold its epochs")
        for network, optimizer in TRAINED.items():
            if int(checkpoint[f"{optimizer}/step"]) < 1:
                raise ValueError(f"{optimizer}/step is below 1")
            shapes = [value.shape for value in part(checkpoint, network).values()]
            for kind in MOMENTS:
                moments = part(checkpoint, f"{optimizer}/{kind}")
                if [value.shape for value in moments.values()] != shapes or not shapes:
                    raise ValueError(f"{optimizer}/{kind} does not fit the parameters of the {network}")
    return checkpoint


def read_generator(path):
    """Returns ({flag: number} that the generator is built from, {name: float32 array}) of a trained generator.

    path: a checkpoint, or what save_generator wrote. Raises ValueError that names the file and what is wrong with it.
    """
    arrays = read_arrays(path)
    weights, config = part(arrays, artist(arrays)), arrays["log"].get("config")
    sizes = {name: config.get(name) for name in SIZES} if isinstance(config, dict) else {}
    if not sizes or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise ValueError(f"{path} holds no generator of cgan.py")
    most = sum(value.size for value in weights.values())  # bounds what a generator of these sizes would take
    if max(sizes["latent_dim"], sizes["n_classes"] ** 2, sizes["img_size"] ** 2) > most:
        raise ValueError(f"{path} holds no generator of cgan.py")
    return sizes, weights


def load_weights(network, weights, path):
    """Sets a network to {name: array}; raises Mismatch, which names `path`, where it has other parameters."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name in {**shapes, **weights}:
        found = weights[name].shape if name in weights else None
        if shapes.get(name) != found:
            kind = type(network).__name__
            raise Mismatch(f"{path} does not fit the {kind} in cgan.py: {name} has {found}, not {shapes.get(name)}")
    network.load_state_dict(weights)


def load_checkpoint(path, checkpoint, networks, optimizers):
    """Sets networks and optimizers, as save_checkpoint takes them, to what read_checkpoint returned for `path`.

    Raises Mismatch where they are others.
    """
    for name, network in networks.items():
        load_weights(network, part(checkpoint, name), path)
    for name, optimizer in optimizers.items():
        optimizer.n_step = int(checkpoint[f"{name}/step"])
        for kind, moments in MOMENTS.items():
            for i, value in enumerate(optimizer.param_groups[0][moments]):
                value.assign(checkpoint[f"{name}/{kind}/{i}"])


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python -m support.saved.checkpoint CHECKPOINT GENERATOR     keeps a checkpoint's generator alone")
    try:
        read_generator(sys.argv[1])  # raises what save_generator would trip over
        save_generator(sys.argv[2], read_checkpoint(sys.argv[1]))
    except (ValueError, OSError) as error:
        print(f"support.saved.checkpoint: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
