"""FID against independent computations: scipy's matrix square root, torchvision's features."""

import json

import numpy as np
import pytest
from conftest import REFERENCE, run
from scipy.linalg import sqrtm

import fid
from support.device import jt


def sqrtm_distance(a, b):
    """The formula as it is printed in Heusel et al. 2017."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariance_a + covariance_b - 2 * root)


@pytest.mark.parametrize("n, m, d", [(500, 500, 64), (500, 300, 64), (50, 500, 64), (70, 65, 64)])
def test_frechet_distance_equals_sqrtm(n, m, d):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d))
    a, b = rng.normal(size=(n, d)) @ mix, rng.normal(0.1, 1.2, (m, d)) @ mix
    assert fid.frechet_distance(a, b) == pytest.approx(sqrtm_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("n, d", [(500, 64), (100, 2048)])
def test_frechet_distance_of_equal_sets_is_zero(n, d):
    a = np.random.default_rng(0).normal(size=(n, d))
    assert 0 <= fid.frechet_distance(a, a.copy()) < 1e-6


def test_frechet_distance_squares_the_mean_difference():
    a = np.random.default_rng(0).normal(size=(500, 64))
    assert fid.frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.5**2, rel=1e-9)


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


def test_fid_depends_on_the_sample_count_and_kid_does_not():
    """Two sets from one distribution, whose true distance is 0."""
    rng = np.random.default_rng(0)
    scores = {}
    for n in (50, 800):
        pairs = [rng.normal(size=(2, n, 64)) for _ in range(20)]
        fids = [fid.frechet_distance(*pair) for pair in pairs]
        kids = [fid.kernel_distance(*pair) for pair in pairs]
        scores[n] = np.mean(fids), np.mean(kids), np.std(kids) / np.sqrt(len(kids))
    assert scores[50][0] > 5 * scores[800][0]
    for _, kid, error in scores.values():
        assert abs(kid) < 4 * error


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
    with np.load(REFERENCE / "inception_pool3_seed1.npz") as file:
        return dict(file)


def test_inception_features_equal_torchvisions(reference, inception_weights, inception_file):
    features = fid.inception_features(reference["images"], inception_weights)
    assert features.shape == (8, 2048) and features.dtype == np.float32
    assert np.abs(features - reference["pool3"]).max() < 1e-4 * np.abs(reference["pool3"]).max()
    np.testing.assert_allclose(features, reference["pool3"], rtol=1e-4, atol=1e-4 * reference["pool3"].mean())
    three_channels = np.repeat(reference["images"], 3, axis=1)
    in_batches = fid.inception_features(jt.array(three_channels), str(inception_file), batch_size=3)
    np.testing.assert_allclose(in_batches, features, rtol=1e-4, atol=1e-5)


def test_inception_features_refuse_other_shapes(inception_weights):
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        fid.inception_features(np.zeros((2, 4, 8, 8)), inception_weights)


def test_inception_features_refuse_other_weights():
    with pytest.raises(ValueError, match="is missing"):
        fid.inception_features(np.zeros((2, 1, 8, 8)), {"weight": np.zeros(3)})


def test_without_a_network_training_says_so_once_and_goes_on(tmp_path):
    """No network: a proxy that refuses every connection."""
    process = run(
        *"cgan.py --n_epochs 1 --max_batches 2 --fid_interval 1 --output_dir".split(),
        tmp_path,
        https_proxy="http://127.0.0.1:9",
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("FID is left out") == 1 and "--inception_weights" in process.stdout
    (evaluation,) = json.loads((tmp_path / "results" / "log.json").read_text())["evaluations"]
    assert (evaluation["fid"], evaluation["kid"], evaluation["fid_samples"]) == (None, None, 100)
    assert evaluation["digit_fid"] > 0 and 0 <= evaluation["label_accuracy"] <= 1
