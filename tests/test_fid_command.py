"""fid.py as a command, on folders of real digits, of noise, and of what is no image."""

import argparse
import io
import os
import re
import shutil
import struct
import tempfile
import zlib

import numpy as np
import pytest
from conftest import ROOT, Hostile, done, few, read_npz, refused, slow
from damage import damaged
from hypothesis import given, settings
from PIL import Image

import fid
from support.device import jt
from support.images import find_images, image_source, open_image
from support.inception_weights import sha256
from support.mnist import load_mnist
from support.saved.classifier import WEIGHTS
from support.saved.statistics import save_statistics

SCRIPT = fid.__file__


def save(folder, images, name="{}.png"):
    """Writes images (N, ...) uint8 as files; returns the folder."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(i))
    return folder


@pytest.fixture(scope="module")
def digits():
    """1,000 real training digits, 32 x 32 uint8."""
    images, _ = load_mnist(train=True).arrays()
    return ((images[:1000, 0] + 1) * 127.5).round().astype(np.uint8)


@pytest.fixture
def lines(capsys, monkeypatch, tmp_path):
    """A function that runs fid.py in this process, with a cache of its own and few images; returns what it prints."""
    monkeypatch.setattr(jt.compiler, "ck_path", str(tmp_path))
    monkeypatch.setattr(fid, "load_mnist", lambda train: load_mnist(train, data_root=str(few())))

    def run_here(*args):
        assert fid.main(fid.parse_flags([str(arg) for arg in args])) == 0
        return capsys.readouterr().out.splitlines()

    return run_here


def values(found):
    """Returns FID and KID from fid.py's last two lines."""
    return [float(re.search(r"ID: (-?[\d.]+)", line)[1]) for line in found[-2:]]


@pytest.mark.slow
def test_real_digits_are_near_the_floor_and_noise_far_away(digits, tmp_path):
    def score(source, *flags):
        process = done(SCRIPT, "mnist", source, "--features", "digits", *flags)
        return values(process.stdout.splitlines())[0]

    real = score(save(tmp_path / "real", digits))
    noise = np.random.default_rng(0).integers(0, 256, (1000, 40, 30, 3), dtype=np.uint8)  # colour, another size
    noise = save(tmp_path / os.fsdecode(b"noise\xff"), noise, "{}.PNG")
    assert real < 10 and score(noise) > 100 * real
    shuffled = save(tmp_path / "shuffled", digits[np.random.default_rng(0).permutation(1000)])
    assert score(shuffled, "--batch_size", "7") == pytest.approx(real, rel=1e-4)


def test_inception_features_of_folders_with_mixed_sizes(digits, tmp_path, inception_file, lines, monkeypatch):
    """The network gets as many at a time as --batch_size says."""
    sizes, features = [], fid.inception_features
    monkeypatch.setattr(fid, "inception_features", lambda x, *to: sizes.append((len(x), to[1])) or features(x, *to))
    folder = save(tmp_path / "gray", digits[:2])
    Image.fromarray(np.repeat(digits[4][..., None], 3, axis=2)).resize((64, 48)).save(folder / "colour.jpg")
    flags = ["--inception_weights", inception_file, "--batch_size", 2]
    other = lines(folder, save(tmp_path / "other", digits[5:8]), *flags)
    assert values(other)[0] > 0.01 and sizes == [(2, 2), (1, 1)] * 2
    same = lines(folder, folder, "--inception_weights", inception_file)
    assert values(same)[0] == pytest.approx(0, abs=1e-3)


def test_bad_sources(digits, tmp_path, refuses, monkeypatch):
    folder = save(tmp_path / "images", digits[:2])
    (folder / "broken.jpg").write_bytes(b"no image")
    refused(tmp_path, SCRIPT, "mnist", "nowhere", "--features", "digits", names=["argument generated", "nowhere"])
    single, sheets = save(tmp_path / "single", digits[:1]), ROOT / "images/reference"
    for source, *names in (single, "at least 2", "holds 1"), (folder, "broken.jpg"), (sheets, "0.png", "sheet"):
        flags = ["mnist", source, "--features", "digits"]
        refuses(*flags, names=["argument generated", *names], program=fid.parse_flags)
    refuses("mnist", "mnist", "--features", "pixels", names=["--features", "inception"], program=fid.parse_flags)
    monkeypatch.chdir(tmp_path)  # where mnist is also a folder
    save(tmp_path / "mnist", digits[:2])
    refuses("mnist", "mnist", names=["argument real", "./mnist", "rename"], program=fid.parse_flags)


GRAY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
RGB = np.stack([GRAY, GRAY[::-1], GRAY.T], axis=2)


def saved(path, image, **settings):
    Image.fromarray(image).save(path, **settings)
    return path


def transparent(pixels, alpha):
    """Returns the pixels with an alpha channel, opaque but for one pixel of `alpha`."""
    channel = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    channel[3, 3] = alpha
    return np.concatenate([pixels.reshape(*pixels.shape[:2], -1), channel], axis=2)


def test_images_are_read_as_they_are_shown(tmp_path):
    path = tmp_path / "x.png"
    for pixels in (GRAY, RGB):
        shown = np.broadcast_to(pixels.reshape(8, 8, -1), (8, 8, 3))

        def same(path, shown=shown):
            return np.array_equal(np.asarray(open_image(path).convert("RGB")), shown)

        assert same(saved(path, pixels))
        assert same(saved(path, transparent(pixels, 255)))
        palette = Image.fromarray(pixels).quantize(64)  # holds all of the 64 colours
        palette.save(path)
        assert open_image(path).mode == "P" and same(path)
        palette.save(path, transparency=200)  # a colour that no pixel has
        assert same(path)
        for ending in ("bmp", "tif", "gif", "ppm"):
            assert same(saved(tmp_path / f"x.{ending}", pixels)), ending
        assert same(saved(tmp_path / "x.webp", pixels, lossless=True))
        for orientation, turned in ((6, np.rot90(pixels)), (3, np.rot90(pixels, 2)), (2, pixels[:, ::-1])):
            exif = Image.Exif()
            exif[0x0112] = orientation
            assert same(saved(path, np.ascontiguousarray(turned), exif=exif.tobytes()))
            assert same(saved(tmp_path / "x.tif", np.ascontiguousarray(turned), exif=exif.tobytes()))
    assert np.array_equal(np.asarray(open_image(saved(path, GRAY > 100)).convert("L")), np.uint8(GRAY > 100) * 255)


def save_16_bits(path, values, colour_type, more=()):
    """Writes one row of 16-bit values as PNG, which PIL does not write so, with more chunks: [kind + data]."""
    header = struct.pack(">IIBBBBB", len(values), 1, 16, colour_type, 0, 0, 0)
    row = zlib.compress(b"\0" + np.array(values, ">u2").tobytes())
    chunks = [b"IHDR" + header, *more, b"IDAT" + row, b"IEND"]
    sealed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(sealed))


def test_16_bit_colour_keeps_its_range(tmp_path):
    """Black, half and white."""
    save_16_bits(tmp_path / "x.png", [[0] * 3, [32768] * 3, [65535] * 3], colour_type=2)
    assert np.asarray(open_image(tmp_path / "x.png")).ravel().tolist() == [0] * 3 + [128] * 3 + [255] * 3


def test_a_photograph_with_a_second_picture_is_read(tmp_path):
    """As telephones save it: an MPO is a JPEG with another behind it."""
    image = Image.fromarray(RGB)
    image.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[image], quality=95)
    assert open_image(tmp_path / "x.jpg").mode == "RGB"


def test_images_without_one_meaning_are_refused_by_name(digits, tmp_path):
    folder = save(tmp_path / "images", digits[:2])
    image, path = Image.fromarray(RGB), folder / "strange.png"
    palette = image.quantize(64)
    for write, what in [
        (lambda: saved(path, GRAY.astype(np.uint16) * 257), "8-bit gray or RGB"),
        (lambda: save_16_bits(path, [0, 300, 65535], 0, [b"tRNS\0\7"]), "8-bit gray or RGB"),
        (lambda: saved(path, transparent(RGB, 254)), "transparent"),
        (lambda: saved(path, transparent(GRAY, 0)), "transparent"),
        (lambda: palette.save(path, transparency=3), "transparent"),
        (lambda: image.save(path, save_all=True, append_images=[image.rotate(90)]), "animated"),
        *[
            (lambda kind=kind: image.save(path, kind, save_all=True, append_images=[image.rotate(90)]), "animated")
            for kind in ("GIF", "TIFF", "WEBP")
        ],
        (lambda: image.convert("CMYK").save(path, "JPEG"), "CMYK"),
        (lambda: Image.fromarray(np.float32(GRAY)).save(path, "TIFF"), "8-bit gray or RGB"),
        (lambda: image.save(path, "TGA"), "PNG, JPEG, WEBP"),
        (lambda: path.write_bytes(b""), "PNG, JPEG, WEBP"),
    ]:
        write()
        with pytest.raises(argparse.ArgumentTypeError, match=f"{re.escape(str(path))}.*{what}"):
            image_source(str(folder))
    os.remove(path)
    assert len(image_source(str(folder)).items) == 2


def test_folders_are_read_with_those_below_them(digits, tmp_path):
    """Class folders, in any format, without what systems leave; a link back to the top is no second set."""
    folder = save(tmp_path / "set", digits[:2])
    save(folder / "class 1", digits[2:5], "{}.WEBP")
    save(folder / "class 1/more", digits[5:6], "{}.jpg")
    (folder / "class 1/again").symlink_to(folder)
    for name in (".DS_Store", "Thumbs.db", "._0.png", "__MACOSX/1.png", ".ipynb_checkpoints/0-checkpoint.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    for name in ("labels.txt", "class 1/labels.txt", "README", "class 1/photo.HEIC"):
        (folder / name).write_text("")
    images = image_source(str(folder))
    names = [os.path.relpath(path, folder) for path in images.items]
    assert names == ["0.png", "1.png", *(f"class 1/{i}.WEBP" for i in range(3)), "class 1/more/0.jpg"]
    left_out = "left out: 1 .heic, 2 .txt, 1 without an ending"
    assert images.said == f"6 images in {folder} (1 .jpg, 2 .png, 3 .webp; {left_out})"
    for path in images.items[1:]:
        os.remove(path)
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 2 .*holds 1; left out: 1 \.heic"):
        image_source(str(folder))


def test_a_runs_own_sheets_are_refused_by_name(tmp_path):
    """In this repository's folders and in a run's, from above too; but not whatever a number names."""
    with pytest.raises(ValueError, match=r"digits\.png is a run's own sheet"):
        find_images(ROOT / "images/best")
    shutil.copytree(ROOT / "images/reference", tmp_path / "images", ignore=shutil.ignore_patterns("*.gif"))
    assert len(find_images(tmp_path).items) == 6  # no results beside them
    (tmp_path / "results").mkdir()
    for folder in (tmp_path / "images", tmp_path):
        with pytest.raises(ValueError, match=r"0\.png is a run's own sheet of many digits"):
            find_images(folder)
    rng = np.random.default_rng(0)
    for size in (28, 32, 64, 299):
        shutil.rmtree(tmp_path / "images")
        save(tmp_path / "images", rng.integers(0, 256, (3, size, size), dtype=np.uint8))
        assert len(find_images(tmp_path).items) == 3


def test_arrays_are_images_too(digits, tmp_path):
    """As they are in files: gray and colour, channels first or last, in 8 bits or between -1 and 1."""
    colour = np.stack([digits[:4], digits[4:8], digits[8:12]], axis=3)
    floats = np.float32(digits[:4, None]) / 127.5 - 1
    for source, expected in [
        (digits[:4], digits[:4]),
        (digits[:4, None], digits[:4]),
        (digits[:4, ..., None], digits[:4]),
        (colour, colour),
        (colour.transpose(0, 3, 1, 2), colour),
        (floats, digits[:4]),
    ]:
        np.save(tmp_path / "images.npy", source)
        np.savez(tmp_path / "images.npz", images=source, labels=np.arange(4))
        for name in ("images.npy", "images.npz"):
            images = image_source(str(tmp_path / name))
            assert np.array_equal(images.items, expected) and images.said == f"4 images in {tmp_path / name}"
            Image.fromarray(images.items[0])
    for arrays, what in [
        ({"x": digits[:1]}, r"\(1, 32, 32\).*N of at least 2"),
        ({"x": np.zeros((4, 3, 32, 3), np.uint8)}, r"\(4, 3, 32, 3\)"),
        ({"x": floats / 2 + 0.5}, "from -1 .* not from 0 to 1"),
        ({"x": np.full_like(floats, np.nan)}, "not from nan"),
        ({"x": digits[:4].astype(int)}, "int64.*uint8"),
        ({"x": digits[:4], "y": digits[:4]}, r"2 arrays \(x, y\)"),
        ({"labels": np.arange(4)}, "0 arrays"),
        ({"x": np.array([Hostile()])}, "allow_pickle"),
    ]:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path / 'bad.npz'}.*{what}"):
            image_source(str(tmp_path / "bad.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4")
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be read as"):
        image_source(str(tmp_path / "bad.npz"))


def test_a_set_is_scored_alike_however_it_comes(digits, tmp_path, lines):
    """A folder, class folders, 8-bit and float arrays: the same values, and each line says what was read."""
    folder, classes = save(tmp_path / "flat", digits[:40]), tmp_path / "classes"
    classes.mkdir()
    for start in (0, 20):
        save(classes / f"class {start}", digits[start : start + 20], "{:02}.bmp")
    np.save(tmp_path / "x.npy", digits[:40])
    np.savez(tmp_path / "x.npz", images=np.float32(digits[:40, None]) / 127.5 - 1)
    scores = []
    for source in (folder, classes, tmp_path / "x.npy", tmp_path / "x.npz"):
        generated, *found = lines("mnist", source, "--features", "digits")[-3:]
        assert generated.startswith(f"generated: 40 images in {source}") and "40 images)" in found[0]
        scores.append(values(found))
    np.testing.assert_allclose(scores, scores[:1] * 4, rtol=1e-4, atol=1e-5)


def test_mnist_is_measured_once(digits, tmp_path, lines, monkeypatch):
    """The second time its features are there; a damaged file is replaced, one that cannot be written is no obstacle."""
    seen, read = [], fid.digit_classifier.read_labels
    monkeypatch.setattr(fid.digit_classifier, "read_labels", lambda *args: seen.append(len(args[1])) or read(*args))
    command = "mnist", save(tmp_path / "set", digits[:20]), "--features", "digits", "--batch_size", "500"
    first = lines(*command)
    assert first[0] == "real: 1000 images, MNIST's test set, prepared at 32 x 32" and seen == [500, 500, 20]
    (kept,) = tmp_path.glob("features-*.npy")
    second = lines(*command)
    assert seen == [500, 500, 20, 20] and str(kept) in second[1] and second[2:] == first[1:]
    kept.write_bytes(kept.read_bytes()[:1000])
    assert lines(*command) == first and lines(*command) == second
    monkeypatch.setattr(jt.compiler, "ck_path", str(tmp_path / "nowhere"))
    scored = lines(*command)
    assert "cannot be kept" in scored[1] and scored[2:] == first[1:]


@pytest.mark.parametrize("kind", ["digits", slow("inception")])
def test_statistics_are_kept_and_give_the_same_value(digits, tmp_path, lines, inception_file, kind):
    folder, other = save(tmp_path / "a", digits[:6]), save(tmp_path / "b", digits[6:10])
    features = ["--features", "digits"] if kind == "digits" else ["--inception_weights", inception_file]
    file, alone = tmp_path / "stats.npz", tmp_path / "alone.npz"
    real, wrote, _, value, kid = lines(folder, other, *features, "--save_stats", file)
    assert wrote == f"wrote {file}" and value.endswith("(6 and 4 images)") and kid.startswith("KID: ")
    said, _, again, left_out = lines(file, other, *features)
    assert said == f"real: statistics of 6 images in {file}" and again == value and "left out" in left_out
    assert lines(file, file, *features)[2] == "FID: 0.0000 (6 and 6 images)"
    assert lines(folder, *features, "--save_stats", alone) == [real, f"wrote {alone}"]
    with np.load(file) as one, np.load(alone) as two:
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
        assert one["weights"] == sha256(inception_file if kind == "inception" else WEIGHTS)


def test_statistics_that_do_not_fit_are_refused(digits, tmp_path, refuses):
    folder, rng = save(tmp_path / "images", digits[:2]), np.random.default_rng(0)
    own = tmp_path / "own.npz"

    def check(*args, names):
        refuses(*args, names=names, program=fid.parse_flags)

    save_statistics(own, rng.normal(size=(9, 128)), features="digits", weights="abc", size=0)
    check(own, folder, names=["own.npz", "--features digits"])
    check(own, folder, "--features", "digits", names=["own.npz", "SHA-256 abc", sha256(WEIGHTS)])
    check(folder, folder, "--features", "digits", "--save_stats", own, names=["--save_stats", "exists already"])
    check(folder, folder, "--save_stats", tmp_path / "no/x.npz", names=["--save_stats", "is not a folder"])
    check(folder, folder, "--save_stats", "x", names=["--save_stats", ".npz"])
    check(own, "--features", "digits", "--save_stats", "x.npz", names=["--save_stats", "already"])
    check(folder, names=["generated", "--save_stats"])
    good = read_npz(own)
    for change, what in [
        ({"mean": good["mean"][:5]}, r"\(5,\) and \(128, 128\)"),
        ({"mean": good["mean"] * np.nan}, "finite"),
        ({"covariance": np.triu(good["covariance"])}, "symmetric"),
        ({"covariance": good["covariance"] - np.eye(128)}, "negative variance"),
        ({"count": 1}, "does not say which images"),
        ({"features": "pixels"}, "does not say which images"),
        ({"weights": np.array([1, 2])}, "does not say which images"),
    ]:
        np.savez(tmp_path / "bad.npz", **{**good, **change})
        with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path / 'bad.npz'}.*{what}"):
            image_source(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "pytorch_fid.npz", mu=np.zeros(64), sigma=np.eye(64))  # --dims 64
    check(tmp_path / "pytorch_fid.npz", folder, names=["64 features an image", "2048"])


@pytest.mark.slow
def test_pytorch_fids_own_statistics_are_read(tmp_path, lines):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 60, 2048))
    for name, values in (("a", a), ("b", b)):
        np.savez(tmp_path / f"{name}.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    real, _, value, _ = lines(tmp_path / "a.npz", tmp_path / "b.npz")
    assert "unknown weights and an unknown number of images" in real and "original" in real
    assert value == f"FID: {fid.frechet_distance(a, b):.4f} (unknown and unknown images)"


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, kind, **options)
    return file.getvalue()


KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged(*map(encoded, KINDS), encoded("JPEG", progressive=True)))
def test_whatever_a_file_holds_it_is_read_or_refused(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            assert open_image(file.name).convert("RGB").size
        except ValueError as error:
            assert file.name in str(error)
