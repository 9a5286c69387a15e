"""Bad input: one line that names what is wrong, status 2, at once, and nothing written."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, few, run, train, write_idx
from PIL import Image

import plot_curves
from support import flags, limits
from support.flags import Parser
from support.idx import FILES

MNIST_FILES = [name for names in FILES for name in names]


@pytest.mark.parametrize(
    "words, rule",
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
        ("--n_classes 5", "must be 10"),
        ("--n_classes 11", "must be 10"),
        ("--fid_samples 10001", "at most 10000"),
        ("--batch_size 59999", "last batch of 1"),
        ("--data_root nowhere", "nowhere is missing"),
        ("--inception_weights nowhere.npz", "nowhere.npz: No such file"),
        ("--inception_weights /proc/version", "/proc/version is not a file of Inception-v3 weights"),
        ("--unknown 1", "unrecognized"),
        ("--n_epoch 1", "unrecognized"),
    ],
)  # fmt: skip
def test_flags(refuses, words, rule):
    refuses(*words.split(), names=[words.split()[0], rule])


GROUPS = {  # in /proc/self/cgroup, and files below /sys/fs/cgroup: version 2, 2 as seen in a container, 1, none
    "2": ("0::/a/b\n", {"a/memory.max": "3000000000", "a/b/memory.max": "max", "a/cpu.max": "150000 100000"}),
    "2, container": ("0::/\n", {"memory.max": "3000000000\n", "cpu.max": "100000 100000\n"}),
    "1": (
        "5:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "3000000000",
            "cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    ),
    "none": ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_limits_are_the_containers(tmp_path, monkeypatch, refuses, name):
    groups, files = GROUPS[name]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{path}": x for path, x in files.items()}}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(limits, "ROOT", str(tmp_path))
    if name == "none":
        assert (limits.memory(), limits.cores()) == (whole, len(os.sched_getaffinity(0)))
    else:
        assert (limits.memory(), limits.cores()) == (3000000000, 1)
        refuses("--hidden_d", 13500, names=["13500 would take at least 3 GB of memory, but only 3.0 are available"])


def test_limits_are_the_shells_and_the_users(tmp_path):
    """ulimit -v, taskset, and a number of threads that is set stays."""

    def bound():
        resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    code = "import os, support; from support.limits import memory; print(memory(), os.environ['OMP_NUM_THREADS'])"
    assert run("-c", code, preexec_fn=bound).stdout.split() == [str(2**31), "1"]
    assert run("-c", code, preexec_fn=bound, OMP_NUM_THREADS="7").stdout.split() == [str(2**31), "7"]


def test_flags_of_every_kind_are_resumed():
    """Also without help; the command line stands above them."""
    parser = Parser("A run.")
    parser.add_argument("--plain", default=1.5, type=float)
    parser.add_argument("--none", help="nothing")
    parser.add_argument("--loss", choices=["hinge", "mse"], default="mse")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256], fixed=True)
    parser.add_argument("--text", default="")
    parser.add_argument("--zero", default=0.5, type=float)
    parser.add_argument("--on", action="store_true")
    parser.add_argument("--off", action="store_false", dest="bias")
    parser.add_argument("--norm", type=lambda text: text == "yes", default=True)
    parser.add_argument("--commas", type=lambda text: [int(word) for word in text.split(",")], default=[1])
    parser.add_argument("--twice", action="append", type=float)
    parser.add_argument("--range", nargs=2, type=float, default=[-1e-5, 1.0])
    parser.add_argument("--needed", required=True, type=Path)
    parser.add_argument("--start", recorded=False)
    assert "(default: 1.5)" in parser.format_help() and "(default: [128, 256])" in parser.format_help()
    words = "--plain 2 --loss hinge --widths 3 -4 --text=--on --zero 0 --on --off --start x --norm no".split()
    words += "--commas 2,3 --twice -1 --twice 2 --needed a/b".split()
    first = parser.parse_args(words)
    assert vars(first).pop("start") == "x" and "start" not in first.config
    saved = json.loads(json.dumps(first.config, default=str))  # as a checkpoint holds it
    again = parser.parse_args([], {**saved, "unknown": 5, "start": "y", "help": True})
    assert again.config == first.config and again.start is None
    above = parser.parse_args(["--widths", "5", "--loss", "mse"], saved)
    assert (above.widths, above.loss, above.plain, above.bias) == ([5], "mse", 2, False)
    assert parser.fixed() == ["widths"]
    above.plain = 3  # as in a notebook
    assert above.config["plain"] == 3
    above.plain = np.int64(4)
    assert type(above.config["plain"]) is int
    with pytest.raises(ValueError, match="--config: the flags have"):
        parser.add_argument("--config")


def test_a_folder_that_cannot_be_written(tmp_path, refuses):
    (tmp_path / "results").write_text("not a folder")
    for folder, name in ("results", "results"), ("results/below", "results"), ("/proc/run", "/proc"), ("", "results"):
        names = ["--output_dir", "folder that can be written", name]
        refuses("--output_dir", tmp_path / folder, names=names)
    log = ROOT / "results" / "reference" / "log.json"
    refuses(log, "--output_dir", tmp_path / "results/below", names=names[:1], program=plot_curves.main)
    assert [path.name for path in tmp_path.rglob("*")] == ["results"]


@pytest.fixture
def mnist(tmp_path):
    return shutil.copytree(few(), tmp_path / "mnist")


DAMAGE = {  # of a data set: the number of the file, (its path) -> None, and what is said about it
    "missing": (2, lambda path: path.unlink(), ["missing"]),
    "cut off": (0, lambda path: path.write_bytes(path.read_bytes()[:100000]), ["not a whole gzip file"]),
    "foreign": (1, lambda path: path.write_text("labels"), ["idx format"]),
    "swapped": (0, lambda path: shutil.copy(path.with_name(MNIST_FILES[1]), path), ["idx format"]),
    "short": (3, lambda path: write_idx(path, [2049, 1000], np.zeros(999)), ["1000 items"]),
    "count": (3, lambda path: write_idx(path, [2049, 900], np.zeros(900)), ["1000 images", "900 labels"]),
    "unknown": (3, lambda path: write_idx(path, [2049, 1000], np.arange(1000) % 12), ["10, 11"]),
    "size": (2, lambda path: write_idx(path, [2051, 1, 32, 32], np.zeros(32 * 32)), ["32 x 32"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_data_root(mnist, refuses, name):
    number, damage, what = DAMAGE[name]
    damage(mnist / MNIST_FILES[number])
    refuses("--data_root", mnist, names=["--data_root", str(mnist), MNIST_FILES[number], *what])


FOLDERS = {  # that are no data set: (the folder) -> None, and what is said about it
    "empty": (lambda folder: None, ["neither MNIST's four files nor a subfolder of images per class"]),
    "loose": (lambda folder: save_image(folder / "1.png"), ["neither", "subfolder of images per class"]),
    "few": (
        lambda folder: [save_image(folder / "cat" / f"{i}.png") for i in range(9)],
        ["9 training", "0 test images"],
    ),
    "damaged": (lambda folder: [save_image(folder / "cat" / "1.png", 30)], [os.path.join("cat", "1.png"), "read as"]),
    "one name": (lambda folder: [save_image(folder / x / "1.png") for x in ("a b", "a_b")], ["two folders", "a_b"]),
    "two sets": (
        lambda folder: [shutil.copy(few() / MNIST_FILES[0], folder / f"{x}-{MNIST_FILES[0]}") for x in "ab"],
        [f"a-{MNIST_FILES[0]} or b-{MNIST_FILES[0]}"],
    ),
    "pipe": (lambda folder: os.mkfifo(folder / MNIST_FILES[0]), ["neither"]),
}


def save_image(path, n_bytes=None):
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_data_set(tmp_path, refuses, name):
    folder = tmp_path / "data"
    folder.mkdir()
    FOLDERS[name][0](folder)
    refuses("--data_root", folder, names=["--data_root", str(folder), *FOLDERS[name][1]])


def test_paths_as_people_type_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    for text in ("~/a b", "'a b'", '"~/a b"', " a b ", "a b"):
        assert os.path.samefile(flags.typed_path(text), tmp_path / "a b")
    (tmp_path / "~").mkdir()
    assert flags.typed_path("~") == "~"  # what is there by just this name
    assert flags.typed_path("nowhere") == "nowhere" and flags.typed_path("'") == "'"


def test_a_folder_stands_for_the_runs_file(tmp_path, refuses):
    for folder, found in (("run", "run/results/checkpoint.npz"), ("run/results", "run/results/checkpoint.npz")):
        (tmp_path / "run" / "results").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "results" / "checkpoint.npz").touch()
        assert flags.run_file(str(tmp_path / folder)) == str(tmp_path / found)
    assert flags.log_file(str(ROOT / "results" / "reference")) == str(ROOT / "results" / "reference" / "log.json")
    (tmp_path / "empty").mkdir()
    what = [str(tmp_path / "empty" / "results" / "checkpoint.npz"), "no run to go on with"]
    refuses("--resume", tmp_path / "empty", names=["--resume", *what])
    folder = ROOT / "results" / "best"  # which holds the generator alone
    refuses("--resume", folder, "--digits", "x", names=["--digits", str(folder / "generator.npz"), "not x"])


@pytest.mark.parametrize("flag", ["--resume", "--classifier", "--inception_weights"])
def test_pipes_and_devices_are_no_files(tmp_path, refuses, flag):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", "/dev/zero"):
        refuses(flag, path, names=[flag, str(path), "pipe or a device"])
        refuses(path, names=[f"{path} is a pipe or a device"], program=plot_curves.main)


@pytest.mark.slow
def test_data_root_whose_last_batch_would_be_one(tmp_path, mnist, refuses):
    write_idx(mnist / MNIST_FILES[0], [2051, 129, 28, 28], np.zeros(129 * 28 * 28))
    write_idx(mnist / MNIST_FILES[1], [2049, 129], np.arange(129) % 10)
    refuses("--data_root", mnist, names=["--batch_size", "129 images"])
    train(tmp_path, "--data_root", mnist, *"--max_batches 2 --n_epochs 1".split())  # which never reach the last one
