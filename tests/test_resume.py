"""A run is never lost: what is interrupted goes on to the same bits, and no fault costs what was saved."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import MNIST, ROOT, Hostile, read_log, read_npz, refused, run, started, wait_for
from PIL import Image

import cgan
from support.saved import checkpoint
from support.saved.paths import machine_memory
from support.idx import FILES

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "cgan.py"
FLAGS = "--max_batches 20 --sample_interval 15 --fid_interval 1 --fid_samples 3".split()  # every last epoch is scored
THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
KILLS = int(os.environ.get("KILLS", "6"))  # 20 take two minutes


def outcome(folder):
    """Returns what a run in the folder has come to, timings aside, and so that == compares it."""
    with np.load(folder / "results" / "checkpoint.npz", allow_pickle=False) as file:
        arrays = {name: value.tobytes() for name, value in file.items() if name != "log"}
        logs = [json.loads(str(file["log"])), read_log(folder)]
    for log in logs:
        for row in log["epochs"]:
            assert row.pop("seconds") >= 0
    return arrays, logs, {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, inception_file):
    """A run of 4 epochs: (its flags, its outcome, its folder, its seconds)."""
    folder = tmp_path_factory.mktemp("straight")
    flags = [*FLAGS, "--inception_weights", str(inception_file)]
    start = time.monotonic()
    process = run(SCRIPT, "--n_epochs", "4", *flags, cwd=folder)
    assert process.returncode == 0, process.stderr
    return flags, outcome(folder), folder, time.monotonic() - start


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 2, 3]])
def test_split_runs_end_in_the_same_bits(tmp_path, straight, stops):
    flags, expected, *_ = straight
    assert run(SCRIPT, "--n_epochs", stops[0], *flags, cwd=tmp_path).returncode == 0
    for stop in [*stops[1:], 4]:
        process = run(SCRIPT, "--resume", "--n_epochs", stop, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert outcome(tmp_path) == expected


def test_killed_runs_end_in_the_same_bits(tmp_path, straight):
    """SIGKILL at random moments of a whole run; every file is readable after every kill."""
    flags, expected, _, seconds = straight
    moments, path = random.Random(0), tmp_path / "results" / "checkpoint.npz"
    kills = 0
    while kills < KILLS or not path.exists():
        kills += 1
        assert kills <= KILLS + 20, "every run was killed before its first checkpoint"
        with started(
            SCRIPT, *(["--resume"] if path.exists() else ["--n_epochs", "4", *flags]), cwd=tmp_path
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, seconds))
        for picture in tmp_path.rglob("*.png"):
            Image.open(picture).load()
        for log in tmp_path.rglob("log.json"):
            json.loads(log.read_text())
        for saved in tmp_path.rglob("checkpoint.npz"):
            checkpoint.read_checkpoint(str(saved))
    process = run(SCRIPT, "--resume", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert outcome(tmp_path) == expected
    assert not list(tmp_path.rglob("*.new"))


def catches(process, number):
    """Returns whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["import", "training"])
def test_interrupts_are_one_sentence(tmp_path, name, status, moment):
    command = [SCRIPT, "--n_epochs", "99", "--max_batches", "60", "--output_dir", "my runs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(*command, cwd=tmp_path, **pipes) as process:
        if moment == "import":
            wait_for((tmp_path / "my runs" / "results").exists)
            wait_for(lambda: catches(process, signal.SIGTERM))
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
        for epochs in (1, 2):  # the first of them only becomes the last, which is always scored
            process = run(SCRIPT, "--resume", "--output_dir", "my runs", "--n_epochs", epochs, cwd=tmp_path)
            assert process.returncode == 0, process.stderr
            assert read_log(tmp_path / "my runs")["evaluations"][-1]["epoch"] == epochs
            assert (tmp_path / "my runs" / "results" / "run.html").exists()


def test_a_finished_run_resumed_is_done(tmp_path, straight):
    """And its log and page are brought up to date with the checkpoint, were they missing; also from elsewhere."""
    shutil.copytree(straight[2], tmp_path / "run")
    for name in ("log.json", "run.html"):
        (tmp_path / "run" / "results" / name).unlink()
    # /proc: a folder that nobody can write
    process = run(SCRIPT, "--resume", tmp_path / "run" / "results" / "checkpoint.npz", cwd="/proc")
    assert process.returncode == 0 and "Done" in process.stdout
    assert outcome(tmp_path / "run") == straight[1]
    assert (tmp_path / "run" / "results" / "run.html").exists()


def test_a_run_that_goes_on_in_another_folder_leaves_nothing_of_the_run_there(tmp_path, straight):
    shutil.copytree(straight[2], tmp_path / "first")
    assert run(SCRIPT, *"--n_epochs 1 --max_batches 2 --seed 5".split(), cwd=tmp_path).returncode == 0
    path = tmp_path / "first" / "results" / "checkpoint.npz"
    process = run(SCRIPT, "--resume", path, "--output_dir", ".", "--overwrite", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    arrays, logs, pictures = outcome(tmp_path)
    assert (arrays, logs) == straight[1][:2] and not pictures
    assert outcome(tmp_path / "first") == straight[1]


def test_zeros_among_the_flags_are_resumed(tmp_path):
    flags = "--max_batches 5 --b1 0 --b2 0 --ema 0".split()
    for name, epochs in (("straight", "2"), ("split", "1")):
        process = run(SCRIPT, *flags, "--n_epochs", epochs, "--output_dir", tmp_path / name)
        assert process.returncode == 0, process.stderr
    process = run(SCRIPT, "--resume", "--n_epochs", "2", "--output_dir", tmp_path / "split")
    assert process.returncode == 0, process.stderr
    assert read_log(tmp_path / "split")["epochs"][1]["d_loss"] == read_log(tmp_path / "straight")["epochs"][1]["d_loss"]


def test_what_changes_on_resume_is_logged_with_its_epoch(tmp_path):
    assert run(SCRIPT, *"--max_batches 3 --n_epochs 1".split(), cwd=tmp_path).returncode == 0
    for epochs, flags in (("2", ["--lr", "0.01"]), ("3", []), ("4", ["--lr_d", "0.02", "--fid_samples", "5"])):
        process = run(SCRIPT, "--resume", "--n_epochs", epochs, *flags, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    log = read_log(tmp_path)
    assert log["config"]["lr"] == 0.0002 and log["config"]["lr_d"] is None and log["config"]["n_epochs"] == 4
    assert log["changes"] == [
        {"epoch": 2, "config": {"lr": 0.01}},
        {"epoch": 4, "config": {"lr_d": 0.02, "fid_samples": 5}},
    ]
    process = run(SCRIPT, "--resume", "--n_epochs", "5", cwd=tmp_path, OMP_NUM_THREADS="1" if THREADS > 1 else "2")
    assert process.returncode == 0, process.stderr
    assert [list(change["environment"]) for change in read_log(tmp_path)["changes"][2:]] == [["threads"]]


def test_both_rates_follow_lr(tmp_path):
    """--lr alone is both optimizers' rate, also on resume."""
    assert run(SCRIPT, *"--max_batches 3 --n_epochs 1".split(), cwd=tmp_path).returncode == 0
    shutil.copytree(tmp_path / "results", tmp_path / "other" / "results")
    assert run(SCRIPT, *"--resume --n_epochs 2 --lr 0.01".split(), cwd=tmp_path).returncode == 0
    process = run(SCRIPT, *"--resume --n_epochs 2 --lr 0.01 --lr_d 0.01".split(), cwd=tmp_path / "other")
    assert process.returncode == 0, process.stderr
    assert read_log(tmp_path)["epochs"][1]["g_loss"] == read_log(tmp_path / "other")["epochs"][1]["g_loss"]


@pytest.mark.parametrize("name", ["overwrite", "digits", "help", "resume", "output_dir"])
def test_a_checkpoint_decides_no_flag_that_is_no_runs(tmp_path, straight, name):
    (tmp_path / "other").mkdir()
    shutil.copytree(straight[2] / "results", tmp_path / "run" / "results")
    path = tmp_path / "run" / "results" / "checkpoint.npz"
    arrays = read_npz(path)
    log = json.loads(str(arrays["log"]))
    log["config"][name] = True if name == "overwrite" else str(tmp_path / "other")
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})
    opt = cgan.parse_flags(["--resume", str(path)])
    assert opt.output_dir == os.path.relpath(tmp_path / "run")
    assert (opt.overwrite, opt.digits, opt.resume) == (False, None, str(path))


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
    return ["optimizer_D/v does not fit the parameters of the discriminator"]


def spoil_size(path, arrays):
    np.savez(path, **{**arrays, "generator/model.0.weight": np.zeros((128, 50), np.float32)})
    return ["optimizer_G/m does not fit the parameters of the generator"]


def spoil_nan(path, arrays):
    arrays["discriminator/model.2.bias"][7] = np.nan
    np.savez(path, **arrays)
    return ["discriminator/model.2.bias", "no finite number"]


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


def spoil_compressed(path, arrays):
    np.savez_compressed(path, **{**arrays, "generator/zeros": np.zeros(200_000_000, np.float32)})  # 0.8 GB
    return ["it is compressed more than any"]


def spoil_large(path, arrays):
    os.truncate(path, machine_memory() // 8 + 1)  # sparse: it takes no room on the disk
    return ["it does not fit into this machine's memory"]


def spoil_bzip2(path, arrays):
    """It says that it unpacks to 144 bytes, and unpacks to 150 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("log.npy", bytes(150_000_000))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 150_000_000), struct.pack("<I", 144)))
    return ["it is compressed more than any"]


def spoil_epoch(path, arrays):
    np.savez(path, **{**arrays, "epoch": np.array(2 * 10**7)})
    return ["does not hold its epochs"]


def spoil_change(path, arrays):
    log = json.loads(str(arrays["log"]))
    log["changes"] = [{"epoch": 2, "config": 5}]
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})
    return ["'config' must be a dictionary"]


def spoil_log_numbers(path, arrays):
    np.savez(path, **{**arrays, "log": np.array(str(arrays["log"]).replace('"d_loss": ', '"d_loss": NaN, "x": ', 1))})
    return ["holds NaN"]


def spoil_epoch_text(path, arrays):
    np.savez(path, **{**arrays, "epoch": np.array("four")})
    return ["is not a checkpoint"]


def spoil_changes(path, arrays):
    log = json.loads(str(arrays["log"]))
    log["changes"] = [{"epoch": 2, "config": {"lr": "fast"}}]
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})
    return ["--lr", "positive number"]


@pytest.mark.parametrize(
    "spoil",
    [
        *(spoil_truncated, spoil_empty, spoil_text, spoil_foreign, spoil_missing),
        *(spoil_size, spoil_nan, spoil_objects, spoil_flags, spoil_gone),
        *(spoil_large, spoil_compressed, spoil_bzip2, spoil_epoch, spoil_epoch_text),
        *(spoil_change, spoil_changes, spoil_log_numbers),
    ],
)
def test_bad_checkpoints(tmp_path, straight, spoil):
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    path = tmp_path / "results" / "checkpoint.npz"
    arrays = read_npz(path)
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
        ("--ema 0", "has None"),
        ("--dropout", "has False"),
        ("--n_epochs 3", "at least 4"),
    ],
)
def test_flags_that_contradict_the_checkpoint(tmp_path, straight, flags, rule):
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    refused(tmp_path, SCRIPT, "--resume", *flags.split(), names=[re.split("[ =]", flags)[0], rule])


def test_a_flag_on_the_command_line_stands_above_one_that_no_longer_holds(tmp_path, straight):
    """The file of weights that the run was scored with may have gone."""
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    path = tmp_path / "results" / "checkpoint.npz"
    arrays = read_npz(path)
    log = json.loads(str(arrays["log"]))
    log["config"].update(inception_weights="gone.npz")
    del log["config"]["hidden_d"]  # a checkpoint from before there was such a flag
    np.savez(path, **{**arrays, "log": np.array(json.dumps(log))})
    refused(tmp_path, SCRIPT, "--resume", names=["results/checkpoint.npz: argument --inception_weights: gone.npz"])
    assert cgan.parse_flags(["--resume", str(path), "--inception_weights", straight[0][-1]]).hidden_d == 512


def test_other_data_is_refused(tmp_path, straight):
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    (tmp_path / "other").mkdir()
    for names in FILES:
        for name, test_name in zip(names, FILES[1]):  # the test images in the training images' place
            shutil.copy(MNIST / test_name, tmp_path / "other" / name)
    refused(tmp_path, SCRIPT, "--resume", "--data_root", "other", names=["--data_root", "trained on other images"])
    for name in FILES[0]:  # the real ones, in a place of their own, are the same data
        shutil.copy(MNIST / name, tmp_path / "other")
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
    assert read_log(tmp_path)["config"]["seed"] == 5
    assert (tmp_path / "results" / "notes.txt").read_text() == "mine"


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with started(SCRIPT, *"--n_epochs 99 --max_batches 2".split(), cwd=tmp_path, stdout=subprocess.DEVNULL):
        wait_for((tmp_path / "results" / "checkpoint.npz").exists)
        second = run(SCRIPT, "--resume", cwd=tmp_path)
    assert second.returncode == 2 and "Another run is writing" in second.stderr and second.stderr.count("\n") == 1


def test_only_what_this_program_writes_is_deleted(tmp_path, straight):
    """Half-written files of a killed run, and with --overwrite the run; nothing of the user's beside them."""
    for name in ("images", "results"):
        shutil.copytree(straight[2] / name, tmp_path / name)
    ours = ["images/15.png.new", "results/log.json.new", "results/checkpoint.npz.new"]
    users = ["docs/report.new", "images/2024-holiday.png", "images/15b.png", "images/my.png.new", "results/notes.new"]
    (tmp_path / "docs").mkdir()
    for name in (*ours, *users):
        (tmp_path / name).write_text("mine")
    process = run(SCRIPT, *"--overwrite --n_epochs 1 --max_batches 2".split(), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not any((tmp_path / name).exists() for name in (*ours, "images/15.png"))
    assert all((tmp_path / name).read_text() == "mine" for name in users)


def test_a_disk_that_is_full(tmp_path, straight):
    """A limit of 16 MB on the size of a file stands in: a checkpoint takes 34."""
    for name in ("images", "results"):
        shutil.copytree(straight[2] / name, tmp_path / name)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))

    process = run(SCRIPT, "--resume", "--n_epochs", "6", cwd=tmp_path, preexec_fn=limit)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert "File too large" in process.stderr and "Saved up to epoch 4" in process.stderr
    arrays, logs, _ = outcome(tmp_path)
    assert (arrays, logs) == straight[1][:2]
    assert not list(tmp_path.rglob("*.new"))


def test_a_folder_that_is_deleted_during_the_run(tmp_path):
    flags = "--n_epochs 99 --max_batches 60 --output_dir run".split()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(SCRIPT, *flags, cwd=tmp_path, **pipes) as process:
        assert any("[Batch 0/60]" in line for line in process.stdout)
        (tmp_path / "run").rename(tmp_path / "gone")  # deleting one file after another would meet a new one
        _, errors = process.communicate()
    assert process.returncode == 1 and errors.count("\n") == 1
    assert "No such file or directory" in errors and "Nothing is saved yet" in errors


def test_numbers_gone_wrong_keep_the_last_checkpoint(tmp_path):
    """A parameter that is not finite, which no loss has shown yet."""
    generator, path = cgan.Generator(100, 10, 32), tmp_path / "results" / "checkpoint.npz"
    path.parent.mkdir()
    networks = {"generator": generator}
    checkpoint.save_checkpoint(str(tmp_path), networks, {}, 1, {}, "data")
    before = path.read_bytes()
    generator.model[0].bias.assign(np.full(128, np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="epoch 2: generator"):
        checkpoint.save_checkpoint(str(tmp_path), networks, {}, 2, {}, "data")
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_is_not_called_saved(tmp_path):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "checkpoint.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    assert checkpoint.describe_saved(str(tmp_path)) == f"{path} is not a checkpoint of cgan.py."
