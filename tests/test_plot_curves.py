"""The curves, drawn without a screen from logs of real runs."""

import json
import os

import pytest
from conftest import ROOT, read_log, refused, run
from PIL import Image

import plot_curves
from plot_curves import join_seeds, short_names
from support.saved.log import read_log as read_checked


def drawn(folder):
    """Returns {file name: share of pixels that are not white}."""
    shares = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            gray = image.convert("L")
            shares[path.name] = sum(gray.histogram()[:250]) / (gray.width * gray.height)
            assert gray.width >= 1000
    return shares


def test_curves_of_a_real_run(finished_run, tmp_path):
    log = finished_run[0] / "results" / "log.json"
    process = run("plot_curves.py", log, "--output_dir", tmp_path / "curves", DISPLAY="")
    assert process.returncode == 0, process.stderr
    shares = drawn(tmp_path / "curves")
    assert set(shares) == {"loss.png", "fid.png"} and min(shares.values()) > 0.01


def test_several_logs_overlay_and_a_log_without_fid_still_draws(finished_run, tmp_path):
    log = read_log(finished_run[0])
    log["evaluations"] = [{"epoch": 1, "fid": None, "fid_samples": 10}]
    (tmp_path / "log.json").write_text(json.dumps(log))
    process = run("plot_curves.py", tmp_path / "log.json")
    assert process.returncode == 0 and "weights were not there" in process.stdout and "no FID" in process.stdout
    alone = drawn(tmp_path)
    assert set(alone) == {"loss.png"}  # beside the log
    both = tmp_path / "both"
    process = run(
        "plot_curves.py", finished_run[0] / "results" / "log.json", tmp_path / "log.json", "--output_dir", both
    )
    assert process.returncode == 0, process.stderr
    assert set(drawn(both)) == {"loss.png", "fid.png"}
    with Image.open(both / "loss.png") as two, Image.open(tmp_path / "loss.png") as one:
        assert two.height == 2 * one.height  # a panel for each loss


def test_runs_are_named_by_what_tells_their_paths_apart():
    def names(*paths):
        return list(short_names(paths).values())

    assert names("results/lr_d/log.json", "results/ema/log.json") == ["lr_d", "ema"]
    assert names("results/log.json", "trial/results/log.json") == ["results/log.json", "trial"]
    assert names("log.json") == ["log.json"]
    assert names("s/a", "a/s", "a/t") == ["s/a", "a/s", "a/t"]  # without what all have, two would be s


@pytest.mark.parametrize("name", ["$x$", "a$b", r"\$", "_hidden", "$\\frac"])
def test_any_name_of_a_run_can_be_drawn(finished_run, tmp_path, name):
    logs = []
    for folder in (name, "other"):
        os.makedirs(tmp_path / folder)
        logs.append(tmp_path / folder / "log.json")
        logs[-1].write_bytes((finished_run[0] / "results" / "log.json").read_bytes())
    process = run("plot_curves.py", *logs, "--output_dir", tmp_path / "named")
    assert process.returncode == 0 and "Traceback" not in process.stderr
    assert set(drawn(tmp_path / "named")) == {"loss.png", "fid.png"}


def test_a_path_that_is_not_utf_8(finished_run, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.makedirs(folder)
    for path in (os.path.join(folder, b"log.json"), os.path.join(os.fsencode(tmp_path), b"log.json")):
        with open(path, "wb") as file:
            file.write((finished_run[0] / "results" / "log.json").read_bytes())
    logs = [os.fsdecode(os.path.join(folder, b"log.json")), tmp_path / "log.json"]
    process = run("plot_curves.py", *logs, "--output_dir", os.fsdecode(folder), PYTHONUTF8="1")
    assert process.returncode == 0, process.stderr
    assert os.path.exists(os.path.join(folder, b"run.html"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn in this process."""
    import matplotlib.pyplot

    kept = []
    matplotlib.use("Agg")  # before Matplotlib 3.8, this closes all figures
    monkeypatch.setattr(matplotlib.pyplot, "close", kept.append)
    return kept


def test_the_legend_shows_names_as_they_are(finished_run, figures, tmp_path):
    names = ["_a", "$b$", "c$", "plain"]
    log = read_log(finished_run[0])
    plot_curves.plot_curves(dict.fromkeys(names, log), str(tmp_path))
    for axes in [axes for figure in figures for axes in figure.axes]:
        texts = [text.get_text().replace(r"\$", "$") for text in axes.get_legend().get_texts()]
        assert texts == names


def test_the_last_batchs_losses_lie_thinly_behind_the_means(finished_run, figures, tmp_path):
    log = read_log(finished_run[0])
    plot_curves.plot_curves({"run": log}, str(tmp_path))
    lines = figures[0].axes[0].lines
    assert len(lines) == 4
    for (mean, last), key in zip([lines[:2], lines[2:]], ("d_loss", "g_loss")):
        assert list(mean.get_ydata()) == [row[key] for row in log["epochs"]]
        assert list(last.get_ydata()) == [row[f"{key}_last"] for row in log["epochs"]]
        assert last.get_linewidth() < mean.get_linewidth() and last.get_zorder() < mean.get_zorder()
    for row in log["epochs"]:  # as in a log made before
        del row["d_loss_last"], row["g_loss_last"]
    plot_curves.plot_curves({"run": log}, str(tmp_path))
    assert "last" not in figures[-2].axes[0].get_ylabel()


def nested(depth):
    return '{"epochs": ' + "[" * depth + "]" * depth + "}"


def log_with(**values):
    row = {"epoch": 1, "d_loss": 1, "g_loss": 1}
    evaluation = {"epoch": 1, "fid": None}
    (row if set(values) & {"d_loss", "d_loss_last", "seconds"} else evaluation).update(values)
    return json.dumps({"epochs": [row], "evaluations": [evaluation]})


@pytest.mark.parametrize(
    "text, what",
    [
        (nested(100000), "no JSON"),
        (log_with(d_loss=10**400), "d_loss"),
        (log_with(fid=10**400), "fid"),
        (log_with(digit_fid="x"), "digit_fid"),
        (log_with(label_accuracy=[1]), "label_accuracy"),
        (log_with(generator={"digit_fid": "x"}), "generator"),
        (log_with(generator=[]), "generator"),
        (log_with(d_loss_last="x"), "'epochs'"),
        (log_with(seconds=True), "'epochs'"),
        (log_with(d_loss=1e300), "d_loss"),
        (log_with(epoch=10**400), "evaluations"),
        (log_with(epoch=1.5), "evaluations"),
        ('{"epochs": [{"epoch": 1, "d_loss": 1, "g_loss": 1}], "evaluations": [], "config": []}', "config"),
        ('{"epochs": [{"epoch": 1, "d_loss": 1, "g_loss": 1}], "evaluations": [], "changes": [1]}', "changes"),
        (" " * (50 * 10**6 + 1), "larger than 50 MB"),
    ],
)
def test_a_log_that_cannot_be_drawn(tmp_path, text, what):
    (tmp_path / "log.json").write_text(text)
    refused(tmp_path, ROOT / "plot_curves.py", tmp_path / "log.json", names=["log.json", what])
    with pytest.raises(ValueError, match=str(tmp_path / "log.json")):
        read_checked(str(tmp_path / "log.json"))


def test_seeds_that_have_no_epoch_in_common_are_drawn(tmp_path):
    for seed in (1, 2):
        log = json.loads(log_with())
        log["epochs"][0]["epoch"], log["config"] = seed, {"seed": seed}
        (tmp_path / f"{seed}.json").write_text(json.dumps(log))
    process = run("plot_curves.py", tmp_path / "1.json", tmp_path / "2.json")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("first, scale", [(51, "log"), (49, "linear"), (0, "linear")])
def test_the_axis_of_a_curve_that_spans_more_than_five_times_is_logarithmic(figures, tmp_path, first, scale):
    log = json.loads(log_with(digit_fid=first))
    log["evaluations"].append({"epoch": 2, "fid": None, "digit_fid": 10})
    (tmp_path / "log.json").write_text(json.dumps(log))
    plot_curves.plot_curves({"run": read_checked(str(tmp_path / "log.json"))}, str(tmp_path))
    assert figures[-1].axes[0].get_yscale() == scale


def test_curves_that_lie_far_apart_share_a_logarithmic_axis(figures, tmp_path):
    logs = {}
    for digit_fid in (9, 50):
        (tmp_path / "log.json").write_text(log_with(digit_fid=digit_fid))
        logs[str(digit_fid)] = read_checked(str(tmp_path / "log.json"))
    plot_curves.plot_curves(logs, str(tmp_path))
    assert figures[-1].axes[0].get_yscale() == "log"


def test_the_generators_own_digit_fid_is_drawn_beside_its_averages(monkeypatch, tmp_path):
    panels = {}
    monkeypatch.setattr(plot_curves, "draw", lambda path, drawn, xlabel: panels.update(drawn))
    (tmp_path / "log.json").write_text(log_with(digit_fid=5.0, generator={"digit_fid": 7.0}))
    plot_curves.plot_curves({"run": read_checked(str(tmp_path / "log.json"))}, str(tmp_path))
    (curve,), (own,) = (panels[f"digit FID{without} (lower is better)"] for without in ("", " without the average"))
    assert (curve[0][0][curve[1]], own[0][0][own[1]]) == (5.0, 7.0)


def test_a_run_that_was_never_scored_is_not_said_to_lack_weights(finished_run, tmp_path):
    log = read_log(finished_run[0])
    (tmp_path / "log.json").write_text(json.dumps({**log, "evaluations": []}))
    process = run("plot_curves.py", tmp_path / "log.json")
    assert process.returncode == 0 and "not there" not in process.stdout and "no epoch is evaluated" in process.stdout


def test_a_single_epoch_with_a_single_fid_draws(finished_run, tmp_path):
    log = read_log(finished_run[0])
    log = {name: rows[:1] if isinstance(rows, list) else rows for name, rows in log.items()}
    (tmp_path / "log.json").write_text(json.dumps(log))
    process = run("plot_curves.py", tmp_path / "log.json")
    assert process.returncode == 0, process.stderr
    assert set(drawn(tmp_path)) == {"loss.png", "fid.png"}


def test_runs_that_differ_in_their_seed_are_one_curve(finished_run, figures, tmp_path):
    log = read_log(finished_run[0])
    other, lone, again = (json.loads(json.dumps(log)) for _ in range(3))
    other["config"]["seed"], lone["config"]["lr"] = 1, 0.1
    again["changes"] = [{"epoch": 2, "config": {"lr": 0.1}}]
    other["epochs"][1]["d_loss"] += 0.5
    logs = {"lone": lone, "a/seed0": log, "a/seed1": other, "again": again}
    joined = join_seeds(logs)
    assert list(joined) == ["lone", "a (2 seeds)", "again"] and joined["lone"] is lone
    row, d_loss = joined["a (2 seeds)"]["epochs"][1], log["epochs"][1]["d_loss"]
    assert (row["epoch"], row["d_loss_low"], row["d_loss_high"]) == (2, d_loss, d_loss + 0.5)
    assert row["d_loss"] == pytest.approx(d_loss + 0.25)
    for row in joined["a (2 seeds)"]["evaluations"]:
        assert row["digit_fid"] == row["digit_fid_low"] > 0
    plot_curves.plot_curves(logs, str(tmp_path))
    axes = figures[0].axes[0]
    assert "band" in axes.get_xlabel() and len(axes.collections) == 3
    (band,) = axes.collections[1].get_paths()
    assert band.vertices[:, 1].max() == pytest.approx(d_loss + 0.5)

    other["epochs"].pop()
    assert [row["epoch"] for row in join_seeds(logs)["a (2 seeds)"]["epochs"]] == [1]
    assert list(join_seeds({"seed0": log, "seed1": other})) == ["seed0, seed1 (2 seeds)"]
    assert list(join_seeds({"a": log, "b": log})) == ["a", "b"]  # the same seed: two runs, not one
    two = {f"x/{rate}_{seed}": {**log, "config": {"lr": rate, "seed": seed}} for rate in "ab" for seed in ([], 1)}
    assert list(join_seeds(two)) == ["x (2 seeds)", "x/b_[], x/b_1"]  # no curve is lost
