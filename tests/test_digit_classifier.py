"""The digit classifier reads real digits, and its features tell digits from other images; others have their own."""

import re

import numpy as np
import pytest
from conftest import ROOT, read_npz, run, train, write_idx
from PIL import Image

import cgan
import fid
from support import digit_classifier, idx
from support.mnist import MNIST, load_mnist
from support.saved.classifier import WEIGHTS


@pytest.fixture(scope="module")
def classifier():
    return digit_classifier.load()


@pytest.fixture(scope="module")
def test_set(classifier):
    images, labels = load_mnist(train=False).arrays()
    features, digits = digit_classifier.read_labels(classifier, images)
    return images, labels, features, digits


def test_reads_the_test_set(test_set):
    _, labels, _, digits = test_set
    assert (digits == labels).mean() >= 0.992
    assert (ROOT / "support" / "digit_classifier.npz").stat().st_size < 1.5e6


def test_what_it_never_saw_is_a_sixth_of_the_training_set():
    seen, unseen = (digit_classifier.split(part)[0] for part in (True, False))
    whole, parts = load_mnist(train=True).arrays()[0], np.concatenate([seen, unseen])
    assert (len(seen), len(unseen)) == (50000, 10000)
    assert sorted(parts.mean((1, 2, 3))) == sorted(whole.mean((1, 2, 3)))  # each image once


def test_features_tell_noise_from_digits(classifier, test_set):
    _, _, real, _ = test_set
    noise = np.random.default_rng(0).uniform(-1, 1, (2000, 1, 32, 32)).astype(np.float32)
    features, _ = digit_classifier.read_labels(classifier, noise)
    half = fid.frechet_distance(real[:5000], real[5000:])
    assert fid.frechet_distance(features, real) > 100 * half
    assert features.shape == (2000, 128) and features.min() >= 0


def test_batch_size_and_image_size(classifier, test_set):
    images, labels, features, _ = test_set
    again, _ = digit_classifier.read_labels(classifier, images[:100], batch_size=7)
    np.testing.assert_allclose(again, features[:100], rtol=1e-4, atol=1e-4)
    double = images[:100].repeat(2, axis=2).repeat(2, axis=3)
    assert (digit_classifier.read_labels(classifier, double)[1] == labels[:100]).mean() > 0.95


def write_turned(folder):
    """Writes 2,400 inverted digits: as they are with labels 0 to 9, turned by 90 and 180 degrees with 10 to 25."""
    folder.mkdir()
    for names, train_set, n in zip(idx.FILES, (True, False), (2000, 400)):
        mnist = MNIST(train=train_set).mnist
        turns = np.arange(n) % 3
        labels = mnist["labels"][:n] + 10 * turns
        turns[labels > 25], labels = 1, np.where(labels > 25, labels - 10, labels)
        images = [np.rot90(255 - image, turn) for image, turn in zip(mnist["images"], turns)]
        write_idx(folder / names[0], [2051, n, 28, 28], images)
        write_idx(folder / names[1], [2049, n], labels)


@pytest.mark.slow
def test_scores_know_their_data(tmp_path, refuses, capsys):
    """Other images than MNIST's have no scores of digits; with a classifier of their own they have scores of labels."""
    turned, turned_classifier = tmp_path / "turned", tmp_path / "classifier.npz"
    write_turned(turned)
    process = run("-m", "support.digit_classifier", "--data_root", turned, "--output", turned_classifier)
    assert process.returncode == 0 and f"wrote {turned_classifier}" in process.stdout, process.stderr
    assert float(re.findall(r"test accuracy (\S+)\]", process.stdout)[-1]) > 0.6
    flags = ["--data_root", turned, "--n_classes", 26, "--max_batches", 5, "--fid_interval", 1]
    (row,) = train(tmp_path, *flags, "--n_epochs", 1)["evaluations"]
    assert "digit_fid" not in row and row["label_fid"] is None and row["label_accuracy"] is None
    assert row["d_accuracy_real"] >= 0
    assert capsys.readouterr().out.count("Label FID and label accuracy are left out") == 1
    assert Image.open(tmp_path / "images" / "0.png").size == (26 * 34 + 2, 10 * 34 + 2)
    draw = ["--digits", "3 17 25\\n4", "--output_dir", str(tmp_path)]
    cgan.draw_digits(cgan.parse_flags(draw))
    assert "read as" not in capsys.readouterr().out

    resumed = ["--resume", "--n_epochs", 2, "--classifier", turned_classifier]
    _, row = train(tmp_path, *resumed)["evaluations"]
    assert row["label_fid"] > 0 and len(row["class_accuracy"]) == 26
    assert row["label_accuracy"] == pytest.approx(np.mean(row["class_accuracy"]), abs=0.05)
    capsys.readouterr()
    cgan.draw_digits(cgan.parse_flags(draw))
    assert re.search(r"read as \d+ \d+ \d+ \d+ by", capsys.readouterr().out)
    assert Image.open(tmp_path / "images" / "digits.png").size == (3 * 34 + 2, 2 * 34 + 2)

    where = ["--data_root", turned, "--n_classes"]
    refuses(*draw[2:], "--digits", "26", names=["--digits", "24, 25, not 26"])
    refuses(*where, 25, names=["--n_classes", "must be 26"])
    refuses(*where, 26, "--classifier", WEIGHTS, names=["--classifier", WEIGHTS, "trained on other images"])
    refuses("--classifier", turned_classifier, names=["--classifier", "trained on other images"])
    refuses("--classifier", turned / idx.FILES[0][0], names=["--classifier", "is not a classifier"])


def test_the_classifier_of_mnist_is_not_overwritten_by_one_of_other_images(tmp_path, refuses):
    main, before = digit_classifier.main, read_npz(WEIGHTS)
    refuses("--data_root", tmp_path, names=["--output"], program=main)
    assert before.keys() == read_npz(WEIGHTS).keys() and str(before["data"]) == idx.MNIST.sha256
    refuses("--data_root", tmp_path, "--output", tmp_path / "x.npz", names=["holds neither"], program=main)
    for output in (tmp_path, tmp_path / "nowhere" / "x.npz"):  # said before it is trained
        refuses("--output", output, names=[f"not {output}"], program=main)
