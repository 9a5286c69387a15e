"""Variety and copying: each metric against its definition written out."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from benchmarks import variety


@pytest.fixture
def features(monkeypatch):
    monkeypatch.setattr(variety, "CHUNK", 70)
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 6)), 0.5 * rng.standard_normal((200, 6)) + 0.3


def test_metrics_are_their_definitions(features):
    real, generated = features

    def balls(points, centres, k):
        to_neighbour = np.sort(cdist(centres, centres), axis=1)[:, k]
        return cdist(points, centres) <= to_neighbour

    metrics = variety.variety(real, generated)
    assert metrics == pytest.approx(
        {
            "precision": balls(generated, real, 3).any(1).mean(),
            "recall": balls(real, generated, 3).any(1).mean(),
            "density": balls(generated, real, 5).sum() / 5 / len(generated),
            "coverage": balls(generated, real, 5).any(0).mean(),
        }
    )
    assert metrics["recall"] < metrics["precision"]  # the generated ones lie closer together than the real ones


def test_a_copy_is_found(features):
    training, other = features
    numbers, distances = variety.nearest(np.concatenate([training[40:43], other]), training)
    assert numbers[:3].tolist() == [40, 41, 42] and distances[:3] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(distances[3:], cdist(other, training).min(1))
