"""The curves, drawn without a screen from logs of real runs."""

import json

from conftest import run
from PIL import Image

from plot_curves import short_names


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
    log = json.loads((finished_run[0] / "results" / "log.json").read_text())
    log["evaluations"] = [{"epoch": 1, "fid": None, "fid_samples": 10}]
    (tmp_path / "log.json").write_text(json.dumps(log))
    process = run("plot_curves.py", tmp_path / "log.json")
    assert process.returncode == 0 and "no FID" in process.stdout
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


def test_a_single_epoch_with_a_single_fid_draws(finished_run, tmp_path):
    log = json.loads((finished_run[0] / "results" / "log.json").read_text())
    log = {name: rows[:1] if isinstance(rows, list) else rows for name, rows in log.items()}
    (tmp_path / "log.json").write_text(json.dumps(log))
    process = run("plot_curves.py", tmp_path / "log.json")
    assert process.returncode == 0, process.stderr
    assert set(drawn(tmp_path)) == {"loss.png", "fid.png"}
