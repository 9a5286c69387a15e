"""Writes the tables of results in the READMEs and in docs/results.md from the committed logs.

    python -m benchmarks.tables

A table stands between <!-- NAME --> and <!-- end of NAME -->; TABLES says what stands under a name.
"""

import os
import re
from pathlib import Path

from benchmarks import compare
from benchmarks.common import markdown
from support.saved.log import name_of, read_log
from support.saved.paths import PROJECT, REFERENCE_LOG

PAGES = ["README.md", "README.zh-CN.md", os.path.join("docs", "results.md")]
MARKED = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def reference_table(_):
    """Returns the Markdown table of the reference run at some of its epochs."""
    log = read_log(REFERENCE_LOG)
    losses, scores = ({row["epoch"]: row for row in log[part]} for part in ("epochs", "evaluations"))
    shown, rows = {**compare.METRICS, "fid": (1, None)}, []
    for epoch in (10, 20, 40, 70, 100):
        values = {**losses[epoch], **scores[epoch]}
        rows.append([str(epoch), *(compare.cell([values[metric]], digits) for metric, (digits, _) in shown.items())])
    return markdown(["epoch", *(name_of(metric)[0] for metric in shown)], rows)


def fill_configurations(table):
    """Returns a Markdown table whose rows begin with flags and words, filled with the comparison's metrics at its end.

    Its other rows stay: they are in the page's language.
    """
    rows = compare.read_rows()
    ends = {compare.flags_of(row): epochs[compare.EPOCHS] for row, epochs in rows.items() if compare.EPOCHS in epochs}
    shown = {metric: digits for metric, (digits, higher) in compare.METRICS.items() if higher is not None}

    def row(match):
        values = ends[match[1]]
        cells = [str(len(values["digit_fid"])), *(compare.cell(values[metric], shown[metric]) for metric in shown)]
        return f"| `{match[1]}` | {match[2]} | {' | '.join(cells)} |"

    return re.sub(r"^\| `([^`]*)` \| ([^|]*) \|.*$", row, table, flags=re.MULTILINE)


def plain_table(_):
    rows = compare.read_rows()
    return compare.table({name: rows[name] for name in (compare.REPORT, compare.PLAIN)}, compare.FEW_EPOCHS)


TABLES = {
    "reference": reference_table,
    "configurations": fill_configurations,
    "seeds": lambda _: compare.table(compare.read_rows(), compare.EPOCHS),
    "plain": plain_table,
    "course": lambda _: compare.course(compare.read_rows()),
}


def written(text):
    """Returns the text of a page with its tables written anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]](match[3]).rstrip() + "\n" + match[4], text)


def main():
    for page in PAGES:
        path = Path(PROJECT, page)
        text = path.read_bytes().decode()
        if written(text) != text:
            path.write_bytes(written(text).encode())
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
