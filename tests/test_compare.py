"""The comparison of configurations: which runs it takes, and what it calls better."""

import fcntl
import json
import signal
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT, command_of, started, wait_for

from benchmarks import compare
from support.saved.log import read_log


def test_a_difference_counts_beyond_two_standard_errors():
    values = [1.0, 1.2, 0.8]
    assert compare.verdict(values, [2.0, 2.2, 1.8], higher_is_better=False) == "better"
    assert compare.verdict(values, [2.0, 2.2, 1.8], higher_is_better=True) == "worse"
    assert compare.verdict(values, [1.3, 1.5, 1.1], higher_is_better=False) == ""  # 0.3 < 2 x 0.163
    assert compare.verdict([1.0], [2.0, 2.2], higher_is_better=False) == ""  # one seed says nothing


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
    table = compare.table(rows, epoch).splitlines()
    assert len(table) == 6
    assert table[2].startswith(f"| report | `python cgan.py` | 2 | {log['epochs'][epoch - 1]['d_loss']:.3f} ± 0.000 |")
    assert table[2].endswith(f"| {statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} |")
    assert table[3].startswith("| report, ema | `--ema 0.999` |") and table[3].endswith("| 8.0 ± 0.0 |")
    assert f"| {epoch} | 5.5 ± 0.7 | 8.0 ± 0.0 | 5.5 ± 0.7 | 8.0 ± 0.0 |" in compare.course(rows)


def test_what_is_missing_is_said(logs, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", "--table"])
    monkeypatch.setattr(compare, "EPOCHS", 2)
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
    command = command_of(compare_anew, tmp_path)[1:]
    with started(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
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
