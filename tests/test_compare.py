"""The comparison of configurations: which runs it takes, and what it calls better."""

import json
import statistics
from pathlib import Path

from conftest import ROOT, run

from benchmarks import compare
from support.log import read_log


def test_a_difference_counts_beyond_two_standard_errors():
    assert compare.verdict([1.0, 1.2, 0.8], [2.0, 2.2, 1.8], higher_is_better=False) == "better"
    assert compare.verdict([1.0, 1.2, 0.8], [2.0, 2.2, 1.8], higher_is_better=True) == "worse"
    assert compare.verdict([1.0, 1.2, 0.8], [1.3, 1.5, 1.1], higher_is_better=False) == ""  # 0.3 < 2 x 0.163
    assert compare.verdict([1.0], [2.0, 2.2], higher_is_better=False) == ""  # one seed says nothing


def test_the_table_is_the_logs(finished_run, tmp_path):
    log = read_log(str(finished_run[0] / "results" / "log.json"))
    found = []
    for seed, digit_fid in ((0, 5.0), (1, 6.0)):
        for scores in log["evaluations"]:
            scores.update(digit_fid=8.0, generator={**scores, "digit_fid": digit_fid})
        for name in ("report", "lr_d"):
            path = tmp_path / name / f"seed{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(log))
        found.append(digit_fid)
    rows = compare.read_rows(str(tmp_path))
    assert list(rows) == ["report", "report, averaged", "lr_d"]
    epoch = max(rows["report"])
    assert rows["report"][epoch]["digit_fid"] == found and rows["report, averaged"][epoch]["digit_fid"] == [8.0, 8.0]
    table = compare.table(rows, epoch).splitlines()
    assert len(table) == 5
    assert f"| 2 | {log['epochs'][epoch - 1]['d_loss']:.3f} ± 0.000 |" in table[2]
    assert table[2].endswith(f"| {statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} |")
    assert table[3].endswith("| 8.0 ± 0.0 worse |")
    assert f"| {epoch} | 5.5 ± 0.7 | 8.0 ± 0.0 | 5.5 ± 0.7 |" in compare.course(rows)


def test_what_is_missing_is_said():
    process = run("-m", "benchmarks.compare", "--table")
    assert process.returncode == 0, process.stderr
    for name, (_, seeds) in compare.CONFIGURATIONS.items():
        for seed in range(seeds):
            kept = Path(compare.kept_log(name, seed, ROOT / compare.LOGS)).exists()
            assert kept != (f"{name} seed {seed}" in process.stderr)
