"""fid.py as a command, on folders of real digits, of noise, and of what is no image."""

import re

import numpy as np
import pytest
from conftest import run
from PIL import Image
from test_bad_input import refused

import fid
from support import digit_classifier

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
    images, _ = digit_classifier.mnist_images(train=True)
    return ((images[:1000, 0] + 1) * 127.5).round().astype(np.uint8)


def test_real_digits_are_near_the_floor_and_noise_far_away(digits, tmp_path):
    real, _ = scores("mnist", save(tmp_path / "real", digits), "--features", "digits")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 40, 30, 3), dtype=np.uint8)  # colour, another size
    far, _ = scores("mnist", save(tmp_path / "noise", noise, "{}.PNG"), "--features", "digits")
    assert real < 10 and far > 100 * real
    shuffled = save(tmp_path / "shuffled", digits[np.random.default_rng(0).permutation(1000)])
    again, _ = scores("mnist", shuffled, "--features", "digits", "--batch_size", "7")
    assert again == pytest.approx(real, rel=1e-4)


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
