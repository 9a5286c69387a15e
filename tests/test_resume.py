"""A run is never lost: what is interrupted goes on to the same bits, and no fault costs what was saved."""

import contextlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import (
    MNIST,
    ROOT,
    change_log,
    done,
    ended,
    few,
    read_log,
    read_npz,
    refused,
    run,
    started,
    train,
    wait_for,
)
from damage import damaged
from hypothesis import given, settings
from PIL import Image

import cgan
from support import evaluation, idx, inception_sources
from support.device import jt, nn
from support.runs import run as run_module
from support.runs.resume import describe_saved
from support.saved import checkpoint, classifier
from support.saved import log as saved_log

SCRIPT = ROOT / "cgan.py"
FLAGS = "--max_batches 20 --sample_interval 15 --fid_interval 1 --fid_samples 3".split()  # every last epoch is scored
KILLS = int(os.environ.get("KILLS", "6"))  # 20 take two minutes


def promised(log):
    """Returns what a seed promises of a log: all, but on a GPU no digits of losses and scores.

    There Jittor adds them up in no fixed order.
    """

    def without_digits(value):
        if isinstance(value, dict):
            return {name: without_digits(part) for name, part in value.items()}
        if isinstance(value, list):
            return [without_digits(part) for part in value]
        return float if isinstance(value, float) else value

    parts = ("epochs", "evaluations") if jt.flags.use_cuda else ()
    return {**log, **{part: without_digits(log[part]) for part in parts}}


def outcome(folder):
    """Returns what a run in the folder has come to, timings aside, so that == compares what its seed promises."""
    arrays = read_npz(folder / "results" / "checkpoint.npz")
    logs = [json.loads(str(arrays.pop("log"))), read_log(folder)]
    for log in logs:
        for row in log["epochs"]:
            assert row.pop("seconds") >= 0
    pictures = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    return {name: value.tobytes() for name, value in arrays.items()}, [promised(log) for log in logs], pictures


@pytest.fixture(scope="module")
def straight(tmp_path_factory, inception_file):
    """A run of 4 epochs: (its flags, its outcome, its folder, its seconds)."""
    folder = tmp_path_factory.mktemp("straight")
    flags = [*FLAGS, "--inception_weights", str(inception_file)]
    start = time.monotonic()
    done(SCRIPT, "--n_epochs", "4", *flags, cwd=folder)
    return flags, outcome(folder), folder, time.monotonic() - start


def test_split_runs_end_in_the_same_bits(tmp_path, straight):
    """Interrupted after every epoch."""
    flags, expected, *_ = straight
    train(tmp_path, "--n_epochs", 1, *flags)
    for stop in (2, 3):
        train(tmp_path, "--resume", "--n_epochs", stop)
    done(SCRIPT, "--resume", "--n_epochs", 4, cwd=tmp_path)
    assert outcome(tmp_path) == expected


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(tmp_path, straight):
    """SIGKILL at random moments of a whole run; every file is readable after every kill."""
    flags, expected, _, seconds = straight
    moments, path = random.Random(0), tmp_path / "results" / "checkpoint.npz"
    kills = 0
    while kills < KILLS or not path.exists():
        kills += 1
        assert kills <= KILLS + 20, "every run was killed before its first checkpoint"
        words = ["--resume"] if path.exists() else ["--n_epochs", "4", *flags]
        with started(SCRIPT, *words, cwd=tmp_path, stdout=None, stderr=None) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, seconds))
        for picture in tmp_path.rglob("*.png"):
            Image.open(picture).load()
        for log in tmp_path.rglob("log.json"):
            json.loads(log.read_text())
        for saved in tmp_path.rglob("checkpoint.npz"):
            checkpoint.read_checkpoint(str(saved))
    done(SCRIPT, "--resume", cwd=tmp_path)
    assert outcome(tmp_path) == expected
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--n_epochs", 5]])
def test_an_epoch_is_saved_before_it_is_scored_and_a_resume_scores_it(tmp_path, monkeypatch, straight, more):
    """Also if it is not the last one any more: the log becomes that of a run that was not stopped."""
    flags, expected, *_ = straight
    evaluate = evaluation.Evaluation.__call__

    def stopped(self, networks, epoch):
        if epoch == 4:
            raise KeyboardInterrupt
        return evaluate(self, networks, epoch)

    monkeypatch.setattr(evaluation.Evaluation, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "--n_epochs", 4, *flags)
    for log in (read_log(tmp_path), checkpoint.read_checkpoint(tmp_path / "results" / "checkpoint.npz")["log"]):
        assert len(log["epochs"]) == 4 and log["evaluations"][-1] == {"epoch": 4}
    monkeypatch.undo()
    log = promised(train(tmp_path, "--resume", *more))
    assert log["evaluations"][:4] == expected[1][0]["evaluations"] and len(log["evaluations"]) == len(log["epochs"])
    assert more or outcome(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["import", "training"])
def test_interrupts_are_one_sentence(tmp_path, name, status, moment):
    folder = tmp_path / os.fsdecode("it's my (1st) #1 & 100% $HOME 运行".encode() + b"\xff")  # which is no text
    command = [SCRIPT, "--n_epochs", "99", "--max_batches", "60", "--output_dir", folder.name]
    with started(*command, cwd=tmp_path) as process:
        if moment == "import":
            wait_for((folder / "results" / ".lock").exists)
            time.sleep(0.1)  # of about a second
        else:
            assert any("Epoch 2/99] [Batch 0" in line for line in process.stdout)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate()
    assert process.returncode == status
    (line,) = errors.split("\n")[1:-1]
    assert "stopped" in line
    if moment == "import":
        assert "Nothing is saved yet" in line
    else:
        assert "epoch 1 " in line
        words = shlex.split(line.split("to go on: python ")[1])
        process = run(*words, "--n_epochs", "2", cwd="/")  # typed in another folder
        assert process.returncode == 0, process.stderr
        assert [row["epoch"] for row in read_log(folder)["evaluations"]] == [2]
        assert (folder / "results" / "run.html").exists()


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


@pytest.mark.slow
def test_a_run_that_goes_on_in_another_folder_leaves_nothing_of_the_run_there(tmp_path, straight):
    shutil.copytree(straight[2], tmp_path / "first")
    done(SCRIPT, *"--n_epochs 1 --max_batches 2 --seed 5".split(), cwd=tmp_path)
    path = tmp_path / "first" / "results" / "checkpoint.npz"
    done(SCRIPT, "--resume", path, "--output_dir", ".", "--overwrite", cwd=tmp_path)
    arrays, logs, pictures = outcome(tmp_path)
    assert (arrays, logs) == straight[1][:2] and not pictures
    assert outcome(tmp_path / "first") == straight[1]


@pytest.mark.slow
def test_what_changes_on_resume_is_logged_with_its_epoch(tmp_path, monkeypatch):
    """--lr alone is both optimizers' rate."""
    train(tmp_path, "--max_batches", 3, "--n_epochs", 1)
    shutil.copytree(tmp_path, tmp_path / "other")
    other = train(tmp_path / "other", *"--resume --n_epochs 2 --lr 0.01 --lr_d 0.01".split())
    for epochs, flags in ((2, ["--lr", 0.01]), (3, []), (4, ["--lr_d", 0.02, "--fid_samples", 5])):
        log = train(tmp_path, "--resume", "--n_epochs", epochs, *flags)
    assert log["epochs"][1]["g_loss"] == other["epochs"][1]["g_loss"]
    assert log["config"]["lr"] == 0.0002 and log["config"]["lr_d"] is None and log["config"]["n_epochs"] == 4
    assert log["changes"] == [
        {"epoch": 2, "config": {"lr": 0.01}},
        {"epoch": 4, "config": {"lr_d": 0.02, "fid_samples": 5}},
    ]
    monkeypatch.setattr(run_module, "describe_code", lambda: "other code")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")  # which are not used any more, but noted
    log = train(tmp_path, "--resume", "--n_epochs", 5)
    assert log["changes"][2:] == [{"epoch": 5, "environment": {"code": "other code", "threads": "77"}}]
    assert log["environment"]["code"] != "other code"


@pytest.mark.slow
def test_a_flag_that_the_script_does_not_know_is_named_once_and_logged_as_gone(tmp_path, saved, capsys):
    change_log(saved, smooth=0.9)
    log = train(tmp_path, "--resume", "--n_epochs", 5)
    assert "has flags that this script does not know; they are left out: smooth\n" in capsys.readouterr().err
    assert log["changes"] == [{"epoch": 5, "config": {"smooth": None}}]
    train(tmp_path, "--resume", "--n_epochs", 6)
    assert "smooth" not in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path, straight):
    """The path of a copy of the straight run's checkpoint, to be changed."""
    shutil.copytree(straight[2] / "results", tmp_path / "results")
    return tmp_path / "results" / "checkpoint.npz"


@pytest.mark.slow
def test_flags_are_set_back_on_a_resume(tmp_path, monkeypatch):
    """And what the run is made of is found from whatever folder it goes on."""
    (tmp_path / "my data").symlink_to(MNIST)
    start = "--max_batches 2 --n_epochs 1 --cpu --lr_d 0.01 --data_root".split()
    monkeypatch.chdir(tmp_path)
    first = train(tmp_path / "run", *start, "my data")["config"]
    assert (first["cpu"], first["lr_d"], first["data_root"]) == (True, 0.01, str(tmp_path / "my data"))
    monkeypatch.chdir(ROOT)
    resume = ["--resume", "--output_dir", str(tmp_path / "run")]
    assert cgan.parse_flags(resume).config == first
    back = ["--n_epochs", "2", "--no-cpu", "--lr_d", "default", "--data_root", "default"]
    log = train(tmp_path / "run", *resume[:1], *back)
    assert log["changes"] == [{"epoch": 2, "config": {"lr_d": None, "data_root": None, "cpu": False}}]
    opt = cgan.parse_flags(resume)
    assert (opt.cpu, opt.lr_d, opt.data_root) == (False, None, None)
    assert cgan.parse_flags(["--lr_d", "default", "--no-cpu"]).config == cgan.parse_flags([]).config


DAMAGE = {  # (path, arrays) -> None, and what is said about it
    "gone": (lambda path, _: path.unlink(), "is missing: there is no run to go on with"),
    "cut off": (lambda path, _: path.write_bytes(path.read_bytes()[:-1000]), "is not a checkpoint of cgan.py"),
    "text": (lambda path, _: path.write_text("checkpoint"), "is not a checkpoint of cgan.py"),
    "foreign": (lambda path, _: np.savez(path, x=np.zeros(3)), "is not a checkpoint of cgan.py: 'log' is missing"),
    "object": (lambda path, x: np.savez(path, **{**x, "log": None}), "Object arrays cannot be loaded"),
    "NaN": (lambda path, x: np.savez(path, **{**x, "generator/x": np.nan}), "generator/x holds a number that is not"),
    "epoch": (lambda path, x: np.savez(path, **{**x, "epoch": 5}), "its log does not hold its epochs"),
    "flag": (lambda path, _: change_log(path, lr="fast"), "argument --lr: must be a positive number"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_bad_checkpoints(saved, refuses, name):
    damage, what = DAMAGE[name]
    damage(saved, read_npz(saved))
    refuses("--resume", saved, names=[str(saved), what])


UNFIT = "does not fit the"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value, what",
    [
        ("optimizer_D/Adam/0/values/3", None, f"{UNFIT} optimizers in cgan.py: optimizer_D/Adam/0/values/3 has None"),
        ("optimizer_G/step", None, f"{UNFIT} optimizers in cgan.py: optimizer_G/step has None, not ()"),
        ("generator/model.0.weight", np.zeros((9, 5)), f"{UNFIT} Generator in cgan.py: model.0.weight has (9, 5), not"),
        ("discriminator/x", np.zeros(3), f"{UNFIT} Discriminator in cgan.py: x has (3,), not None"),
        ("encoder/x", np.zeros(3), "also holds encoder, which this script has not handed to Run"),
    ],
)
def test_a_checkpoint_of_other_networks_or_optimizers_is_refused(saved, name, value, what):
    arrays = {**read_npz(saved), name: value}
    np.savez(saved, **{key: array for key, array in arrays.items() if array is not None})
    before = saved.read_bytes()
    with pytest.raises(checkpoint.Mismatch) as error:
        train(saved.parent.parent, "--resume", saved)
    assert f"{saved} {what}" in str(error.value) and saved.read_bytes() == before
    if name.startswith("generator/"):
        with pytest.raises(checkpoint.Mismatch, match="does not fit the Generator"):
            cgan.load_generator(saved)


@pytest.mark.slow
def test_another_optimizer_is_refused_in_one_line(saved):
    source = (ROOT / "cgan.py").read_text(encoding="utf-8")
    script = saved.parent.parent / "cgan.py"
    script.write_text(re.sub(r"= Adam\((.*), betas=.*", r"= nn.RMSprop(\1)", source))
    process = run(script, "--resume", cwd=saved.parent.parent, PYTHONPATH=str(ROOT))
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert "checkpoint.npz does not fit the optimizers in cgan.py: optimizer_G/Adam/0/values/0" in process.stderr


READERS = {
    "checkpoint.npz": lambda path: (checkpoint.read_generator(path), checkpoint.read_checkpoint(path)),
    "log.json": saved_log.read_log,
    "classifier.npz": classifier.read_classifier,
    "labels.gz": lambda path: idx.read_labels(path).tolist(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(tmp_path, straight, name):
    """Whatever bytes of a file have changed: a value, or ValueError."""
    network, path, read = nn.Linear(2, 2), tmp_path / "results" / name, READERS[name]
    (tmp_path / "results").mkdir()
    optimizers, log = {"optimizer_G": nn.Adam(network.parameters(), 1)}, {**read_log(straight[2]), "evaluations": []}
    checkpoint.save_checkpoint(tmp_path, {"generator": network}, optimizers, {}, 4, log, "data")
    checkpoint.save_arrays(path.with_name("classifier.npz"), {"data": np.array("data"), "last.bias": np.zeros(3)})
    saved_log.save_log(tmp_path, log)
    shutil.copy(few() / idx.FILES[1][1], path.with_name("labels.gz"))
    assert read(str(path))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(damaged(path.read_bytes()))
    def check(data):
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            read(str(path))

    check()


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
def test_flags_that_contradict_the_checkpoint(straight, refuses, flags, rule):
    path = straight[2] / "results" / "checkpoint.npz"
    refuses("--resume", path, *flags.split(), names=[re.split("[ =]", flags)[0], str(path), rule])


@pytest.mark.slow
def test_a_run_goes_on_without_its_weights(tmp_path, saved, straight, refuses, capsys, monkeypatch):
    """Their file has gone: one sentence, and the log notes it; the command line brings weights back, or the default."""
    change_log(saved, inception_weights="gone.npz")
    refuses("--resume", saved, "--inception_weights", "gone.npz", names=["argument --inception_weights: gone.npz"])
    for value, expected in ((straight[0][-1], straight[0][-1]), ("original", "original"), ("default", None)):
        opt = cgan.parse_flags(["--resume", str(saved), "--inception_weights", value])
        assert opt.inception_weights == opt.config["inception_weights"] == expected
    log = train(tmp_path, "--resume", "--n_epochs", 5)
    assert capsys.readouterr().out.count("FID is left out, as gone.npz: No such file or directory.\n") == 1
    assert log["changes"] == [{"epoch": 5, "config": {"inception_weights": "none"}}]
    row = log["evaluations"][-1]
    assert row["fid"] is None and row["kid"] is None and row["label_fid"] > 0 and 0 <= row["label_accuracy"] <= 1
    assert cgan.parse_flags(["--resume", str(saved)]).inception_weights == "none"
    monkeypatch.setattr(jt.compiler, "ck_path", str(tmp_path))
    monkeypatch.setattr(inception_sources, "HUB", "http://127.0.0.1:9/")  # no network
    log = train(tmp_path, "--resume", "--n_epochs", 6, "--inception_weights", "jittor")
    assert capsys.readouterr().out.count("FID is left out, as ") == 1 and log["evaluations"][-1]["fid"] is None


@pytest.mark.slow
def test_other_data_is_refused(tmp_path, saved, refuses):
    """Also other test images, unless the checkpoint is of a time when their checksum was not kept."""
    for folder in ("other", "same", "tested"):
        shutil.copytree(few(), tmp_path / folder)
    for training, test in zip(*idx.FILES):  # the images of one set in the place of the other's
        shutil.copy(few() / test, tmp_path / "other" / training)
        shutil.copy(few() / training, tmp_path / "tested" / test)
    what = "was trained on other images"
    refuses("--resume", saved, "--data_root", tmp_path / "other", names=["--data_root", what])
    assert cgan.parse_flags(["--resume", str(saved), "--data_root", str(tmp_path / "same")])
    tested = ["--resume", str(saved), "--data_root", str(tmp_path / "tested")]
    refuses(*tested, names=["--data_root", "was scored on other test images"])
    arrays = read_npz(saved)
    log = json.loads(str(arrays["log"]))
    assert log.pop("data") == idx.data_facts(str(few())).checksums()
    np.savez(saved, **{**arrays, "log": np.array(json.dumps(log))})
    assert cgan.parse_flags(tested)


@pytest.mark.slow
def test_a_folder_that_holds_a_run(tmp_path, straight):
    """Refused but for --overwrite, which deletes the run, half-written files with it, and nothing of the user's."""
    shutil.copytree(straight[2], tmp_path, dirs_exist_ok=True)
    half = ".cgan-0123456789abcdef.new"
    ours = [f"images/{half}", f"results/{half}", "results/loss.png", "results/fid.png"]
    users = ["docs/report.new", "images/2024-holiday.png", "images/15b.png", "images/.my.new", "results/notes.new"]
    (tmp_path / "docs").mkdir()
    for name in (*ours, *users):
        (tmp_path / name).write_text("mine")
    refused(tmp_path, SCRIPT, "--n_epochs", "1", names=["--output_dir", "--resume", "--overwrite"])
    path = straight[2] / "results" / "checkpoint.npz"
    refused(tmp_path, SCRIPT, "--resume", path, "--output_dir", ".", names=["--output_dir", "--overwrite"])
    with pytest.raises(SystemExit):  # also for whoever imports it
        train(tmp_path, "--n_epochs", 1)
    done(SCRIPT, *"--overwrite --n_epochs 1 --max_batches 2 --seed 5".split(), cwd=tmp_path)
    assert read_log(tmp_path)["config"]["seed"] == 5 and (tmp_path / "images" / "0.png").exists()
    assert not any((tmp_path / name).exists() for name in (*ours, "images/15.png"))
    assert all((tmp_path / name).read_text() == "mine" for name in users)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with started(SCRIPT, *"--n_epochs 99 --max_batches 2".split(), cwd=tmp_path, stdout=None):
        wait_for((tmp_path / "results" / "checkpoint.npz").exists)
        ended(run(SCRIPT, "--resume", cwd=tmp_path), 2, "Another run is writing")


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path, straight):
    """A limit of 16 MB on the size of a file stands in: a checkpoint takes 34."""
    shutil.copytree(straight[2], tmp_path, dirs_exist_ok=True)
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))}
    process = run(SCRIPT, "--resume", "--n_epochs", "6", cwd=tmp_path, **limit)
    *tried, line = process.stderr.splitlines()
    assert process.returncode == 1 and [words.split("again in ")[1] for words in tried] == ["1 s.", "5 s.", "15 s."]
    assert "checkpoint.npz: File too large" in line and "Saved up to epoch 4" in line
    arrays, logs, _ = outcome(tmp_path)
    assert (arrays, logs) == straight[1][:2]
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.slow
def test_a_folder_that_is_deleted_during_the_run(tmp_path):
    flags = "--n_epochs 99 --max_batches 60 --output_dir run".split()
    with started(SCRIPT, *flags, cwd=tmp_path) as process:
        assert any("[Batch 0/60]" in line for line in process.stdout)
        (tmp_path / "run").rename(tmp_path / "gone")  # deleting one file after another would meet a new one
        _, errors = process.communicate()
    assert process.returncode == 1 and errors.count("\n") == 1
    assert "run/results/.lock is not this run's any more" in errors and not (tmp_path / "run").exists()


def test_numbers_gone_wrong_keep_the_last_checkpoint(tmp_path):
    """A parameter that is not finite, which no loss has shown yet."""
    generator, path = cgan.Generator(100, 10, 32), tmp_path / "results" / "checkpoint.npz"
    path.parent.mkdir()
    networks = {"generator": generator}
    checkpoint.save_checkpoint(str(tmp_path), networks, {}, {}, 1, {}, "data")
    before = path.read_bytes()
    generator.model[0].bias.assign(np.full(128, np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="epoch 2: generator"):
        checkpoint.save_checkpoint(str(tmp_path), networks, {}, {}, 2, {}, "data")
    assert path.read_bytes() == before
    path.write_bytes(b"PK\x03\x04 not a zip file")  # which is not called saved
    assert describe_saved(str(tmp_path)) == f"{path} is not a checkpoint of cgan.py."
