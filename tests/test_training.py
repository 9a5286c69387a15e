"""Training: the report's order of steps, and what a run leaves on disk."""

import fcntl
import hashlib
import itertools
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, read_log, read_npz, run, tiles
from PIL import Image

import cgan
from support import evaluation
from support.saved.checkpoint import read_checkpoint
from support.device import jt

SHOWN = ["fid", "kid", "digit_fid", "label_accuracy"]  # at every evaluation


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Trains 3 batches of the real loop, watched: what every step was given, moved and computed."""
    networks, steps, calls, recorded, batches = {}, [], [], [], []

    def parameters():
        return {(name, i): p.numpy().copy() for name, net in networks.items() for i, p in enumerate(net.parameters())}

    class WatchedAdam(cgan.Adam):
        def step(self, loss=None, retain_graph=False):
            before, value = parameters(), loss.item()
            super().step(loss, retain_graph)
            moved = {name for (name, i), p in parameters().items() if (p != before[name, i]).any()}
            steps.append((moved, value, (self.lr, self.betas)))

    class WatchedRun(cgan.Run):
        def batches(self, dataloader):
            for images, labels in super().batches(dataloader):
                batches.append((images.numpy(), labels.numpy()))
                yield images, labels

        def record(self, d_loss, g_loss):
            super().record(d_loss, g_loss)
            recorded.append(self.losses[-1])

    def watch(kind):
        class Watched(getattr(cgan, kind)):
            def __init__(self, *args):
                super().__init__(*args)
                networks[kind] = self

            def execute(self, *inputs):
                output = super().execute(*inputs)
                calls.append((kind, [x.numpy() for x in inputs], output.numpy()))
                return output

        return Watched

    for kind in ("Generator", "Discriminator"):
        monkeypatch.setattr(cgan, kind, watch(kind))
    monkeypatch.setattr(cgan, "Adam", WatchedAdam)
    monkeypatch.setattr(cgan, "Run", WatchedRun)
    flags = "--n_epochs 1 --max_batches 3 --sample_interval 1000 --lr 0.001 --lr_d 0.002 --b1 0.3 --b2 0.9".split()
    monkeypatch.setattr(cgan, "save_samples", lambda *_: None)
    monkeypatch.setattr(cgan, "Evaluation", lambda *_: lambda *_: dict.fromkeys(SHOWN, 0.0))
    cgan.train(cgan.parse_flags([*flags, "--output_dir", str(tmp_path)]))
    return steps, calls, recorded, batches, read_log(tmp_path)


def test_a_batch_is_the_reports_step(watched):
    """Report, section "one step": who is called on what, in which order, which loss moves which network."""
    steps, calls, recorded, batches, log = watched
    assert [moved for moved, _, _ in steps] == [{"Generator"}, {"Discriminator"}] * 3
    assert [settings for _, _, settings in steps] == [(0.001, (0.3, 0.9)), (0.002, (0.3, 0.9))] * 3
    assert [kind for kind, _, _ in calls] == ["Generator", *["Discriminator"] * 2] * 3
    for batch in range(3):
        (_, (noise, asked), drawn), generated, real = calls[3 * batch : 3 * batch + 3]
        assert noise.shape == (64, 100) and asked.min() >= 0 and asked.max() <= 9
        np.testing.assert_array_equal(generated[1][0], drawn)
        np.testing.assert_array_equal(generated[1][1], asked)
        for found, given in zip(real[1], batches[batch]):
            np.testing.assert_array_equal(found, given)
        g_loss = np.mean((generated[2] - 1) ** 2)
        real_loss, fake_loss = np.mean((real[2] - 1) ** 2), np.mean(generated[2] ** 2)
        d_loss = (real_loss + fake_loss) / 2
        assert abs(real_loss - fake_loss) > 1e-3
        assert [value for _, value, _ in steps[2 * batch : 2 * batch + 2]] == pytest.approx([g_loss, d_loss], rel=1e-5)
        assert recorded[batch] == pytest.approx((d_loss, g_loss), rel=1e-5)
    noise, asked = (np.concatenate([calls[3 * batch][1][i] for batch in range(3)]) for i in (0, 1))
    assert abs(noise.mean()) < 0.04 and abs(noise.std() - 1) < 0.03  # of 19,200 numbers: 5 standard errors
    assert set(asked) == set(range(10))
    (row,) = log["epochs"]
    assert [row["d_loss"], row["g_loss"]] == pytest.approx(np.mean(recorded, axis=0).tolist())
    assert (row["d_loss_last"], row["g_loss_last"]) == pytest.approx(recorded[-1])


def test_run_says_what_the_report_says(finished_run):
    _, process = finished_run
    progress = re.findall(
        r"\[Epoch (\d)/2\] \[Batch (\d+)/60\] \[D loss: \d\.\d{4}\] \[G loss: \d\.\d{4}\]", process.stdout
    )
    assert progress == [("1", "0"), ("1", "50"), ("2", "0"), ("2", "50")]
    assert not re.search(r"\[[iwe] \d{4} ", process.stdout + process.stderr)  # Jittor's own log lines
    assert "FID is left out" not in process.stdout


@pytest.mark.slow
def test_progress_bar_shows_both_losses(tmp_path):
    """In a terminal, which a file is not."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a new one has no width
    command = [sys.executable, "cgan.py", *"--n_epochs 1 --max_batches 60 --output_dir".split(), tmp_path]
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=theirs)
    assert process.returncode == 0
    os.set_blocking(ours, False)
    bar = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert re.search(r"Epoch 1/1: +\d+%\|.*\| \d+/60 \[.*D loss: \d\.\d{4}, G loss: \d\.\d{4}", bar)


@pytest.mark.slow
def test_divergence_is_one_sentence_and_keeps_nothing_broken(tmp_path):
    process = run(*"cgan.py --lr 100 --n_epochs 2 --max_batches 5 --output_dir".split(), tmp_path)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "diverged in epoch 1" in process.stderr and "--lr" in process.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".lock"]


def test_log_follows_its_contract(finished_run, inception_file):
    log = json.loads((finished_run[0] / "results" / "log.json").read_text())
    assert set(log) == {"config", "environment", "changes", "epochs", "evaluations"} and not log["changes"]
    assert log["config"]["max_batches"] == 60 and log["config"]["lr_d"] is None
    assert not {"output_dir", "resume", "overwrite", "digits", "help"} & set(log["config"])
    assert set(log["environment"]) == {"jittor", "python", "device", "processor", "processes", "threads"}
    assert [row["epoch"] for row in log["epochs"]] == [1, 2]
    assert all(0 < row["d_loss"] < 2 and 0 < row["g_loss"] < 5 and row["seconds"] > 0 for row in log["epochs"])
    assert all(row[key] != row[f"{key}_last"] for row in log["epochs"] for key in ("d_loss", "g_loss"))
    assert [(row["epoch"], row["fid_samples"]) for row in log["evaluations"]] == [(1, 10), (2, 10)]
    assert all(row["fid"] > 0 and isinstance(row["kid"], float) for row in log["evaluations"])
    for row in log["evaluations"]:
        assert row["inception_sha256"] == hashlib.sha256(inception_file.read_bytes()).hexdigest()
        assert row["digit_fid"] > 0 and len(row["class_accuracy"]) == 10
        assert row["label_accuracy"] == pytest.approx(np.mean(row["class_accuracy"]))
        assert 0 <= row["d_accuracy_real"] <= 1 and 0 <= row["d_accuracy_generated"] <= 1


@pytest.mark.slow
def test_the_last_batchs_losses_are_what_is_printed_last(tmp_path):
    process = run(*"cgan.py --n_epochs 1 --max_batches 51 --output_dir".split(), tmp_path)
    assert process.returncode == 0, process.stderr
    d_loss, g_loss = re.search(r"\[Batch 50/51\] \[D loss: (\S+)\] \[G loss: (\S+)\]", process.stdout).groups()
    (row,) = read_log(tmp_path)["epochs"]
    assert (f"{row['d_loss_last']:.4f}", f"{row['g_loss_last']:.4f}") == (d_loss, g_loss)
    assert [row["epoch"] for row in read_log(tmp_path)["evaluations"]] == [1]  # the last epoch is always scored


class Images:
    """Four images and labels in place of the test set."""

    def arrays(self):
        return np.linspace(-1, 1, 4 * 32 * 32, dtype=np.float32).reshape(4, 1, 32, 32), np.arange(4)


@pytest.mark.slow
def test_a_test_image_passes_through_inception_once(monkeypatch, inception_file, tmp_path):
    fid, seen = evaluation.fid, []
    features = fid.inception_features
    monkeypatch.setattr(fid, "inception_features", lambda x, *args: seen.append(len(x)) or features(x, *args))
    flags = ["--fid_samples", "2", "--inception_weights", str(inception_file), "--output_dir", str(tmp_path)]
    opt = cgan.parse_flags(flags)
    evaluate = evaluation.Evaluation(Images(), opt, cgan.generate)
    networks = {"generator": cgan.Generator(100, 10, 32), "discriminator": cgan.Discriminator(10, 32, 512)}
    scores = [evaluate(networks, epoch=1) for _ in range(2)]
    assert seen == [2, 2, 2]  # two test images once, two generated ones at every evaluation
    assert all(score["fid"] > 0 and len(score["class_accuracy"]) == 10 for score in scores)


@pytest.mark.slow
def test_no_figure_depends_on_which_others_are_computed(inception_file, tmp_path):
    """The same generator scored with and without Inception's weights."""
    jt.set_global_seed(0)
    networks = {"generator": cgan.Generator(100, 10, 32), "discriminator": cgan.Discriminator(10, 32, 512)}
    scores = []
    for flags in (["--inception_weights", str(inception_file), "--fid_samples", "2"], []):
        evaluate = evaluation.Evaluation(
            Images(), cgan.parse_flags([*flags, "--output_dir", str(tmp_path)]), cgan.generate
        )
        scores.append(evaluate(networks, epoch=3))
    for name in ("digit_fid", "label_accuracy", "class_accuracy", "d_accuracy_real", "d_accuracy_generated"):
        assert scores[0][name] == scores[1][name]
    assert scores[0]["fid"] > 0 and scores[1]["fid"] is None


def test_the_discriminator_is_right_where_it_is_on_the_right_side_of_a_half():
    class Judge(jt.nn.Module):
        def execute(self, images, labels):
            return images.mean(dims=(1, 2, 3)).reshape(-1, 1)

    images = np.float32([0.4, 0.6, 0.9, 0.2]).reshape(-1, 1, 1, 1) * np.ones((4, 1, 8, 8), np.float32)
    assert evaluation.judge(Judge(), images, np.zeros(4)).tolist() == [False, True, True, False]


def test_the_discriminators_accuracy_is_logged_for_both_sets_of_images(monkeypatch, tmp_path):
    """This one takes real images for real below label 7, and black ones for real where the label is 3."""

    class Judge(jt.nn.Module):
        def execute(self, images, labels):
            real = images.mean(dims=(1, 2, 3)) > -1
            return jt.ternary(real, labels < 7, labels == 3).float32().reshape(-1, 1)

    monkeypatch.setattr(evaluation.fid, "find_hub_weights", lambda: None)
    opt = cgan.parse_flags(["--output_dir", str(tmp_path)])
    test_set = cgan.load_data(opt, train=False)
    black = evaluation.Evaluation(
        test_set, opt, lambda _, noise, labels: -np.ones((len(labels), 1, 32, 32), np.float32)
    )
    scores = black({"generator": None, "discriminator": Judge()}, epoch=1)
    assert scores["d_accuracy_real"] == (test_set.arrays()[1] < 7).mean()
    assert scores["d_accuracy_generated"] == 0.9


def test_everything_random_follows_from_seed_epoch_process_and_figure(monkeypatch):
    class Loader:
        pass

    def epoch(seed, number, rank):
        monkeypatch.setattr(jt, "rank", rank)
        cgan.seed_epoch(SimpleNamespace(seed=seed), number, Loader)
        return float(jt.rand(1).item()), Loader._shuffle_rng.random()

    cases = list(itertools.product((0, 1), (1, 2), (0, 1)))
    noise, order = zip(*(epoch(*case) for case in cases))
    assert len(set(noise)) == 8 and len(set(order)) == 4  # all processes share one order of the images
    assert (noise, order) == tuple(zip(*(epoch(*case) for case in cases)))
    figures = [evaluation.stream(*case).random() for case in itertools.product((0, 1), (1, 2), evaluation.STREAMS)]
    assert len(set(figures)) == 4 * len(evaluation.STREAMS)


def test_the_average_moves_by_its_decay():
    average, network = cgan.Generator(3, 2, 4), cgan.Generator(3, 2, 4)
    for running in (var for name, var in network.state_dict().items() if "running" in name):
        running.assign(jt.rand(running.shape))
    before, values = ({k: v.numpy() for k, v in net.state_dict().items()} for net in (average, network))
    cgan.move_average(average, network, 0.9)
    for name, var in average.state_dict().items():
        np.testing.assert_allclose(var.numpy(), 0.9 * before[name] + 0.1 * values[name], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), values[name])


@pytest.mark.slow
def test_the_average_follows_the_generators_step(short_checkpoint):
    """Without decay it is the generator as its last step left it."""
    arrays = short_checkpoint("--ema", "0")
    own = {name: value for name, value in arrays.items() if name.startswith("generator/")}
    for name, value in own.items():
        np.testing.assert_array_equal(arrays[name.replace("generator", "average")], value, err_msg=name)


def test_checkpoint_holds_both_networks_and_both_optimizers(finished_run):
    checkpoint = read_npz(finished_run[0] / "results" / "checkpoint.npz")
    networks = {"generator": cgan.Generator(100, 10, 32), "discriminator": cgan.Discriminator(10, 32, 512)}
    for kind, optimizer in (("generator", "optimizer_G"), ("discriminator", "optimizer_D")):
        for name, value in networks[kind].state_dict().items():
            assert checkpoint[f"{kind}/{name}"].shape == tuple(value.shape)
        assert checkpoint[f"{optimizer}/step"] == 120
        for moment in "mv":
            moments = [name for name in checkpoint if name.startswith(f"{optimizer}/{moment}/")]
            assert len(moments) == len(networks[kind].parameters())
    assert checkpoint["epoch"] == 2
    assert json.loads(str(checkpoint["log"])) == read_log(finished_run[0])
    layers = json.loads(str(checkpoint["layers"]))
    kinds = {kind: [type(layer).__name__ for layer in network.model] for kind, network in networks.items()}
    assert {kind: [layer["kind"] for layer in layers[kind]] for kind in layers} == kinds
    numbers = [number for layer in layers["generator"] for key, number in layer.items() if key != "kind"]
    assert numbers == [0.2] + [0.8, 0.2] * 3
    assert not list(finished_run[0].rglob("*.new"))


def test_grids_come_every_sample_interval(finished_run):
    assert {path.name for path in (finished_run[0] / "images").iterdir()} == {"0.png", "50.png", "100.png"}
    with Image.open(finished_run[0] / "images" / "0.png") as grid:
        assert grid.size == (10 * 34 + 2, 10 * 34 + 2) and grid.mode == "L"


@pytest.mark.slow
def test_a_column_of_the_grid_is_a_digit(tmp_path):
    """A generator that paints its label as brightness shows which label went where, from black to white."""

    class Painter(jt.nn.Module):
        def execute(self, noise, labels):
            return (labels / 10.0).reshape(-1, 1, 1, 1) * jt.ones((labels.shape[0], 1, 32, 32))

    cgan.save_samples(tmp_path / "grid.png", Painter(), cgan.parse_flags(["--output_dir", str(tmp_path)]))
    expected = np.round(np.arange(10) / 9 * 255).reshape(1, 10, 1, 1)
    np.testing.assert_array_equal(tiles(tmp_path / "grid.png"), np.broadcast_to(expected, (10, 10, 32, 32)))


def test_the_first_grid_is_the_noise_that_an_untrained_generator_draws(finished_run):
    untrained = tiles(finished_run[0] / "images" / "0.png")
    assert untrained.std() >= 40 and untrained.min() == 0 and untrained.max() == 255


def test_stretching_hardly_changes_a_trained_grid():
    generator = cgan.load_generator(cgan.flags.BEST_GENERATOR)
    images = cgan.generate(generator, np.random.default_rng(0).standard_normal((100, 100)), np.arange(100) % 10)
    assert np.abs(cgan.pictures.stretch(images) - images).max() * 127.5 < 2  # gray levels


@pytest.fixture(scope="module")
def short_checkpoint(tmp_path_factory):
    """Trains 2 x 30 batches with the given flags; returns {name: array} of the checkpoint."""

    def train(*flags, **environment):
        folder = tmp_path_factory.mktemp("short")
        short = ["--n_epochs", "2", "--max_batches", "30", "--output_dir", folder]
        process = run("cgan.py", *short, *flags, **environment)
        assert process.returncode == 0, process.stderr
        arrays = read_npz(folder / "results" / "checkpoint.npz")
        del arrays["log"]
        return arrays

    return train


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
def test_same_checkpoint_with_one_thread_and_with_two(short_checkpoint):
    one, two = (short_checkpoint(OMP_NUM_THREADS=threads) for threads in "12")
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.slow
def test_another_seed_gives_another_run(short_checkpoint):
    name = "generator/model.0.weight"
    assert (short_checkpoint("--seed", "1")[name] != short_checkpoint("--seed", "2")[name]).any()


@pytest.mark.slow
def test_dropout_is_trained_with_where_it_is_asked_for(short_checkpoint):
    name = "discriminator/model.2.weight"
    assert (short_checkpoint()[name] != short_checkpoint("--dropout")[name]).any()


@pytest.mark.slow
def test_networks_of_other_widths_train_resume_and_draw(tmp_path):
    """Who changes a width in cgan.py changes it in one place."""
    source = (ROOT / "cgan.py").read_text(encoding="utf-8")
    script = tmp_path / "cgan.py"
    script.write_text(source.replace("1024", "1536").replace("default=512", "default=384"))
    environment = {"cwd": tmp_path, "PYTHONPATH": str(ROOT)}
    assert run(script, *"--n_epochs 2 --max_batches 5".split(), **environment).returncode == 0
    process = run(script, *"--resume --n_epochs 3".split(), **environment)
    assert process.returncode == 0, process.stderr
    process = run(script, "--digits", "123", **environment)
    assert process.returncode == 0, process.stderr
    arrays = read_checkpoint(str(tmp_path / "results" / "checkpoint.npz"))
    assert arrays["generator/model.11.weight"].shape == (1024, 1536)
    assert arrays["discriminator/model.2.weight"].shape == (384, 384)
    for flags in (["--resume", "--n_epochs", "4"], ["--digits", "1"]):  # the networks of the original
        process = run(ROOT / "cgan.py", *flags, cwd=tmp_path)
        assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
        assert "does not fit the Generator in cgan.py" in process.stderr and "(1536, 512)" in process.stderr
