"""What a page needs of a run's networks: which of them it can compute, and their numbers in few bytes.

A page lays a label's embedding before noise, or behind an image, and runs the layers of .model one after the other.
A network that does anything else is left out of it, with a reason; wherever layers are expected here, a string is that
reason. No Jittor is needed: layers are known by the names of their classes.
"""

import base64
import json
import os
import zlib

import numpy as np

from support.saved.checkpoint import blaming, drawing_name, label_names, part, read_arrays

SIZES = ("latent_dim", "n_classes", "img_size")  # the flags that say what the networks take and give
KINDS = {  # of layers that a page computes: its class, and the arrays it has
    "Linear": ("weight", "bias"),
    "BatchNorm": ("weight", "bias", "running_mean", "running_var"),
    "leaky_relu": (),
    "relu": (),
    "Dropout": (),  # does nothing once training is over
    "Tanh": (),
}
LEVELS = {"generator": (None, 24), "discriminator": (127,)}  # for `pack`, the first that fits; 24 are hardly seen
NOT_KEPT = "its weights do not lie beside the log"


def describe_layers(network):
    """Returns network.model's layers as [{"kind": class name, "eps" or "scale", LeakyReLU's slope}], or a reason."""
    try:
        layers = list(network.model)
    except (AttributeError, TypeError):
        return "it has no .model that is a row of layers"
    described = []
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        if kind not in KINDS:
            return f"its layer {i} is a {kind}, which a page cannot compute"
        described.append({"kind": kind})
        if kind == "BatchNorm":
            described[-1]["eps"] = layer.eps
        if kind == "leaky_relu":  # jittor.nn keeps a function's arguments
            described[-1]["scale"] = layer.kw.get("scale", layer.args[0] if layer.args else 0.01)
    return described


def compute(layers, arrays, values):
    """Returns what a page computes: values (N, n_in) -> (N, n_out); `arrays` are the network's, {name: array}.

    Raises KeyError or ValueError if layers and arrays do not fit together.
    """
    for i, layer in enumerate(layers):
        kind, own = layer["kind"], [arrays[f"model.{i}.{name}"] for name in KINDS[layer["kind"]]]
        if kind == "Linear":
            values = values @ own[0].T + own[1]
        elif kind == "BatchNorm":
            weight, bias, mean, variance = own
            values = (values - mean) / np.sqrt(variance + layer["eps"]) * weight + bias
        elif kind in ("leaky_relu", "relu"):
            values = np.where(values > 0, values, layer.get("scale", 0) * values)
        elif kind == "Tanh":
            values = np.tanh(values)
    return values


def page_layers(network, arrays, inputs, outputs):
    """Returns describe_layers(network) if these layers, as a page computes them, give the network's own outputs.

    arrays: its parameters and running statistics, {name: array}; inputs: (noise (N, n) or images (N, C, H, W), labels
    (N,)); outputs: what the network gives for them in evaluation mode, (N, 1, ...). Returns a reason if they do not.
    """
    layers = describe_layers(network)
    if isinstance(layers, str):
        return layers
    if outputs.ndim > 1 and outputs.shape[1] != 1:
        return f"it gives {outputs.shape[1]} numbers for an image or a pixel, not one"
    values, labels = inputs
    try:
        embedded = arrays["label_embedding.weight"][labels]
        pair = [embedded, values] if values.ndim == 2 else [values.reshape(len(values), -1), embedded]
        computed = compute(layers, arrays, np.concatenate(pair, axis=1))
        tolerance = 1e-3 * max(1, np.abs(outputs).max())
        if np.abs(computed - outputs.reshape(computed.shape)).max() <= tolerance:
            return layers
    except (KeyError, IndexError, ValueError):  # it has other arrays, or other shapes
        pass
    return "it does more than run the layers of its .model one after the other"


def read_networks(log_path):
    """Returns {"generator", "discriminator", "sizes"} of the run whose log lies at `log_path`.

    The labels' names are among the sizes, under "labels". Each network is a pair (layers, {name: array}) or a reason.
    Raises ValueError that names the file and what is wrong with it.
    """
    paths = [os.path.join(os.path.dirname(log_path), name) for name in ("checkpoint.npz", "generator.npz")]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        return dict.fromkeys(LEVELS, NOT_KEPT)
    arrays = read_arrays(path)
    with blaming(f"{path} holds no networks of cgan.py"):
        json.dumps(arrays["layers"], allow_nan=False)  # what a page cannot hold raises here
        found = {"sizes": {name: int(arrays["log"]["config"][name]) for name in SIZES}}
        found["sizes"]["labels"] = label_names(arrays["log"])
        for kind, name in (("generator", drawing_name(arrays)), ("discriminator", "discriminator")):
            layers = arrays["layers"].get(name) or NOT_KEPT
            found[kind] = layers if isinstance(layers, str) else (layers, part(arrays, name))
    return found


def pack(layers, arrays, levels):
    """Returns a network as JSON can hold it; each array is divided by its scale.

    levels: None keeps numbers from -1 to 1 in float16; else a matrix becomes whole numbers from -levels to levels, any
    other array from -127 to 127. First bytes come before second bytes, which makes them smaller.
    """
    shapes, values = {}, []
    for name, array in arrays.items():
        most = 1 if levels is None else levels if array.ndim > 1 else 127
        scale = float(np.abs(array).max()) / most or 1.0
        shapes[name] = {"shape": array.shape, "scale": scale}
        values.append((array / scale).ravel())
    values = np.concatenate(values)
    values = values.astype("<f2") if levels is None else values.round().astype(np.int8)
    planes = values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()
    data = base64.b64encode(zlib.compress(planes, 9)).decode()
    return {"layers": layers, "arrays": shapes, "n_bytes": values.itemsize, "data": data}


def pack_within(name, network, room):
    """Returns what read_networks found of a network, packed into `room` bytes, or a reason."""
    if isinstance(network, str):
        return network
    packed = (pack(*network, levels) for levels in LEVELS[name])
    return next((found for found in packed if len(json.dumps(found)) <= room), "it does not fit into the page")
