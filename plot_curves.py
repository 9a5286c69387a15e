"""Draws a run: loss.png (what its epochs record), fid.png (how its evaluations went), and run.html, a page of it all.

python plot_curves.py results/log.json                  one run, files beside its log
python plot_curves.py a b --output_dir curves           several runs by their folders, overlaid

Runs that differ in nothing but the seed become one curve in the PNGs: their mean, in a band from lowest to highest.
FIDs of other weights or of another number of images are curves of their own.
"""

from support import terminal

if __name__ == "__main__":
    terminal.take_over()

import json
import math
import os
import shlex
import sys
import textwrap
from itertools import groupby
from unicodedata import east_asian_width

import numpy as np

from support.flags import Parser, log_file, typed_path
from support.pages.page import write_page
from support.runs.resume import check_folder
from support.saved.log import (
    NAMES,
    ON_INCEPTION,
    is_number,
    kind_of,
    kinds_of,
    name_of,
    panel_of,
    read_log,
    recorded,
    short_names,
)
from support.saved.paths import CURVES, MARK, REFERENCE_LOG, atomic_write, is_own_picture

COLOURS = 10  # matplotlib's own
STYLES = ["-", "--", ":", "-."]  # beside the colour: also readable in black and white
MOST_INSIDE = 6  # curves of a panel whose legend lies inside, and whose last batches are drawn too
LONGEST = 40  # letters of a name in a picture
HIGHEST = 60000  # pixels; matplotlib draws no picture of 2**16
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


def by_kind(rows, name):
    """Returns {kind_of or None: rows that hold a number under `name`}, a part for each that can be compared."""
    parts = {}
    for row in scored(rows, name):
        parts.setdefault(kind_of(row) if name in ON_INCEPTION else None, []).append(row)
    return parts


def join_seeds(logs):
    """Returns {name: log} with the runs that differ in nothing but their seed as one, named by the folder they share.

    Its rows hold, for the epochs that all have, the mean of every number, and <name>/low and <name>/high.
    """
    groups = {}
    for name, log in logs.items():
        config = {key: value for key, value in log["config"].items() if key != "seed"}
        kinds = groupby(filter(kind_of, log["evaluations"]), kind_of)  # and the epochs from which on they changed
        kinds = [(kind, i and next(rows)["epoch"]) for i, (kind, rows) in enumerate(kinds)]
        changes = [
            (row.get("config"), row.get("environment", {}).get("code"), row.get("epoch")) for row in log["changes"]
        ]
        changes = [change for change in changes if any(change[:2])]  # threads change no curve
        same = json.dumps([config, log["environment"].get("code"), changes, kinds], sort_keys=True)
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
        row.update({key: same[0][key] for key in ("inception", "inception_sha256", "fid_samples") if key in same[0]})
        for name in recorded(same):
            values = [row.get(name) for row in same]
            if all(map(is_number, values)):
                low, high = min(values), max(values)
                row.update({name: sum(values) / len(values), f"{name}/low": low, f"{name}/high": high})
    return joined


def plain(text):
    """Returns a text for matplotlib, in which $ begins no formula."""
    return text.replace("$", r"\$")


def find_fonts(text):
    """Returns (names of fonts that together have the letters of a text, set of the letters that no font here has)."""
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager
    from matplotlib.ft2font import FT2Font

    fonts = ["DejaVu Sans"]  # it comes with matplotlib
    own = FT2Font(findfont(fonts[0]))
    missing = {letter for letter in text if not own.get_char_index(ord(letter))}
    for path in sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, path)) if missing else []:
        try:
            font = FT2Font(path)
            has = {letter for letter in missing if font.get_char_index(ord(letter))}
            if has:
                fontManager.addfont(path)  # its list may be older than the font
                fonts.append(font.family_name)
                missing -= has
        except (OSError, RuntimeError):  # a file that it cannot draw with
            pass
    return fonts, missing


def readable(names):
    """Returns ({name: what a picture shows of it}, the fonts to show it in).

    A long name is shortened, one with a letter that no font has is shown by its number; the terminal lists them.
    """
    shown = {name: name.encode(errors="backslashreplace").decode() for name in names}  # a path need not be UTF-8
    fonts, missing = find_fonts("".join(shown.values()))
    for number, (name, text) in enumerate(shown.items(), 1):
        if missing.intersection(text) or len(text) > LONGEST:
            short = "" if missing.intersection(text) else f": {text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
            shown[name] = f"no. {number}{short}"
            print(f"no. {number} in the pictures is {name}")
    return shown, fonts


def legend_above(labels):
    """Returns (settings of a legend above its panel, its height in inches)."""
    widths = [9 + sum(1 + (east_asian_width(letter) in "WF") for letter in label) for label in labels]
    # Of the letters with their lines, 90 go on the width of a figure; a column is as wide as its widest label
    columns = next(n for n in range(6, 0, -1) if n == 1 or sum(map(max, np.array_split(widths, n))) <= 90)
    height = 0.17 * math.ceil(len(labels) / columns) * (1 + max(label.count("\n") for label in labels))
    return {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncol": columns, "fontsize": "small"}, height


def draw(path, panels, xlabel):
    """Writes one figure of panels above each other.

    A y axis is logarithmic if a curve spans more than 5 times, or the curves' peaks do; else it begins at 0 or below.

    panels: {label of the y axis: curves}; curves: [(rows, key, label, number of the look)], row[key] over row["epoch"];
    xlabel: the label of the x axes. Raises OSError.
    """
    # Here, not above: its first import writes a font cache, which a bad log need not wait for
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    legends = [({}, 0)] * len(panels)  # inside
    for n, curves in enumerate(panels.values()):
        if len(curves) > MOST_INSIDE:
            legends[n] = legend_above([label for _, _, label, _ in curves])
    height = 4.5 * len(panels) + sum(height for _, height in legends)
    figure = Figure(figsize=(7, height), dpi=min(150, HIGHEST / height), constrained_layout=True)
    grid = figure.subplots(len(panels), squeeze=False)
    for axes, (ylabel, curves), (place, _) in zip(grid[:, 0], panels.items(), legends):
        lines, explained = [], False
        for rows, key, _, i in curves:
            colour, marker = f"C{i}", "o" if len(rows) <= 20 else None  # a single point would not be seen without
            style = {"linestyle": STYLES[(i + i // COLOURS) % 4], "linewidth": 1.5 + i // (4 * COLOURS)}
            xs, ys = [row["epoch"] for row in rows], [row[key] for row in rows]
            lines += axes.plot(xs, ys, color=colour, marker=marker, markersize=4, **style)
            low, high = ([row.get(f"{key}/{end}", math.nan) for row in rows] for end in ("low", "high"))
            axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)  # of several seeds
            # Of the epoch's last batch, as the report collects it; of many runs nothing else would be seen
            last = scored(rows, f"{key}_last") if len(curves) <= MOST_INSIDE else []
            axes.plot([row["epoch"] for row in last], [row[f"{key}_last"] for row in last], color=colour, **THIN)
            explained = explained or bool(last)
        axes.set_xlabel(xlabel)
        gap = "\n" if len(ylabel) > 30 else " "  # a long label takes several lines
        ylabel = f"{ylabel}{gap}(thin: its last batch)" if explained else ylabel
        axes.set_ylabel(plain("\n".join(textwrap.fill(line, 50) for line in ylabel.split("\n"))))
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
            axes.update_datalim([(0, 0)], updatex=False)  # so that the margin above is one of the whole height
            axes.autoscale_view()
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        legend = axes.legend(lines, ["?"] * len(lines), **place)
        for text, (_, _, label, _) in zip(legend.get_texts(), curves):
            text.set_text(plain(label))  # not as the line's label, where _ at the start hides it
    atomic_write(path, lambda file: figure.savefig(file, format="png", metadata=dict([MARK])))
    print(f"wrote {path}")


def plot_curves(logs, output_dir):
    """Draws loss.png and, if a log has scores for it, fid.png into `output_dir`.

    logs: {name of the run: what `read_log` returns for it}. Raises OSError.
    """
    if not terminal.in_ipython():  # whose other cells draw with these settings
        os.environ.update(MATPLOTLIBRC=os.devnull, MPLBACKEND="agg")  # the user's may name what is not here
    import matplotlib

    os.makedirs(output_dir, exist_ok=True)
    logs = {name: {**log, "evaluations": list(map(with_own, log["evaluations"]))} for name, log in logs.items()}
    losses, scores = (recorded([row for log in logs.values() for row in log[part]]) for part in PARTS)
    fids = {row.get("fid", 0) for log in logs.values() for row in log["evaluations"]}
    kinds, n_runs, logs = kinds_of(logs.values()), len(logs), join_seeds(logs)
    several = len(logs) > 1
    kinds = {kind: english for kind, (english, _) in kinds.items()}
    names = [*(logs if several else []), *(name_of(key)[0] for key in losses + scores), *kinds.values()]
    shown, fonts = readable(names)
    curves = []  # (file, panel, label in the legend of a single run, part of the log, key)
    for key in losses:
        label = shown[name_of(key)[0]]
        panel = f"{label}, mean of the epoch"
        if not several and panel_of(key) == "loss":  # one panel; of several runs, they could not be told apart
            label, panel = label.replace(" loss", ""), "mean loss of the epoch"
        curves.append(("loss.png", panel, label, "epochs", key))
    for key in scores:
        if key in FIDS or key not in NAMES:
            label, better = shown[name_of(key)[0]], " (lower is better)" * key.endswith(FIDS)
            if key in ON_INCEPTION and several and len(kinds) == 1:  # else every curve says it
                better += "".join(f"\n{shown[kind]}" for kind in kinds.values())
            curves.append(("fid.png", label + better, label, "evaluations", key))
    figures = {file: {} for file in CURVES}
    for i, (name, log) in enumerate(logs.items()):
        for file, panel, label, part, key in curves:
            drawn = figures[file].get(panel, [])
            first, label = (i, shown[name]) if several else (len(drawn), label)
            for n, (kind, rows) in enumerate(by_kind(log[part], key).items()):
                said = f"\n{shown[kinds[kind]]}" if kind and (len(kinds) > 1 or not several) else ""
                figures[file].setdefault(panel, drawn).append((rows, key, label + said, first + COLOURS * n))
    joined = " (line: the seeds' mean; band: from the lowest to the highest)" * (len(logs) < n_runs)
    for file, panels in figures.items():
        path = os.path.join(output_dir, file)
        if panels:
            with matplotlib.rc_context():  # whatever the user's settings are
                matplotlib.rcdefaults()
                matplotlib.rcParams["font.family"] = fonts
                draw(path, panels, "epoch" + joined)
        elif is_own_picture(path):  # of a log that had scores for it
            os.remove(path)
    if not fids:
        print("no FID in the log: no epoch is evaluated yet")
    elif fids == {None}:
        print("no FID in the log (Inception's weights were not available, or failed)")


def main():
    parser = Parser("Draws loss.png, fid.png and run.html from logs of cgan.py.")
    parser.add_argument(
        "logs", nargs="+", type=log_file, metavar="log.json", help="or a run's folder; several are overlaid"
    )
    where = "where the files go (default: beside the first log)"
    parser.add_argument("--output_dir", type=typed_path, recorded=False, help=where)
    opt = parser.parse_args()
    names = short_names(opt.logs)
    try:
        logs = {path: read_log(path) for path in names}
    except ValueError as error:
        command = shlex.join(["python", os.path.abspath(sys.argv[0]), REFERENCE_LOG, "--output_dir", "curves"])
        first = f". First train (python cgan.py), or draw the run that comes with this project: {command}"
        parser.error(f"argument log.json: {error}{'' if all(map(os.path.exists, names)) else first}")
    output_dir = opt.output_dir or os.path.dirname(os.path.abspath(opt.logs[0]))
    check_folder(parser, "output_dir", output_dir)
    page = os.path.join(output_dir, "run.html")
    try:
        plot_curves({names[path]: log for path, log in logs.items()}, output_dir)
        problems = write_page(page, {names[path]: (path, log) for path, log in logs.items()})
    except OSError as error:
        parser.error(f"{error.filename2 or error.filename or output_dir} cannot be written: {error.strerror}")
    for problem in problems:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
