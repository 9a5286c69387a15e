"""Fuzzes the readers of files: whatever a file holds, its reader returns or raises a ValueError that names the file.

    python -m tests.fuzz_readers 300                each reader in turn, for 300 seconds
    python -m tests.fuzz_readers 300 images         one of them

Each runs in a process of its own whose memory is limited, as is the time for an input. Inputs are valid and hostile
files that hypothesis changes, also inside of zips, gzips and PNGs, whose checksums are then right. What a reader does
not stand is kept and named. A reader is added to READERS: a function that returns (read, {name: bytes of a file}).
"""

import argparse
import atexit
import gc
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MEMORY = 1_500_000_000  # bytes for a reader; PIL takes 1.1 billion to turn and convert the largest image that is read
HANG = 10  # seconds for an input
UNCHECKED = list(HealthCheck)  # hypothesis's advice on speed and size
PNG = b"\x89PNG\r\n\x1a\n"
NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
WORDS = [b"", b"\0", b"(", b"}", b")", b".", b"0", b"2", b"N", b"R", b"b", b"s", b"u", b"t", b"Q", b"h\0", b"h\1"]
WORDS += [b"\x85", b"\x86", b"\x87", b"\x94", b"\x93", b"cos\nsystem\n", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7]
WORDS += [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"IHDR", b"tRNS", b"eXIf", b"acTL", b"NaN", b"1e999", b"9" * 50, b"[" * 50]


def weights():
    from torch_files import Tensor, torch_legacy, torch_script, torch_zip

    from support import inception_weights

    names = [f"Conv2d_1a_3x3.{part}" for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean")]
    shapes = {names[0]: [2, 3, 2, 2], **{name: [2] for name in names[1:]}, "AuxLogits.conv0.bn.weight": [1]}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:  # a small network: many inputs
        json.dump(shapes, file)
    atexit.register(os.remove, file.name)
    inception_weights.SHAPES = file.name
    inception_weights.PACKAGE_SHA256 = mock.ANY
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    tensors = {name: Tensor(array) for name, array in arrays.items()}
    files = {f"protocol {p}": pickle.dumps(arrays, p) for p in (0, 2, 3, 4, 5)}
    files["fortran"] = pickle.dumps({n: np.asfortranarray(a, ">f8") for n, a in arrays.items()}, 4) + bytes(20)
    for name, save in (("npz", np.savez), ("packed npz", np.savez_compressed)):
        whole = io.BytesIO()
        save(whole, **arrays)
        files[name] = whole.getvalue()
    files["torch"], files["packed torch"] = torch_zip(tensors), torch_zip(tensors, zipfile.ZIP_DEFLATED)
    files["script"], files["legacy"] = torch_script(arrays, shapes), torch_legacy(tensors)
    wide = Tensor(np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (10**6,), (0,)), Tensor(np.zeros(1, "f4")).storage)
    files["tensor as storage"] = torch_zip({**tensors, names[0]: Tensor(arrays[names[0]], wide)})
    shared = Tensor(np.zeros(500_000, "f4")).storage
    files["one storage"] = torch_zip({n: Tensor(a, shared) for n, a in arrays.items()}, zipfile.ZIP_DEFLATED)
    files["keys"] = b"\x80\x04}K\0" + b"".join(b"\x94h%c\x86" % i for i in range(40)) + b"Ns."
    return inception_weights.read_weights, files


def images():
    from PIL import Image

    from support.images import open_image

    gray = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8))
    colour, exif = Image.merge("RGB", [gray, gray.rotate(90), gray.rotate(180)]), Image.Exif()
    exif[0x0112] = 6
    files = {}

    def add(name, image, kind="PNG", **options):
        whole = io.BytesIO()
        image.save(whole, kind, **options)
        files[name] = whole.getvalue()

    for name, image in (("gray", gray), ("colour", colour)):
        add(f"{name} PNG", image)
        add(f"{name} JPEG", image, "JPEG")
        add(f"turned {name} PNG", image, exif=exif.tobytes())
        add(f"turned {name} JPEG", image, "JPEG", exif=exif.tobytes())
    add("progressive", colour, "JPEG", progressive=True)
    add("two pictures", colour, "MPO", save_all=True, append_images=[colour])
    add("animated", gray, save_all=True, append_images=[gray.rotate(90)])
    add("bits", gray.convert("1"))
    add("palette", colour.quantize(64), transparency=3)
    add("transparent", colour, transparency=(0, 0, 0))
    add("alpha", colour.convert("RGBA"))
    add("gray alpha", gray.convert("LA"))
    add("16 bits", Image.fromarray(np.asarray(gray).astype(np.uint16) * 257))
    add("CMYK", colour.convert("CMYK"), "JPEG")
    add("GIF", gray, "GIF")
    cut = files["gray PNG"].find(b"IDAT")
    files["a chunk of 2 GB"] = files["gray PNG"][: cut - 4] + b"\x7f\xff\xff\xff" + files["gray PNG"][cut:-16]
    chunks, close = opened(files["animated"])
    files["large frames"] = close([b"IHDR" + struct.pack(">II", 9000, 9000) + chunks[0][12:], *chunks[1:]])
    return open_image, files


LOG = {
    "config": {"latent_dim": 3, "n_classes": 2, "img_size": 2, "lr": 0.0002, "ema": None, "n_epochs": 2},
    "environment": {"jittor": "1.3", "device": "cpu", "processes": 1},
    "changes": [{"epoch": 2, "config": {"lr": 0.01}}],
    "epochs": [{"epoch": epoch, "d_loss": 0.1, "g_loss": 0.5, "seconds": 1.0} for epoch in (1, 2)],
    "evaluations": [{"epoch": 2, "fid": None, "digit_fid": 6.6}],
}


def npz(**arrays):
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    return whole.getvalue()


def checkpoint_files():
    """A checkpoint and a generator of tiny networks, and the same compressed, with steps, a pickle, NaN."""
    parameters = {"label_embedding.weight": (2, 2), "model.0.weight": (4, 5), "model.0.bias": (4,)}
    arrays = {"epoch": 2, "data": "sha", "log": json.dumps(LOG), "layers": json.dumps({"generator": []})}
    for network, optimizer in (("generator", "optimizer_G"), ("discriminator", "optimizer_D")):
        arrays[f"{optimizer}/step"] = 4
        for i, (name, shape) in enumerate(parameters.items()):
            arrays[f"{network}/{name}"] = np.full(shape, 0.5, np.float32)
            arrays.update({f"{optimizer}/{kind}/{i}": np.zeros(shape, np.float32) for kind in "mv"})
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    generator = {
        name: value for name, value in arrays.items() if name.startswith("generator") or name in ("log", "layers")
    }
    steps = {"generator/model.0.weight": np.ones((4, 5), np.int8), "step/model.0.weight": np.ones((4, 1), np.float32)}
    return {
        "checkpoint": npz(**arrays),
        "generator": npz(**generator),
        "steps": npz(**{**generator, **steps}),
        "packed": packed.getvalue(),
        "pickle": npz(**{**arrays, "log": np.array([print], dtype=object)}),
        "NaN": npz(**{**arrays, "generator/model.0.bias": np.full(4, np.nan, np.float32)}),
    }


def checkpoints():
    from support.saved.checkpoint import read_checkpoint

    return read_checkpoint, checkpoint_files()


def generators():
    from support.saved.checkpoint import read_generator

    return read_generator, checkpoint_files()


def logs():
    from support.saved.log import read_log

    nested = b"[" * 100_000
    return read_log, {"log": json.dumps(LOG).encode(), "list": b"[]", "nested": nested, "NaN": b'{"epochs": NaN}'}


def idx():
    from support.idx import IMAGE_MAGIC, read_idx

    header = struct.pack(">4i", IMAGE_MAGIC, 2, 28, 28)
    files = {"images": header + bytes(2 * 28 * 28), "short": header + bytes(3), "labels": struct.pack(">2i", 2049, 1)}
    return lambda path: read_idx(path, IMAGE_MAGIC), {name: gzip.compress(data) for name, data in files.items()}


READERS = {"weights": weights, "images": images, "checkpoint": checkpoints, "generator": generators}
READERS.update(log=logs, idx=idx)


def opened(data):
    """Returns (parts, a function that makes a file of parts): what stands inside of a container, else the whole."""
    try:
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                items = archive.infolist()
                return [archive.read(item) for item in items], lambda parts: zip_of(items, parts)
        if data[:2] == b"\x1f\x8b":
            return [gzip.decompress(data)], lambda parts: gzip.compress(parts[0], 1)
        if data.startswith(PNG):
            chunks, place = [], len(PNG)
            while place < len(data):
                (size,) = struct.unpack(">I", data[place : place + 4])
                chunks.append(data[place + 4 : place + 8 + size])
                place += size + 12
            return chunks, png_of
    except Exception:  # a change broke the container
        pass
    return [data], b"".join


def zip_of(items, parts):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for item, part in zip(items, parts):
            archive.writestr(item.filename, part, item.compress_type)
    return whole.getvalue()


def png_of(chunks):
    sealed = (struct.pack(">I", max(len(c) - 4, 0)) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return PNG + b"".join(sealed)


def change(data, kind, where, what):
    """Returns `data`, changed at one place. where: from 0 to 1; what: a whole number of at least 0."""
    at = int(where * len(data))
    number = NUMBERS[what % len(NUMBERS)]
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << what % 8]) + data[at + 1 :] if at < len(data) else data
    if kind == "byte":
        return data[:at] + bytes([what % 256]) + data[at + 1 :]
    if kind in ("<B", "<H", "<I", "<Q", ">H", ">I"):
        packed = struct.pack(kind, number % 256 ** struct.calcsize(kind))
        return data[:at] + packed + data[at + len(packed) :]
    if kind == "word":
        return data[:at] + WORDS[what % len(WORDS)] + data[at:]
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[at + 1 + what % 64 :]
    return data[:at] + data[at : at + 1 + what % 64] * (1 + what % 300) + data[at:]  # "repeat"


KINDS = ["bit", "byte", "<B", "<H", "<I", "<Q", ">H", ">I", "word", "cut", "drop", "repeat"]
CHANGES = st.lists(
    st.tuples(st.booleans(), st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**16)),
    max_size=6,
)


def changed(data, other, changes, splice):
    """Returns a file with `changes`, each in one part of it or in the whole, and perhaps the end of another file."""
    for inside, kind, part, where, what in changes:
        parts, close = opened(data) if inside else ([data], b"".join)
        if parts:
            chosen = min(int(part * len(parts)), len(parts) - 1)
            parts[chosen] = change(parts[chosen], kind, where, what)
            data = close(parts)[:1_000_000]
    if splice is not None:
        data = data[: int(splice * len(data))] + other[int(splice * len(other)) :]
    return data


def attempt(read, path):
    """Reads a file; returns whether that worked. Raises AssertionError on what no reader may do."""
    signal.alarm(HANG)  # ends the process, also where compiled code hangs
    gc.disable()  # hypothesis watches it from Python: Python 3.8 does not stand that where the stack is used up
    try:
        read(str(path))
        return True
    except ValueError as error:
        cause = error
        while cause:
            assert not isinstance(cause, MemoryError), "it wants more memory than there is"
            cause = cause.__context__
        assert str(path) in str(error), f"the file is not named: {error}"
        return False
    finally:
        gc.enable()
        signal.alarm(0)


def child(name, place, seconds, examples, first_seed):
    """Tries inputs for so many seconds, or so many inputs; leaves its figures and the last input in `place`."""
    from conftest import memory

    read, files = READERS[name]()
    place, files = Path(place), list(files.values())
    start, figures = time.monotonic(), {"tried": 0, "read": 0}
    before = memory("VmHWM")
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MEMORY,) * 2)

    def leave():
        figures["peak_MB"] = (memory("VmHWM") - before) // 2**20
        (place / "figures").write_text(json.dumps(figures))

    def tried(data):
        (place / "input").write_bytes(data)
        figures["tried"] += 1
        try:
            figures["read"] += attempt(read, place / "input")
        except BaseException:
            if not (place / "failed").exists():  # before hypothesis looks for a smaller one
                shutil.copy(place / "input", place / "failed")
            raise
        if figures["tried"] % 100 == 0:
            leave()

    for data in files:
        tried(data)

    def batch(data, other, changes, splice):
        if examples or time.monotonic() - start < seconds:
            tried(changed(data, other, changes, splice))

    inputs = given(st.sampled_from(files), st.sampled_from(files), CHANGES, st.none() | st.floats(0, 1))
    bounds = settings(
        max_examples=examples or 1000, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    while True:
        seed(first_seed)(bounds(inputs(batch)))()
        first_seed += 1
        if examples or time.monotonic() - start >= seconds:
            break
    leave()


def fuzz(name, seconds=0, examples=0, first_seed=0):
    """Fuzzes one reader; returns its figures, with "failure" and the "input" that is kept where there was one."""
    with tempfile.TemporaryDirectory() as place:
        words = map(str, [name, place, seconds, examples, first_seed])
        command = [sys.executable, __file__, "--child", *words]
        process = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        figures = Path(place, "figures")
        result = json.loads(figures.read_text()) if figures.exists() else {"tried": 0, "read": 0, "peak_MB": 0}
        result["failure"] = None
        if process.returncode:
            how = "error" if process.returncode > 0 else f"signal {-process.returncode}"
            result["failure"] = "hang" if process.returncode == -signal.SIGALRM else how
            result["stderr"] = process.stderr[-2000:]
            kept = Path(place, "failed" if Path(place, "failed").exists() else "input")  # a crash leaves the input
            if kept.exists():
                result["input"] = os.path.join(tempfile.mkdtemp(prefix=f"fuzz_{name}_"), "input")
                shutil.copy(kept, result["input"])
    return result


def main():
    parser = argparse.ArgumentParser(description="Fuzzes the readers of files.")
    parser.add_argument("seconds", type=float, help="for each reader")
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first inputs (default: the time)")
    opt = parser.parse_args()
    print(
        f"seed {opt.seed}\n| reader | inputs | read | crashes | hangs | memory |\n| --- | --- | --- | --- | --- | --- |"
    )
    failures = []
    for name in opt.readers or READERS:
        result = fuzz(name, opt.seconds, first_seed=opt.seed)
        crash, hang = (result["failure"] not in (None, "hang")), result["failure"] == "hang"
        figures = f"{result['tried']:,} | {result['read']:,} | {crash:d} | {hang:d} | {result['peak_MB']} MB"
        print(f"| {name} | {figures} |", flush=True)
        if result["failure"]:
            failures.append(f"{name}: {result['failure']}, kept as {result.get('input')}\n{result['stderr']}")
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, place, seconds, examples, first_seed = sys.argv[2:]
        try:
            child(name, place, float(seconds), int(examples), int(first_seed))
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
    else:
        main()
