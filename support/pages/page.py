"""Writes a run, or several, as one HTML file that needs no network: curves, sample grids, and a generator that draws.

support/pages/page.html is the page; it gets all that it shows as JSON.
"""

import base64
import functools
import io
import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from support.flags import command_line
from support.pages.networks import LEVELS, NOT_KEPT, pack_within, read_networks
from support.saved.log import is_number, losses, name_of, panel_of, scores
from support.saved.log import run_name as run_name
from support.saved.paths import atomic_write, find_grids

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.html")
DATA = '<script type="application/json" id="data">null</script>'  # in the template; JSON takes null's place
LARGEST_PAGE = 8 * 10**6  # bytes
MOST_GRIDS = 100  # in a page
QUALITY = 60  # of the grids, as WebP: 20,000 bytes each, while PNG takes 50,000


# ---------------------------------------------------------------- a run's files
def grid_folder(log_path):
    """Returns the folder of a run's sample grids: results/a/log.json has its in images/a, else images beside it."""
    folder = os.path.dirname(os.path.abspath(log_path))
    before, results, after = f"{folder}/".rpartition("/results/")
    images = os.path.normpath(f"{before}/images/{after}")
    return images if results and os.path.isdir(images) else os.path.join(folder, "images")


def pick_evenly(items, count):
    """Returns up to `count` of `items` at even steps, with the first and the last."""
    steps = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(step)] for step in steps]


@functools.lru_cache(maxsize=4 * MOST_GRIDS)  # a run that is watched has the same grids each time, and some more
def encode_grid(path, modified):
    """Returns a sample grid as WebP in base64; `modified` is the file's time. Raises ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            if max(picture.size) > 4096:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            whole = io.BytesIO()
            picture.convert("L").save(whole, "WEBP", quality=QUALITY, method=0)
    except Exception as error:  # whatever a damaged file makes its decoder raise
        raise ValueError(f"{path} cannot be read as an image: {error}")
    return base64.b64encode(whole.getvalue()).decode()


def read_grids(log_path, count):
    """Returns ([[batches done, picture]], sentences that name each grid that cannot be read), up to `count` grids."""

    def read(item):
        try:
            return [item[0], encode_grid(item[1], os.path.getmtime(item[1]))]
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it encodes
        read_all = list(pool.map(read, pick_evenly(list(find_grids(grid_folder(log_path)).items()), count)))
    return [grid for grid in read_all if isinstance(grid, list)], [text for text in read_all if isinstance(text, str)]


# ---------------------------------------------------------------- the page
def describe_change(change):
    """Returns a log's note on what changed when a run went on, as text such as "41: lr 0.0001"."""
    values = {**change.get("config", {}), **change.get("environment", {})}
    return f"{change['epoch']}: " + ", ".join(f"{name} {value}" for name, value in values.items())


def describe(name, log):
    """Returns what the page shows of a log."""
    config, last = log["config"], log["epochs"][-1]
    facts = {"seed": config.get("seed", "?"), **log["environment"]}
    words = command_line({f"--{flag}": value for flag, value in config.items()})

    def numbers(rows):
        return [{key: value for key, value in row.items() if value is None or is_number(value)} for row in rows]

    n_epochs = config.get("n_epochs")
    return {
        "name": name,
        "command": shlex.join(["python", "cgan.py", *words]),
        "facts": {key: str(value) for key, value in facts.items()},
        "changes": [describe_change(change) for change in log["changes"]],
        "n_epochs": n_epochs if type(n_epochs) is int else last["epoch"],
        "batches_per_epoch": last.get("batches") or 1,
        "epochs": numbers(log["epochs"]),
        "evaluations": numbers(log["evaluations"]),
    }


def panels(logs):
    """Returns [{"name": the panel's, "part": of the log, "keys": drawn in it}], of several logs one for each key."""
    found = {}
    for part, names_of in (("epochs", losses), ("evaluations", scores)):
        for key in dict.fromkeys(key for log in logs for key in names_of(log)):
            name = panel_of(key) if len(logs) == 1 else key
            found.setdefault((part, name), {"name": name, "part": part, "keys": []})["keys"].append(key)
    return list(found.values())


def to_json(data):
    """Returns `data` as JSON that can stand in a script of an HTML file: no markup in it can end the script."""
    return json.dumps(data).replace("<", "\\u003c")


def write_page(path, runs, largest=LARGEST_PAGE):
    """Writes the page of one run or several, in `largest` bytes at most.

    The networks come first, then the grids, of which fewer may do; what does not fit is left out.
    runs: {name of the run: (path of its log.json, what support.saved.log.read_log returns for it)}; sample grids and
    checkpoint are looked for beside the log.
    Returns sentences: which file beside a log cannot be read, which network a page cannot compute. Raises OSError.
    """
    shown, problems, networks = [], [], {"generator": None}
    for name, (log_path, log) in runs.items():
        grids, unreadable = read_grids(log_path, max(1, MOST_GRIDS // len(runs)))
        shown.append({**describe(name, log), "grids": grids})
        problems += unreadable
        if isinstance(networks["generator"], tuple):
            continue  # the page draws with the first generator that it can compute
        try:
            networks = {"run": name, **read_networks(log_path, log["config"])}
        except ValueError as error:
            networks = {"generator": str(error)}
            problems.append(str(error))
            continue
        for kind in LEVELS:
            if isinstance(networks[kind], str) and networks[kind] != NOT_KEPT:
                problems.append(f"{name}: the {kind} is left out of the page: {networks[kind]}")
    logs = [log for _, log in runs.values()]
    data = {"runs": shown, "panels": panels(logs), "networks": networks}
    data["names"] = {key: name_of(key) for panel in data["panels"] for key in (panel["name"], *panel["keys"])}
    with open(TEMPLATE, encoding="utf-8") as file:
        template = file.read()
    room = largest - len(template.encode()) - 1000
    room -= len(to_json({**data, "runs": [{**run, "grids": []} for run in shown], "networks": None}))
    for kind in LEVELS:
        networks[kind] = pack_within(kind, networks[kind], room - largest // 8)  # the rest is for grids
        room -= len(to_json(networks[kind]))
        if isinstance(networks["generator"], str):  # then nothing is judged either
            networks["discriminator"] = networks["generator"]
    while len(to_json([run["grids"] for run in shown])) > room:
        for run in shown:
            run["grids"] = pick_evenly(run["grids"], len(run["grids"]) * 9 // 10)
    text = template.replace(DATA, DATA.replace("null", to_json(data)))
    atomic_write(path, lambda file: file.write(text.encode()))
    return problems
