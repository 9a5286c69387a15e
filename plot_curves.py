"""Draws a run's curves: loss.png (both losses over epochs) and fid.png (FID over epochs).

python plot_curves.py results/log.json                  one run, pictures beside its log
python plot_curves.py a/log.json b/log.json --output_dir curves     several runs, overlaid
"""

import json
import math
import os

from support.checkpoint import replace_file
from support.flags import Parser, output_folder

STYLES = ["-", "--", ":", "-."]  # runs differ by line style, losses by colour: also readable in black and white


def read_log(path):
    """Returns the log in `path` as a dictionary; raises ValueError that names the file and what is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            log = json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    except ValueError:
        raise ValueError(f"{path} is not a log: it holds no JSON")

    def numbers(rows, keys, or_null=False):
        return isinstance(rows, list) and all(
            isinstance(row, dict)
            and all((or_null and row.get(key, 0) is None) or is_number(row.get(key)) for key in keys)
            for row in rows
        )

    if not isinstance(log, dict) or not numbers(log.get("epochs"), ("epoch", "d_loss", "g_loss")):
        raise ValueError(f"{path} is not a log of cgan.py: 'epochs' must list epoch, d_loss and g_loss")
    if not numbers(log.get("evaluations", []), ("epoch", "fid"), or_null=True):
        raise ValueError(f"{path} is not a log of cgan.py: 'evaluations' must list epoch and fid")
    if not log["epochs"]:
        raise ValueError(f"{path} holds no finished epoch yet")
    return log


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw(path, ylabel, lines):
    """Writes one figure. lines: [(xs, ys, label, matplotlib keywords)]."""
    import matplotlib  # here, not above: its first import writes a font cache, which a bad log need not wait for

    matplotlib.use("Agg")  # no screen needed
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=150, constrained_layout=True)
    for xs, ys, label, style in lines:
        # A single point needs a marker to be seen.
        axes.plot(xs, ys, label=label, marker="o" if len(xs) == 1 else style.pop("marker", None), **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    replace_file(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)
    print(f"wrote {path}")


def plot_curves(logs, output_dir):
    """Draws loss.png and, where a log has an FID, fid.png into `output_dir`.

    logs: {name of the run: log as `read_log` returns it}.
    """
    os.makedirs(output_dir, exist_ok=True)
    losses, fids = [], []
    for i, (name, log) in enumerate(logs.items()):
        style, suffix = STYLES[i % len(STYLES)], f", {name}" if len(logs) > 1 else ""
        epochs = [row["epoch"] for row in log["epochs"]]
        for key, label, colour in (("d_loss", "discriminator", "C0"), ("g_loss", "generator", "C1")):
            ys = [row[key] for row in log["epochs"]]
            losses.append((epochs, ys, label + suffix, {"color": colour, "linestyle": style}))
        scored = [row for row in log.get("evaluations", []) if row["fid"] is not None]
        if scored:
            xs, ys = [row["epoch"] for row in scored], [row["fid"] for row in scored]
            fids.append((xs, ys, "FID" + suffix, {"color": f"C{i}", "linestyle": style, "marker": "o"}))
    draw(os.path.join(output_dir, "loss.png"), "mean loss of the epoch", losses)
    if fids:
        draw(os.path.join(output_dir, "fid.png"), "FID (lower is better)", fids)
    else:
        print("no FID in the log, so no fid.png")


def main():
    parser = Parser("Draws loss.png and fid.png from logs of cgan.py.")
    parser.add_argument("logs", nargs="+", metavar="log.json", help="several logs are overlaid")
    parser.add_argument("--output_dir", type=output_folder, help="where the pictures go (None: beside the first log)")
    opt = parser.parse_args()
    try:
        logs = {path: read_log(path) for path in opt.logs}
    except ValueError as error:
        parser.error(f"argument log.json: {error}")
    plot_curves(logs, opt.output_dir or os.path.dirname(os.path.abspath(opt.logs[0])))


if __name__ == "__main__":
    main()
