"""Draws a run: loss.png (what its epochs record), fid.png (how its evaluations went), and run.html, a page of it all.

python plot_curves.py results/log.json                  one run, files beside its log
python plot_curves.py a/log.json b/log.json --output_dir curves     several runs, overlaid

Runs that differ in nothing but the seed become one curve in the PNGs: their mean, in a band from lowest to highest.
"""

import json
import math
import os
import sys

from support.flags import Parser
from support.pages.page import write_page
from support.runs.resume import check_folders
from support.saved.log import NAMES, is_number, name_of, panel_of, read_log, recorded, short_names
from support.saved.paths import atomic_write

STYLES = ["-", "--", ":", "-."]  # beside the colour: also readable in black and white
PARTS = ("epochs", "evaluations")  # of a log
THIN = {"linewidth": 0.7, "alpha": 0.5, "zorder": 1}  # behind the means
FIDS = ("fid", "digit_fid", "label_fid", "own_digit_fid", "own_label_fid")  # the scores of NAMES that fid.png has


def with_own(row):
    """Returns an evaluation with what the generator itself scored, if a running average of it draws, as own_<score>."""
    own = row["generator"] if isinstance(row.get("generator"), dict) else {}
    return {**row, **{f"own_{name}": own[name] for name in ("digit_fid", "label_fid") if name in own}}


def scored(rows, name):
    """Returns the rows that hold a number under `name`."""
    return [row for row in rows if is_number(row.get(name))]


def join_seeds(logs):
    """Returns {name: log} with the runs that differ in nothing but their seed as one, named by the folder they share.

    Its rows hold, for the epochs that all have, the mean of every number, and <name>/low and <name>/high.
    """
    groups = {}
    for name, log in logs.items():
        config = {key: value for key, value in log["config"].items() if key != "seed"}
        same = json.dumps([config, log["environment"].get("code"), log["changes"]], sort_keys=True)
        groups.setdefault(same if "seed" in log["config"] else name, []).append(name)
    joined = {}
    for names in groups.values():
        seeds = {str(logs[name]["config"].get("seed")) for name in names}
        if len(names) == 1 or len(seeds) < len(names):  # a seed twice: runs to compare
            joined.update((name, logs[name]) for name in names)
            continue
        shared = [part for part in names[0].split(os.sep) if all(part in name.split(os.sep) for name in names)]
        label = f"{os.sep.join(shared) or ', '.join(names)} ({len(names)} seeds)"
        label = ", ".join(names) if label in joined else label
        joined[label] = {part: join([logs[name][part] for name in names]) for part in PARTS}
    return joined


def join(tables):
    """Returns the rows of several runs as rows of means and ranges, see join_seeds."""
    by_epoch = [{row["epoch"]: row for row in rows} for rows in tables]
    joined = [{"epoch": epoch} for epoch in by_epoch[0]]
    for row in joined:
        same = [rows.get(row["epoch"], {}) for rows in by_epoch]
        for name in recorded(same):
            values = [row.get(name) for row in same]
            if all(map(is_number, values)):
                low, high = min(values), max(values)
                row.update({name: sum(values) / len(values), f"{name}/low": low, f"{name}/high": high})
    return joined


def plain(text):
    """Returns a text as matplotlib shows it: a path need not be UTF-8, and $ begins no formula."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def draw(path, panels, xlabel):
    """Writes one figure of panels above each other.

    A y axis is logarithmic if a curve spans more than 5 times, or the curves' peaks do; else it begins at 0 or below.

    panels: {label of the y axis: curves}; curves: [(rows, key, label, number of the look)], row[key] over row["epoch"];
    xlabel: the label of the x axes.
    """
    # Here, not above: its first import writes a font cache, which a bad log need not wait for
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(7, 4.5 * len(panels)), dpi=150, constrained_layout=True)
    grid = figure.subplots(len(panels), squeeze=False)
    for axes, (ylabel, curves) in zip(grid[:, 0], panels.items()):
        lines, explained = [], False
        for rows, key, _, i in curves:
            colour, marker = f"C{i}", "o" if len(rows) <= 20 else None  # a single point would not be seen without
            xs, ys = [row["epoch"] for row in rows], [row[key] for row in rows]
            lines += axes.plot(xs, ys, color=colour, linestyle=STYLES[i % 4], marker=marker, markersize=4)
            low, high = ([row.get(f"{key}/{end}", math.nan) for row in rows] for end in ("low", "high"))
            axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)  # of several seeds
            last = scored(rows, f"{key}_last")  # of the epoch's last batch, as the report collects it
            axes.plot([row["epoch"] for row in last], [row[f"{key}_last"] for row in last], color=colour, **THIN)
            explained = explained or bool(last)
        axes.set_xlabel(xlabel)
        gap = "\n" if len(ylabel) > 30 else " "  # a long label takes two lines
        axes.set_ylabel(plain(ylabel) + f"{gap}(thin: its last batch)" * explained)
        values = [[row[key] for row in rows] for rows, key, *_ in curves]
        spans = [(min(curve), max(curve)) for curve in values] + [(min(map(max, values)), max(map(max, values)))]
        lowest = min(map(min, values))
        if lowest > 0 and any(high > 5 * low for low, high in spans):
            # On a linear axis the small differences at the end, or of the lower curves, would not be seen
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif lowest >= 0:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        legend = axes.legend(lines, ["?"] * len(lines))
        for text, (_, _, label, _) in zip(legend.get_texts(), curves):
            text.set_text(plain(label))  # not as the line's label, where _ at the start hides it
    atomic_write(path, lambda file: figure.savefig(file, format="png"))
    print(f"wrote {path}")


def plot_curves(logs, output_dir):
    """Draws loss.png and, if a log has scores for it, fid.png into `output_dir`.

    logs: {name of the run: what `read_log` returns for it}.
    """
    os.makedirs(output_dir, exist_ok=True)
    logs = {name: {**log, "evaluations": list(map(with_own, log["evaluations"]))} for name, log in logs.items()}
    losses, scores = (recorded([row for log in logs.values() for row in log[part]]) for part in PARTS)
    fids = {row.get("fid", 0) for log in logs.values() for row in log["evaluations"]}
    n_runs, logs = len(logs), join_seeds(logs)
    several = len(logs) > 1
    curves = []  # (file, panel, label in the legend of a single run, part of the log, key)
    for key in losses:
        label, panel = name_of(key)[0], f"{name_of(key)[0]}, mean of the epoch"
        if not several and panel_of(key) == "loss":  # one panel; of several runs, they could not be told apart
            label, panel = label.replace(" loss", ""), "mean loss of the epoch"
        curves.append(("loss.png", panel, label, "epochs", key))
    for key in scores:
        if key in FIDS or key not in NAMES:
            label, better = name_of(key)[0], " (lower is better)" * key.endswith(FIDS)
            curves.append(("fid.png", label + better, label, "evaluations", key))
    figures = {"loss.png": {}, "fid.png": {}}
    for i, (name, log) in enumerate(logs.items()):
        for file, panel, label, part, key in curves:
            rows = scored(log[part], key)
            if rows:
                drawn = figures[file].setdefault(panel, [])
                drawn.append((rows, key, name if several else label, i if several else len(drawn)))
    joined = " (line: the seeds' mean; band: from the lowest to the highest)" * (len(logs) < n_runs)
    for file, panels in figures.items():
        if panels:
            draw(os.path.join(output_dir, file), panels, "epoch" + joined)
    if not fids:
        print("no FID in the log: no epoch is evaluated yet")
    elif fids == {None}:
        print("no FID in the log (Inception's weights were not available)")


def main():
    parser = Parser("Draws loss.png, fid.png and run.html from logs of cgan.py.")
    parser.add_argument("logs", nargs="+", metavar="log.json", help="several logs are overlaid")
    parser.add_argument("--output_dir", help="where the files go (default: beside the first log)")
    opt = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not UTF-8
    names = short_names(opt.logs)
    try:
        logs = {path: read_log(path) for path in names}
    except ValueError as error:
        parser.error(f"argument log.json: {error}")
    output_dir = opt.output_dir or os.path.dirname(os.path.abspath(opt.logs[0]))
    check_folders(parser, output_dir, [""])
    plot_curves({names[path]: log for path, log in logs.items()}, output_dir)
    page = os.path.join(output_dir, "run.html")
    for problem in write_page(page, {names[path]: (path, log) for path, log in logs.items()}):
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
