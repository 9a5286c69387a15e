"""Digits on demand, and the running average (EMA) that may draw them."""

import re

import numpy as np
import pytest
from conftest import ROOT, change_log, read_npz, refused, run, train
from PIL import Image

import cgan
from support.idx import MNIST
from support.pages.pictures import labels_of, lay_out, save_picture
from support.saved import checkpoint
from support.saved.paths import BEST_GENERATOR

SCRIPT = ROOT / "cgan.py"


def test_text_is_laid_out_in_rows_and_words(tmp_path):
    images = np.arange(5).reshape(5, 1, 1, 1) / 5 * np.ones((5, 1, 8, 8))
    save_picture(tmp_path / "digits.png", lay_out(labels_of("01 2\n34", 10), images))
    picture = np.asarray(Image.open(tmp_path / "digits.png"))
    assert picture.shape == (2 * 10 + 2, 4 * 10 + 2)
    expected = {(0, 0): 0, (0, 1): 1, (0, 3): 2, (1, 0): 3, (1, 1): 4}
    for row in range(2):
        for column in range(4):
            cell = picture[10 * row + 2 : 10 * row + 10, 10 * column + 2 : 10 * column + 10]
            digit = expected.get((row, column))
            assert (cell == (0 if digit is None else round((digit / 5 + 1) * 127.5))).all()
    assert (picture[:, :2] == 0).all() and (picture[10:12] == 0).all()


def test_of_more_than_ten_classes_a_text_holds_label_numbers():
    assert labels_of("3 17  25\n0", 26) == [[3, 17, 25], [0]]
    assert lay_out([[3, 17, 25], [0]], np.zeros((4, 1, 8, 8))).shape == (2 * 10 + 2, 3 * 10 + 2)


def test_draws_with_the_run_of_the_folder_and_says_so(tmp_path, finished_run):
    folder, _ = finished_run
    before = {path: path.read_bytes() for path in folder.rglob("*.npz")}
    process = run(SCRIPT, "--digits", "22 13\\n904", "--output_dir", folder, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert str(folder / "results" / "checkpoint.npz") in process.stdout
    assert re.search(r"read as \d{7} by", process.stdout)
    with Image.open(folder / "images" / "digits.png") as picture:
        assert picture.size == (5 * 34 + 2, 2 * 34 + 2) and picture.mode == "L"
        pixels = np.asarray(picture)
    ink = [[pixels[34 * y + 2 : 34 * y + 34, 34 * x + 2 : 34 * x + 34].max() > 100 for x in range(5)] for y in range(2)]
    assert ink == [[True, True, False, True, True], [True, True, True, False, False]]
    assert {path: path.read_bytes() for path in folder.rglob("*.npz")} == before
    (folder / "images" / "digits.png").unlink()


def test_a_generator_kept_alone_is_the_checkpoints(tmp_path, finished_run):
    path = finished_run[0] / "results" / "checkpoint.npz"
    process = run("-m", "support.saved.checkpoint", path, tmp_path / "generator.npz")
    assert process.returncode == 0, process.stderr
    config, arrays, data = checkpoint.read_generator(str(tmp_path / "generator.npz"))
    assert (config["latent_dim"], config["n_classes"], config["img_size"], data) == (100, 10, 32, MNIST.sha256)
    assert (tmp_path / "generator.npz").stat().st_size < 4e6
    stored = read_npz(tmp_path / "generator.npz")
    for name, value in checkpoint.read_generator(str(path))[1].items():
        assert stored[f"generator/{name}"].dtype == np.float16 and arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], value.astype(np.float16))


@pytest.mark.parametrize(
    "text, what", [("12a4!", "'!a'"), ("", "at least one"), ("  ", "at least one"), ("१२", "'१२'")]
)
def test_anything_else_than_digits_is_refused(refuses, text, what):
    refuses("--digits", text, names=["--digits", "spaces and newlines", what])


def test_a_checkpoint_without_a_generator_is_refused(tmp_path):
    (tmp_path / "results").mkdir()
    np.savez(tmp_path / "results" / "checkpoint.npz", x=np.zeros(3))
    refused(tmp_path, SCRIPT, "--digits", "1", names=["--digits", "results/checkpoint.npz", "'log' is missing"])


def test_what_cannot_be_kept_alone_is_one_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("no checkpoint")
    for name in ("missing.npz", "text.npz", "results/reference/generator.npz"):
        path = tmp_path / name if name != "results/reference/generator.npz" else ROOT / name
        process = run("-m", "support.saved.checkpoint", path, tmp_path / "generator.npz")
        assert process.returncode == 2 and process.stderr.count("\n") == 1 and name in process.stderr
        assert not (tmp_path / "generator.npz").exists()


def test_draws_without_training_and_reads_what_it_drew(tmp_path):
    process = run(SCRIPT, "--digits", "31415926", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert BEST_GENERATOR in process.stdout and (tmp_path / "images" / "digits.png").exists()
    assert "read as 31415926 by" in process.stdout


def test_any_file_with_a_generator_draws_with_any_seed(tmp_path, finished_run, capsys):
    pictures = []
    for path in (BEST_GENERATOR, str(finished_run[0] / "results" / "checkpoint.npz")):
        for seed in ("0", "1"):
            words = ["--resume", path, "--digits", "5", "--seed", seed, "--output_dir", str(tmp_path)]
            cgan.draw_digits(cgan.parse_flags(words))
            assert f"drawn by the generator in {path}" in capsys.readouterr().out
            pictures.append((tmp_path / "images" / "digits.png").read_bytes())
    assert len(set(pictures)) == 4 and len(list(tmp_path.rglob("*.*"))) == 1


def test_a_digit_that_was_never_learned_is_refused(tmp_path):
    np.savez(tmp_path / "five.npz", **read_npz(BEST_GENERATOR))
    change_log(tmp_path / "five.npz", n_classes=5)
    names = ["--digits", "five.npz", "up to 4, not 9"]
    refused(tmp_path, SCRIPT, "--resume", "five.npz", "--digits", "29", names=names)


@pytest.mark.slow
def test_ema(tmp_path):
    """It is saved and drawn with, goes on exactly, and does not change what is trained."""
    arguments = "--max_batches 20 --fid_interval 1 --sample_interval 7 --n_epochs".split()
    train(tmp_path / "plain", *arguments, 2)
    train(tmp_path / "straight", *arguments, 2, "--ema", 0.9)
    train(tmp_path / "split", *arguments, 1, "--ema", 0.9)
    train(tmp_path / "split", "--resume", "--n_epochs", 2)
    paths = [str(tmp_path / name / "results" / "checkpoint.npz") for name in ("plain", "straight", "split")]
    plain, straight, split = map(checkpoint.read_checkpoint, paths)
    for name, value in straight.items():
        if name not in ("log", "layers"):
            np.testing.assert_array_equal(value, split[name], err_msg=name)
            assert name.startswith("ema/") or np.array_equal(value, plain[name])
    plain_scores, scores, split_scores = (file["log"]["evaluations"][-1] for file in (plain, straight, split))
    assert scores == split_scores and scores["digit_fid"] != plain_scores["digit_fid"]
    for metric, value in scores["generator"].items():  # the generator's own, beside the average's
        assert value == plain_scores[metric]
    name = "model.11.weight"
    assert (straight[f"ema/{name}"] != straight[f"generator/{name}"]).any()
    np.testing.assert_array_equal(checkpoint.read_generator(paths[1])[1][name], straight[f"ema/{name}"])
