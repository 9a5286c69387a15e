"""The speed benchmark's loops train; what they take is not tested."""

import itertools

import pytest

import cgan
from benchmarks import epoch_time, step_profile

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("changes", range(len(epoch_time.CHANGES) + 1))
def test_the_plain_loop_with_its_changes(monkeypatch, changes):
    for name in ("Sequential", "Tanh"):
        monkeypatch.setattr(cgan, name, getattr(cgan, name))  # is put back afterwards

    def few_steps(train, batches):
        return train(itertools.islice(batches(), 3)) or "trained"

    assert epoch_time.plain(changes, few_steps) == "trained"


def test_the_profile_names_the_operators_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(epoch_time, "WARM_UP", 3)
    monkeypatch.setattr(step_profile, "STEPS", 5)
    step_profile.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    counts = {name.strip("| "): count for name, count, *_ in rows}
    assert counts["Generator: forward"] == counts["Generator: backward"] == "1"
    assert counts["Discriminator: forward"] == counts["Discriminator: backward_weights"] == "2"
    assert sum(name.startswith("Adam") for name in counts) == 2
