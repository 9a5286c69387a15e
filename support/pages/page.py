"""Writes a run, or several, as one HTML file that needs no network: curves, sample grids, and a generator that draws.

support/pages/page.html is the page; it gets all that it shows as JSON.
"""

import base64
import functools
import io
import json
import math
import os
import shlex
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from support import idx
from support.saved.checkpoint import SIZES, artist, blaming, part, read_arrays
from support.saved.paths import find_grids, atomic_write
from support.saved.log import LOSSES, SCORES

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
DATA = '<script type="application/json" id="data">null</script>'  # in the template; JSON takes null's place
LARGEST_PAGE = 8 * 10**6  # bytes
MOST_GRIDS = 100  # in a page
QUALITY = 60  # of the grids, as WebP: 20,000 bytes each, where PNG takes 50,000
NO_NETWORKS = {"generator": None, "discriminator": None}
ENVIRONMENT = ("device", "processes", "threads", "jittor", "python")  # what the page shows of a log's
ARRAYS = {  # of each kind of layer that the page can compute
    "Linear": ("weight", "bias"),
    "BatchNorm": ("weight", "bias", "running_mean", "running_var"),
    "leaky_relu": (),
    "Dropout": (),
    "Tanh": (),
}


# ---------------------------------------------------------------- a run's files
def grid_folder(log_path):
    """Returns the folder of a run's sample grids: results/a/log.json has its in images/a, else images beside it."""
    folder = os.path.dirname(os.path.abspath(log_path))
    before, results, after = f"{folder}/".rpartition("/results/")
    images = os.path.normpath(f"{before}/images/{after}")
    return images if results and os.path.isdir(images) else os.path.join(folder, "images")


def pick_evenly(items, count):
    """Returns up to `count` of `items` at even steps, with the first and the last."""
    steps = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(step)] for step in steps]


@functools.lru_cache(maxsize=4 * MOST_GRIDS)  # a run that is watched has the same grids each time, and some more
def encode_grid(path, modified):
    """Returns a sample grid as WebP in base64; `modified` is the file's time. Raises ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            if max(picture.size) > 4096:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            whole = io.BytesIO()
            picture.convert("L").save(whole, "WEBP", quality=QUALITY, method=0)
    except Exception as error:  # whatever a damaged file makes its decoder raise
        raise ValueError(f"{path} cannot be read as an image: {error}")
    return base64.b64encode(whole.getvalue()).decode()


def read_grids(log_path, count):
    """Returns ([[batches done, picture]], sentences that name each grid that cannot be read), up to `count` grids."""

    def read(item):
        try:
            return [item[0], encode_grid(item[1], os.path.getmtime(item[1]))]
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it encodes
        read_all = list(pool.map(read, pick_evenly(list(find_grids(grid_folder(log_path)).items()), count)))
    return [grid for grid in read_all if isinstance(grid, list)], [text for text in read_all if isinstance(text, str)]


def check_layers(arrays, layers, n_in, n_out):
    """Raises ValueError where the layers do not lead from n_in numbers to n_out; `arrays` are a network's."""
    width = n_in
    for i, layer in enumerate(layers):
        if layer["kind"] not in ARRAYS:
            raise ValueError(f"a page cannot compute layer {i}, a {layer['kind']}")
        for name in ARRAYS[layer["kind"]]:
            value = arrays[f"model.{i}.{name}"]
            rows = len(arrays[f"model.{i}.bias"])
            expected = (rows, width) if (layer["kind"], name) == ("Linear", "weight") else (rows,)
            if value.shape != expected or (layer["kind"] != "Linear" and rows != width):
                raise ValueError(f"model.{i}.{name} has shape {value.shape}, which does not fit its neighbours")
        width = rows if ARRAYS[layer["kind"]] else width
    if width != n_out:
        raise ValueError(f"its last layer gives {width} numbers, not {n_out}")


def pack(arrays, layers, n_bytes):
    """Returns a network as JSON can hold it.

    n_bytes: 2 keeps the arrays in float16; 1 as whole numbers from -127 to 127, each array with a scale: good enough
    for an opinion, not for a picture. First bytes come before second bytes, which makes them smaller.
    """
    shapes, values = {}, []
    for name, array in arrays.items():
        scale = 1.0 if n_bytes == 2 else float(np.abs(array).max()) / 127 or 1.0
        shapes[name] = {"shape": array.shape, "scale": scale}
        values.append((array / scale).ravel())
    values = np.concatenate(values)
    if n_bytes == 2 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ValueError("its numbers do not fit into float16")
    values = values.astype("<f2") if n_bytes == 2 else values.round().astype(np.int8)
    planes = values.view(np.uint8).reshape(-1, n_bytes).T.tobytes()
    return {
        "layers": layers,
        "arrays": shapes,
        "n_bytes": n_bytes,
        "data": base64.b64encode(zlib.compress(planes)).decode(),
    }


def read_networks(run, log_path, log):
    """Returns {"run", "sizes", "generator", "discriminator"} of a run's checkpoint, or of the generator kept from it.

    A network that was not kept is None. run: the run's name, for the page.
    Raises ValueError that names the file and what is wrong with it.
    """
    paths = [os.path.join(os.path.dirname(log_path), name) for name in ("checkpoint.npz", "generator.npz")]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        return dict(NO_NETWORKS)
    arrays = read_arrays(path)
    with blaming(f"{path} holds no networks of cgan.py"):
        layers, config = arrays["layers"], arrays["log"]["config"]
        sizes = {name: config[name] for name in SIZES}
        for name, value in sizes.items():
            if log["config"].get(name, value) != value:
                raise ValueError(f"its {name} is {value}, where the log has {log['config'][name]}")
        n_classes, n_pixels = sizes["n_classes"], sizes["img_size"] ** 2
        drawing = artist(arrays)
        networks = {**NO_NETWORKS, "run": run, "sizes": sizes}
        for name, n_bytes, n_in, n_out in (
            (drawing, 2, n_classes + sizes["latent_dim"], n_pixels),
            ("discriminator", 1, n_classes + n_pixels, 1),
        ):
            if name in layers:
                own = part(arrays, name)
                if own["label_embedding.weight"].shape != (n_classes, n_classes):
                    raise ValueError(f"label_embedding.weight of its {name} is not {n_classes} x {n_classes}")
                check_layers(own, layers[name], n_in, n_out)
                networks["generator" if name == drawing else name] = pack(own, layers[name], n_bytes)
    return networks


# ---------------------------------------------------------------- the page
def command(config):
    """Returns the command line that stands for a log's flags, as text."""
    words = ["python", "cgan.py"]
    for name, value in config.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", shlex.quote(str(value))]
    return " ".join(words)


def batches_per_epoch(log):
    """Returns how many batches an epoch has; a log that does not say is taken to be of the whole of MNIST."""
    batches = log["epochs"][-1].get("batches")
    if not batches:
        config = {key: value for key, value in log["config"].items() if type(value) is int and value > 0}
        batches = math.ceil(idx.MNIST[0] / config.get("batch_size", 64))
        batches = min(batches, config.get("max_batches", batches))
    return batches


def describe_change(change):
    """Returns a log's note on what changed when a run went on, as text such as "41: lr 0.0001"."""
    values = {}
    for part_of_log in ("config", "environment"):
        values.update(change.get(part_of_log, {}))
    return f"{change['epoch']}: " + ", ".join(f"{name} {value}" for name, value in values.items())


def describe(name, log):
    """Returns what the page shows of a log."""
    config, environment = log["config"], log["environment"]
    facts = {"seed": config.get("seed", "?")}
    facts.update({key: environment[key] for key in ENVIRONMENT if key in environment})
    n_epochs = config.get("n_epochs")
    return {
        "name": name,
        "command": command(config),
        "facts": {key: str(value) for key, value in facts.items()},
        "changes": [describe_change(change) for change in log["changes"]],
        "n_epochs": n_epochs if type(n_epochs) is int else log["epochs"][-1]["epoch"],
        "batches_per_epoch": batches_per_epoch(log),
        "epochs": [{key: row.get(key) for key in ("epoch", *LOSSES, "seconds")} for row in log["epochs"]],
        "evaluations": [{key: row.get(key) for key in ("epoch", "fid_samples", *SCORES)} for row in log["evaluations"]],
    }


def to_json(data):
    """Returns `data` as JSON that can stand in a script of an HTML file: no markup in it can end the script."""
    return json.dumps(data).replace("<", "\\u003c")


def drop_what_does_not_fit(runs, networks, room):
    """Drops from the data of a page what would take more than `room` bytes.

    The networks come first, then the grids, of which fewer may do.
    """

    def size(parts):
        return len(to_json(parts))

    room -= size([{**run, "grids": []} for run in runs]) + 1000
    for name in ("generator", "discriminator"):
        if size(networks[name]) > room:
            networks[name] = None
        room -= size(networks[name])
    while size([run["grids"] for run in runs]) > room:
        for run in runs:
            run["grids"] = pick_evenly(run["grids"], len(run["grids"]) * 9 // 10)


def write_page(path, runs):
    """Writes the page of one run or several; what is not there or does not fit into LARGEST_PAGE is left out of it.

    runs: {name of the run: (path of its log.json, what support.saved.log.read_log returns for it)}; sample grids and
    checkpoint are looked for beside the log.
    Returns sentences, each of which names a file beside a log that cannot be read. Raises OSError.
    """
    shown, networks, problems = [], dict(NO_NETWORKS), []
    for name, (log_path, log) in runs.items():
        grids, unreadable = read_grids(log_path, max(1, MOST_GRIDS // len(runs)))
        shown.append({**describe(name, log), "grids": grids})
        problems += unreadable
        try:
            if not networks["generator"]:
                networks = read_networks(name, log_path, log)
        except ValueError as error:
            problems.append(str(error))
    with open(TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    drop_what_does_not_fit(shown, networks, LARGEST_PAGE - len(template.encode()))
    data = DATA.replace("null", to_json({"runs": shown, "networks": networks}))
    atomic_write(path, lambda file: file.write(template.replace(DATA, data).encode()))
    return problems
