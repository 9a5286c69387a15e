"""Writes the tables of results in the READMEs and in docs/ from the committed logs and from results/tables.

    python -m benchmarks.tables

A table stands between <!-- NAME --> and <!-- end of NAME -->. One that is not made from logs stays as it is as long as
results/tables holds no NAME.json, which a benchmark writes with --keep.
"""

import re
from pathlib import Path

from benchmarks import compare
from benchmarks.common import KEPT, markdown, read_kept
from support.saved.log import name_of, read_log
from support.saved.paths import PROJECT, REFERENCE_LOG

PAGES = ["README.md", "README.zh-CN.md", "docs/results.md", "docs/metrics.md", "docs/performance.md"]
MARKED = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def reference_table():
    """Returns the Markdown table of the reference run's evaluations."""
    shown = {**compare.METRICS, "fid": 1}
    del shown["breakdowns"]
    found = compare.measures(read_log(REFERENCE_LOG))
    rows = [[str(epoch), *(f"{values[name]:.{digits}f}" for name, digits in shown.items())] for epoch, values in found]
    return markdown(["epoch", *(name_of(metric)[0] for metric in shown)], rows)


def beside_the_report():
    """Returns the Markdown table of the reference run beside what the report says."""
    log = read_log(REFERENCE_LOG)
    losses = {name_of(name)[0]: [row[name] for row in log["epochs"]] for name in ("d_loss", "g_loss")}
    early = ", ".join(f"{name} {min(x[:40]):.3f} to {max(x[:40]):.3f}" for name, x in losses.items())
    late = ", ".join(f"{name} {x[40]:.3f} to {x[-1]:.3f}" for name, x in losses.items())
    rows = [
        ["epochs 1 to 40, lowest to highest", "discriminator about 0.2, generator about 0.5", early],
        ["epochs 41 to 100, first to last", "discriminator falls, generator rises", late],
    ]
    for name, digits in {"fid": 1, **compare.SCORES}.items():
        ours = [f"{log['evaluations'][i][name]:.{digits}f} at epoch {log['evaluations'][i]['epoch']}" for i in (0, -1)]
        theirs = "falls, about 100 at the end" if name == "fid" else "not measured"
        rows.append([name_of(name)[0], theirs, ", ".join(ours)])
    return markdown(["", "the report", "here"], rows)


def fill_configurations(table):
    """Returns a Markdown table whose rows begin with flags and words, filled with the comparison's figures at its end.

    A row without flags is that of real digits. The words are in the page's language.
    """
    ends = {compare.flags_of(row): found for row, found in compare.means(compare.read_rows(), compare.LAST).items()}

    def row(match):
        values = ends[match[1]]
        counts = [str(len(values["digit_fid"])), str(sum(map(bool, values["breakdowns"])))]
        cells = [compare.cell(values, metric) for metric in ("balance", *compare.SCORES)]
        return f"| `{match[1]}` | {match[2]} | {' | '.join(counts + cells)} |"

    _, *real = read_kept("scale")[1][0]
    table = re.sub(r"^\| `([^`]*)` \| ([^|]*) \|.*$", row, table, flags=re.MULTILINE)
    return re.sub(r"^\| \| ([^|]*) \|.*$", rf"| | \1 | | | | {' | '.join(real)} |", table, flags=re.MULTILINE)


def speed_table():
    """Returns the Markdown table of a step's time, divided by that of the peers' fastest."""
    peers = {"pytorch tuned": "PyTorch as tuned here", "jax scan": "JAX, a whole epoch compiled"}
    rows = []
    for processor, name in {"an AMD EPYC": "reach", "an Intel Xeon": "reach_intel"}.items():
        head, reach = read_kept(name)
        for cells in (dict(zip(head, row)) for row in reach):
            if cells["threads"] == "2":
                kind = "AVX2 only" if cells[""] == "AVX2" else cells[""]
                rows.append([f"two cores of {processor}, {kind}", *(cells[f"cgan to {peer}"] for peer in peers)])
    _, gpu = read_kept("gpu")
    rows.append(["[a GPU](#on-a-gpu)", *({row[0]: row[-1] for row in gpu}[peer] for peer in peers)])
    return markdown(["", *peers.values()], rows)


def written(text):
    """Returns the text of a page with its tables written anew."""
    made = {"beside": beside_the_report(), "reference": reference_table(), **compare.tables()}
    made.update(search=compare.search_table(), speed=speed_table())
    made.update({path.stem: markdown(*read_kept(path.stem)) for path in Path(KEPT).glob("*.json")})

    def table(match):
        filled = fill_configurations(match[3]) if match[2] == "configurations" else made.get(match[2], match[3])
        return f"{match[1]}{filled.rstrip()}\n{match[4]}"

    return MARKED.sub(table, text)


def main():
    for page in PAGES:
        path = Path(PROJECT, page)
        text = path.read_bytes().decode()
        if written(text) != text:
            path.write_bytes(written(text).encode())
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
