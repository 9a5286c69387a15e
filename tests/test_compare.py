"""The comparison of configurations: which runs it takes, and what it calls higher or lower."""

import fcntl
import json
import signal
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT, started, wait_for
from scipy import stats

from benchmarks import compare, differences
from support.saved.log import read_log


def words(*pairs):
    return [words for *_, words in differences.judged(pairs)]


def test_a_difference_counts_beyond_chance():
    values, far = [1.0, 1.2, 0.8], [2.0, 2.2, 1.8]
    assert words((values, far)) == ["lower"] and words((far, values)) == ["higher"]
    assert words((values, [1.3, 1.5, 1.1])) == ["no difference seen"]
    assert words(([1.0], [2.0, 2.2])) == ["no difference seen"]  # one seed says nothing


def test_intervals_and_p_are_scipys():
    a, b, one = [1.0, 1.2, 0.8, 1.1], [1.3, 1.9, 1.4], [0.5, 0.1, 0.6]
    for values, others, theirs in (
        (a, b, stats.ttest_ind(a, b, equal_var=False)),
        (one, [0.0] * 3, stats.ttest_1samp(one, 0)),
    ):
        difference, width, p = differences.welch(values, others)
        assert p == pytest.approx(theirs.pvalue)
        # An interval of 95% ends where the difference from its end has p = 0.05
        shifted = [value - difference + width for value in values]
        assert differences.welch(shifted, others)[2] == pytest.approx(0.05)


def test_holms_correction():
    """Each p times how many are not smaller, never below the one before: worked out by hand."""
    pairs = [([x, x + 1, x + 2], [0.0, 1.0, 2.0]) for x in (9.0, 1.0, 2.9)]
    small, large, middle = (differences.welch(*pair)[2] for pair in pairs)
    corrected = [p for _, _, p, _ in differences.judged(pairs)]
    assert corrected == pytest.approx([3 * small, max(2 * middle, large), 2 * middle])
    assert small < middle < 0.05 < 3 * middle  # so the second is seen here, and would not be by Bonferroni's


@pytest.mark.parametrize("losses, breakdowns", [([0.1, 0.2, 0.3], 1), ([0.1, 0.19, 0.37], 0), ([0.4, 0.1, 0.9, 2], 2)])
def test_breakdowns_are_counted(losses, breakdowns):
    epochs = [{"epoch": i, "d_loss": loss, "g_loss": 0.4} for i, loss in enumerate(losses, 1)]
    score = {"epoch": 2, "d_accuracy_real": 0.5, "d_accuracy_generated": 0.9}
    ((epoch, values),) = compare.measures({"epochs": epochs, "evaluations": [score]})
    assert (epoch, values["breakdowns"], values["d_accuracy"]) == (2, breakdowns, 0.7)
    assert values["balance"] == losses[1] / 0.4


def test_a_run_that_lies_apart_is_shown():
    metrics = {"digit_fid": [8.2, 8.7, 98.5], "label_accuracy": [0.99, 0.98, 0.7], "balance": [0.2, 0.3, 0.1]}
    shown = [compare.cell(metrics, metric) for metric in metrics]
    assert shown == ["8.2, 8.7, 98.5", "0.9900, 0.9800, 0.7000", "0.20 ± 0.10"]


@pytest.fixture
def logs(finished_run, monkeypatch, tmp_path):
    """Two seeds' logs of two configurations: (the folder, the log of one, the digit FIDs of both)."""
    monkeypatch.setattr(compare, "LOGS", str(tmp_path))
    log, digit_fids = read_log(str(finished_run[0] / "results" / "log.json")), [5.0, 6.0]
    for name in ("report", "lr_d"):
        (tmp_path / name).mkdir()
        for seed, digit_fid in enumerate(digit_fids):
            log["config"].update(**compare.SHARED, **compare.CONFIGURATIONS[name][0], seed=seed)
            for scores in log["evaluations"]:
                scores["generator"] = {**scores, "digit_fid": digit_fid}
                scores["digit_fid"] = 8.0
            (tmp_path / name / f"seed{seed}.json").write_text(json.dumps(log))
    return tmp_path, log, digit_fids


def test_the_table_is_the_logs(logs):
    _, log, found = logs
    rows = compare.read_rows()
    assert list(rows) == ["report", "report, ema", "lr_d", "lr_d, ema"]
    epoch = max(rows["report"])
    assert rows["report"][epoch]["digit_fid"] == rows["lr_d"][epoch]["digit_fid"] == found
    assert rows["report, ema"][epoch]["digit_fid"] == [8.0, 8.0]
    table = compare.table(rows, [epoch]).splitlines()
    assert len(table) == 6
    assert table[2].startswith(f"| report | `python cgan.py` | 2 | {log['epochs'][epoch - 1]['d_loss']:.3f} ± 0.000 |")
    assert table[2].endswith(f"| {statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} |")
    assert table[3].startswith("| report, ema | `--ema 0.999` |") and table[3].endswith("| 8.0 ± 0.0 |")
    assert f"| {epoch} | 5.5 ± 0.7 | 8.0 ± 0.0 | 5.5 ± 0.7 | 8.0 ± 0.0 |" in compare.course(rows)


def test_a_run_counts_with_the_mean_of_its_last_evaluations(logs):
    rows = compare.read_rows()
    rows["report"][1]["digit_fid"] = [1.0, 2.0]  # at epoch 2: 5.0, 6.0
    assert compare.means(rows, [1, 2])["report"]["digit_fid"] == [3.0, 4.0]
    compared = compare.beside_report(rows, [1, 2])
    assert compared["lr_d", "digit FID"] == ([5.0, 6.0], [3.0, 4.0], 1, False)
    assert ("lr_d, ema", "balance") not in compared  # its run's, which is in the table
    assert "| report | digit FID | 3.0, 4.0 | | |" in differences.table(["each run", "difference"], compared)


def test_label_accuracy_above_real_digits_is_no_better():
    low, high = [0.98, 0.981, 0.982], [0.997, 0.9971, 0.9972]
    assert [compare.as_good("label_accuracy", {"label_accuracy": found}) for found in (low, high)] == [False, True]
    compared = {name: (high, low, 4, as_good) for name, as_good in (("a", False), ("b", True))}
    assert [words for *_, words in differences.verdicts(compared).values()] == ["higher", "up to real digits"]


def test_what_is_missing_is_said(logs, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", "--table"])
    monkeypatch.setattr(compare, "LAST", (1, 2))
    monkeypatch.setattr(compare, "MIDDLE", 2)
    monkeypatch.setattr(compare, "FEW_EPOCHS", 2)
    compare.main()
    output = capsys.readouterr()
    assert "| lr_d | `--lr_d 0.00015` | 2 |" in output.out
    assert "lr_d seed 2" in output.err and "lr_d seed 1" not in output.err


def test_a_log_of_other_flags_is_refused(logs):
    path = logs[0] / "lr_d" / "seed0.json"
    log = json.loads(path.read_text())
    path.write_text(json.dumps({**log, "changes": [{"epoch": 2, "config": {"lr_d": 0.0003}}]}))
    with pytest.raises(SystemExit, match=r"seed0.json is of another lr_d$"):
        compare.read_rows()
    path.write_text(json.dumps({**log, "config": {**log["config"], "lr_d": 0.0003, "seed": 9}}))
    with pytest.raises(SystemExit, match=r"seed0.json is of another lr_d and seed$"):
        compare.read_rows()


def test_logs_of_two_classifiers_are_not_mixed(logs):
    path = logs[0] / "lr_d" / "seed1.json"
    log = json.loads(path.read_text())
    log["evaluations"][0]["classifier_sha256"] = "another"
    path.write_text(json.dumps(log))
    with pytest.raises(SystemExit, match=r"seed1.json is scored by another classifier than the logs before it$"):
        compare.read_rows()


@pytest.mark.slow
def test_a_run_that_fails_lets_the_others_go_on(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(compare, "start", lambda *run: runs.append(run) or subprocess.Popen(["sh", "-c", "exit 1"]))
    compare.train([("report", {"seed": seed}) for seed in range(3)], str(tmp_path), cores=1)
    assert len(runs) == 3


def compare_anew(folder):
    """The program, as if no log were in the repository."""
    compare.LOGS, sys.argv = f"{folder}/logs", ["compare", "--output_dir", folder]
    sys.exit(compare.main())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_run_outlives_the_comparison(tmp_path, number):
    with started(compare_anew, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        wait_for(lambda: list(tmp_path.glob("*/seed0/images/0.png")), seconds=200)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    logs = list(tmp_path.glob("*/seed0.txt"))
    assert any("SIGTERM: stopped" in log.read_text() for log in logs)
    for folder in tmp_path.glob("*/seed0/results"):
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no process holds it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", compare.PLAIN])
def test_a_run_goes_on_where_it_stopped(monkeypatch, tmp_path, name):
    monkeypatch.setattr(compare, "LOGS", str(tmp_path / "logs"))
    monkeypatch.chdir(ROOT)
    flags = {"max_batches": 2, "dropout": True, "seed": 7}
    for epochs in (1, 2):
        compare.train([(name, {"n_epochs": epochs, **flags})], str(tmp_path), cores=1)
    log = read_log(compare.kept_log(name, 7))
    assert len(log["epochs"]) == 2
    assert {flag: log["config"][flag] for flag in flags} == flags
