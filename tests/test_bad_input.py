"""Bad input: one line that names what is wrong, status 2, at once, and nothing written."""

import gzip
import pickle
import shutil

import numpy as np
import pytest
from conftest import MNIST, ROOT, Hostile, refused, run

from support.idx import FILES

MNIST_FILES = [name for names in FILES for name in names]


@pytest.mark.parametrize(
    "flags, rule",
    [
        *((f"--{name} {value}", "whole number of at least 1") for value in ("0", "-3", "ten", "1.5") for name in (
            "n_epochs", "img_size", "latent_dim", "sample_interval", "fid_interval", "max_batches", "hidden_d",
        )),
        *((f"--batch_size {value}", "whole number of at least 2") for value in ("0", "1", "-1", "x")),
        *((f"--{n} {value}", "positive number") for value in ("0", "-1", "nan", "inf", "x") for n in ("lr", "lr_d")),
        *((f"--{name} {value}", "from 0 up to") for value in ("1", "-0.1", "nan", "x") for name in ("b1", "b2")),
        ("--seed -1", "at least 0"),
        ("--seed 99999999999", "at most 2,147,483,647"),
        ("--img_size 100000", "GB of memory"),
        ("--latent_dim 2000000000", "GB of memory"),
        ("--latent_dim 20000000", "GB of memory"),  # for the digits of an evaluation
        ("--hidden_d 1000000", "GB of memory"),
        ("--n_classes 1000000", "GB of memory"),
        ("--n_classes 5", "at least 10"),
        ("--fid_samples 10001", "at most 10000"),
        ("--batch_size 59999", "last batch of 1"),
        ("--unknown 1", "unrecognized"),
        ("--n_epoch 1", "unrecognized"),
    ],
)  # fmt: skip
def test_flags(tmp_path, flags, rule):
    refused(tmp_path, ROOT / "cgan.py", *flags.split(), names=[flags.split()[0], rule])


@pytest.mark.parametrize("script, flag", [("cgan.py", "--batch_size"), ("plot_curves.py", "--output_dir")])
def test_help_answers_on_a_fresh_machine(tmp_path, script, flag):
    process = run(ROOT / script, "--help", JITTOR_HOME=str(tmp_path), HOME=str(tmp_path))
    assert process.returncode == 0 and flag in process.stdout
    assert not (tmp_path / ".cache" / "jittor").exists()


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/run"])
def test_output_dir_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").write_text("not a folder")
    refused(tmp_path, ROOT / "cgan.py", "--output_dir", folder, names=["--output_dir", "folder that can be written"])


def test_a_results_file_where_the_folder_goes(tmp_path):
    (tmp_path / "results").write_text("not a folder")
    refused(tmp_path, ROOT / "cgan.py", "--output_dir", ".", names=["--output_dir", "results"])


@pytest.mark.parametrize("script", ["cgan.py", "plot_curves.py"])
def test_output_dir_below_a_file(tmp_path, finished_run, script):
    (tmp_path / "file").write_text("not a folder")
    log = [finished_run[0] / "results" / "log.json"] if script == "plot_curves.py" else []
    refused(tmp_path, ROOT / script, *log, "--output_dir", "file/below", names=["--output_dir", "file"])


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in MNIST_FILES:
        shutil.copy(MNIST / name, folder)
    return folder


def write_idx(path, header, values):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(np.array(header, ">i4").tobytes() + np.asarray(values, np.uint8).tobytes())


def spoil_missing(folder):
    (folder / MNIST_FILES[2]).unlink()
    return MNIST_FILES[2], "missing"


def spoil_truncated(folder):
    (folder / MNIST_FILES[0]).write_bytes((folder / MNIST_FILES[0]).read_bytes()[:100000])
    return MNIST_FILES[0], "not a whole gzip file"


def spoil_foreign(folder):
    (folder / MNIST_FILES[1]).write_text("labels")
    return MNIST_FILES[1], "not a whole gzip file"


def spoil_swapped(folder):
    shutil.copy(folder / MNIST_FILES[1], folder / MNIST_FILES[0])
    return MNIST_FILES[0], "idx format"


def spoil_short(folder):
    write_idx(folder / MNIST_FILES[3], [2049, 10000], np.zeros(9999))
    return MNIST_FILES[3], "10000 items"


def spoil_count(folder):
    write_idx(folder / MNIST_FILES[3], [2049, 9000], np.zeros(9000))
    return "10000 images", "9000 labels"


def spoil_size(folder):
    write_idx(folder / MNIST_FILES[2], [2051, 10, 32, 32], np.zeros(10 * 32 * 32))
    return MNIST_FILES[2], "32 x 32"


@pytest.mark.parametrize(
    "spoil", [spoil_missing, spoil_truncated, spoil_foreign, spoil_swapped, spoil_short, spoil_count, spoil_size]
)
def test_data_root(tmp_path, mnist, spoil):
    refused(tmp_path, ROOT / "cgan.py", "--data_root", mnist, names=["--data_root", *spoil(mnist)])


def test_data_root_that_does_not_exist(tmp_path):
    refused(tmp_path, ROOT / "cgan.py", "--data_root", "nowhere", names=["--data_root", "nowhere", "missing"])


@pytest.mark.slow
def test_data_root_whose_last_batch_would_be_one(tmp_path, mnist):
    write_idx(mnist / MNIST_FILES[0], [2051, 129, 28, 28], np.zeros(129 * 28 * 28))
    write_idx(mnist / MNIST_FILES[1], [2049, 129], np.zeros(129))
    refused(tmp_path, ROOT / "cgan.py", "--data_root", mnist, names=["--batch_size", "129 images"])
    process = run(
        "cgan.py", "--data_root", mnist, *"--max_batches 2 --n_epochs 1 --output_dir".split(), tmp_path / "run"
    )
    assert process.returncode == 0, process.stderr  # two batches never reach the last one


def test_inception_weights(tmp_path, inception_weights):
    np.savez(tmp_path / "foreign.npz", weight=np.zeros(3))
    wrong = dict(inception_weights)
    wrong["Conv2d_1a_3x3.conv.weight"] = np.zeros((1, 1))
    np.savez(tmp_path / "misshaped.npz", **wrong)
    (tmp_path / "text.pkl").write_text("weights")
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "weights.h5").write_bytes(b"")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"Conv2d_1a_3x3.conv.weight": Hostile()}))
    for name, what in [
        ("nowhere.npz", "No such file"),
        ("foreign.npz", "is missing"),
        ("misshaped.npz", "Conv2d_1a_3x3.conv.weight has shape [1, 1]"),
        ("text.pkl", "not a file of Inception-v3 weights"),
        ("empty.pkl", "not a file of Inception-v3 weights"),
        ("weights.h5", ".pkl"),
        ("hostile.pkl", "system, which is refused"),
    ]:
        refused(tmp_path, ROOT / "cgan.py", "--inception_weights", name, names=["--inception_weights", name, what])


@pytest.mark.parametrize(
    "text, what",
    [
        (None, "No such file"),
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "not a log of cgan.py"),
        ('{"epochs": [{"epoch": 1}]}', "d_loss"),
        ('{"epochs": [{"epoch": 1, "d_loss": NaN, "g_loss": 1}]}', "d_loss"),
        ('{"epochs": [{"epoch": 1, "d_loss": 1, "g_loss": 1}], "evaluations": [{"fid": "x"}]}', "evaluations"),
        ('{"epochs": [{"epoch": 1, "d_loss": 1, "g_loss": 1}], "evaluations": [{"epoch": 1, "fid": "x"}]}', "or null"),
        ('{"epochs": [], "evaluations": []}', "no finished epoch"),
    ],
)
def test_plot_curves_log(tmp_path, text, what):
    if text is not None:
        (tmp_path / "log.json").write_text(text)
    refused(tmp_path, ROOT / "plot_curves.py", "log.json", names=["log.json", what])
