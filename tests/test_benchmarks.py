"""The benchmarks' loops train what they say; what they take is not tested."""

import itertools
import json
import shutil

import numpy as np
import pytest

import cgan
from benchmarks import common, epoch_time, jittor_rows, plain
from support.device import nn
from support.fast.adam import Adam
from support.saved.paths import BEST_GENERATOR


@pytest.fixture(autouse=True)
def layers_are_put_back(monkeypatch):
    for name in plain.JITTORS_OWN:
        monkeypatch.setattr(cgan, name, getattr(cgan, name))


@pytest.mark.slow
@pytest.mark.parametrize("changes", range(len(epoch_time.CHANGES) + 1))
def test_the_plain_loop_with_its_changes(changes):
    train, dataloader = jittor_rows.training(changes)
    assert cgan.Adam is (nn.Adam if changes < 2 else Adam)
    assert (type(cgan.make_generator(cgan.parse_flags([])).model) is plain.Sequential) == (changes < 3)
    train(itertools.islice(dataloader, 3))


@pytest.mark.slow
def test_the_profile_names_the_operators_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(jittor_rows, "WARM_UP", 3)
    monkeypatch.setattr(jittor_rows, "PROFILED", 5)
    jittor_rows.profile()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    counts = {name.strip("| "): count for name, count, *_ in rows}
    assert counts["Generator: forward"] == counts["Generator: backward"] == "1"
    assert counts["Discriminator: forward"] == "3" and counts["Discriminator: backward_weights"] == "2"
    assert sum(name.startswith("Adam") for name in counts) == 2


def test_plain_is_jittors_own(monkeypatch, tmp_path):
    """Layers and optimizer; only concatenation is this project's."""
    seen = {}
    monkeypatch.setattr(cgan, "train", lambda opt: seen.update(model=cgan.Generator(4, 3, 5).model, adam=cgan.Adam))
    monkeypatch.setattr(plain, "start_run", lambda opt: None)
    monkeypatch.setattr("sys.argv", ["plain", "--output_dir", str(tmp_path)])
    plain.main()
    assert {type(layer) for layer in seen["model"]} == {nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Tanh}
    assert type(seen["model"]) is plain.Sequential and seen["adam"] is nn.Adam


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_kept_table_says_where_it_comes_from(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "KEPT", str(tmp_path / "tables"))
    monkeypatch.setattr("sys.argv", ["benchmarks/variety.py", "--keep"])
    for keep in (False, True):
        assert not (tmp_path / "tables").exists()
        common.show(keep, "variety", ["", "recall"], [["real", "0.9"]])
    kept = json.loads((tmp_path / "tables" / "variety.json").read_text())
    assert kept["command"] == "python -m benchmarks.variety --keep" and {"commit", "machine", "date"} < set(kept)
    assert capsys.readouterr().out == f"{common.markdown(kept['head'], kept['rows'])}\n\n" * 2


def test_a_generator_of_other_images_is_refused(tmp_path):
    """MNIST's digits would say nothing of it."""
    path = tmp_path / "generator.npz"
    with np.load(BEST_GENERATOR) as file:
        np.savez(path, **{**file, "data": "of other images"})
    common.check_generator(BEST_GENERATOR)
    with pytest.raises(ValueError, match=f"{path} was not trained on MNIST's digits"):
        common.check_generator(path)
