"""A run's log.json, as cgan.py writes it, read and checked."""

import json
import os

LARGEST_LOG = 50 * 10**6  # bytes; 100 epochs take 20,000
LOSSES = ("d_loss", "g_loss", "d_loss_last", "g_loss_last")  # of an epoch: its mean, and its last batch's
SCORES = ("fid", "kid", "digit_fid", "label_accuracy", "d_accuracy_real", "d_accuracy_generated")  # of an evaluation


def is_number(value):
    return type(value) in (int, float) and abs(value) < 1e30  # beyond, nothing can be drawn; false for NaN


def are_rows(rows, required, optional=()):
    """Returns whether `rows` is a list of dictionaries, by epoch, of numbers (where optional, null will do)."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    epochs = [row.get("epoch") for row in rows]
    if not all(type(epoch) is int and 0 < epoch < 2**31 for epoch in epochs) or sorted(set(epochs)) != epochs:
        return False
    return all(
        all(is_number(row.get(key)) for key in required)
        and all(row.get(key) is None or is_number(row[key]) for key in optional)
        for row in rows
    )


def check_log(log):
    """Checks a log of cgan.py, as read_log returns it; "config", "environment" and "changes" are added if missing.

    Raises ValueError that says what is wrong.
    """
    if not isinstance(log, dict) or not are_rows(log.get("epochs"), LOSSES[:2], (*LOSSES[2:], "seconds", "batches")):
        raise ValueError("'epochs' must list epoch, d_loss and g_loss, all numbers")
    if not are_rows(log.get("evaluations"), ()) or not all("fid" in row for row in log["evaluations"]):
        raise ValueError("'evaluations' must list epoch and fid")
    for key in SCORES:
        if not are_rows(log["evaluations"], (), (key,)):
            raise ValueError(f"in 'evaluations', {key} must be a number or null")
    for row in log["evaluations"]:
        own = row.get("generator", {})  # its scores, where those above are its running average's
        if not isinstance(own, dict) or not are_rows([{**own, "epoch": row["epoch"]}], (), SCORES):
            raise ValueError("in 'evaluations', generator must hold scores that are numbers or null")
    for key, empty in (("config", {}), ("environment", {}), ("changes", [])):
        log.setdefault(key, empty)
    if not are_rows(log["changes"], ()):
        raise ValueError("'changes' must list what holds from which epoch on")
    for described in (log, *log["changes"]):
        for key in ("config", "environment"):
            if not isinstance(described.get(key, {}), dict):
                raise ValueError(f"'{key}' must be a dictionary")


def read_log(path):
    """Returns a log of cgan.py as a dictionary.

    "epochs" and "evaluations" are lists of dictionaries by ascending "epoch", at least one epoch; every loss and score
    in them, and in an evaluation's "generator", is a number, or missing or null where a run may lack it. "config" and
    "environment" are dictionaries, of which "changes" lists more by "epoch"; what these hold is not checked.
    Raises ValueError that names the file and what is wrong.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_LOG + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")
    try:
        if len(text) > LARGEST_LOG:
            raise ValueError(f"it is larger than {LARGEST_LOG // 10**6} MB")
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


def scored(evaluations, key):
    """Returns the evaluations that hold a value under `key`."""
    return [row for row in evaluations if row.get(key) is not None]


def short_names(paths):
    """Returns {path: its parts that not all paths have}, such as a and b for a/log.json and b/log.json.

    Where that would give two paths one name, each is named by the whole of it.
    """
    parts = {path: os.path.normpath(path).split(os.sep) for path in paths}
    shared = set.intersection(*map(set, parts.values()))
    names = {path: os.sep.join(part for part in parts[path] if part not in shared) or path for path in paths}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}
