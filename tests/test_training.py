"""Training: the report's order of steps, and what a run leaves on disk."""

import fcntl
import hashlib
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run
from PIL import Image

import cgan
from support.device import jt


def test_each_step_moves_one_network_only_generator_first(monkeypatch, tmp_path):
    """Watches the real training loop through its optimizers."""
    networks, steps = {}, []

    def parameters():
        return {(name, i): p.numpy().copy() for name, net in networks.items() for i, p in enumerate(net.parameters())}

    class WatchedAdam(cgan.Adam):
        def step(self, loss=None, retain_graph=False):
            before = parameters()
            super().step(loss, retain_graph)
            steps.append({name for (name, i), p in parameters().items() if (p != before[name, i]).any()})

    for kind in ("Generator", "Discriminator"):
        network = getattr(cgan, kind)
        monkeypatch.setattr(cgan, kind, lambda *a, kind=kind, network=network: networks.setdefault(kind, network(*a)))
    monkeypatch.setattr(cgan, "Adam", WatchedAdam)
    cgan.train(cgan.parse_flags(["--n_epochs", "1", "--max_batches", "3", "--output_dir", str(tmp_path)]))
    assert steps == [{"Generator"}, {"Discriminator"}] * 3


def test_run_says_what_the_report_says(finished_run):
    _, process = finished_run
    progress = re.findall(
        r"\[Epoch (\d)/2\] \[Batch (\d+)/60\] \[D loss: \d\.\d{4}\] \[G loss: \d\.\d{4}\]", process.stdout
    )
    assert progress == [("1", "0"), ("1", "50"), ("2", "0"), ("2", "50")]
    assert not re.search(r"\[[iwe] \d{4} ", process.stdout + process.stderr)  # Jittor's own log lines
    assert "FID is left out" not in process.stdout


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


def test_divergence_is_one_sentence_and_keeps_nothing_broken(tmp_path):
    process = run(*"cgan.py --lr 100 --n_epochs 2 --max_batches 5 --output_dir".split(), tmp_path)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "diverged in epoch 1" in process.stderr and "--lr" in process.stderr
    assert not list((tmp_path / "results").iterdir())


def test_log_follows_its_contract(finished_run, inception_file):
    log = json.loads((finished_run[0] / "results" / "log.json").read_text())
    assert set(log) == {"config", "environment", "epochs", "evaluations"}
    assert log["config"]["max_batches"] == 60 and log["config"]["lr_d"] == 0.0002
    assert set(log["environment"]) == {"jittor", "python", "device", "processes"}
    assert [row["epoch"] for row in log["epochs"]] == [1, 2]
    assert all(0 < row["d_loss"] < 2 and 0 < row["g_loss"] < 5 and row["seconds"] > 0 for row in log["epochs"])
    assert [(row["epoch"], row["fid_samples"]) for row in log["evaluations"]] == [(1, 10), (2, 10)]
    assert all(row["fid"] > 0 and isinstance(row["kid"], float) for row in log["evaluations"])
    for row in log["evaluations"]:
        assert row["inception_sha256"] == hashlib.sha256(inception_file.read_bytes()).hexdigest()
        assert row["digit_fid"] > 0 and len(row["class_accuracy"]) == 10
        assert row["label_accuracy"] == pytest.approx(np.mean(row["class_accuracy"]))


def test_a_test_image_passes_through_inception_once(monkeypatch, inception_file):
    seen, features = [], cgan.fid.inception_features
    monkeypatch.setattr(cgan.fid, "inception_features", lambda x, *args: seen.append(len(x)) or features(x, *args))
    opt = cgan.parse_flags(["--fid_samples", "2", "--inception_weights", str(inception_file)])
    evaluate = cgan.Evaluation(np.linspace(-1, 1, 4 * 32 * 32, dtype=np.float32).reshape(4, 1, 32, 32), opt)
    scores = [evaluate(cgan.Generator(), epoch=1) for _ in range(2)]
    assert seen == [2, 2, 2]  # two test images once, two generated ones at every evaluation
    assert all(score["fid"] > 0 and len(score["class_accuracy"]) == 10 for score in scores)


def test_checkpoint_holds_both_networks_and_both_optimizers(finished_run):
    with np.load(finished_run[0] / "results" / "checkpoint.npz", allow_pickle=False) as checkpoint:
        names = set(checkpoint.files)
        for kind, network in (("generator", cgan.Generator()), ("discriminator", cgan.Discriminator())):
            for name, value in network.state_dict().items():
                assert checkpoint[f"{kind}/{name}"].shape == tuple(value.shape)
        for optimizer, network in (("optimizer_G", cgan.Generator()), ("optimizer_D", cgan.Discriminator())):
            assert checkpoint[f"{optimizer}/step"] == 120
            for moment in "mv":
                moments = [name for name in names if name.startswith(f"{optimizer}/{moment}/")]
                assert len(moments) == len(network.parameters())
        assert checkpoint["epoch"] == 2
        assert json.loads(str(checkpoint["log"])) == json.loads((finished_run[0] / "results" / "log.json").read_text())
    assert not list(finished_run[0].rglob("*.new"))


def test_grids_come_every_sample_interval(finished_run):
    assert {path.name for path in (finished_run[0] / "images").iterdir()} == {"0.png", "50.png", "100.png"}
    with Image.open(finished_run[0] / "images" / "0.png") as grid:
        assert grid.size == (10 * 34 + 2, 10 * 34 + 2) and grid.mode == "L"


def test_a_column_of_the_grid_is_a_digit(tmp_path):
    """A generator that paints its label as brightness shows which label went where."""

    class Painter(jt.nn.Module):
        def execute(self, noise, labels):
            return (labels / 10.0).reshape(-1, 1, 1, 1) * jt.ones((labels.shape[0], 1, 32, 32))

    cgan.save_samples(tmp_path / "grid.png", Painter(), cgan.parse_flags([]))
    with Image.open(tmp_path / "grid.png") as grid:
        pixels = np.asarray(grid)
    for column in range(10):
        for row in range(10):
            assert pixels[34 * row + 18, 34 * column + 18] == round((column / 10 + 1) * 127.5)


@pytest.fixture(scope="module")
def short_checkpoint(tmp_path_factory):
    """Trains 2 x 30 batches with the given flags; returns {name: array} of the checkpoint."""

    def train(*flags):
        folder = tmp_path_factory.mktemp("short")
        process = run("cgan.py", "--n_epochs", "2", "--max_batches", "30", "--output_dir", folder, *flags)
        assert process.returncode == 0, process.stderr
        with np.load(folder / "results" / "checkpoint.npz", allow_pickle=False) as checkpoint:
            return {name: value for name, value in checkpoint.items() if name != "log"}

    return train


def test_same_seed_same_bits_whatever_is_sampled_and_scored(short_checkpoint, inception_file):
    plain = short_checkpoint()
    watched = short_checkpoint(
        *"--sample_interval 3 --fid_interval 1 --fid_samples 2 --inception_weights".split(), str(inception_file)
    )
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(value, watched[name], err_msg=name)


def test_another_seed_gives_another_run(short_checkpoint):
    name = "generator/model.0.weight"
    assert (short_checkpoint("--seed", "1")[name] != short_checkpoint("--seed", "2")[name]).any()


def test_training_reads_the_whole_of_mnist():
    opt = cgan.parse_flags([])
    training, test = cgan.load_mnist(opt, train=True), cgan.load_mnist(opt, train=False)
    assert (training.total_len, test.total_len, len(training)) == (60000, 10000, 938)
    images, labels = next(iter(training))
    assert tuple(images.shape) == (64, 1, 32, 32) and tuple(labels.shape) == (64,)
    assert images.min().item() == -1 and images.max().item() == 1
    np.testing.assert_array_equal(np.bincount(training.mnist["labels"])[:3], [5923, 6742, 5958])  # the real MNIST
