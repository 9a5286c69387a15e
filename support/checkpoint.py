"""What a run keeps on disk: written so that no kill can leave half a file, and read without running what is in it."""

import fcntl
import glob
import io
import json
import math
import os
import shlex
import sys

import numpy as np

MOMENTS = {"m": "m", "v": "values"}  # name in the file: Adam's first and second moments in jittor.nn.Adam


def checkpoint_path(output_dir):
    return os.path.join(output_dir, "results", "checkpoint.npz")


def log_path(output_dir):
    return os.path.join(output_dir, "results", "log.json")


def holds_run(output_dir):
    return os.path.exists(checkpoint_path(output_dir)) or os.path.exists(log_path(output_dir))


def clear_run(output_dir):
    """Deletes an earlier run's files, and nothing else."""
    grids = glob.glob(os.path.join(glob.escape(output_dir), "images", "[0-9]*.png"))
    for path in [checkpoint_path(output_dir), log_path(output_dir), *grids]:
        if os.path.exists(path):
            os.remove(path)


def make_folders(output_dir):
    """Makes the folders that a run writes to; raises OSError."""
    for name in ("images", "results"):
        os.makedirs(os.path.join(output_dir, name), exist_ok=True)


def lock_run(output_dir):
    """Makes the folders of a run and locks them until the process ends, however it ends.

    Returns whether that worked, or False where another process holds the lock. Raises OSError where a folder cannot be
    made.
    """
    make_folders(output_dir)
    lock = os.open(os.path.join(output_dir, "results"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    for path in glob.glob(os.path.join(glob.escape(output_dir), "*", "*.new")):
        os.remove(path)  # of a run that was killed while it wrote
    return True


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


def replace_file(path, write):
    """Writes a file beside its place, flushes it to disk and moves it into its place.

    path: where the file goes; write: a function that takes the open binary file and fills it.
    Raises OSError where that fails; what was there before stays whole.
    """
    beside = f"{path}.new"
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


def save_log(output_dir, log):
    """Writes `log` (dictionaries, lists, numbers, strings) as JSON."""
    text = json.dumps(log, indent=1, allow_nan=False) + "\n"
    replace_file(log_path(output_dir), lambda file: file.write(text.encode()))


def save_checkpoint(output_dir, networks, optimizers, epoch, log, data):
    """Writes what training needs to go on after `epoch`; numpy.load(path, allow_pickle=False) reads it.

    networks, optimizers: {name: jittor Module}, {name: jittor Adam}; data: SHA-256 of the training data.
    Arrays: '<network>/<parameter>'; '<optimizer>/m/<i>' and '<optimizer>/v/<i>', Adam's first and second
    moments; '<optimizer>/step'; 'epoch'; 'data'; 'log', the run's log with its flags as JSON text.
    Raises FloatingPointError where a number is not finite, OSError where it cannot be written.
    """
    arrays = {"epoch": np.array(epoch), "data": np.array(data), "log": np.array(json.dumps(log))}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            arrays[f"{name}/{key}"] = value.numpy()
    for name, optimizer in optimizers.items():
        arrays[f"{name}/step"] = np.array(optimizer.n_step)
        for kind, moments in MOMENTS.items():
            for i, value in enumerate(optimizer.param_groups[0][moments]):
                arrays[f"{name}/{kind}/{i}"] = value.numpy()
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise FloatingPointError(f"epoch {epoch}: {name} is not finite")
    whole = io.BytesIO()  # a zip file that a full disk interrupts complains a second time when it is closed
    np.savez(whole, **arrays)
    replace_file(checkpoint_path(output_dir), lambda file: file.write(whole.getbuffer()))


def load_checkpoint(checkpoint, networks, optimizers):
    """Sets networks and optimizers, as save_checkpoint takes them, to what `read_checkpoint` returned.

    Returns (epochs done, {"epochs": [...], "evaluations": [...]} of the log).
    """
    for name, network in networks.items():
        prefix = f"{name}/"
        network.load_state_dict({k[len(prefix) :]: v for k, v in checkpoint.items() if k.startswith(prefix)})
    for name, optimizer in optimizers.items():
        optimizer.n_step = int(checkpoint[f"{name}/step"])
        for kind, moments in MOMENTS.items():
            for i, value in enumerate(optimizer.param_groups[0][moments]):
                value.assign(checkpoint[f"{name}/{kind}/{i}"])
    return int(checkpoint["epoch"]), {name: checkpoint["log"][name] for name in ("epochs", "evaluations")}


def linear_shapes(layer, n_in, n_out):
    return {f"model.{layer}.weight": (n_out, n_in), f"model.{layer}.bias": (n_out,)}


def generator_shapes(latent_dim, n_classes, img_size):
    """Returns {name: shape} of cgan.Generator's parameters and running statistics."""
    shapes = {"label_embedding.weight": (n_classes, n_classes), **linear_shapes(0, latent_dim + n_classes, 128)}
    for layer, n_in in ((2, 128), (5, 256), (8, 512)):
        shapes.update(linear_shapes(layer, n_in, 2 * n_in))
        statistics = ("weight", "bias", "running_mean", "running_var")
        shapes.update({f"model.{layer + 1}.{name}": (2 * n_in,) for name in statistics})
    return {**shapes, **linear_shapes(11, 1024, img_size**2)}


def discriminator_shapes(n_classes, img_size, hidden_d):
    """Returns {name: shape} of cgan.Discriminator's parameters."""
    shapes = {"label_embedding.weight": (n_classes, n_classes), **linear_shapes(0, n_classes + img_size**2, hidden_d)}
    for layer, n_out in ((2, hidden_d), (5, hidden_d), (8, 1)):
        shapes.update(linear_shapes(layer, hidden_d, n_out))
    return shapes


def expected_shapes(latent_dim, n_classes, img_size, hidden_d, average=False):
    """Returns {name: shape} of the arrays of numbers in a checkpoint of networks of these sizes (see cgan.py).

    average: whether it also holds a running average of the generator.
    """
    shapes = {}
    if average:
        shapes = {f"average/{k}": shape for k, shape in generator_shapes(latent_dim, n_classes, img_size).items()}
    for network, optimizer, parameters in (
        ("generator", "optimizer_G", generator_shapes(latent_dim, n_classes, img_size)),
        ("discriminator", "optimizer_D", discriminator_shapes(n_classes, img_size, hidden_d)),
    ):
        shapes.update({f"{network}/{name}": shape for name, shape in parameters.items()})
        for kind in MOMENTS:
            shapes.update({f"{optimizer}/{kind}/{i}": shape for i, shape in enumerate(parameters.values())})
    return shapes


def check_arrays(path, arrays, shapes):
    """Raises ValueError that names `path` and the array which is missing, of another shape or not finite."""
    for name, shape in shapes.items():
        value = arrays.get(name)
        if value is None:
            raise ValueError(f"{path} is not a checkpoint of cgan.py: {name} is missing")
        if value.shape != shape:
            raise ValueError(f"{path}: {name} has shape {value.shape}, where {shape} belongs")
        if value.dtype.kind != "f" or not np.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite or no floating-point numbers")


def read_checkpoint(path):
    """Returns {name: array} of a checkpoint, 'log' as the dictionary that it stands for.

    Raises ValueError that names the file and says what is wrong with it. Nothing that it may carry is run.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            checkpoint = dict(file)
        log = checkpoint["log"] = json.loads(str(checkpoint["log"]))
        sizes = [log["config"][name] for name in ("latent_dim", "n_classes", "img_size", "hidden_d")]
        steps = [int(checkpoint[name]) for name in ("epoch", "optimizer_G/step", "optimizer_D/step")]
        if not all(isinstance(number, int) and number > 0 for number in sizes + steps):
            raise ValueError("its sizes or steps are not whole numbers above 0")
        if [row["epoch"] for row in log["epochs"]] != list(range(1, steps[0] + 1)):
            raise ValueError("its log does not hold its epochs")
        str(checkpoint["data"]), log["evaluations"], log["environment"]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: there is no run to go on with")
    except KeyError as error:
        raise ValueError(f"{path} is not a checkpoint of cgan.py: {error} is missing")
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} is not a checkpoint of cgan.py: {error or type(error).__name__}")
    check_arrays(path, checkpoint, expected_shapes(*sizes, average=log["config"].get("ema") is not None))
    return checkpoint


def drawing_prefix(names):
    """Returns what the names of the arrays begin with that draw: the average where there is one."""
    return "average/" if any(name.startswith("average/") for name in names) else "generator/"


def save_generator(path, checkpoint):
    """Writes the generator of a checkpoint, as `read_checkpoint` returns it, in float16: half the size."""
    prefix = drawing_prefix(checkpoint)
    arrays = {name: value.astype(np.float16) for name, value in checkpoint.items() if name.startswith(prefix)}
    replace_file(path, lambda file: np.savez_compressed(file, **arrays))


def read_generator(path):
    """Returns (latent_dim, n_classes, img_size) and {name: float32 array} of a trained generator.

    path: a checkpoint, or what save_generator wrote. Raises ValueError that names the file and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            prefix = drawing_prefix(file.files)
            arrays = {name[len(prefix) :]: file[name] for name in file.files if name.startswith(prefix)}
        n_classes, n_in = len(arrays["label_embedding.weight"]), arrays["model.0.weight"].shape[1]
        sizes = n_in - n_classes, n_classes, math.isqrt(len(arrays["model.11.bias"]))
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} holds no generator of cgan.py: {error or type(error).__name__}")
    check_arrays(path, arrays, generator_shapes(*sizes))
    return sizes, {name: value.astype(np.float32) for name, value in arrays.items()}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m support.checkpoint CHECKPOINT GENERATOR     keeps a checkpoint's generator alone")
    save_generator(sys.argv[2], read_checkpoint(sys.argv[1]))
