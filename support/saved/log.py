"""A run's log.json: how it is written, read and checked, and what people call the numbers in it."""

import json
import os

from support.saved.paths import atomic_write, log_path

NAMES = {  # of the numbers in a log, and of the panels that several share: (English, Chinese)
    "loss": ("loss", "损失"),
    "d_loss": ("discriminator loss", "判别器损失"),
    "g_loss": ("generator loss", "生成器损失"),
    "fid": ("FID", "FID"),
    "kid": ("KID", "KID"),
    "digit_fid": ("digit FID", "数字 FID"),
    "label_fid": ("label FID", "标签 FID"),
    "label_accuracy": ("label accuracy", "标签准确率"),
    "d_accuracy": ("accuracy of the discriminator (D)", "判别器准确率"),
    "d_accuracy_real": ("D accuracy, real", "判别器对真实图的准确率"),
    "d_accuracy_generated": ("D accuracy, generated", "判别器对生成图的准确率"),
}
NOT_DRAWN = ("epoch", "batches", "seconds", "fid_samples")


def name_of(name):
    """Returns what people call a number in a log: (English, Chinese); a name that is not known stays as it is."""
    return NAMES.get(name, (name.replace("_", " "),) * 2)


def panel_of(name):
    """Returns the name of the panel that a number of a single run is drawn in: losses share one."""
    return "loss" if name.endswith("_loss") else "d_accuracy" if name.startswith("d_accuracy_") else name


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e39  # what float32 holds; false for NaN


def numbers(rows):
    """Returns the names under which at least one of the rows holds a number, in the order of their appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in NOT_DRAWN and is_number(row[name])))


def losses(log):
    """Returns the names of what a log's epochs record; <name>_last, of the epoch's last batch, goes with <name>."""
    names = numbers(log["epochs"])
    return [name for name in names if not (name.endswith("_last") and name[: -len("_last")] in names)]


def scores(log):
    """Returns the names of the numbers that a log's evaluations hold."""
    return numbers(log["evaluations"])


def scored(rows, name):
    """Returns the rows that hold a number under `name`."""
    return [row for row in rows if is_number(row.get(name))]


def check_rows(log, part):
    """Raises ValueError unless log[part] lists dictionaries by ascending epoch whose numbers are finite."""
    rows = log.get(part)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
        raise ValueError(f"'{part}' must list dictionaries, each with its epoch, a whole number")
    epochs = [row["epoch"] for row in rows]
    if epochs != sorted({epoch for epoch in epochs if epoch > 0}):
        raise ValueError(f"the epochs of '{part}' must ascend from 1 or more")
    for row in rows:
        own = row.get("generator")  # with a running average of the generator: what it scores itself
        for name, value in [*row.items(), *(own.items() if isinstance(own, dict) else ())]:
            if type(value) in (int, float) and not is_number(value):
                raise ValueError(f"in '{part}', {name} of epoch {row['epoch']} is not finite")


def check_log(log):
    """Checks a log, as read_log returns it; "config", "environment" and "changes" are added if missing.

    Raises ValueError that says what is wrong.
    """
    if not isinstance(log, dict):
        raise ValueError("it is no dictionary")
    for key, empty in (("config", {}), ("environment", {}), ("changes", [])):
        log.setdefault(key, empty)
    for part in ("epochs", "evaluations", "changes"):
        check_rows(log, part)
    for described in (log, *log["changes"]):
        for key in ("config", "environment"):
            if not isinstance(described.get(key, {}), dict):
                raise ValueError(f"'{key}' must be a dictionary")


def read_log(path):
    """Returns a log of cgan.py as a dictionary.

    "epochs" (at least one) and "evaluations" list dictionaries by ascending "epoch"; what else is in these is what the
    run recorded, its numbers finite. "config" and "environment" are dictionaries, of which "changes" lists more by
    "epoch"; what these hold is not checked.
    Raises ValueError that names the file and what is wrong.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    try:
        try:
            log = json.loads(text.decode())
        except (ValueError, RecursionError):
            raise ValueError("it holds no JSON")
        check_log(log)
    except ValueError as error:
        raise ValueError(f"{path} is not a log of cgan.py: {error}")
    if not log["epochs"]:
        raise ValueError(f"{path} holds no finished epoch yet")
    return log


def latest(log, part):
    """Returns a log's "config" or "environment" as it is at the end: what its "changes" say above what it began with."""
    held = dict(log[part])
    for change in log.get("changes", ()):
        held.update(change.get(part, {}))
    return held


def save_log(output_dir, log):
    """Writes `log` (dictionaries, lists, strings, finite numbers) as JSON; raises OSError."""
    text = json.dumps(log, indent=1, allow_nan=False) + "\n"
    atomic_write(log_path(output_dir), lambda file: file.write(text.encode()))


def run_name(output_dir):
    """Returns the name of the run in a folder: the folder's own."""
    return os.path.basename(os.path.abspath(output_dir)) or "cgan.py"


def short_names(paths):
    """Returns {path of a log: its parts that not all paths have}, such as a and b for a/log.json and b/log.json.

    A log.json that has no such part is named by its folder, or by the folder above if that is results/. If two paths
    would get one name, each is named by the whole of it.
    """
    parts = {path: os.path.normpath(path).split(os.sep) for path in paths}
    shared = set.intersection(*map(set, parts.values()))
    names = {}
    for path in paths:
        folder, file = os.path.split(os.path.abspath(path))
        folder = os.path.dirname(folder) if os.path.basename(folder) == "results" else folder
        own = os.sep.join(part for part in parts[path] if part not in shared)
        names[path] = own or (run_name(folder) if file == "log.json" else path)
    return names if len(set(names.values())) == len(names) else {path: path for path in names}
