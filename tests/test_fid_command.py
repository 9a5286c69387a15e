"""fid.py as a command, on folders of real digits, of noise, and of what is no image."""

import argparse
import io
import os
import re
import struct
import tempfile
import zlib

import numpy as np
import pytest
from conftest import refused, run
from damage import damaged
from hypothesis import given, settings
from PIL import Image

import fid
from support.images import image_source, open_image
from support.mnist import load_mnist

SCRIPT = fid.__file__


def save(folder, images, name="{}.png"):
    """Writes images (N, ...) uint8 as files; returns the folder."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(i))
    return folder


def scores(*args):
    process = run(SCRIPT, *args)
    assert process.returncode == 0, process.stderr
    return [float(x) for x in re.findall(r"[FK]ID: (-?[\d.]+)", process.stdout)]


@pytest.fixture(scope="module")
def digits():
    """1,000 real training digits, 32 x 32 uint8."""
    images, _ = load_mnist(train=True).arrays()
    return ((images[:1000, 0] + 1) * 127.5).round().astype(np.uint8)


@pytest.mark.slow
def test_real_digits_are_near_the_floor_and_noise_far_away(digits, tmp_path):
    real, _ = scores("mnist", save(tmp_path / "real", digits), "--features", "digits")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 40, 30, 3), dtype=np.uint8)  # colour, another size
    far, _ = scores("mnist", save(tmp_path / "noise", noise, "{}.PNG"), "--features", "digits")
    assert real < 10 and far > 100 * real
    shuffled = save(tmp_path / "shuffled", digits[np.random.default_rng(0).permutation(1000)])
    again, _ = scores("mnist", shuffled, "--features", "digits", "--batch_size", "7")
    assert again == pytest.approx(real, rel=1e-4)


@pytest.mark.slow
def test_inception_features_of_folders_with_mixed_sizes(digits, tmp_path, inception_file):
    folder = save(tmp_path / "gray", digits[:4])
    Image.fromarray(np.repeat(digits[4][..., None], 3, axis=2)).resize((64, 48)).save(folder / "colour.jpg")
    score, _ = scores(folder, folder, "--inception_weights", inception_file)
    assert score == pytest.approx(0, abs=1e-3)
    other, _ = scores(folder, save(tmp_path / "other", digits[5:10]), "--inception_weights", inception_file)
    assert other > 0.01


def test_bad_sources(digits, tmp_path):
    folder = save(tmp_path / "images", digits[:2])
    (folder / "broken.jpg").write_bytes(b"no image")
    single = save(tmp_path / "single", digits[:1])
    for source, names in [("nowhere", ["nowhere"]), (single, ["at least 2", "holds 1"]), (folder, ["broken.jpg"])]:
        refused(tmp_path, SCRIPT, "mnist", source, "--features", "digits", names=["argument generated", *names])
    refused(tmp_path, SCRIPT, "mnist", "mnist", "--features", "pixels", names=["--features", "inception"])


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
        for orientation, turned in ((6, np.rot90(pixels)), (3, np.rot90(pixels, 2)), (2, pixels[:, ::-1])):
            exif = Image.Exif()
            exif[0x0112] = orientation
            assert same(saved(path, np.ascontiguousarray(turned), exif=exif.tobytes()))
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
        (lambda: image.convert("CMYK").save(path, "JPEG"), "CMYK"),
        (lambda: image.save(path, "GIF"), "PNG or JPEG"),
        (lambda: path.write_bytes(b""), "PNG or JPEG"),
    ]:
        write()
        with pytest.raises(argparse.ArgumentTypeError, match=f"{re.escape(str(path))}.*{what}"):
            image_source(str(folder))
    refused(tmp_path, SCRIPT, "mnist", folder, "--features", "digits", names=["argument generated", "strange.png"])
    os.remove(path)
    assert len(image_source(str(folder))) == 2


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, kind, **options)
    return file.getvalue()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged(encoded("PNG"), encoded("JPEG"), encoded("JPEG", progressive=True)))
def test_whatever_a_file_holds_it_is_read_or_refused(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            assert open_image(file.name).convert("RGB").size
        except ValueError as error:
            assert file.name in str(error)
