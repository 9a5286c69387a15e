"""The benchmarks' loops train what they say; what they take is not tested."""

import itertools
import json
import os
import shutil
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from conftest import read_npz, run

import cgan
from benchmarks import common, jittor_rows, plain, timing
from support.device import nn
from support.fast.adam import Adam
from support.saved.paths import BEST_GENERATOR


@pytest.fixture(autouse=True)
def layers_are_put_back(monkeypatch):
    for name in plain.JITTORS_OWN:
        monkeypatch.setattr(cgan, name, getattr(cgan, name))


@pytest.mark.slow
@pytest.mark.parametrize("changes", range(len(timing.CHANGES) + 1))
def test_the_plain_loop_with_its_changes(changes):
    train, dataloader = jittor_rows.training(changes)
    assert cgan.Adam is (nn.Adam if changes < 2 else Adam)
    assert (type(cgan.make_generator(cgan.parse_flags([])).model) is plain.Sequential) == (changes < 3)
    train(itertools.islice(dataloader, 3))


@pytest.mark.slow
def test_the_profile_names_the_operators_of_a_step(monkeypatch, capsys):
    monkeypatch.setattr(jittor_rows, "WARM_UP", 3)
    monkeypatch.setattr(jittor_rows, "PROFILED", 5)
    jittor_rows.profile(keep=False)
    rows = [line.split(" | ") for line in capsys.readouterr().out.rstrip().splitlines()[2:]]
    counts = {name.strip("| "): count for name, count, *_ in rows}
    assert [counts[name] for name in jittor_rows.OPERATORS.values()] == ["4", "4", "2", "4", "2"]


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
    np.savez(path, **{**read_npz(BEST_GENERATOR), "data": "of other images"})
    common.check_generator(BEST_GENERATOR)
    with pytest.raises(ValueError, match=f"{path} was not trained on MNIST's digits"):
        common.check_generator(path)


def test_peers_need_no_more_than_numpy():
    """PyTorch's and JAX's environment holds little else."""
    code = "import benchmarks.peer_rows, sys; print({'PIL', 'scipy', 'tqdm', 'jittor'} & {*sys.modules})"
    assert run("-c", code).stdout == "set()\n"


def test_a_wide_generators_hidden_layers_are_wide():
    opt = cgan.parse_flags([])
    sizes = [layer.weight.shape for layer in jittor_rows.wide_generator(3, opt).model if hasattr(layer, "weight")]
    assert sizes == [[384, 110], [768, 384], [768], [1536, 768], [1536], [3072, 1536], [3072], [1024, 3072]]
    assert cgan.generate(jittor_rows.wide_generator(2, opt), np.zeros((2, 100)), np.arange(2)).shape == (2, 1, 32, 32)


ROW = """import json, os, sys
from benchmarks.timing import answers
answer = answers()
print("not an answer")
_, row, folder = sys.argv
found = {"row": json.loads(row), "folder": folder, "env": {**os.environ}}
answer({**found, "cores": len(os.sched_getaffinity(0))})
answer({})
for i in range(9):
    answer({"ms a step": 5 + i})"""


def rounds_of(groups, starts, turns, monkeypatch):
    monkeypatch.setattr(timing, "JITTOR_ROWS", [sys.executable, "-c", ROW])
    return timing.Rounds(groups, Namespace(starts=starts, turns=turns, peers=None))


def test_a_rows_process_gets_what_it_may_use(monkeypatch):
    alone, both = timing.Row("cgan", 1, batch_size=32), timing.Row("floor", avx512=False, at_once=2)
    rounds = rounds_of([[alone], [both]], 2, 2, monkeypatch)
    found = rounds.environments["cgan"]
    assert found["cores"] == 1 and found["env"]["OMP_NUM_THREADS"] == "1" and found["row"]["batch_size"] == 32
    assert "cc_flags" not in found["env"]
    found = rounds.environments["floor"]
    assert found["cores"] == len(os.sched_getaffinity(0)) and timing.WITHOUT_AVX512.items() <= found["env"].items()
    assert found["env"]["PYTHONPATH"] == found["folder"]
    found = [[found[row][timing.BOTH] for found in rounds.rounds] for row in (alone, both)]
    assert found == [[10, 12, 10, 12], [5, 6, 5, 6]]


def test_in_every_round_each_row_of_a_group_has_its_turn(monkeypatch):
    log, ask = [], timing.ask
    monkeypatch.setattr(timing, "ask", lambda row, processes: log.append(row) or ask(row, processes))
    one, other, third, alone = (timing.Row(str(i)) for i in range(4))
    rounds_of(iter([iter([one, other, third]), [alone]]), 2, 2, monkeypatch)
    warm_up = [one, other, third]
    assert log[:9] == [*warm_up, one, other, third, one, third, other]
    assert log[12:21] == [*warm_up, third, one, other, third, other, one]
    assert log[9:12] == log[21:] == [alone] * 3


def test_a_row_that_ends_ends_the_benchmark(monkeypatch):
    with pytest.raises(SystemExit, match="has ended"):
        rounds_of([[timing.Row("0")]], 1, 10, monkeypatch)


def test_ratios_are_within_a_round(monkeypatch):
    ours, jax = timing.Row("cgan"), timing.Row("1")
    rounds = rounds_of([[ours, jax]], 1, 3, monkeypatch)
    for found, times in zip(rounds.rounds, [(2, 1), (30, 60), (7, 10)]):
        found.update(zip((ours, jax), ({timing.STEP: ms} for ms in times)))
    assert rounds.median(ours, timing.STEP) == 7 and rounds.ratio(ours, jax, timing.STEP) == "0.70"
    assert rounds.ratio(ours, jax, timing.STEP, span=True) == "0.70 (0.60 to 1.35)"
    assert rounds.facts()["steps"][1]["ms a step"] == [1, 60, 10]


def test_the_first_epoch_of_the_program_is_not_counted(monkeypatch):
    """Its grid, and kernels that are compiled, would count otherwise; a whole epoch has its checkpoint too."""
    saves, answered = [], []
    save = jittor_rows.run.Run.save

    def save_slowly(self, layers):
        time.sleep(0.2)
        saves.append(save(self, layers))

    def answer(found):
        answered.append((len(saves), found))
        if len(answered) == 3:
            raise KeyboardInterrupt

    for name in ("epochs", "batches"):
        monkeypatch.setattr(jittor_rows.run.Run, name, getattr(jittor_rows.run.Run, name))
    monkeypatch.setattr(jittor_rows.run.Run, "save", save_slowly)
    monkeypatch.setattr(cgan, "make_generator", cgan.make_generator)
    with pytest.raises(KeyboardInterrupt):
        jittor_rows.whole_program(timing.Row("cgan", steps=3), answer)
    assert answered[0] == (1, {}) and [n for n, _ in answered] == [1, 2, 3]
    for _, turn in answered[1:]:
        assert turn[timing.SECONDS] > 0.2 + 3 * turn[timing.STEP] / 1000


@pytest.mark.parametrize("name", ["accuracy_score", "compare", "epoch_time", "few_images", "variety"])
def test_flags_are_parsed(name):
    process = run("-m", f"benchmarks.{name}", "--help")
    assert process.returncode == 0 and "usage" in process.stdout, process.stderr


def test_variety_measures_one_thing_at_a_time():
    process = run("-m", "benchmarks.variety", "--noise", "--runs", "compared")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.splitlines()[-1].endswith("--runs, --noise and --picture cannot be given together")


def test_jaxlib_without_avx512(tmp_path, monkeypatch):
    (tmp_path / "site" / "jaxlib").mkdir(parents=True)
    (tmp_path / "site" / "jaxlib" / "__init__.py").touch()
    (tmp_path / "site" / "jaxlib" / "x.so").write_bytes(b"before\x31\xc9\x0f\x01\xd0after")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    timing.copy_jaxlib(sys.executable, str(tmp_path))
    assert (tmp_path / "jaxlib" / "x.so").read_bytes() == b"before\xb8\x07\x00\x00\x00after"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="in another way"):
        timing.copy_jaxlib(sys.executable, str(tmp_path / "again"))
