"""Reads a file of Inception-v3 weights, without Jittor and without running code that the file may carry.

`inception_shapes.json` holds the name and shape of every parameter and running statistic of the network,
the same in Jittor and torchvision.
"""

import json
import os
import pickle

import numpy as np

SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inception_shapes.json")
# What a pickled dictionary of numpy arrays is built from; numpy 2 renamed the folder of the first.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries of numpy arrays; refuses, by name, whatever else a pickle asks for."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return super().find_class(module.replace("numpy._core", "numpy.core"), name)


def read_weights(path):
    """Returns {name: float32 array} of the network that computes the features (no classifier, no auxiliary head).

    path: Jittor's `.pkl` or an `.npz` with the same names.
    Raises ValueError that names the file and says what is wrong with it.
    """
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                weights = dict(file)
        elif path.endswith(".pkl"):
            with open(path, "rb") as file:
                weights = ArrayUnpickler(file).load()
        else:
            raise ValueError("its name must end in .pkl (Jittor's file) or .npz")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}")
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} is not a file of Inception-v3 weights: {error or type(error).__name__}")
    if not isinstance(weights, dict):
        raise ValueError(f"{path} is not a file of Inception-v3 weights: it holds no named arrays")
    return check_weights(weights, path)


def check_weights(weights, path="the dictionary"):
    """Returns those of {name: array} that compute the features, as float32.

    Raises ValueError that names `path`, where they came from, and the parameter that is missing or wrong.
    """
    with open(SHAPES) as file:
        shapes = json.load(file)
    needed = {}
    for name, shape in shapes.items():
        if name.startswith(("AuxLogits.", "fc.")):
            continue
        value = weights.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise ValueError(f"{path} is not a file of Inception-v3 weights: {name} is missing")
        if list(value.shape) != shape:
            raise ValueError(f"{path}: {name} has shape {list(value.shape)}, Inception-v3's is {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
        needed[name] = value.astype(np.float32)
    return needed
