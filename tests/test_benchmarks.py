"""The speed benchmark's loops train; what they take is not tested."""

import itertools

import pytest

import cgan
from benchmarks import epoch_time

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("changes", range(len(epoch_time.CHANGES) + 1))
def test_the_plain_loop_with_its_changes(monkeypatch, changes):
    for name in ("Sequential", "Tanh"):
        monkeypatch.setattr(cgan, name, getattr(cgan, name))  # is put back afterwards
    monkeypatch.setattr(
        epoch_time, "time_epochs", lambda train, batches, *_: train(itertools.islice(batches(), 3)) or "trained"
    )
    assert epoch_time.plain(changes) == "trained"
