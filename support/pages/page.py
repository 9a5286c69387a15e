"""Writes a run, or several, as one HTML file that needs no network: curves, sample grids, and a generator that draws.

support/pages/page.html is the page; it gets all that it shows as JSON.
"""

import base64
import io
import json
import os
import shlex

import numpy as np
from PIL import Image

from support.flags import command_line
from support.pages.networks import LEVELS, NOT_KEPT, pack_within, read_networks
from support.saved.log import is_number, kind_of, kinds_of, name_of, panel_of, recorded, run_folder
from support.saved.paths import atomic_write, find_grids

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
DATA = '<script type="application/json" id="data">null</script>'  # in the template; JSON takes null's place
LARGEST_PAGE = 8 * 10**6  # bytes
MOST_GRIDS, MOST_ROWS = 100, 5000  # in a page: sample grids, and of a log's epochs and evaluations
QUALITY = 60  # of the grids, as WebP: 20,000 bytes each, while PNG takes 50,000


def pick_evenly(items, count):
    """Returns up to `count` of `items` at even steps, with the first and the last."""
    steps = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(step)] for step in steps]


def read_grids(log_path, count):
    """Returns ([(batches done, WebP in base64)] of up to `count` sample grids, paths of those that cannot be read)."""
    found = find_grids(os.path.join(run_folder(log_path), "images"))
    grids, unreadable = [], []
    for batches, path in pick_evenly(list(found.items()), count):
        whole = io.BytesIO()
        try:
            with Image.open(path) as picture:
                picture.convert("L").save(whole, "WEBP", quality=QUALITY, method=0)
            grids.append((batches, base64.b64encode(whole.getvalue()).decode()))
        except (OSError, SyntaxError):  # Pillow raises the second if a PNG is broken
            unreadable.append(path)
    return grids, unreadable


def describe(name, log, kinds):
    """Returns what the page shows of a log; kinds: support.saved.log.kinds_of all logs, which "kind" counts."""
    config, last = log["config"], log["epochs"][-1]
    words = command_line({f"--{flag}": value for flag, value in config.items()})
    shown = {
        "name": name,
        "command": shlex.join(["python", "cgan.py", *words]),
        "facts": {key: str(value) for key, value in {"seed": config.get("seed", "?"), **log["environment"]}.items()},
        "changes": [],
        "n_epochs": max(last["epoch"], config.get("n_epochs") if is_number(config.get("n_epochs")) else 0),
        "batches_per_epoch": last["batches"] if is_number(last.get("batches")) and last["batches"] > 0 else 1,
        "seconds": sum(row["seconds"] for row in log["epochs"] if is_number(row.get("seconds"))),
        "epochs_logged": len(log["epochs"]),
    }
    for change in log["changes"]:  # "41: lr 0.0001"
        values = {**change.get("config", {}), **change.get("environment", {})}
        shown["changes"].append(f"{change['epoch']}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    picked = {part: pick_evenly(log[part], MOST_ROWS) for part in ("epochs", "evaluations")}
    for part, rows in picked.items():  # their numbers, and null for what could not be measured
        shown[part] = [{key: row[key] for key in row if row[key] is None or is_number(row[key])} for row in rows]
    for row, measured in zip(shown["evaluations"], picked["evaluations"]):
        if kind_of(measured):
            row["kind"] = list(kinds).index(kind_of(measured))
    return shown


def panels(logs):
    """Returns [{"name": the panel's, "part": of the log, "keys": drawn in it}], of several logs one for each key."""
    found = {}
    for part in ("epochs", "evaluations"):
        for key in recorded([row for log in logs for row in log[part]]):
            name = panel_of(key) if len(logs) == 1 else key
            found.setdefault((part, name), {"name": name, "part": part, "keys": []})["keys"].append(key)
    return list(found.values())


def to_json(data):
    """Returns `data` as JSON that can stand in a script of an HTML file: no markup in it can end the script.

    Raises ValueError if a number is not finite: JSON has none such.
    """
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def write_page(path, runs, largest=LARGEST_PAGE):
    """Writes the page of one run or several, in `largest` bytes at most, unless the logs alone take more.

    Of very many epochs some are left out; then the networks come first, then the grids, of which fewer may do.
    runs: {name of the run: (path of its log.json, what support.saved.log.read_log returns for it)}; sample grids and
    checkpoint are looked for beside the log.
    Returns sentences: which file beside a log cannot be read, which network a page cannot compute. Raises OSError.
    """
    networks, grids, problems = {"generator": NOT_KEPT}, [], []
    for name, (log_path, _) in runs.items():
        own, unreadable = read_grids(log_path, max(1, MOST_GRIDS // len(runs)))
        grids.append(own)
        problems += [f"{path} cannot be read as an image" for path in unreadable]
        if isinstance(networks["generator"], str):  # the page draws with the first generator that it can compute
            try:
                networks = {"run": name, **read_networks(log_path)}
            except ValueError as error:
                networks = {"generator": str(error), "discriminator": NOT_KEPT}
                problems.append(str(error))
                continue
            left_out = [kind for kind in LEVELS if isinstance(networks[kind], str) and networks[kind] != NOT_KEPT]
            problems += [f"{name}: the {kind} is left out of the page: {networks[kind]}" for kind in left_out]
    logs = [log for _, log in runs.values()]
    kinds = kinds_of(logs)
    data = {"runs": [describe(name, log, kinds) for name, (_, log) in runs.items()], "panels": panels(logs)}
    data["kinds"] = list(kinds.values())
    data["names"] = {key: name_of(key) for panel in data["panels"] for key in (panel["name"], *panel["keys"])}
    with open(TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    room = largest - len(template.encode()) - len(to_json(data)) - 1000
    for kind in LEVELS:
        networks[kind] = pack_within(kind, networks[kind], room - largest // 8)  # the rest is for grids
        room -= len(to_json(networks[kind]))
    while any(grids) and len(to_json(grids)) > room:
        grids = [pick_evenly(own, len(own) * 9 // 10) for own in grids]
    for run, own in zip(data["runs"], grids):
        run["grids"] = own
    text = template.replace(DATA, DATA.replace("null", to_json({**data, "networks": networks})))
    atomic_write(path, lambda file: file.write(text.encode()))
    return problems
