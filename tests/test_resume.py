"""A run is never lost: what is interrupted goes on to the same bits, and no fault costs what was saved."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run
from PIL import Image
from test_bad_input import Hostile, refused

import cgan
from support import checkpoint

SCRIPT = ROOT / "cgan.py"
FLAGS = "--max_batches 20 --sample_interval 15 --fid_interval 2 --fid_samples 3".split()
KILLS = int(os.environ.get("KILLS", "6"))  # 20 take two minutes


def outcome(folder):
    """Returns what a run in the folder has come to, timings aside, and so that == compares it."""
    with np.load(folder / "results" / "checkpoint.npz", allow_pickle=False) as file:
        arrays = {name: value.tobytes() for name, value in file.items() if name != "log"}
        logs = [json.loads(str(file["log"])), json.loads((folder / "results" / "log.json").read_text())]
    for log in logs:
        for row in log["epochs"]:
            assert row.pop("seconds") >= 0
    return arrays, logs, {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, inception_file):
    """A run of 4 epochs: (its flags, its outcome, its folder)."""
    folder = tmp_path_factory.mktemp("straight")
    flags = [*FLAGS, "--inception_weights", str(inception_file)]
    process = run(SCRIPT, "--n_epochs", "4", *flags, cwd=folder)
    assert process.returncode == 0, process.stderr
    return flags, outcome(folder), folder


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 2, 3]])
def test_split_runs_end_in_the_same_bits(tmp_path, straight, stops):
    flags, expected, _ = straight
    assert run(SCRIPT, "--n_epochs", stops[0], *flags, cwd=tmp_path).returncode == 0
    for stop in [*stops[1:], 4]:
        process = run(SCRIPT, "--resume", "--n_epochs", stop, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert outcome(tmp_path) == expected


def test_killed_runs_end_in_the_same_bits(tmp_path, straight):
    """SIGKILL at random moments; every file is readable after every kill."""
    flags, expected, _ = straight
    moments = random.Random(0)
    for _ in range(KILLS):
        saved = (tmp_path / "results" / "checkpoint.npz").exists()
        command = [sys.executable, SCRIPT, *(["--resume"] if saved else ["--n_epochs", "4", *flags])]
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0, 8))
        process.kill()
        process.wait()
        for path in tmp_path.rglob("*.png"):
            Image.open(path).load()
        for path in tmp_path.rglob("log.json"):
            json.loads(path.read_text())
        for path in tmp_path.rglob("checkpoint.npz"):
            checkpoint.read_checkpoint(str(path))
    saved = (tmp_path / "results" / "checkpoint.npz").exists()
    process = run(SCRIPT, *(["--resume"] if saved else ["--n_epochs", "4", *flags]), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert outcome(tmp_path) == expected
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["import", "training"])
def test_interrupts_are_one_sentence(tmp_path, name, status, moment):
    command = [sys.executable, SCRIPT, "--n_epochs", "99", "--max_batches", "60", "--output_dir", "my runs"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if moment == "import":
        while not (tmp_path / "my runs" / "results").exists():
            time.sleep(0.01)
        time.sleep(0.1)
    else:
        assert any("Epoch 2/99] [Batch 0" in line for line in process.stdout)
    start = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate()
    assert time.monotonic() - start < 2
    assert process.returncode == status
    (line,) = errors.split("\n")[1:-1]
    assert "stopped" in line
    if moment == "import":
        assert "Nothing is saved yet" in line
    else:
        assert line.endswith("python cgan.py --resume --output_dir 'my runs'") and "epoch 1 " in line
        assert run(SCRIPT, "--resume", "--output_dir", "my runs", "--n_epochs", "2", cwd=tmp_path).returncode == 0


def test_a_finished_run_resumed_is_done(tmp_path, straight):
    shutil.copytree(straight[2], tmp_path / "run")
    process = run(SCRIPT, "--resume", tmp_path / "run" / "results" / "checkpoint.npz", cwd=tmp_path)
    assert process.returncode == 0 and "Done" in process.stdout
    assert outcome(tmp_path / "run") == straight[1]


def spoil_truncated(path, arrays):
    path.write_bytes(path.read_bytes()[:-1000])
    return ["is not a checkpoint"]


def spoil_empty(path, arrays):
    path.write_bytes(b"")
    return ["is not a checkpoint"]


def spoil_text(path, arrays):
    path.write_text("checkpoint")
    return ["is not a checkpoint"]


def spoil_foreign(path, arrays):
    np.savez(path, weights=np.zeros(3))
    return ["is not a checkpoint of cgan.py", "is missing"]


def spoil_missing(path, arrays):
    del arrays["optimizer_D/v/3"]
    np.savez(path, **arrays)
    return ["optimizer_D/v/3 is missing"]


def spoil_size(path, arrays):
    np.savez(path, **{**arrays, "generator/model.0.weight": np.zeros((128, 50), np.float32)})
    return ["generator/model.0.weight has shape (128, 50), where (128, 110) belongs"]


def spoil_nan(path, arrays):
    arrays["discriminator/model.2.bias"][7] = np.nan
    np.savez(path, **arrays)
    return ["discriminator/model.2.bias", "not finite"]


def spoil_objects(path, arrays):
    np.savez(path, **{**arrays, "log": np.array([Hostile()])})
    return ["is not a checkpoint", "Object arrays cannot be loaded"]


def spoil_flags(path, arrays):
    log = json.loads(str(arrays["log"]))
    log["config"]["lr"] = "fast"
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})
    return ["--lr", "positive number"]


def spoil_gone(path, arrays):
    path.unlink()
    return ["is missing: there is no run to go on with"]


@pytest.mark.parametrize(
    "spoil",
    [
        *(spoil_truncated, spoil_empty, spoil_text, spoil_foreign, spoil_missing),
        *(spoil_size, spoil_nan, spoil_objects, spoil_flags, spoil_gone),
    ],
)
def test_bad_checkpoints(tmp_path, straight, spoil):
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    path = tmp_path / "results" / "checkpoint.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    refused(tmp_path, SCRIPT, "--resume", names=["results/checkpoint.npz", *spoil(path, arrays)])


@pytest.mark.parametrize(
    "flags, rule",
    [
        ("--hidden_d 256", "has 512, which cannot become 256"),
        ("--latent_dim=50", "has 100"),
        ("--img_size 28", "has 32"),
        ("--batch_size 32", "has 64"),
        ("--seed 1", "has 0"),
        ("--max_batches 21", "has 20"),
        ("--n_epochs 3", "at least 4"),
    ],
)
def test_flags_that_contradict_the_checkpoint(tmp_path, straight, flags, rule):
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    refused(tmp_path, SCRIPT, "--resume", *flags.split(), names=[re.split("[ =]", flags)[0], rule])


def test_other_data_is_refused(tmp_path, straight):
    import jittor_offline

    shutil.copytree(straight[2] / "results", tmp_path / "results")
    (tmp_path / "other").mkdir()
    source = os.path.dirname(jittor_offline.__file__)
    for kind in ("images-idx3", "labels-idx1"):  # the test images in the training images' place
        for part in ("train", "t10k"):
            shutil.copy(f"{source}/t10k-{kind}-ubyte.gz", tmp_path / "other" / f"{part}-{kind}-ubyte.gz")
    refused(tmp_path, SCRIPT, "--resume", "--data_root", "other", names=["--data_root", "trained on other images"])
    for kind in ("images-idx3", "labels-idx1"):  # the real ones, in a place of their own, are the same data
        shutil.copy(f"{source}/train-{kind}-ubyte.gz", tmp_path / "other")
    process = run(SCRIPT, "--resume", "--data_root", "other", cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_a_folder_that_holds_a_run(tmp_path, straight):
    """Refused but for --overwrite, which deletes the run and nothing else."""
    for name in ("images", "results"):
        shutil.copytree(straight[2] / name, tmp_path / name)
    (tmp_path / "results" / "notes.txt").write_text("mine")
    refused(tmp_path, SCRIPT, "--n_epochs", "1", names=["--output_dir", "--resume", "--overwrite"])
    path = straight[2] / "results" / "checkpoint.npz"
    refused(tmp_path, SCRIPT, "--resume", path, "--output_dir", ".", names=["--output_dir", "--overwrite"])
    process = run(SCRIPT, *"--overwrite --n_epochs 1 --max_batches 2 --seed 5".split(), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["0.png"]
    assert json.loads((tmp_path / "results" / "log.json").read_text())["config"]["seed"] == 5
    assert (tmp_path / "results" / "notes.txt").read_text() == "mine"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    command = [sys.executable, SCRIPT, "--n_epochs", "99", "--max_batches", "2"]
    first = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        first.stdout.readline()
        second = run(SCRIPT, "--resume", cwd=tmp_path)
        while second.returncode == 2 and "is missing" in second.stderr:  # before the first epoch ends
            second = run(SCRIPT, "--resume", cwd=tmp_path)
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 2 and "Another run is writing" in second.stderr and second.stderr.count("\n") == 1


def test_a_disk_that_is_full(tmp_path, straight):
    """A limit of 16 MB on the size of a file stands in: a checkpoint takes 34."""
    for name in ("images", "results"):
        shutil.copytree(straight[2] / name, tmp_path / name)
    process = subprocess.run(
        [sys.executable, SCRIPT, "--resume", "--n_epochs", "6"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24)),
    )
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "File too large" in process.stderr and "Saved up to epoch 4" in process.stderr
    arrays, logs, _ = outcome(tmp_path)
    assert (arrays, logs) == straight[1][:2]
    assert not list(tmp_path.rglob("*.new"))


def test_a_folder_that_is_deleted_during_the_run(tmp_path):
    command = [sys.executable, SCRIPT, "--n_epochs", "99", "--max_batches", "60", "--output_dir", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any("[Batch 0/60]" in line for line in process.stdout)
    shutil.rmtree(tmp_path / "run")
    _, errors = process.communicate()
    assert process.returncode == 1 and errors.count("\n") == 1
    assert "No such file or directory" in errors and "Nothing is saved yet" in errors


def test_numbers_gone_wrong_keep_the_last_checkpoint(tmp_path):
    """A parameter that is not finite, which no loss has shown yet."""
    generator, path = cgan.Generator(), tmp_path / "results" / "checkpoint.npz"
    path.parent.mkdir()
    networks = {"generator": generator}
    checkpoint.save_checkpoint(str(tmp_path), networks, {}, 1, {}, "data")
    before = path.read_bytes()
    generator.model[0].bias.assign(np.full(128, np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="epoch 2: generator"):
        checkpoint.save_checkpoint(str(tmp_path), networks, {}, 2, {}, "data")
    assert path.read_bytes() == before


@pytest.mark.parametrize("sizes", [{}, {"latent_dim": 7, "n_classes": 12, "img_size": 9, "hidden_d": 33}])
def test_expected_shapes_are_the_networks(sizes):
    sizes = {"latent_dim": 100, "n_classes": 10, "img_size": 32, "hidden_d": 512, **sizes}
    networks = {
        "generator": cgan.Generator(sizes["latent_dim"], sizes["n_classes"], sizes["img_size"]),
        "discriminator": cgan.Discriminator(sizes["n_classes"], sizes["img_size"], sizes["hidden_d"]),
    }
    expected = checkpoint.expected_shapes(**sizes)
    for name, optimizer in (("generator", "optimizer_G"), ("discriminator", "optimizer_D")):
        for key, value in networks[name].state_dict().items():
            assert expected.pop(f"{name}/{key}") == tuple(value.shape)
        for i, value in enumerate(networks[name].parameters()):
            assert expected.pop(f"{optimizer}/m/{i}") == expected.pop(f"{optimizer}/v/{i}") == tuple(value.shape)
    assert not expected


def test_a_damaged_checkpoint_is_not_called_saved(tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "checkpoint.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    assert checkpoint.describe_saved(str(tmp_path)) == f"{path} is not a checkpoint of cgan.py."
