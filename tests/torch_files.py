"""Writes files as torch.save does, without torch."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import numpy as np

from support.inception import TORCH_MAGIC

TORCH = {"torch": "FloatStorage", "torch._utils": "_rebuild_tensor_v2"}


class Tensor:
    """Pickled as torch pickles a tensor: by a call that is given its storage, which stands outside the pickle.

    storage: what stands in the storage's place, for hostile files.
    """

    def __init__(self, array, storage=None):
        self.array, self.storage = array, storage or Storage(array)

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, 0, self.array.shape, strides, False, collections.OrderedDict())


class Storage:
    def __init__(self, array):
        self.array = array


def torch_pickle(obj):
    """Returns (the pickle of an object with Tensors in it, [the arrays of their storages])."""
    arrays = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                if not any(value.array is array for array in arrays):
                    arrays.append(value.array)
                key = next(i for i, array in enumerate(arrays) if value.array is array)
                return ("storage", sys.modules["torch"].FloatStorage, str(key), "cpu", value.array.size)

    stand_ins = {
        module: types.SimpleNamespace(**{name: type(name, (), {"__module__": module})})
        for module, name in TORCH.items()
    }
    pickled = io.BytesIO()
    with mock.patch.dict(sys.modules, stand_ins):
        Pickler(pickled, 2).dump(obj)
    return pickled.getvalue(), arrays


def torch_zip(obj, compression=zipfile.ZIP_STORED):
    """Returns the bytes of torch.save's zip layout."""
    pickled, arrays = torch_pickle(obj)
    return zip_of({"data.pkl": pickled, **{f"data/{i}": a.tobytes() for i, a in enumerate(arrays)}}, compression)


def zip_of(members, compression=zipfile.ZIP_STORED):
    """Returns the bytes of a zip with {name: bytes} in a folder, as torch writes it."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"inception/{name}", data)
    return whole.getvalue()


def torch_legacy(obj):
    """Returns the bytes of torch.save's older layout."""
    pickled, arrays = torch_pickle(obj)
    parts = [pickle.dumps(value, 2) for value in (TORCH_MAGIC, 1001, {"little_endian": True})]
    parts += [pickled, pickle.dumps([str(i) for i in range(len(arrays))], 2)]
    return b"".join(parts + [struct.pack("<q", array.size) + array.tobytes() for array in arrays])


def torch_script(weights, shapes):
    """Returns the bytes of the network that FID was defined with in TorchScript: its arrays, layer by layer."""
    names = [name for name in shapes if not name.startswith(("AuxLogits.", "fc.")) and not name.endswith("bn.weight")]
    arrays = {f"data/{i}": np.float32(weights[name]).tobytes() for i, name in enumerate(names)}
    return zip_of({"data.pkl": pickle.dumps("modules"), "constants.pkl": b"", **arrays})
