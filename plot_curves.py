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
from support.saved.log import NAMES, is_number, losses, name_of, panel_of, read_log, scored, scores, short_names
from support.saved.paths import atomic_write

STYLES = ["-", "--", ":", "-."]  # beside the colour: also readable in black and white
THIN = {"linewidth": 0.7, "alpha": 0.5, "zorder": 1}  # behind the means
FIDS = ("fid", "digit_fid", "label_fid")  # fid.png has these, and the scores that NAMES does not know
OWN = "own_"  # before a score of the generator itself, in a run with a running average of it


def with_own(evaluations):
    """Returns the rows of a run with its generator's own FID on a classifier's features beside its average's."""
    rows = []
    for row in evaluations:
        own = row.get("generator")
        own = own if isinstance(own, dict) else {}
        rows.append({**row, **{OWN + key: own[key] for key in FIDS[1:] if key in own}})
    return rows


def label_of(score):
    """Returns what the curve of a score is called."""
    if score.startswith(OWN):
        return f"{name_of(score[len(OWN) :])[0]} without the average"
    return name_of(score)[0]


def join_seeds(logs):
    """Returns {name: log} with the runs that differ in nothing but their seed as one, named by the folder they share.

    Its rows hold, for the epochs that all have, the mean of every number, and <name>_low and <name>_high.
    """
    groups = {}
    for name, log in logs.items():
        config = {key: value for key, value in log["config"].items() if key != "seed"}
        same = json.dumps([config, log["changes"]], sort_keys=True)
        groups.setdefault(same if "seed" in log["config"] else name, []).append(name)
    joined = {}
    for names in groups.values():
        seeds = {str(logs[name]["config"].get("seed")) for name in names}
        mean = join([logs[name] for name in names])
        if len(names) == 1 or len(seeds) < len(names) or not mean["epochs"]:  # a seed twice: runs to compare
            joined.update((name, logs[name]) for name in names)
            continue
        parts = [name.split(os.sep) for name in names]
        shared = os.sep.join(part for part in parts[0] if all(part in others for others in parts))
        label = f"{shared or ', '.join(names)} ({len(names)} seeds)"
        joined[", ".join(names) if label in joined else label] = mean
    return joined


def join(logs):
    """Returns the rows of several logs as one log of means and ranges, see join_seeds."""
    joined = {}
    for part, names_of in (("epochs", losses), ("evaluations", scores)):
        by_epoch = [{row["epoch"]: row for row in log[part]} for log in logs]
        joined[part] = [{"epoch": epoch} for epoch in by_epoch[0] if all(epoch in rows for rows in by_epoch)]
        for row in joined[part]:
            for name in names_of(logs[0]):
                values = [rows[row["epoch"]].get(name) for rows in by_epoch]
                if all(map(is_number, values)):
                    low, high = min(values), max(values)
                    row.update({name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high})
    return joined


def draw(path, panels, xlabel):
    """Writes one figure of panels above each other.

    A y axis is logarithmic if a curve spans more than 5 times, or the curves' peaks do; else it begins at 0 or below.

    panels: {label of the y axis: curves}; curves: [(rows, key, label, colour, line style)], row[key] over row["epoch"];
    xlabel: the label of the x axes.
    """
    os.environ["MPLBACKEND"] = "Agg"  # no screen needed, whatever backend is set
    import matplotlib  # here, not above: its first import writes a font cache, which a bad log need not wait for

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure, grid = plt.subplots(
        len(panels), figsize=(7, 4.5 * len(panels)), dpi=150, constrained_layout=True, squeeze=False
    )
    for axes, (ylabel, curves) in zip(grid[:, 0], panels.items()):
        lines = []
        for rows, key, _, colour, style in curves:
            marker = "o" if len(rows) <= 20 else None  # a single point would not be seen without
            xs, ys = [row["epoch"] for row in rows], [row[key] for row in rows]
            lines += axes.plot(xs, ys, color=colour, linestyle=style, marker=marker, markersize=4)
            low, high = ([row.get(f"{key}_{end}", math.nan) for row in rows] for end in ("low", "high"))
            axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)  # of several seeds
            last = scored(rows, f"{key}_last")  # of the epoch's last batch, as the report collects it
            axes.plot([row["epoch"] for row in last], [row[f"{key}_last"] for row in last], color=colour, **THIN)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
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
        legend = axes.legend(lines, [str(i) for i in range(len(lines))])
        for text, (_, _, label, _, _) in zip(legend.get_texts(), curves):
            label = label.encode(errors="backslashreplace").decode()  # a path need not be UTF-8
            text.set_text(label.replace("$", r"\$"))  # not as the line's label, where _ at the start hides it
    atomic_write(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)
    print(f"wrote {path}")


def plot_curves(logs, output_dir):
    """Draws loss.png and, if a log has scores for it, fid.png into `output_dir`.

    logs: {name of the run: what `read_log` returns for it}.
    """
    os.makedirs(output_dir, exist_ok=True)
    logs = {name: {**log, "evaluations": with_own(log["evaluations"])} for name, log in logs.items()}
    recorded = dict.fromkeys(key for log in logs.values() for key in losses(log))
    measured = dict.fromkeys(key for log in logs.values() for key in scores(log) if key in FIDS or key not in NAMES)
    logs = join_seeds(logs)
    loss_panels, fid_panels, several = {}, {}, len(logs) > 1
    joined = any(f"{key}_low" in log["epochs"][0] for key in recorded for log in logs.values())
    xlabel = "epoch (line: the seeds' mean; band: from the lowest to the highest)" if joined else "epoch"
    thin = any(scored(log["epochs"], f"{key}_last") for key in recorded for log in logs.values())
    for i, (name, log) in enumerate(logs.items()):
        for key in recorded:
            label, rows = name_of(key)[0], scored(log["epochs"], key)
            if several or panel_of(key) != "loss":  # a panel for each, or the runs' curves could not be told apart
                panel, j = f"{label}, mean of the epoch", i
            else:
                panel, label = "mean loss of the epoch", label.replace(" loss", "")
                j = len(loss_panels.get(panel, ()))
            if rows:
                curve = (rows, key, name if several else label, f"C{j}", STYLES[j % len(STYLES)])
                loss_panels.setdefault(panel, []).append(curve)
        for key in measured:
            rows = scored(log["evaluations"], key)
            if rows:
                curve = (rows, key, name if several else label_of(key), f"C{i}", STYLES[i % len(STYLES)])
                better = " (lower is better)" if key.endswith(FIDS) else ""
                fid_panels.setdefault(label_of(key) + better, []).append(curve)
    explained = " (thin: its last batch)" if thin else ""
    if loss_panels:
        draw(os.path.join(output_dir, "loss.png"), {p + explained: curves for p, curves in loss_panels.items()}, xlabel)
    evaluations = [row for log in logs.values() for row in log["evaluations"]]
    if not evaluations:
        print("no FID in the log: no epoch is evaluated yet")
    elif all(row.get("fid", 0) is None for row in evaluations):
        print("no FID in the log (Inception's weights were not available)")
    if fid_panels:
        draw(os.path.join(output_dir, "fid.png"), fid_panels, xlabel)


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
