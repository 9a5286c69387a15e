"""Digits on demand, and the running average (EMA) that may draw them."""

import importlib.util
import re
import shutil
import signal

import numpy as np
import pytest
from conftest import ROOT, change_log, done, read_log, read_npz, run, started, train, wait_for
from PIL import Image

import cgan
from support.idx import MNIST
from support.mnist import load_mnist
from support.pages.pictures import labels_of, lay_out, save_picture
from support.runs import export, resume
from support.saved import checkpoint
from support.saved.paths import BEST_GENERATOR

SCRIPT = ROOT / "cgan.py"


def test_text_is_laid_out_in_rows_and_words(tmp_path):
    images = np.arange(5).reshape(5, 1, 1, 1) / 5 * np.ones((5, 1, 8, 8))
    save_picture(tmp_path / "digits.png", lay_out(labels_of("01 2\n34", "0123456789"), images))
    picture = np.asarray(Image.open(tmp_path / "digits.png"))
    assert picture.shape == (2 * 10 + 2, 4 * 10 + 2)
    expected = {(0, 0): 0, (0, 1): 1, (0, 3): 2, (1, 0): 3, (1, 1): 4}
    for row in range(2):
        for column in range(4):
            cell = picture[10 * row + 2 : 10 * row + 10, 10 * column + 2 : 10 * column + 10]
            digit = expected.get((row, column))
            assert (cell == (0 if digit is None else round((digit / 5 + 1) * 127.5))).all()
    assert (picture[:, :2] == 0).all() and (picture[10:12] == 0).all()


def test_labels_are_typed_by_their_names():
    assert labels_of("3 17  25\n0", [str(label) for label in range(26)]) == [[3, 17, 25], [0]]
    assert labels_of("b d\nac", "abcd") == [[1, None, 3], [0, 2]]
    assert labels_of("old_car  1 2", ["1", "2", "old_car"]) == [[2, 0, 1]]
    for text, names, what in (("3 old", ["3", "old_car"], "3, old_car, not old"), ("aB!", "ab", "a, b, not !, B")):
        with pytest.raises(ValueError, match=f"^learned the labels {re.escape(what)}$"):
            labels_of(text, names)
    assert lay_out([[3, 17, 25], [0]], np.zeros((4, 1, 8, 8))).shape == (2 * 10 + 2, 3 * 10 + 2)


def test_labels_of_own_images_are_drawn_by_their_names(tmp_path, refuses, capsys):
    """The run keeps them, and so does its generator alone; n_classes is the data's."""
    images, out = load_mnist(train=False, img_size=28), tmp_path / "run"
    for name, digit in (("cat", 3), ("old car", 8)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in np.flatnonzero(images.labels == digit)[:40]:
            Image.fromarray(images.codes[i]).save(tmp_path / "data" / name / f"{i}.png")
    flags = "--n_epochs 1 --batch_size 24 --fid_samples 8".split()
    log = train(out, "--data_root", tmp_path / "data", *flags)
    assert log["labels"] == ["cat", "old_car"] and log["config"]["n_classes"] == 2
    assert Image.open(out / "images" / "0.png").size == (2 * 34 + 2, 10 * 34 + 2)
    kept = tmp_path / "generator.npz"
    checkpoint.save_generator(str(kept), checkpoint.read_checkpoint(str(out / "results" / "checkpoint.npz")))
    for path in (out, kept):
        words = ["--resume", str(path), "--output_dir", str(out), "--digits"]
        cgan.draw_digits(cgan.parse_flags([*words, "old_car cat old_car"]))
        assert Image.open(out / "images" / "digits.png").size == (3 * 34 + 2, 34 + 2)
        capsys.readouterr()
        refuses(*words, "car", names=["--digits", "learned the labels cat, old_car, not car"])
    assert cgan.parse_flags(["--resume", str(out)]).n_classes == 2


def test_draws_with_the_run_of_the_folder_and_says_so(tmp_path, finished_run):
    folder, _ = finished_run
    before = {path: path.read_bytes() for path in folder.rglob("*.npz")}
    process = done(SCRIPT, "--digits", "22 13\\n904", "--output_dir", folder, cwd=tmp_path)
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
    done("-m", "support.saved.checkpoint", path, tmp_path / "generator.npz")
    config, arrays, data = checkpoint.read_generator(str(tmp_path / "generator.npz"))
    assert (config["latent_dim"], config["n_classes"], config["img_size"], data) == (100, 10, 32, MNIST.sha256)
    assert (tmp_path / "generator.npz").stat().st_size < 4e6
    stored = read_npz(tmp_path / "generator.npz")
    for name, value in checkpoint.read_generator(str(path))[1].items():
        assert stored[f"generator/{name}"].dtype == np.float16 and arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], value.astype(np.float16))


@pytest.mark.parametrize(
    "text, what", [("12a4!", "9, not !, a"), ("", "at least one"), ("  ", "spaces and newlines"), ("१२", "not १, २")]
)
def test_anything_else_than_digits_is_refused(refuses, text, what):
    refuses("--digits", text, names=["--digits", what])


def test_what_cannot_be_kept_alone_is_one_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("no checkpoint")
    for path in (tmp_path / "missing.npz", tmp_path / "text.npz", BEST_GENERATOR):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            checkpoint.keep_generator(str(path), str(tmp_path / "generator.npz"))
        assert not (tmp_path / "generator.npz").exists()


def test_keeping_a_generator_alone_costs_no_file(tmp_path, finished_run):
    """Not the checkpoint itself, nor any other; a weight that float16 does not hold is kept in float32."""
    path, target = tmp_path / "checkpoint.npz", tmp_path / "generator.npz"
    arrays = read_npz(finished_run[0] / "results" / "checkpoint.npz")
    np.savez(path, **{**arrays, "generator/model.0.bias": np.full(128, 1e6, np.float32)})
    before = path.read_bytes()
    process = run("-m", "support.saved.checkpoint", path, path)
    assert process.returncode == 2 and process.stderr.endswith(f"{path} exists already: name a file that does not\n")
    assert path.read_bytes() == before
    checkpoint.keep_generator(str(path), str(target))
    assert (checkpoint.read_generator(str(target))[1]["model.0.bias"] == 1e6).all()


def test_draws_without_training_and_reads_what_it_drew(tmp_path):
    process = done(SCRIPT, "--digits", "31415926", cwd=tmp_path)
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


def test_what_a_generator_cannot_do_is_refused(tmp_path, refuses):
    """None in the checkpoint, a digit that was never learned, to go on with training."""
    (tmp_path / "results").mkdir()
    path, five = tmp_path / "results" / "checkpoint.npz", tmp_path / "five.npz"
    np.savez(path, x=np.zeros(3))
    refuses("--digits", "1", "--output_dir", tmp_path, names=["--digits", str(path), "'log' is missing"])
    np.savez(five, **read_npz(BEST_GENERATOR))
    change_log(five, n_classes=5)
    names = ["--digits", "five.npz", "labels 0, 1, 2, 3, 4, not 9"]
    refuses("--resume", five, "--digits", "29", names=names)
    refuses("--resume", BEST_GENERATOR, names=["--resume", BEST_GENERATOR, "a generator alone"])
    np.savez(five, **{name: array for name, array in read_npz(BEST_GENERATOR).items() if name != "epoch"})
    refuses("--resume", five, "--digits", "2", names=["five.npz", "'epoch' is missing"])


def test_digits_say_which_epoch_draws_and_which_was_better(tmp_path, finished_run, capsys):
    """The last one draws, unless --resume names the best."""
    shutil.copytree(finished_run[0] / "results", tmp_path / "results")
    last, best = (tmp_path / "results" / name for name in ("checkpoint.npz", "best.npz"))
    scores = [f"(digit FID {row['digit_fid']:.3g})" for row in read_log(finished_run[0])["evaluations"]]
    arrays = checkpoint.read_checkpoint(str(last))
    arrays["epoch"] = 1
    checkpoint.save_generator(str(best), arrays)
    for words, path, epoch in (([], last, 2), (["--resume", str(best)], best, 1)):
        cgan.draw_digits(cgan.parse_flags(["--digits", "5", "--output_dir", str(tmp_path), *words]))
        drawn, *better = capsys.readouterr().out.splitlines()
        assert f"drawn by the generator in {path} after epoch {epoch} {scores[epoch - 1]}, read as" in drawn
        assert len(better) == (path == last)
        assert not better or (f"--resume {best}: " in better[0] and f"epoch 1 {scores[0]}" in better[0])


def test_single_digits_as_pngs_and_as_arrays(tmp_path, finished_run):
    words = [SCRIPT, "--output_dir", finished_run[0], "--export", "my digits", "--npz", "digits.npz", "--n", 101]
    process = done(*words, cwd=tmp_path)
    assert "my digits and digits.npz: 101 images of each of 10 labels, drawn by" in process.stdout
    arrays, folder = read_npz(tmp_path / "digits.npz"), tmp_path / "my digits"
    assert arrays["images"].dtype == np.uint8 and arrays["images"].shape == (1010, 32, 32)
    assert (np.bincount(arrays["labels"]) == 101).all()
    paths = sorted(folder.rglob("*.*"))
    assert [path.relative_to(folder).as_posix() for path in paths[::1009]] == ["0/000.png", "9/100.png"]
    for path in paths:
        expected = arrays["images"][arrays["labels"] == int(path.parent.name)][int(path.stem)]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


@pytest.mark.slow
def test_single_digits_have_the_logs_digit_fid(tmp_path, finished_run, capsys):
    words = ["--output_dir", finished_run[0], "--npz", tmp_path / "digits.npz"]
    opt = cgan.parse_flags([str(word) for word in words])
    export.export(opt, cgan.load_generator(resume.generator_path(opt)), cgan.generate)
    assert f"{tmp_path}/digits.npz: 1,000 images of each of 10 labels" in capsys.readouterr().out
    cgan.fid.main(cgan.fid.parse_flags(["mnist", str(tmp_path / "digits.npz"), "--features", "digits"]))
    value = float(re.search(r"^FID: ([\d.]+)", capsys.readouterr().out, re.MULTILINE)[1])
    assert value == pytest.approx(read_log(finished_run[0])["evaluations"][-1]["digit_fid"], rel=0.01)


def test_folders_and_files_of_an_export_sort_by_number(tmp_path):
    images = np.arange(12 * 11, dtype=np.uint8).repeat(16).reshape(-1, 12, 4, 4)
    export.write_folder(str(tmp_path / "out"), images, [str(label) for label in range(12)], 11)
    paths = sorted((tmp_path / "out").rglob("*.png"))
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths[:12:11]] == ["00/00.png", "01/00.png"]
    values = [np.asarray(Image.open(path))[0, 0] for path in paths]
    assert values == [12 * i + label for label in range(12) for i in range(11)]
    export.write_folder(str(tmp_path / "named"), images[:1, :2], ["cat", "old_car"], 1)
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == ["cat", "old_car"]


def test_an_export_that_is_stopped_leaves_nothing(tmp_path):
    with started(SCRIPT, "--export", "out", "--n", "999999", cwd=tmp_path) as process:
        wait_for(lambda: list(tmp_path.rglob("*.png")))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130 and errors.splitlines()[-1].startswith("Ctrl-C: stopped")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, names",
    [
        ("--export full", ["--export", "full holds something", "new folder"]),
        ("--export full/file", ["--export", "full/file: Not a directory"]),
        ("--npz full/file", ["--npz", "full/file is there already"]),
        ("--npz full/file/x.npz", ["--npz", "full/file: Not a directory"]),
        ("--export new --digits 5", ["--digits", "ask for one of them"]),
        ("--export new --resume full/file", ["--export", "full/file is not a checkpoint"]),
        ("--n 5", ["--n", "--export", "--n_epochs"]),
        ("--digits 5 --n 5", ["--n", "--export"]),
        ("--export new --n 0", ["--n", "at least 1"]),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch, refuses, flags, names):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    refuses(*flags.split(), names=names)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


def test_an_exports_noise_follows_from_the_runs_seed_unless_another_is_given(tmp_path):
    np.savez(tmp_path / "five.npz", **read_npz(BEST_GENERATOR))
    change_log(tmp_path / "five.npz", seed=5)
    words = ["--export", str(tmp_path / "new"), "--resume", str(tmp_path / "five.npz")]
    assert cgan.parse_flags(words).seed == 5 and cgan.parse_flags([*words, "--seed", "0"]).seed == 0


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_pytorch_draws_what_the_generator_draws(tmp_path, finished_run):
    """With the lines of the documentation."""
    shutil.copytree(finished_run[0] / "results", tmp_path / "results")
    generator = cgan.load_generator(str(tmp_path / "results" / "best.npz"))
    noise = np.random.default_rng(0).standard_normal((10, 100)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    lines = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    lines = lines.replace("torch.randn(10, 100)", "torch.tensor(np.load('noise.npy'))")
    done("-c", f"{lines}\nnp.save('images.npy', images.detach().numpy())", cwd=tmp_path)
    expected = cgan.generate(generator, noise, np.arange(10))[:, 0]
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-5)


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
    assert scores == split_scores and scores["label_fid"] != plain_scores["label_fid"]
    for metric, value in scores["generator"].items():  # the generator's own, beside the average's
        assert value == plain_scores[metric]
    name = "model.11.weight"
    assert (straight[f"ema/{name}"] != straight[f"generator/{name}"]).any()
    np.testing.assert_array_equal(checkpoint.read_generator(paths[1])[1][name], straight[f"ema/{name}"])
