"""A run's log.json: how it is written, read and checked, and what people call the numbers in it."""

import csv
import io
import json
import os

from support.saved.paths import atomic_write, log_path, table_path

NAMES = {  # of the numbers in a log, and of the panels that several share: (English, Chinese)
    "loss": ("loss", "损失"),
    "d_loss": ("discriminator loss", "判别器损失"),
    "g_loss": ("generator loss", "生成器损失"),
    "fid": ("FID", "FID"),
    "kid": ("KID", "KID"),
    "digit_fid": ("digit FID", "数字 FID"),
    "label_fid": ("label FID", "标签 FID"),
    "own_digit_fid": ("digit FID without the average", "无滑动平均的数字 FID"),
    "own_label_fid": ("label FID without the average", "无滑动平均的标签 FID"),
    "label_accuracy": ("label accuracy", "标签准确率"),
    "d_accuracy": ("accuracy of the discriminator (D)", "判别器准确率"),
    "d_accuracy_real": ("D accuracy, real", "判别器对真实图的准确率"),
    "d_accuracy_generated": ("D accuracy, generated", "判别器对生成图的准确率"),
}
NOT_DRAWN = ("epoch", "batches", "seconds", "fid_samples")
ON_INCEPTION = ("fid", "kid")  # the scores that depend on which weights they were measured with


def name_of(name):
    """Returns what people call a number in a log: (English, Chinese); a name that is not known stays as it is."""
    return NAMES.get(name, (name.replace("_", " "),) * 2)


def panel_of(name):
    """Returns the name of the panel that a number of a single run is drawn in: losses share one."""
    return "loss" if name.endswith("_loss") else "d_accuracy" if name.startswith("d_accuracy_") else name


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e39  # what float32 holds; false for NaN


def recorded(rows):
    """Returns the names of the numbers in a log's rows, without NAME_last, which goes with NAME."""
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_DRAWN and is_number(row[name]))
    return [name for name in names if name not in [f"{other}_last" for other in names]]


def kind_of(row):
    """Returns a text that two evaluations share if their FIDs and KIDs can be compared; None if there are none.

    It is made of the number of images and the SHA-256 of the weights.
    """
    if any(is_number(row.get(name)) for name in ON_INCEPTION):
        return f"{row.get('fid_samples')} {row.get('inception_sha256')}"


def kinds_of(logs):
    """Returns {kind_of(row): (English, Chinese)} of all evaluations in logs: what their FIDs were measured with."""
    kinds = {}
    for row in (row for log in logs for row in log["evaluations"] if kind_of(row)):
        name, sha256 = row.get("inception"), str(row.get("inception_sha256") or "?")[:8]
        weights, count = f"{name} {sha256}" if name else sha256, row.get("fid_samples", "?")
        kinds.setdefault(kind_of(row), (f"{count} images, weights {weights}", f"{count} 张图、权重 {weights}"))
    return kinds


def check_rows(log, part):
    """Raises ValueError unless log[part] lists dictionaries by ascending epoch whose numbers are finite."""
    rows = log.get(part)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
        raise ValueError(f"'{part}' must list dictionaries, each with its epoch, a whole number")
    epochs = [row["epoch"] for row in rows]
    if epochs != sorted({epoch for epoch in epochs if epoch > 0}):
        raise ValueError(f"the epochs of '{part}' must ascend from 1 or more")
    for row in rows:
        for name, value in row.items():
            if type(value) in (int, float) and not is_number(value):
                raise ValueError(f"in '{part}', {name} of epoch {row['epoch']} is not finite")


def check_log(log):
    """Checks a log, as read_log returns it; "config", "environment" and "changes" are added if missing.

    Raises ValueError that says what is wrong.
    """
    if not isinstance(log, dict):
        raise ValueError("it is not a dictionary")
    for key, empty in (("config", {}), ("environment", {}), ("changes", [])):
        log.setdefault(key, empty)
    for part in ("epochs", "evaluations", "changes"):
        check_rows(log, part)
    for held in (log, *log["changes"]):
        for key in ("config", "environment"):
            if not isinstance(held.get(key, {}), dict):
                raise ValueError(f"'{key}' must be a dictionary")
    if not log["epochs"]:
        raise ValueError("it holds no finished epoch yet")


def read_log(path):
    """Returns a log of cgan.py as a dictionary.

    "epochs" (at least one) and "evaluations" list dictionaries by ascending "epoch", which hold what the run recorded;
    "config" and "environment" are dictionaries, of which "changes" lists more by "epoch"; what is in them is not
    checked. Raises ValueError that names the file and what is wrong.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe could be read only once, a device without an end
        raise ValueError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            log = json.load(file)  # of bytes it finds the encoding, with a byte-order mark or without
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    except (ValueError, RecursionError):
        raise ValueError(f"{path} holds no JSON")
    try:
        check_log(log)
    except ValueError as error:
        raise ValueError(f"{path} is not a log of cgan.py: {error}")
    return log


def save_log(output_dir, log):
    """Writes `log` (dictionaries, lists, strings, finite numbers) as JSON; raises OSError."""
    text = json.dumps(log, indent=1, allow_nan=False, default=str) + "\n"
    atomic_write(log_path(output_dir), lambda file: file.write(text.encode()))


def save_table(output_dir, log):
    """Writes a log's numbers as a table, results/log.csv; raises OSError."""
    text = table_of(log).encode(errors="backslashreplace")  # a path need not be text
    atomic_write(table_path(output_dir), lambda file: file.write(text))


def columns(values, prefix=""):
    """Returns {name: value} without dictionaries and lists in it: {"a": {"b": [5, 6]}} as {"a_b_0": 5, "a_b_1": 6}."""
    found = {}
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        name = f"{prefix}{name}"
        found.update(columns(value, f"{name}_") if isinstance(value, (dict, list, tuple)) else {name: value})
    return found


def table_of(log):
    """Returns a log as CSV: a row for every epoch, with its scores if it has some, and a column for every number.

    A score of the name of a number that was recorded in training is in the column evaluation_NAME.
    """
    trained, scores = ({row["epoch"]: columns(row) for row in log[part]} for part in ("epochs", "evaluations"))
    recorded = {name for row in trained.values() for name in row if name != "epoch"}
    rows = []
    for epoch, row in trained.items():
        own = {f"evaluation_{name}" if name in recorded else name: x for name, x in scores.get(epoch, {}).items()}
        rows.append({**row, **own})
    text = io.StringIO()
    table = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def best_epoch(log):
    """Returns the epoch whose digit FID (label FID, if the images are no digits) is the lowest, None without any.

    Only scores by the classifier of the last score count.
    """
    scores = [(row.get("digit_fid", row.get("label_fid")), row) for row in log["evaluations"]]
    scores = [(score, row["epoch"], row.get("classifier_sha256")) for score, row in scores if is_number(score)]
    return min((score for score in scores if score[2] == scores[-1][2]), default=(None, None))[1]


def run_name(output_dir):
    """Returns the name of the run in a folder: the folder's own."""
    return os.path.basename(os.path.abspath(output_dir)) or "cgan.py"


def run_folder(log_path):
    """Returns the folder of the run that a log is of: the one above results/, or the log's own."""
    folder = os.path.dirname(os.path.abspath(log_path))
    return os.path.dirname(folder) if os.path.basename(folder) == "results" else folder


def short_names(paths):
    """Returns {path of a log: its parts that not all paths have}, such as a and b for a/log.json and b/log.json.

    A log.json that has no such part is named by the folder of its run. If two paths would get one name, each is named
    by the whole of it.
    """
    parts = {path: os.path.normpath(path).split(os.sep) for path in paths}
    shared = set.intersection(*map(set, parts.values()))
    names = {}
    for path in paths:
        own = os.sep.join(part for part in parts[path] if part not in shared)
        names[path] = own or (run_name(run_folder(path)) if parts[path][-1] == "log.json" else path)
    return names if len(set(names.values())) == len(names) else {path: path for path in names}
