"""Variety and copying: each figure against its definition written out."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from benchmarks import variety


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 6)), 0.5 * rng.standard_normal((200, 6)) + 0.3


def test_figures_are_their_definitions(monkeypatch, features):
    monkeypatch.setattr(variety, "CHUNK", 70)
    real, generated = features

    def balls(points, centres, k):
        to_neighbour = np.sort(cdist(centres, centres), axis=1)[:, k]
        return cdist(points, centres) <= to_neighbour

    figures = variety.variety(real, generated)
    assert figures == pytest.approx(
        {
            "precision": balls(generated, real, 3).any(1).mean(),
            "recall": balls(real, generated, 3).any(1).mean(),
            "density": balls(generated, real, 5).sum() / 5 / len(generated),
            "coverage": balls(generated, real, 5).any(0).mean(),
        }
    )
    assert figures["recall"] < figures["precision"]  # the generated ones lie closer together than the real ones


def test_a_copy_is_found(monkeypatch, features):
    monkeypatch.setattr(variety, "CHUNK", 70)
    training, other = features
    numbers, distances = variety.nearest(np.concatenate([training[40:43], other]), training)
    assert numbers[:3].tolist() == [40, 41, 42] and distances[:3] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(distances[3:], cdist(other, training).min(1))
