"""The digit classifier reads real digits, and its features tell digits from other images."""

import re

import numpy as np
import pytest
from conftest import ROOT

import fid
from support import digit_classifier
from support.mnist import load_mnist


@pytest.fixture(scope="module")
def classifier():
    return digit_classifier.load()


@pytest.fixture(scope="module")
def test_set(classifier):
    images, labels = load_mnist(train=False).arrays()
    features, digits = digit_classifier.read_digits(classifier, images)
    return images, labels, features, digits


def test_reads_the_test_set(test_set):
    _, labels, _, digits = test_set
    assert (digits == labels).mean() >= 0.992
    assert (ROOT / "support" / "digit_classifier.npz").stat().st_size < 1.5e6


@pytest.mark.slow
def test_floor_is_what_the_documentation_says(classifier, test_set):
    """Real training images against the test images: what a perfect generator would score."""
    images, labels = load_mnist(train=True).arrays()
    features, digits = digit_classifier.read_digits(classifier, images[:10000])
    floor = f"{(digits == labels[:10000]).mean():.4f}", f"{fid.frechet_distance(features, test_set[2]):.2f}"
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    row = re.search(r"\| real training digits \| ([\d.]+) \| ([\d.]+) \|", page)
    assert [float(x) for x in row.groups()] == pytest.approx([float(x) for x in floor], rel=0.02)


def test_features_tell_noise_from_digits(classifier, test_set):
    _, _, real, _ = test_set
    noise = np.random.default_rng(0).uniform(-1, 1, (2000, 1, 32, 32)).astype(np.float32)
    features, _ = digit_classifier.read_digits(classifier, noise)
    half = fid.frechet_distance(real[:5000], real[5000:])
    assert fid.frechet_distance(features, real) > 100 * half
    assert features.shape == (2000, 128) and features.min() >= 0


def test_batch_size_and_image_size(classifier, test_set):
    images, labels, features, _ = test_set
    again, _ = digit_classifier.read_digits(classifier, images[:100], batch_size=7)
    np.testing.assert_allclose(again, features[:100], rtol=1e-4, atol=1e-4)
    double = images[:100].repeat(2, axis=2).repeat(2, axis=3)
    assert (digit_classifier.read_digits(classifier, double)[1] == labels[:100]).mean() > 0.95
