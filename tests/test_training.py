"""Training: the report's order of steps, and what a run leaves on disk."""

import csv
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import MNIST, ROOT, done, ended, read_log, read_npz, run, started, tiles, train
from PIL import Image

import cgan
from benchmarks.plain import Sequential
from support import evaluation, idx
from support.device import jt, set_seed
from support.pages.networks import describe_layers
from support.runs import run as run_module
from support.runs.run import Run
from support.saved.classifier import WEIGHTS
from support.saved.log import table_of
from support.saved.paths import BEST_GENERATOR


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Trains 3 batches of the real loop, watched: what every step was given, moved and computed."""
    networks, drawn, steps, calls, recorded, batches = {}, [], [], [], [], []

    def parameters():
        return {(name, i): p.numpy().copy() for name, net in networks.items() for i, p in enumerate(net.parameters())}

    class WatchedAdam(cgan.Adam):
        def step(self, loss=None, retain_graph=False):
            before, value = parameters(), loss.item()
            super().step(loss, retain_graph)
            moved = {name for (name, i), p in parameters().items() if (p != before[name, i]).any()}
            steps.append((moved, value, (self.lr, self.betas)))
            calls.append(("step", *moved))

    class WatchedRun(cgan.Run):
        def batches(self, dataloader):
            for images, labels in super().batches(dataloader):
                batches.append((images.numpy(), labels.numpy()))
                yield images, labels

        def record(self, **losses):
            super().record(**losses)
            recorded.append(self.recorded[-1])

    def watch(kind):
        class Watched(getattr(cgan, kind)):
            def __init__(self, *args):
                super().__init__(*args)
                networks[kind] = self

            def execute(self, *inputs):
                output = super().execute(*inputs)
                gradient = [jt.grad(inputs[0].sum(), images, retain_graph=True) for images in drawn[-1:]]
                calls.append((kind, [x.numpy() for x in inputs], output.numpy(), *[g.numpy().any() for g in gradient]))
                if kind == "Generator":
                    drawn.append(output)
                return output

        return Watched

    def evaluation_of(dataset, opt, draw, fid, real_above):
        assert (draw, fid, real_above) == (cgan.generate, cgan.fid, cgan.REAL_ABOVE)
        return lambda *_: {}

    for kind in ("Generator", "Discriminator"):
        monkeypatch.setattr(cgan, kind, watch(kind))
    monkeypatch.setattr(cgan, "Adam", WatchedAdam)
    monkeypatch.setattr(cgan, "Run", WatchedRun)
    monkeypatch.setattr(cgan, "save_samples", lambda *_: None)
    monkeypatch.setattr(cgan, "Evaluation", evaluation_of)
    flags = "--n_epochs 1 --max_batches 3 --sample_interval 1000 --lr 0.001 --lr_d 0.002 --b1 0.3 --b2 0.9".split()
    return steps, calls, recorded, batches, train(tmp_path, *flags)


def test_a_batch_is_the_reports_step(watched):
    """Report, section "one step": who is called on what, in which order, which loss moves which network."""
    steps, calls, recorded, batches, log = watched
    assert [moved for moved, _, _ in steps] == [{"Generator"}, {"Discriminator"}] * 3
    assert [settings for _, _, settings in steps] == [(0.001, (0.3, 0.9)), (0.002, (0.3, 0.9))] * 3
    order = ["Generator", "Discriminator", "step", "Discriminator", "Discriminator", "step"]
    assert [kind for kind, *_ in calls[:18]] == order * 3
    for batch in range(3):
        (_, (noise, asked), drawn, *_), generated, _, real, again, _ = calls[6 * batch : 6 * batch + 6]
        assert noise.shape == (64, 100) and asked.min() >= 0 and asked.max() <= 9
        for found in (generated, again):
            np.testing.assert_array_equal(found[1][0], drawn)
            np.testing.assert_array_equal(found[1][1], asked)
        assert generated[3] and not again[3]  # the second look is at images without gradient
        for found, given in zip(real[1], batches[batch]):
            np.testing.assert_array_equal(found, given)
        g_loss = np.mean((generated[2] - 1) ** 2)
        real_loss, fake_loss = np.mean((real[2] - 1) ** 2), np.mean(again[2] ** 2)
        d_loss = (real_loss + fake_loss) / 2
        assert abs(real_loss - fake_loss) > 1e-3
        assert [value for _, value, _ in steps[2 * batch : 2 * batch + 2]] == pytest.approx([g_loss, d_loss], rel=1e-5)
        assert recorded[batch] == pytest.approx({"d_loss": d_loss, "g_loss": g_loss}, rel=1e-5)
    noise, asked = (np.concatenate([calls[6 * batch][1][i] for batch in range(3)]) for i in (0, 1))
    assert abs(noise.mean()) < 0.04 and abs(noise.std() - 1) < 0.03  # of 19,200 numbers: 5 standard errors
    assert set(asked) == set(range(10))
    (row,) = log["epochs"]
    for name in ("d_loss", "g_loss"):
        values = [losses[name] for losses in recorded]
        assert (row[name], row[f"{name}_last"]) == pytest.approx((np.mean(values), values[-1]))


@pytest.mark.parametrize("order", ["GD", "DG"])
def test_losses_computed_before_both_steps_train_what_they_do_with_jittors_own(monkeypatch, order):
    """Whichever step comes first: the other's gradient is that of the weights its loss was computed from."""
    rng = np.random.default_rng(0)
    real, noise = (jt.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((16, 1, 8, 8), (16, 5)))
    labels = jt.array(np.arange(16, dtype=np.int32) % 10)

    def trained(Adam, sequential):
        monkeypatch.setattr(cgan, "FusedSequential", sequential)
        set_seed(0)
        networks = {"G": cgan.Generator(5, 10, 8), "D": cgan.Discriminator(10, 8, 32)}
        jt.sync_all()  # draws the weights now
        optimizers = {name: Adam(net.parameters(), lr=0.05, eps=1e-3) for name, net in networks.items()}
        judged = networks["D"](networks["G"](noise, labels), labels)
        g_loss, fake_loss = (cgan.adversarial_loss(judged, jt.full((16, 1), target)) for target in (1.0, 0.0))
        real_loss = cgan.adversarial_loss(networks["D"](real, labels), jt.ones((16, 1)))
        losses = {"G": g_loss, "D": (real_loss + fake_loss) / 2}
        for name in order:
            optimizers[name].step(losses[name], retain_graph=name == order[0])
        return [p.numpy() for net in networks.values() for p in net.parameters()]

    ours = trained(cgan.Adam, cgan.FusedSequential)
    for value, expected in zip(ours, trained(jt.nn.Adam, Sequential)):
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-5)


def test_everything_that_is_recorded_is_logged_whatever_its_name(monkeypatch, tmp_path, capsys):
    """Also what some batches lack, and what NumPy or Jittor computes; a score that is no number is null."""
    values = iter([{"sharpness": np.float32(2), "lr": 2e-5}, {}, {"sharpness": jt.array(4.0), "n": 7}])
    scores = {"a": np.float32(0.5), "n": np.int64(3), "b": np.nan, "d": 10**400, "classes": [0.5, 1.0]}
    scores["generator"] = {"c": -np.inf}
    step = cgan.training_step
    monkeypatch.setattr(cgan, "training_step", lambda *args: {**step(*args), **next(values)})
    monkeypatch.setattr(cgan, "Evaluation", lambda *_: lambda *_: scores)
    (row,), (evaluation_row,) = map(train(tmp_path, "--n_epochs", 1, "--max_batches", 3).get, ("epochs", "evaluations"))
    assert (row["sharpness"], row["sharpness_last"], row["n"], row["n_last"]) == (3, 4, 7, 7) and row["d_loss"] > 0
    shown = {"a": 0.5, "n": 3, "b": None, "d": None, "classes": [0.5, 1.0], "generator": {"c": None}}
    assert evaluation_row == {"epoch": 1, **shown}
    assert json.loads(str(read_npz(tmp_path / "results" / "checkpoint.npz")["log"])) == read_log(tmp_path)
    output, errors = capsys.readouterr()
    assert "[Sharpness: 2.0000] [Lr: 2.0e-05]" in output and "[a: 0.5]" in output
    assert errors.splitlines()[-1] == "epoch 1: not finite, and so null: b, d, c"


def test_several_calls_a_batch_and_an_evaluation_add_up(monkeypatch, tmp_path):
    """Grids follow the batches, not the calls; the log's own names are refused at once."""
    record, log_scores = Run.record, Run.log_scores

    def record_twice(run, **values):
        record(run, **values)
        record(run, twice=2.0)
        for name in ("epoch", "fid", "d_loss_last"):
            with pytest.raises(ValueError, match=name):
                record(run, **{name: 1.0})

    def log_twice(run, scores):
        log_scores(run, scores)
        if not scores:  # yet: its epoch is about to be saved
            return
        log_scores(run, {"weights": np.ones(2, np.float32)})
        with pytest.raises(ValueError, match="epoch"):
            log_scores(run, {"epoch": 1})

    monkeypatch.setattr(Run, "record", record_twice)
    monkeypatch.setattr(Run, "log_scores", log_twice)
    monkeypatch.setattr(cgan, "REAL_ABOVE", None)  # a loss without a border between real and generated
    log = train(tmp_path, "--n_epochs", 2, "--max_batches", 5, "--sample_interval", 2)
    assert sorted(int(path.stem) for path in (tmp_path / "images").iterdir()) == [0, 2, 4, 6, 8]
    assert [row["twice"] for row in log["epochs"]] == [2, 2]
    (evaluation_row,) = log["evaluations"]
    assert evaluation_row["weights"] == [1, 1] and evaluation_row["label_accuracy"] >= 0
    assert "d_accuracy_real" not in evaluation_row


@pytest.mark.parametrize("value, shown", [(np.inf, "inf"), (np.nan, "nan"), (2e30, "2e\\+30"), (-9e38, "-9e\\+38")])
def test_any_number_that_is_not_finite_or_far_too_large_ends_the_run(monkeypatch, tmp_path, value, shown):
    """A large one would end it later, when several are added up."""
    step, values = cgan.training_step, iter([1.0, 2.0, value])
    monkeypatch.setattr(cgan, "training_step", lambda *args: {**step(*args), "norm": next(values)})
    with pytest.raises(FloatingPointError, match=f"epoch 1, batch 2: norm is {shown}"):
        train(tmp_path, "--max_batches", 3)


def test_drawing_and_judging_leave_every_layers_mode_as_it_was():
    """Jittor's own train() would switch dropout on, which is created off."""
    generator, discriminator = cgan.Generator(3, 2, 8), cgan.Discriminator(2, 8, 16)
    generator.model[2].eval()
    layers = [layer for network in (generator, discriminator) for layer in network.modules()]
    before = [layer.is_training() for layer in layers]
    assert set(before) == {True, False}
    evaluate = evaluation.Evaluation(None, cgan.parse_flags([]), cgan.generate, cgan.fid, 0.5)
    images = cgan.generate(generator, np.zeros((4, 3)), np.zeros(4))
    evaluate.is_real(discriminator, images, np.zeros(4))
    assert [layer.is_training() for layer in layers] == before
    modes = []
    with pytest.raises(ZeroDivisionError), evaluation.evaluation_mode(generator):
        modes += [layer.is_training() for layer in generator.modules()]
        raise ZeroDivisionError
    assert not any(modes) and [layer.is_training() for layer in layers] == before


def test_run_says_what_the_report_says(finished_run):
    _, process = finished_run
    progress = re.findall(
        r"\[Epoch (\d)/2\] \[Batch (\d+)/60\] \[D loss: \d\.\d{4}\] \[G loss: \d\.\d{4}\]", process.stdout
    )
    assert progress == [("1", "0"), ("1", "50"), ("2", "0"), ("2", "50")]
    assert not re.search(r"\[[iwe] \d{4} ", process.stdout + process.stderr)  # Jittor's own log lines
    assert "left out" not in process.stdout


@pytest.mark.slow
def test_progress_bar_shows_both_losses(tmp_path):
    """In a terminal, which a file is not."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one has no width
    words = ["cgan.py", *"--n_epochs 1 --max_batches 60 --output_dir".split(), tmp_path]
    with started(*words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        assert process.wait() == 0
    os.set_blocking(ours, False)
    bar = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert re.search(r"Epoch 1/1: +\d+%\|.*\| \d+/60 \[.*D loss: \d\.\d{4}, G loss: \d\.\d{4}", bar)


@pytest.mark.slow
def test_divergence_is_one_sentence_and_keeps_nothing_broken(tmp_path):
    process = run(*"cgan.py --lr 100 --n_epochs 2 --max_batches 5 --output_dir".split(), tmp_path)
    ended(process, 1, "diverged in epoch 1", "--lr")
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".lock"]


def test_log_follows_its_contract(finished_run, inception_file):
    log = read_log(finished_run[0])
    names = {"config", "environment", "labels", "changes", "data", "epochs", "evaluations"}
    assert set(log) == names and not log["changes"] and log["labels"] == list("0123456789")
    assert log["data"] == idx.data_facts(str(MNIST)).checksums() == idx.MNIST.checksums()
    assert log["config"]["max_batches"] == 60 and log["config"]["lr_d"] is None
    assert not {"output_dir", "resume", "overwrite", "digits", "help"} & set(log["config"])
    names = "code jittor python numpy compiler device processor processes threads"
    if log["environment"]["device"] == "cuda":
        names += " gpu cuda cudnn"
    assert set(log["environment"]) == set(names.split()) and all(log["environment"].values())
    assert log["environment"]["numpy"] == np.__version__ and re.search(r"\d", log["environment"]["compiler"])
    assert [row["epoch"] for row in log["epochs"]] == [1, 2]
    assert all(0 < row["d_loss"] < 2 and 0 < row["g_loss"] < 5 and row["seconds"] > 0 for row in log["epochs"])
    assert all(row[key] != row[f"{key}_last"] for row in log["epochs"] for key in ("d_loss", "g_loss"))
    assert [(row["epoch"], row["fid_samples"]) for row in log["evaluations"]] == [(1, 3), (2, 3)]
    assert all(row["fid"] > 0 and isinstance(row["kid"], float) for row in log["evaluations"])
    of_each = np.bincount(cgan.load_data(cgan.parse_flags([]), train=False).arrays()[1])
    for row in log["evaluations"]:
        assert row["inception"] == inception_file.name
        assert row["inception_sha256"] == hashlib.sha256(inception_file.read_bytes()).hexdigest()
        assert row["classifier_sha256"] == hashlib.sha256(Path(WEIGHTS).read_bytes()).hexdigest()
        assert row["digit_fid"] > 0 and len(row["class_accuracy"]) == 10
        assert row["label_accuracy"] == pytest.approx(np.average(row["class_accuracy"], weights=of_each))
        assert 0 <= row["d_accuracy_real"] <= 1 and 0 <= row["d_accuracy_generated"] <= 1


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_log_says_which_code_ran(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "PROJECT", str(tmp_path))
    (tmp_path / "cgan.py").write_text("1")
    alone = run_module.describe_code()
    assert re.fullmatch(r"cgan.py [0-9a-f]{12}", alone)
    for words in ("init", "add .", "-c user.name=a -c user.email=a@b.c commit -m 1"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    committed = run_module.describe_code()
    (tmp_path / "notes.txt").write_text("no code")
    assert run_module.describe_code() == committed and re.fullmatch(r"[0-9a-f]{7,}", committed)
    (tmp_path / "cgan.py").write_text("2")
    changed = run_module.describe_code()
    assert re.fullmatch(rf"{committed}, changed \([0-9a-f]{{12}}\)", changed)
    (tmp_path / "cgan.py").write_text("3")
    assert run_module.describe_code() != changed
    changed = run_module.describe_code()
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "package.py").write_text("")  # an environment in the folder is no code of the run's
    assert run_module.describe_code() == changed
    (tmp_path / "我的 cgan.py").write_text("")
    assert run_module.describe_code() != changed
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "我的 cgan.py")])
    assert run_module.describe_code().endswith("), 我的 cgan.py")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "no script")])
    assert run_module.describe_code().endswith(")")


def test_whatever_fails_in_an_evaluation_is_null_with_one_sentence_and_training_goes_on(monkeypatch, tmp_path, capsys):
    """No convergence, shapes that do not fit in Jittor, a discriminator that answers with a pair, no memory."""

    def wrong_shapes(*_):
        jt.matmul(jt.ones((2, 3)), jt.ones((4, 5))).sync()

    evaluator, judge = evaluation.Evaluation, cgan.Discriminator
    diverges, too_big = (Mock(side_effect=error) for error in (np.linalg.LinAlgError("no convergence"), MemoryError()))
    failing = [  # what, how, what is null, what is said
        (evaluator, "inception_scores", diverges, "fid kid", "LinAlgError: no c"),
        (evaluator, "label_scores", wrong_shapes, "label_accuracy label_fid", "label FID and label accuracy failed"),
        (judge, "execute", lambda *inputs: inputs, "d_accuracy_generated d_accuracy_real", "discriminator's accuracy"),
        (evaluator, "score", too_big, "fid", ": the evaluation failed and is null in the log: MemoryErr"),
    ]
    call = evaluator.__call__

    def one_fails(evaluate, networks, epoch):
        with monkeypatch.context() as patch:
            patch.setattr(*failing[epoch - 1][:3])
            return call(evaluate, networks, epoch)

    monkeypatch.setattr(evaluator, "__call__", one_fails)
    monkeypatch.setattr(evaluator, "inception_scores", lambda *_: {"fid": 1.0, "kid": 2.0})
    log = train(tmp_path, "--n_epochs", len(failing), "--max_batches", 2, "--fid_interval", 1)
    sentences = [line for line in capsys.readouterr().err.splitlines() if "null in the log" in line]
    assert len(log["epochs"]) == len(log["evaluations"]) == len(failing) == len(sentences)
    for epoch, ((*_, null, said), row, sentence) in enumerate(zip(failing, log["evaluations"], sentences), 1):
        assert sorted(name for name, value in row.items() if value is None) == null.split()
        assert sentence.startswith(f"epoch {epoch}: ") and said in sentence and len(sentence) < 400


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError()])
def test_an_evaluation_that_is_to_end_the_run_does(monkeypatch, tmp_path, error):
    monkeypatch.setattr(evaluation.Evaluation, "__call__", Mock(side_effect=error))
    with pytest.raises(type(error)):
        train(tmp_path, "--n_epochs", 1, "--max_batches", 2)
    assert read_log(tmp_path)["evaluations"] == [{"epoch": 1}]


def evaluator(dataset=None, draw=cgan.generate, flags=(), real_above=0.5):
    return evaluation.Evaluation(dataset, cgan.parse_flags(list(flags)), draw, cgan.fid, real_above)


@pytest.mark.slow
def test_scores_of_an_untrained_generator(monkeypatch, inception_file):
    """Test images pass through Inception once; no score depends on which others are computed."""
    seen, features = [], cgan.fid.inception_features
    monkeypatch.setattr(cgan.fid, "inception_features", lambda x, *args: seen.append(len(x)) or features(x, *args))
    networks = {"generator": cgan.Generator(100, 10, 32), "discriminator": cgan.Discriminator(10, 32, 512)}
    images = np.linspace(-1, 1, 4 * 32 * 32, dtype=np.float32).reshape(4, 1, 32, 32)
    four = SimpleNamespace(arrays=lambda: (images, np.arange(4)))  # in place of MNIST's test set
    evaluate = evaluator(four, flags=["--inception_weights", str(inception_file), "--fid_samples", "2"])
    first, again = (evaluate(networks, epoch=3) for _ in range(2))
    assert seen == [2, 2, 2]  # two test images once, two generated ones at every evaluation
    assert first == again and first["fid"] > 0
    assert [share is None for share in first["class_accuracy"]] == [False] * 4 + [True] * 6  # no test image of these
    without = evaluator(four, flags=["--inception_weights", "none"])(networks, epoch=3)
    assert without["fid"] is None and without["kid"] is None
    for name in ("digit_fid", "label_accuracy", "class_accuracy", "d_accuracy_real", "d_accuracy_generated"):
        assert without[name] == first[name]


@pytest.mark.parametrize("real_above, share", [(0.5, 0.5), (0, 1), (0.3, 0.75)])
def test_what_counts_as_right_is_said_by_the_experiment(real_above, share):
    class Judge(jt.nn.Module):
        def execute(self, images, labels):
            return images.mean(dims=(1, 2, 3)).reshape(-1, 1)

    images = np.float32([0.4, 0.6, 0.9, 0.2]).reshape(-1, 1, 1, 1) * np.ones((4, 1, 8, 8), np.float32)
    assert evaluator(real_above=real_above).is_real(Judge(), images, np.zeros(4)) == share
    with pytest.raises(FloatingPointError):  # and no answer is no answer
        evaluator(real_above=real_above).is_real(Judge(), images * np.nan, np.zeros(4))
    Judge.execute = lambda self, images, labels: images.reshape(len(images), -1)
    with pytest.raises(ValueError, match=r"the answers to 4 images are \(4, 64\), not \(4, 1\)"):
        evaluator(real_above=real_above).is_real(Judge(), images, np.zeros(4))


def test_the_discriminators_accuracy_is_logged_for_both_sets_of_images():
    """This one takes real images for real below label 7, and black ones for real if the label is 3."""

    class Judge(jt.nn.Module):
        def execute(self, images, labels):
            real = images.mean(dims=(1, 2, 3)) > -1
            return jt.ternary(real, labels < 7, labels == 3).float32().reshape(-1, 1)

    test_set = cgan.load_data(cgan.parse_flags([]), train=False)
    black = evaluator(test_set, lambda _, noise, labels: -np.ones((len(labels), 1, 32, 32), np.float32))
    scores = black({"generator": None, "discriminator": Judge()}, epoch=1)
    assert scores["d_accuracy_real"] == (test_set.arrays()[1] < 7).mean()
    assert scores["d_accuracy_generated"] == (test_set.arrays()[1] != 3).mean()


def test_everything_random_follows_from_seed_epoch_process_and_metric(monkeypatch):
    loader = SimpleNamespace()

    def epoch(seed, number, rank, before=0):
        monkeypatch.setattr(jt, "rank", rank)
        cgan.seed_epoch(SimpleNamespace(seed=seed), number, loader)
        return float((jt.rand(1) + 0 * before).item()), loader._shuffle_rng.random()

    cases = list(itertools.product((0, 1), (1, 2), (0, 1)))
    noise, order = zip(*(epoch(*case) for case in cases))
    assert len(set(noise)) == 8 and len(set(order)) == 4  # all processes share one order of the images
    with jt.flag_scope(no_grad=1, node_order=1):  # as a step that was stopped may leave them
        again = [epoch(*case, jt.rand(1)) for case in cases]  # made, but not drawn yet
        assert jt.flags.no_grad == jt.flags.node_order == 0
    assert (noise, order) == tuple(zip(*again))
    metrics = [evaluation.stream(*case).random() for case in itertools.product((0, 1), (1, 2), evaluation.STREAMS)]
    assert len(set(metrics)) == 4 * len(evaluation.STREAMS)


def test_the_ema_moves_by_its_decay():
    ema, network = cgan.Generator(3, 2, 4), cgan.Generator(3, 2, 4)
    for running in (var for name, var in network.state_dict().items() if "running" in name):
        running.assign(jt.rand(running.shape))
    before, values = ({k: v.numpy() for k, v in net.state_dict().items()} for net in (ema, network))
    cgan.update_ema(ema, network, 0.9)
    for name, var in ema.state_dict().items():
        np.testing.assert_allclose(var.numpy(), 0.9 * before[name] + 0.1 * values[name], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), values[name])


@pytest.mark.slow
def test_the_ema_follows_the_generators_step(short_checkpoint):
    """Without decay it is the generator as its last step left it."""
    arrays = short_checkpoint("--ema", "0")
    for name in [name for name in arrays if name.startswith("ema/")]:
        np.testing.assert_array_equal(arrays[name], arrays[name.replace("ema", "generator")], err_msg=name)


def test_checkpoint_holds_both_networks_and_both_optimizers(finished_run):
    checkpoint = read_npz(finished_run[0] / "results" / "checkpoint.npz")
    networks = {"generator": cgan.Generator(100, 10, 32), "discriminator": cgan.Discriminator(10, 32, 512)}
    for kind, optimizer in (("generator", "optimizer_G"), ("discriminator", "optimizer_D")):
        for name, value in networks[kind].state_dict().items():
            assert checkpoint[f"{kind}/{name}"].shape == tuple(value.shape)
        assert checkpoint[f"{optimizer}/step"] == 120
        for moment in ("m", "values"):
            moments = [name for name in checkpoint if name.startswith(f"{optimizer}/Adam/0/{moment}/")]
            assert len(moments) == len(networks[kind].parameters())
    assert checkpoint["epoch"] == 2
    assert json.loads(str(checkpoint["log"])) == read_log(finished_run[0])
    assert json.loads(str(checkpoint["layers"])) == {kind: describe_layers(net) for kind, net in networks.items()}
    assert not list(finished_run[0].rglob("*.new"))


def test_the_best_generator_is_kept_and_every_nth(tmp_path, monkeypatch):
    """It goes on with the run, in its folder or another; --overwrite deletes it."""
    flags, fids = "--max_batches 2 --sample_interval 99 --fid_interval 1 --hidden_d 16 --img_size 8".split(), []
    monkeypatch.setattr(cgan, "Evaluation", lambda *_: lambda *_: {"digit_fid": fids.pop(0)} if fids else {})

    def weights(folder, name):
        arrays = read_npz(folder / "results" / name)
        return {key: x.tobytes() for key, x in arrays.items() if key.startswith("generator/")}, int(arrays["epoch"])

    def train_to(epochs, folder, *scores, **resumed):
        fids[:] = scores
        train(folder, *flags, "--resume", resumed.get("resume", ""), "--n_epochs", epochs)
        return weights(folder, "best.npz")

    run, other = tmp_path / "run", tmp_path / "other"
    fids[:] = [5.0, 3.0]
    train(run, *flags, "--n_epochs", 2, "--keep", 2)
    shutil.copytree(run, tmp_path / "second")
    second = weights(run, "checkpoint.npz")
    assert second == weights(run, "best.npz")
    assert train_to(4, run, 4.0, 3.0) == second
    assert {path.name for path in (run / "results" / "kept").iterdir()} == {"2.npz", "4.npz"}
    assert weights(run, "kept/2.npz") == second and weights(run, "kept/4.npz") == weights(run, "checkpoint.npz")
    assert train_to(5, other, 3.5, resume=run / "results" / "checkpoint.npz") == second
    assert train_to(6, other, 2.0) == weights(other, "checkpoint.npz") != second
    # An earlier checkpoint in its place: what is of epochs that are no longer done goes
    shutil.copy(tmp_path / "second" / "results" / "checkpoint.npz", other / "results")
    (other / "results" / "best.npz.new").write_text("half")
    assert train_to(3, other, 3.1) == second
    assert not (other / "results" / "kept" / "6.npz").exists()
    train(other, *flags, "--n_epochs", 1, "--overwrite")
    assert not (other / "results" / "best.npz").exists() and not list((other / "results" / "kept").iterdir())


def test_the_log_is_a_table_too(finished_run):
    """A row for every epoch, a column for every number."""
    log = read_log(finished_run[0])
    with open(finished_run[0] / "results" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row, epoch, scores in zip(rows, log["epochs"], log["evaluations"]):
        expected = {**epoch, **scores}
        for i, value in enumerate(expected.pop("class_accuracy")):
            expected[f"class_accuracy_{i}"] = value
        assert row == {name: str(value) for name, value in expected.items()}
    rows = [{"epoch": 1, "x": 0.5}, {"epoch": 2, "x": 0.25}]
    table = table_of({"epochs": rows, "evaluations": [{"epoch": 2, "x": None, "generator": {"fid": [7.0, "a, b"]}}]})
    header = "epoch,x,evaluation_x,generator_fid_0,generator_fid_1\n"
    assert table == f'{header}1,0.5,,,\n2,0.25,,7.0,"a, b"\n'


def test_grids_come_every_sample_interval(finished_run):
    """The first one is the noise that an untrained generator draws."""
    assert {path.name for path in (finished_run[0] / "images").iterdir()} == {"0.png", "50.png", "100.png"}
    with Image.open(finished_run[0] / "images" / "0.png") as grid:
        assert grid.size == (10 * 34 + 2, 10 * 34 + 2) and grid.mode == "L"
    untrained = tiles(finished_run[0] / "images" / "0.png")
    assert untrained.std() >= 40 and untrained.min() == 0 and untrained.max() == 255


@pytest.mark.slow
def test_a_column_of_the_grid_is_a_digit(tmp_path):
    """A generator that paints its label as brightness shows which label went where, from black to white."""

    class Painter(jt.nn.Module):
        def execute(self, noise, labels):
            return (labels / 10.0).reshape(-1, 1, 1, 1) * jt.ones((labels.shape[0], 1, 32, 32))

    cgan.save_samples(tmp_path / "grid.png", Painter(), cgan.parse_flags(["--output_dir", str(tmp_path)]))
    expected = np.round(np.arange(10) / 9 * 255).reshape(1, 10, 1, 1)
    np.testing.assert_array_equal(tiles(tmp_path / "grid.png"), np.broadcast_to(expected, (10, 10, 32, 32)))


def test_stretching_hardly_changes_a_trained_grid():
    generator = cgan.load_generator(BEST_GENERATOR)
    images = cgan.generate(generator, np.random.default_rng(0).standard_normal((100, 100)), np.arange(100) % 10)
    assert np.abs(cgan.pictures.stretch(images) - images).max() * 127.5 < 2  # gray levels


@pytest.fixture(scope="module")
def short_checkpoint(tmp_path_factory):
    """Trains 2 x 20 batches with the given flags; returns {name: array} of the checkpoint."""

    @functools.lru_cache(maxsize=None)
    def short(*flags):
        folder = tmp_path_factory.mktemp("short")
        done("cgan.py", *"--n_epochs 2 --max_batches 20 --output_dir".split(), folder, *flags)
        arrays = read_npz(folder / "results" / "checkpoint.npz")
        del arrays["log"]
        return arrays

    return short


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--dropout"]])
def test_same_seed_same_bits_whatever_is_sampled_and_scored(short_checkpoint, inception_file, flags):
    plain = short_checkpoint(*flags)
    watched = short_checkpoint(
        *flags, *"--sample_interval 3 --fid_interval 1 --fid_samples 2 --inception_weights".split(), str(inception_file)
    )
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(value, watched[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--seed", "1"], ["--dropout"]])
def test_another_seed_or_dropout_gives_another_run(short_checkpoint, flags):
    name = "discriminator/model.2.weight"
    assert (short_checkpoint()[name] != short_checkpoint(*flags)[name]).any()
