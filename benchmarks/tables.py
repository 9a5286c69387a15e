"""Writes the tables of results in the READMEs, and what is marked in docs/results.md, from the committed logs.

    python -m benchmarks.tables

A table stands between <!-- NAME --> and <!-- end of NAME -->; TABLES says what stands under a name.
"""

import os
import re

from benchmarks import compare
from support.files import replace_file
from support.flags import PROJECT
from support.log import read_log

PAGES = ["README.md", "README.zh-CN.md", os.path.join("docs", "results.md")]
MARKED = re.compile(r"(<!-- (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def fill_reference(table):
    """Returns a Markdown table whose rows begin with an epoch, filled with the reference run's figures.

    Its other rows stay: they are in the page's language.
    """
    log = read_log(os.path.join(PROJECT, "results", "reference", "log.json"))
    losses, scores = ({row["epoch"]: row for row in log[part]} for part in ("epochs", "evaluations"))

    def row(match):
        epoch = int(match[1])
        loss, score = losses[epoch], scores[epoch]
        cells = [f"{epoch}", f"{loss['d_loss']:.3f}", f"{loss['g_loss']:.3f}", f"{score['label_accuracy']:.4f}"]
        return " | ".join(cells + [f"{score['digit_fid']:.1f}", f"{score['fid']:.1f}"]).join(("| ", " |"))

    return re.sub(r"^\| (\d+) \|.*$", row, table, flags=re.MULTILINE)


TABLES = {
    "reference": fill_reference,
    "seeds": lambda _: compare.table(compare.read_rows(), compare.EPOCHS) + "\n",
    "course": lambda _: compare.course(compare.read_rows()) + "\n",
}


def written(text):
    """Returns the text of a page with its tables written anew."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]](match[3]) + match[4], text)


def main():
    for page in PAGES:
        path = os.path.join(PROJECT, page)
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
        if written(text) != text:
            replace_file(path, lambda file, text=text: file.write(written(text).encode()))
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
