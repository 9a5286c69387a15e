"""The curves, drawn without a screen from logs of real runs."""

import json
import os
import sys

import pytest
from conftest import ROOT, done, read_log, refused, run
from PIL import Image

import plot_curves
from plot_curves import join_seeds, short_names


def drawn(folder):
    """Returns the names of the PNGs, none of which is blank."""
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width >= 1000 and sum(image.convert("L").histogram()[:250]) > 0.01 * image.width * image.height
    return {path.name for path in folder.glob("*.png")}


@pytest.fixture
def draw(monkeypatch, capsys):
    """A function that writes logs as read_log returns them and draws their curves; returns what is printed."""

    def draw_here(logs, folder):
        for name, log in logs.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "log.json").write_text(json.dumps(log))
        paths = [str(folder / name / "log.json") for name in logs]
        monkeypatch.setattr(sys, "argv", ["plot_curves.py", *paths, "--output_dir", str(folder / "curves")])
        plot_curves.main()
        output, errors = capsys.readouterr()
        assert not errors
        return output

    return draw_here


def small(epochs=({"d_loss": 1, "g_loss": 1},), evaluations=({"fid": None},), **more):
    """Returns a log whose rows count as epochs 1, 2 ..."""
    rows = [[{"epoch": i, **row} for i, row in enumerate(part, 1)] for part in (epochs, evaluations)]
    return {"epochs": rows[0], "evaluations": rows[1], "config": {}, "environment": {}, "changes": [], **more}


def test_curves_of_a_real_run_alone_and_beside_one_without_fid(finished_run, tmp_path, draw):
    log = read_log(finished_run[0])
    for logs in ({"run": log}, {"run": log, "other": {**log, "evaluations": [{"epoch": 1, "fid": None}]}}):
        draw(logs, tmp_path)
        assert drawn(tmp_path / "curves") == {"loss.png", "fid.png"}
        with Image.open(tmp_path / "curves" / "loss.png") as image:
            assert image.height == 675 * len(logs)  # of two runs, a panel for each loss
    one_row = {name: rows[:1] if isinstance(rows, list) else rows for name, rows in log.items()}
    (tmp_path / "run" / "log.json").write_text(json.dumps(one_row))
    (tmp_path / "curves" / "fid.png").unlink()
    words = [tmp_path / "run", "--output_dir", tmp_path / "curves"]
    process = run("plot_curves.py", *words, DISPLAY="", MPLBACKEND="TkAgg")  # no screen
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert drawn(tmp_path / "curves") == {"loss.png", "fid.png"}


def test_why_there_is_no_fid_is_said(tmp_path, draw):
    assert "no FID in the log (Inception's weights were not available, or failed)" in draw({"run": small()}, tmp_path)
    said = draw({"run": small(evaluations=[])}, tmp_path)
    assert "not available" not in said and "no epoch is evaluated" in said
    assert drawn(tmp_path / "curves") == {"loss.png"}
    draw({"run": small()}, tmp_path)
    (tmp_path / "curves" / "fid.png").write_text("mine")
    draw({"run": small(evaluations=[])}, tmp_path)
    assert (tmp_path / "curves" / "fid.png").read_text() == "mine"
    said = draw({"run": small(evaluations=[{"sharpness": 3}])}, tmp_path)  # of somebody who has no use for an FID
    assert "no FID" not in said and drawn(tmp_path / "curves") == {"loss.png", "fid.png"}


def test_runs_are_named_by_what_tells_their_paths_apart():
    def names(*paths):
        return list(short_names(paths).values())

    assert names("results/lr_d/log.json", "results/ema/log.json") == ["lr_d", "ema"]
    here = os.path.basename(os.getcwd())
    assert names("results/log.json") == names("log.json") == [here]
    assert names("results/log.json", "trial/results/log.json") == [here, "trial"]
    assert names("a/results/log.json") == ["a"] and names("a/seed0.json") == ["a/seed0.json"]
    assert names("s/a", "a/s", "a/t") == ["s/a", "a/s", "a/t"]  # without what all have, two would be s


def test_a_path_that_is_not_utf_8(tmp_path):
    folders = [tmp_path / os.fsdecode(name) for name in (b"caf\xe9", b"other")]
    for folder in folders:
        folder.mkdir()
        (folder / "log.json").write_text(json.dumps(small()))
    done("plot_curves.py", *(folder / "log.json" for folder in folders), PYTHONUTF8="1")
    assert (folders[0] / "run.html").exists()


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn in this process."""
    from matplotlib.figure import Figure

    kept, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *to, **more: kept.append(self) or savefig(self, *to, **more))
    return kept


def test_the_legend_shows_names_as_they_are(figures, tmp_path):
    names = ["_a", "$b$", "c$", r"\$", "$\\frac", "plain"]
    plot_curves.plot_curves(dict.fromkeys(names, small(evaluations=[{"fid": 3}])), str(tmp_path))
    for axes in (*figures[0].axes, *figures[1].axes):
        assert legend(axes) == [name.replace("$", r"\$") for name in names]
    assert drawn(tmp_path) == {"loss.png", "fid.png"}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def panels(figure):
    """Returns {label of the y axis: (lowest, highest) that it shows}."""
    return {axes.get_ylabel(): axes.get_ylim() for axes in figure.axes}


def test_whatever_is_recorded_is_drawn_below_0_too(figures, tmp_path, draw):
    epochs = [
        {"d_loss": -1, "g_loss": -2, "d_loss_last": 0, "penalty": 5, "batches": 3, "seconds": 2.5, "note": "x"},
        {"d_loss": -3, "g_loss": -4, "d_loss_last": 1, "cycle_loss": 1.5, "penalty": 6, "penalty_last": None},
    ]
    evaluations = [{"fid": None, "label_fid": 8, "sharpness": -1, "label_accuracy": 0.5, "class_accuracy": [1]}]
    log = small(epochs, [*evaluations, {"fid": "?", "fid_samples": 10, "inception_sha256": "0f"}])
    draw({"run": log}, tmp_path)
    losses, penalty = panels(figures[0]).items()
    assert losses[0].startswith("mean loss") and losses[1][0] < -4 < -1 < losses[1][1]
    assert legend(figures[0].axes[0]) == ["discriminator", "generator", "cycle"]
    assert penalty[0].startswith("penalty") and penalty[1][0] == 0 and len(figures[0].axes[1].lines) == 2
    assert list(panels(figures[1])) == ["label FID (lower is better)", "sharpness"]
    assert panels(figures[1])["sharpness"][0] < -1
    plot_curves.plot_curves({"a": log, "b": log}, str(tmp_path))
    labels = [label.partition(",")[0] for label in panels(figures[2])]
    assert labels == ["discriminator loss", "generator loss", "penalty", "cycle loss"]


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


@pytest.mark.parametrize(
    "change, what",
    [
        ({"evaluations": [{"fid": 10**400}]}, "fid of epoch 1"),
        ({"evaluations": [{"epoch": 2}, {"epoch": 2}]}, "evaluations"),
        ({"changes": [1]}, "changes"),
        ({"config": [1]}, "'config' must be a dictionary"),
        ({"changes": [{"epoch": 1, "environment": 3}]}, "'environment' must be a dictionary"),
    ],
)
def test_a_log_that_cannot_be_drawn(tmp_path, refuses, change, what):
    (tmp_path / "log.json").write_text(json.dumps(small(**change)))
    refuses(tmp_path / "log.json", names=["log.json", what], program=plot_curves.main)


@pytest.mark.parametrize(
    "runs, scale", [([[51, 10]], "log"), ([[49, 10]], "linear"), ([[0, 10]], "linear"), ([[9], [50]], "log")]
)
def test_the_axis_of_curves_that_span_more_than_five_times_is_logarithmic(figures, tmp_path, runs, scale):
    logs = {str(run): small(evaluations=[{"digit_fid": fid} for fid in run]) for run in runs}
    plot_curves.plot_curves(logs, str(tmp_path))
    assert figures[-1].axes[0].get_yscale() == scale


def test_the_generators_own_digit_fid_is_drawn_beside_its_averages(figures, tmp_path):
    log = small(evaluations=[{"digit_fid": 5.0, "generator": {"digit_fid": 7.0}}])
    plot_curves.plot_curves({"run": log}, str(tmp_path))
    shown = {axes.get_ylabel(): axes.lines[0].get_ydata()[0] for axes in figures[-1].axes}
    assert shown == {"digit FID (lower is better)": 5, "digit FID without the average (lower is better)": 7}


def test_runs_that_differ_in_their_seed_are_one_curve(finished_run, figures, tmp_path):
    log = read_log(finished_run[0])
    other, lone, again = (json.loads(json.dumps(log)) for _ in range(3))
    other["config"]["seed"], lone["config"]["lr"] = 1, 0.1
    again["changes"] = [{"epoch": 2, "config": {"lr": 0.1}}]
    other["changes"] = [{"epoch": 2, "environment": {"threads": "1"}}]  # which is no other curve
    other["epochs"][1]["d_loss"] += 0.5
    logs = {"lone": lone, "a/seed0": log, "a/seed1": other, "again": again}
    joined = join_seeds(logs)
    assert list(joined) == ["lone", "a (2 seeds)", "again"] and joined["lone"] is lone
    row, d_loss = joined["a (2 seeds)"]["epochs"][1], log["epochs"][1]["d_loss"]
    assert (row["epoch"], row["d_loss/low"], row["d_loss/high"]) == (2, d_loss, d_loss + 0.5)
    assert row["d_loss"] == pytest.approx(d_loss + 0.25)
    for row in joined["a (2 seeds)"]["evaluations"]:
        assert row["digit_fid"] == row["digit_fid/low"] > 0
    plot_curves.plot_curves(logs, str(tmp_path))
    axes = figures[0].axes[0]
    assert "band" in axes.get_xlabel() and len(axes.collections) == 3
    (band,) = axes.collections[1].get_paths()
    assert band.vertices[:, 1].max() == pytest.approx(d_loss + 0.5)

    other["epochs"].pop()
    assert [row["epoch"] for row in join_seeds(logs)["a (2 seeds)"]["epochs"] if "d_loss" in row] == [1]
    assert list(join_seeds({"seed0": log, "seed1": other})) == ["seed0, seed1 (2 seeds)"]
    weights = json.loads(json.dumps(other))
    for row in weights["evaluations"]:
        row["inception_sha256"] = "b" * 64
    others = {"a/seed0": log, "b/seed0": weights, "a/seed1": other, "b/seed1": {**weights, "config": log["config"]}}
    assert list(join_seeds(others)) == ["a (2 seeds)", "b (2 seeds)"]
    assert list(join_seeds({"a": log, "b": log})) == ["a", "b"]  # the same seed: two runs, not one
    two = {f"x/{rate}_{seed}": {**log, "config": {"lr": rate, "seed": seed}} for rate in "ab" for seed in ([], 1)}
    assert list(join_seeds(two)) == ["x (2 seeds)", "x/b_[], x/b_1"]  # no curve is lost


# ---------------------------------------------------------------- what FIDs were measured with
def measured(*evaluations):
    """Returns a log with an evaluation for each (FID, images, weights' SHA-256, their name or None)."""
    names = ("fid", "fid_samples", "inception_sha256", "inception")
    rows = [dict(zip(names, values)) for values in evaluations]
    return small(evaluations=[{name: value for name, value in row.items() if value is not None} for row in rows])


def curves_of(axes):
    """Returns {label in the legend: the values of its curve}; no two curves look alike."""
    lines = [line for line in axes.lines if len(line.get_xdata())]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == len(legend(axes))
    return {label: list(line.get_ydata()) for label, line in zip(legend(axes), lines)}


def test_fids_that_cannot_be_compared_are_curves_of_their_own(figures, tmp_path):
    a, b = "a" * 64, "b" * 64
    log = measured((9, 100, a, None), (8, 100, b, "jittor"), (7, 1000, a, None), (6, 100, a, "original"))
    plot_curves.plot_curves({"run": log}, str(tmp_path))
    assert curves_of(figures[-1].axes[0]) == {
        "FID\n100 images, weights aaaaaaaa": [9, 6],
        "FID\n100 images, weights jittor bbbbbbbb": [8],
        "FID\n1000 images, weights aaaaaaaa": [7],
    }
    plot_curves.plot_curves({"x": log, "y": measured((5, 100, a, None), (4, 100, a, None))}, str(tmp_path))
    shown = curves_of(figures[-1].axes[0])
    assert len(shown) == 4 and shown["y\n100 images, weights aaaaaaaa"] == [5, 4]
    named = measured((5, 100, a, "weights/\udce9$" + "w" * 40))
    plot_curves.plot_curves({"run": named}, str(tmp_path))
    assert legend(figures[-1].axes[0])[0].endswith(" aaaaaaaa")
    same = measured((5, 100, a, "original"))
    plot_curves.plot_curves({"x": same, "y": same}, str(tmp_path))
    assert curves_of(figures[-1].axes[0]) == {"x": [5], "y": [5]}
    assert figures[-1].axes[0].get_ylabel().endswith("\n100 images, weights original aaaaaaaa")


@pytest.mark.slow
# ---------------------------------------------------------------- whatever is drawn, wherever
def test_the_users_settings_of_matplotlib_change_nothing(finished_run, tmp_path, draw):
    log = read_log(finished_run[0])
    draw({"run": log}, tmp_path)
    plain = {name: (tmp_path / "curves" / name).read_bytes() for name in ("loss.png", "fid.png")}
    settings = "text.usetex: True\nfont.family: Nowhere\nsavefig.bbox: tight\nlines.linewidth: 9\nno setting\n"
    (tmp_path / "matplotlibrc").write_text(f"{settings}axes.prop_cycle: cycler('linestyle', ['-'])\n")
    words = [tmp_path / "run", "--output_dir", tmp_path / "curves"]
    process = run("plot_curves.py", *words, MATPLOTLIBRC=str(tmp_path / "matplotlibrc"))
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert all((tmp_path / "curves" / name).read_bytes() == before for name, before in plain.items())


def make_font(path, letters):
    """Writes a font in which each of the letters is a box."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for move, point in zip([pen.moveTo] + [pen.lineTo] * 3, [(100, 0), (100, 800), (800, 800), (800, 0)]):
        move(point)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:])})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")  # matplotlib warns of a letter that it draws as a box
def test_letters_that_matplotlibs_own_font_lacks(figures, tmp_path, monkeypatch, capsys):
    from matplotlib import font_manager

    for i, letters in enumerate(("慢判", "别器")):
        make_font(tmp_path / f"Boxes{i}.ttf", letters)
    (tmp_path / "Broken.ttf").write_bytes(b"no font")
    fonts = [str(path) for path in tmp_path.glob("*.ttf")]
    logs = {"plain": small(), "慢判别器": small([{"d_loss": 1, "惩罚": 2}])}
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
    plot_curves.plot_curves(logs, str(tmp_path))
    assert legend(figures[-1].axes[0]) == list(logs)
    said = capsys.readouterr().out
    assert "no. 5 in the pictures is 惩罚\n" in said and "慢" not in said
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    plot_curves.plot_curves(logs, str(tmp_path))
    assert legend(figures[-1].axes[0]) == ["plain", "no. 2"]
    assert "no. 2 in the pictures is 慢判别器\n" in capsys.readouterr().out


@pytest.mark.slow
def test_many_runs_and_long_names(figures, tmp_path, capsys):
    names = [*(f"run{i}" for i in range(59)), "l" * 100 + "m" * 100]
    plot_curves.plot_curves(dict.fromkeys(names, small(evaluations=[{"digit_fid": 3}])), str(tmp_path))
    for figure in figures:
        figure.draw_without_rendering()
        looks = {(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in figure.axes[0].lines}
        assert len(looks) >= 60  # the thin lines, which are empty, look their own way
        for axes in figure.axes:
            box = axes.get_legend().get_window_extent()
            assert axes.bbox.height >= 450 and box.y0 >= axes.bbox.y1 and box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1 and not any(box.overlaps(other.bbox) for other in figure.axes)
    assert legend(axes)[-1] == f"no. 60: {'l' * 20}…{'m' * 20}" and names[-1] in capsys.readouterr().out
    plot_curves.plot_curves({"run": small([{f"number{i}": 1 for i in range(120)}])}, str(tmp_path))
    assert Image.open(tmp_path / "loss.png").height == plot_curves.HIGHEST


@pytest.mark.parametrize("name", ["loss.png", "run.html"])
def test_a_target_that_cannot_be_written(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "log.json").write_text(json.dumps(small()))
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", ["plot_curves.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        plot_curves.main()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{name} cannot be written: Is a directory" in line


# ---------------------------------------------------------------- how a log is named
def test_before_there_is_a_run(tmp_path):
    what = ["results/log.json: No such file", "python cgan.py", "results/reference/log.json"]
    refused(tmp_path, ROOT / "plot_curves.py", ".", names=what)


def test_a_folder_is_its_run_and_a_byte_order_mark_does_no_harm(tmp_path):
    logs = [tmp_path / "run" / "results" / "log.json", tmp_path / "copied" / "log.json"]
    for path, encoding in zip(logs, ("utf-8-sig", "utf-16")):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(small()), encoding=encoding)
    for words in (["~/run", "~/copied"], ["~/run/results", "~/copied/log.json"]):
        done("plot_curves.py", *words, "--output_dir=~/curves", HOME=str(tmp_path), cwd=ROOT)
        page = (tmp_path / "curves" / "run.html").read_text(encoding="utf-8")
        assert '"name": "run' in page and '"name": "copied' in page
