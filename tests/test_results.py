"""The committed results: what they hold, and that READMEs and docs/results.md state just that."""

import json
import re
import shutil
import statistics
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, done
from PIL import Image
from scipy import stats
from test_docs import READMES, read

import cgan
from benchmarks import common, compare, differences, tables
from support import evaluation
from support.runs.run import describe_processor
from support.saved.checkpoint import read_generator
from support.saved.log import read_log

RESULTS = "docs/results.md"
COMPARED = sorted(
    Path(compare.kept_log(name, flags["seed"])) for name, flags in compare.planned() if name != compare.PLAIN
)


def log(name):
    return json.loads((ROOT / "results" / name).read_text())


def kept(name):
    return common.read_kept(name)[1]


def typical(row):
    """Returns the seed of a row's typical run: its digit FID at the end is the median, of an even number the lower."""
    digit_fids = compare.means(compare.read_rows(), compare.LAST)[row]["digit_fid"]
    return digit_fids.index(statistics.median_low(digit_fids))


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_have_not_drifted_from_the_logs(page):
    """If this fails, `python -m benchmarks.tables` mends it."""
    assert tables.written(read(page)) == read(page)


def test_every_table_has_its_file():
    shown = {match[2] for page in tables.PAGES for match in tables.MARKED.finditer(read(page))}
    from_logs = {"beside", "reference", "configurations", "search", "speed", *compare.tables()}
    files = {path.stem for path in Path(common.KEPT).glob("*.json")}
    assert shown - from_logs == files


def test_what_is_said_of_variety_and_copies():
    real, *drawn = kept("variety")
    assert all(float(row[i]) < float(real[i]) for row in drawn for i in (2, 4))  # recall, coverage
    real, *drawn = kept("copies")
    counts = [int(row[-1]) for row in (*drawn, real)]
    chance = [stats.fisher_exact([[n, 100 - n], [counts[-1], 100 - counts[-1]]])[1] > 0.05 for n in range(101)]
    assert all(chance[n] for n in counts) and chance.index(False, counts[-1]) == 67
    assert counts[1:] == [61, 52]  # test_numbers.py has how much nearer these are, in percent
    found = 10000 / 100 * 10000 / 60000  # copies, if one digit in a hundred is one
    assert (round(found), round(found + (100 - found) * counts[-1] / 100)) == (17, 60)


@pytest.mark.parametrize("page", READMES)
def test_the_readmes_table_is_filled_from_the_logs(page):
    (table,) = [match[3] for match in tables.MARKED.finditer(read(page))]
    drifted = re.sub(r"(?m)^(\| (?:`[^|]*)?\| [^|]*\|).*$", r"\1 0.5 |", table)
    assert drifted.count("| 0.5 |") >= 5 and tables.fill_configurations(drifted) == table


def test_what_is_said_beside_the_report():
    rows, text = log("reference/log.json"), read(RESULTS)
    losses = {key: [row[key] for row in rows["epochs"]] for key in ("d_loss", "g_loss")}
    stated = [extreme(values[:40]) for values in losses.values() for extreme in (min, max)]
    stated += [value for values in losses.values() for value in (values[40], values[-1])]
    for value in stated:
        assert f"{value:.3f}" in text
    first, last = rows["evaluations"][0], rows["evaluations"][-1]
    for stated in (
        f"| {first['fid']:.1f} at epoch 10, {last['fid']:.1f} at epoch 100 |",
        f", {last['label_accuracy']:.4f} at epoch 100 |",
        f", {last['digit_fid']:.1f} at epoch 100 |",
    ):
        assert stated in text
    for row in rows["evaluations"]:
        right = (row["d_accuracy_real"] + row["d_accuracy_generated"]) / 2
        assert re.search(rf"(?m)^\| {row['epoch']} \|.*\| {right:.2f} \|.*\| {row['fid']:.1f} \|$", text)


def test_what_an_fid_of_100_means():
    """What real digits score from 100 images is said in words too."""
    real = re.search(r"(?m)^\| 100 and 100 \| ([\d.]+) \(", read(RESULTS))[1]
    for page in (RESULTS, "docs/report.md", "docs/report.zh-CN.md"):
        assert re.search(rf"(scores?|就已经是) {round(float(real))}\b", read(page))


def test_the_reference_run_is_complete():
    """It is the typical one of the report's runs, trained again and scored with FID."""
    rows, seed = log("reference/log.json"), typical(compare.REPORT)
    theirs = log(f"compared/{compare.REPORT}/seed{seed}.json")
    assert [row["epoch"] for row in rows["epochs"]] == list(range(1, 101))
    for ours, compared in zip(rows["epochs"], theirs["epochs"]):
        assert {**ours, "seconds": 0} == {**compared, "seconds": 0}
    last = rows["evaluations"][-1]
    assert last["epoch"] == 100 and last["label_accuracy"] >= 0.985 and min(last["class_accuracy"]) >= 0.95
    for grid in (0, 1000, 2000, 91000, 92000, 93000):
        assert Image.open(ROOT / "images" / "reference" / f"{grid}.png").size == (342, 342)
    with Image.open(ROOT / "images" / "reference" / "training.gif") as animation:
        assert animation.n_frames > 10
    assert (ROOT / "images" / "reference" / "training.gif").stat().st_size <= 3e6


def seen(compared):
    """Returns {what was compared: in words} of the differences that chance does not explain."""
    found = differences.verdicts(compared).items()
    return {names: words for names, (*_, words) in found if words != "no difference seen"}


def broke_down(name):
    """Returns the epochs of a log at which its run broke down."""
    losses = {row["epoch"]: row["d_loss"] for row in log(name)["epochs"]}
    return [epoch for epoch in losses if epoch > 1 and losses[epoch] >= 2 * losses[epoch - 1]]


def test_what_is_said_of_the_seeds():
    """If this fails, the logs have changed, and so must the answers to the report's questions, in both languages."""
    rows = compare.read_rows()
    ends, beside = compare.means(rows, compare.LAST), compare.beside_report(rows, compare.LAST)
    assert seen(beside) == {
        ("lr_d, ema", "digit FID"): "higher",
        ("dropout", "balance"): "higher",
        ("dropout", "label accuracy"): "lower",
        ("best", "balance"): "higher",
        ("best, ema", "digit FID"): "lower",
    }
    real = float(kept("scale")[0][1])
    assert all(np.mean(ends[row]["label_accuracy"]) >= real for row in ("dropout", "report", "report, ema"))
    assert differences.welch(*(ends[row]["d_accuracy"] for row in ("dropout", compare.REPORT)))[2] > 0.05
    accuracies = [(value, fid) for end in ends.values() for value, fid in zip(end["label_accuracy"], end["digit_fid"])]
    assert max(accuracies)[1] == ends["lr_d_half, ema"]["digit_fid"][1]  # whose digits hardly vary
    assert sum(value > 4 for value in rows["best, ema"][100]["digit_fid"]) == 3
    report, half, small = (ends[row]["digit_fid"] for row in (compare.REPORT, "lr_d_half", "hidden_d"))
    assert min(small) > max(report) and sum(value > 10 * max(report) for value in small) == 4
    assert min(half) > 10 * max(report)
    balance = {row: ends[row]["balance"] for row in (compare.REPORT, "lr_d_half")}
    assert sum(value < min(balance[compare.REPORT]) for value in balance["lr_d_half"]) == 4
    broken = {row: found["breakdowns"] for row, found in ends.items() if any(found["breakdowns"])}
    assert [row for row in broken if not row.endswith(compare.EMA)] == ["report", "hidden_d_384", "two_rates"]
    assert (broken["report"], broken["two_rates"]) == ([0, 2, 1, 0, 0, 0, 0, 0], [3, 0, 1, 1, 1])
    assert broken["hidden_d_384"] == [0, 0, 0, 0, 1]
    assert broke_down("compared/hidden_d_384/seed4.json") == [84]
    runs = [ends[row]["breakdowns"] for row in ("two_rates", "best")]
    assert f"{stats.fisher_exact([[sum(map(bool, of)), of.count(0)] for of in runs])[1]:.3f}" == "0.048"
    last, broke = rows[compare.REPORT][100]["digit_fid"], broken["report"]
    assert max(fid for fid, n in zip(last, broke) if n) <= max(fid for fid, n in zip(last, broke) if not n)
    assert min(ends, key=lambda row: np.mean(ends[row]["digit_fid"])) == "best, ema"
    averages, alone = (ends[row]["digit_fid"] for row in ("best, ema", "two_rates, ema"))
    assert stats.ttest_ind(averages, alone, equal_var=False).pvalue > 0.05
    assert all(average < own for average, own in zip(averages, ends["best"]["digit_fid"]))
    best = rows["best"]
    assert all(end < middle for end, middle in zip(ends["best"]["balance"], best[compare.MIDDLE]["balance"]))
    assert seen(compare.beside_report({name: rows[name] for name in (compare.REPORT, compare.PLAIN)}, [10])) == {}


def test_what_is_said_of_the_course():
    """If this fails, the logs have changed, and so must the answers to the report's questions, in both languages."""
    rows = compare.read_rows()
    within, course = compare.within_report(rows), "epoch 40 to the end"
    said = seen(within)
    assert said == {
        (course, "balance"): "lower",
        (course, "accuracy of the discriminator (D)"): "higher",
        (course, "label accuracy"): differences.REACHED,
        (course, "digit FID"): "lower",
        (course + ", ema", "label accuracy"): differences.REACHED,
        (course + ", ema", "digit FID"): "higher",
        ("generator to ema, epoch 20", "label accuracy"): "higher",
        ("generator to ema, epoch 20", "digit FID"): "lower",
        ("generator to ema, epoch 40", "label accuracy"): differences.REACHED,
        ("generator to ema, epoch 40", "digit FID"): "lower",
        ("generator to ema, the end", "label accuracy"): differences.REACHED,
    }
    rises = {names: sum(change > 0 for change in changes) for names, (changes, *_) in within.items()}
    del said[course + ", ema", "label accuracy"]  # not in all eight runs, as are all others and nothing else
    of_all = {names: 0 if words == "lower" else 8 for names, words in said.items()}
    assert {names: n for names, n in rises.items() if n in (0, 8)} == of_all
    logs = [json.loads(path.read_text()) for path in COMPARED if path.parent.name == compare.REPORT]
    scored = [{row["epoch"]: row for row in one["evaluations"]} for one in logs]
    for name, n in (("d_accuracy_real", 5), ("d_accuracy_generated", 6)):
        risen = [np.mean([run[epoch][name] for epoch in compare.LAST]) > run[compare.MIDDLE][name] for run in scored]
        assert sum(risen) == n
    runs = rows[compare.REPORT]
    balance = {epoch: np.mean(values["balance"]) for epoch, values in runs.items()}
    assert set(sorted(balance, key=balance.get)[-2:]) == {20, 30}
    assert sum(after < before for before, after in zip(runs[10]["d_accuracy"], runs[30]["d_accuracy"])) == 7
    ends = compare.means(rows, compare.LAST)[compare.REPORT]["digit_fid"]
    assert stats.ttest_rel(ends, runs[50]["digit_fid"]).pvalue > 0.05
    reference = {row["epoch"]: row for row in log("reference/log.json")["evaluations"]}
    assert all(row["fid"] < reference[40]["fid"] for epoch, row in reference.items() if epoch > 40)


@pytest.mark.slow
def test_the_first_epoch_is_trained_again(tmp_path):
    """To the bits of seed 0 of the compared runs, on a processor of the kind that its log names.

    One of another kind adds in another order, which moves an epoch's losses as another seed does. So there they lie
    where the next seed's would: Student's prediction interval, left once in 10,000 times, with the spread of the seeds
    over all configurations.
    """
    configurations = {}
    for path in COMPARED:
        configurations.setdefault(path.parent.name, []).append(json.loads(path.read_text()))
    seeds = configurations[compare.REPORT]
    flags = "--data_root default --n_epochs 1 --sample_interval 100000 --output_dir".split()
    done("cgan.py", *flags, tmp_path)
    ours, *theirs = (rows["epochs"][0] for rows in (read_log(tmp_path / "results/log.json"), *seeds))
    if describe_processor() == seeds[0]["environment"]["processor"]:
        assert {**ours, "seconds": 0} == {**theirs[0], "seconds": 0}
    for loss in ("d_loss", "g_loss"):
        values = [[log["epochs"][0][loss] for log in logs] for logs in configurations.values()]
        freedom = sum(len(group) - 1 for group in values)
        spread = np.sqrt(sum(np.var(group) * len(group) for group in values) / freedom)
        width = stats.t.ppf(1 - 0.5e-4, freedom) * spread * np.sqrt(1 + 1 / len(theirs))
        assert abs(ours[loss] - np.mean([row[loss] for row in theirs])) <= width


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["reference", "best"])
def test_the_committed_generators_score_what_the_table_says(folder):
    path = ROOT / "results" / folder / "generator.npz"
    config, _, data = read_generator(path)
    assert config["seed"] == typical({"reference": compare.REPORT, "best": compare.BEST + compare.EMA}[folder])
    (said,) = [[*map(float, cells)] for name, *cells in kept("scale") if name == f"results/{folder}/generator.npz"]
    opt = cgan.flag_parser().with_defaults(config)
    opt.inception_weights = "none"
    evaluate = evaluation.Evaluation(cgan.load_data(opt, train=False), opt, cgan.generate, cgan.fid, cgan.REAL_ABOVE)
    assert data == evaluate.facts.sha256
    evaluate.load()
    draw, rng = partial(cgan.generate, cgan.load_generator(path)), np.random.default_rng(0)  # as the table
    scores = evaluate.label_scores(draw(rng.standard_normal((10000, opt.latent_dim)), evaluate.test_labels))
    assert scores["label_accuracy"] >= 0.985 and min(scores["class_accuracy"]) >= 0.95
    assert [scores["label_accuracy"], scores["digit_fid"]] == pytest.approx(said, rel=0.01)  # on another processor


@pytest.mark.parametrize(
    "folder, logs, names",
    [("reference", ["results/reference/log.json"], ["loss.png", "fid.png"]), ("compared", COMPARED, ["fid.png"])],
)
def test_the_committed_curves_are_drawn_again(tmp_path, folder, logs, names):
    done("plot_curves.py", *logs, "--output_dir", tmp_path)
    for name in names:
        with Image.open(tmp_path / name) as ours, Image.open(ROOT / "results" / folder / name) as committed:
            assert ours.size == committed.size
            if ours.info["Software"] != committed.info["Software"]:
                pytest.skip("another version of matplotlib draws other pixels")
            assert ours.tobytes() == committed.tobytes()


def test_no_run_of_the_comparison_is_missing():
    assert not compare.missing(compare.planned()) and not compare.missing(compare.planned(search=True))
    assert min(n for _, n in compare.CONFIGURATIONS.values()) >= 5


def test_what_is_said_of_the_search():
    assert broke_down("search/rate/seed10.json") == [87]
    for seed in (10, 11, 12):
        steady = dict(compare.measures(log(f"search/rate_b2/seed{seed}.json")))
        assert all(steady[epoch]["digit_fid"] < 4 for epoch in range(40, 100, 10))
        assert not steady[100]["breakdowns"] and np.mean([steady[epoch]["digit_fid"] for epoch in compare.LAST]) <= 4
    others = [dict(compare.measures(log(f"search/{name}/seed10.json"))) for name in ("rate8_b2", "rate_dropout")]
    assert not any(found[100]["breakdowns"] for found in others)
    recall = [float(value) for row in kept("variety_of_runs") for value in row[3].split(" ±")[0].split(", ")]
    real = float(kept("variety")[0][2])
    assert max(recall) < 0.80 < real
    recalls = {row[0].strip("`"): row[3].split(", ") for row in kept("variety_of_runs")}
    for flags, n in {"--lr_d 0.0001 --ema 0.999": 5, "--hidden_d 256 --ema 0.999": 4}.items():
        assert sum(float(value) < 0.02 for value in recalls[flags]) == n


def test_what_is_said_of_wider_noise():
    names = ("label", "fid", "precision", "recall")
    rows = {row[0]: dict(zip(names, map(float, row[1:]))) for row in kept("variety_of_noise")}
    narrow, wide, widest = (rows[width] for width in ("1.0", "1.1", "1.2"))
    real = {"label": kept("scale")[0][1], "precision": kept("variety")[0][1]}
    assert narrow["recall"] < wide["recall"] < widest["recall"] and wide["fid"] < narrow["fid"] < widest["fid"]
    for measure, value in real.items():
        assert abs(wide[measure] - float(value)) < abs(narrow[measure] - float(value))


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_repository_is_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert sum((ROOT / name).stat().st_size for name in listed.stdout.split("\0") if name) < 15e6
