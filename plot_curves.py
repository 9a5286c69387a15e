"""Draws a run's curves: loss.png (both losses over epochs) and fid.png (FID and digit FID over epochs).

python plot_curves.py results/log.json                  one run, pictures beside its log
python plot_curves.py a/log.json b/log.json --output_dir curves     several runs, overlaid
"""

import argparse
import json
import math
import os

from support.checkpoint import replace_file
from support.flags import Parser, output_folder

STYLES = ["-", "--", ":", "-."]  # beside the colour: also readable in black and white
LOSSES = {"d_loss": "discriminator", "g_loss": "generator"}
FIGURES = {"fid": "FID", "digit_fid": "digit FID"}


def are_rows(rows, keys):
    """Returns whether `rows` is a list of dictionaries that have a finite number under each of `keys`."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(type(row.get(key)) in (int, float) and math.isfinite(row[key]) for key in keys)
        for row in rows
    )


def read_log(path):
    """Returns (epochs, evaluations) of a log of cgan.py: lists of dictionaries, as the log holds them.

    Raises ValueError that names the file and what is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            log = json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    except ValueError:
        raise ValueError(f"{path} is not a log: it holds no JSON")
    if not isinstance(log, dict) or not are_rows(log.get("epochs"), ("epoch", "d_loss", "g_loss")):
        raise ValueError(f"{path} is not a log of cgan.py: 'epochs' must list epoch, d_loss and g_loss")
    evaluations = log.get("evaluations")
    if not are_rows(evaluations, ("epoch",)) or not all("fid" in row for row in evaluations):
        raise ValueError(f"{path} is not a log of cgan.py: 'evaluations' must list epoch and fid")
    if not are_rows(scored(evaluations, "fid"), ("fid",)):
        raise ValueError(f"{path} is not a log of cgan.py: in 'evaluations', fid must be a number or null")
    if not log["epochs"]:
        raise ValueError(f"{path} holds no finished epoch yet")
    return log["epochs"], evaluations


def scored(evaluations, key):
    """Returns the evaluations that hold a value under `key`."""
    return [row for row in evaluations if row.get(key) is not None]


def draw(path, panels):
    """Writes one figure of panels above each other.

    panels: {label of the y axis: curves}; curves: [(rows, key, label, colour, line style)], row[key] over row["epoch"].
    """
    import matplotlib  # here, not above: its first import writes a font cache, which a bad log need not wait for

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, grid = plt.subplots(
        len(panels), figsize=(7, 4.5 * len(panels)), dpi=150, constrained_layout=True, squeeze=False
    )
    for axes, (ylabel, curves) in zip(grid[:, 0], panels.items()):
        for rows, key, label, colour, style in curves:
            marker = "o" if len(rows) <= 20 else None  # a single point would not be seen without
            xs, ys = [row["epoch"] for row in rows], [row[key] for row in rows]
            axes.plot(xs, ys, label=label, color=colour, linestyle=style, marker=marker, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        axes.legend()
    replace_file(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)
    print(f"wrote {path}")


def short_names(paths):
    """Returns {path: its parts that not all paths have}, such as a and b for a/log.json and b/log.json."""
    parts = {path: path.split(os.sep) for path in paths}
    shared = set.intersection(*map(set, parts.values()))
    return {path: os.sep.join(part for part in parts[path] if part not in shared) or path for path in paths}


def plot_curves(logs, output_dir):
    """Draws loss.png and, where a log has an FID, fid.png into `output_dir`.

    logs: {name of the run: what `read_log` returns for it}.
    """
    os.makedirs(output_dir, exist_ok=True)
    loss_panels, fid_panels, several = {}, {}, len(logs) > 1
    for i, (name, (epochs, evaluations)) in enumerate(logs.items()):
        look = f"C{i}", STYLES[i % len(STYLES)]
        for j, (key, network) in enumerate(LOSSES.items()):
            if several:  # a panel for each loss, or the runs' curves could not be told apart
                loss_panels.setdefault(f"mean loss of the {network}", []).append((epochs, key, name, *look))
            else:
                loss_panels.setdefault("mean loss of the epoch", []).append((epochs, key, network, f"C{j}", STYLES[j]))
        for key, label in FIGURES.items():
            rows = scored(evaluations, key)
            if rows:
                curve = (rows, key, name if several else label, *look)
                fid_panels.setdefault(f"{label} (lower is better)", []).append(curve)
    draw(os.path.join(output_dir, "loss.png"), loss_panels)
    if not any(scored(evaluations, "fid") for _, evaluations in logs.values()):
        print("no FID in the log (Inception's weights were not there)")
    if fid_panels:
        draw(os.path.join(output_dir, "fid.png"), fid_panels)


def main():
    parser = Parser("Draws loss.png and fid.png from logs of cgan.py.")
    parser.add_argument("logs", nargs="+", metavar="log.json", help="several logs are overlaid")
    parser.add_argument("--output_dir", help="where the pictures go (default: beside the first log)")
    opt = parser.parse_args()
    try:
        logs = {name: read_log(path) for path, name in short_names(opt.logs).items()}
    except ValueError as error:
        parser.error(f"argument log.json: {error}")
    try:
        output_dir = output_folder(opt.output_dir or os.path.dirname(os.path.abspath(opt.logs[0])))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --output_dir: {error}")
    plot_curves(logs, output_dir)


if __name__ == "__main__":
    main()
