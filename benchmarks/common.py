"""What several benchmarks share: Markdown tables, and trained generators with the digits that they draw."""

import datetime
import json
import os
import sys

import numpy as np

from support import limits
from support.flags import file_for
from support.idx import MNIST
from support.saved.checkpoint import Mismatch, read_generator
from support.saved.paths import BEST_GENERATOR, PROJECT, REFERENCE_GENERATOR

KEPT = os.path.join(PROJECT, "results", "tables")  # of what is measured on trained generators
KEEP = "keep the tables in results/tables, for the documentation"


def markdown(head, rows):
    """Returns the Markdown table of a head and rows, each a list of texts."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(line.replace("|  ", "| ") for line in lines)


def show(keep, name, head, rows, **facts):
    """Prints a table; with `keep`, results/tables/NAME.json holds it, where it comes from, and further facts."""
    print(markdown(head, rows) + "\n")
    if not keep:
        return
    from support.runs.run import describe_code, describe_processor  # not above, as it loads Jittor

    made = {
        "command": " ".join(["python", "-m", f"benchmarks.{os.path.basename(sys.argv[0])[:-3]}", *sys.argv[1:]]),
        "commit": describe_code(),
        "machine": f"{describe_processor()}, {limits.cores()} cores",
        "date": datetime.date.today().isoformat(),
    }
    os.makedirs(KEPT, exist_ok=True)
    with open(os.path.join(KEPT, f"{name}.json"), "w") as file:
        file.write(json.dumps({**made, **facts, "head": head, "rows": rows}, indent=1) + "\n")


def read_kept(name):
    """Returns head and rows of a table that a benchmark kept."""
    with open(os.path.join(KEPT, f"{name}.json")) as file:
        kept = json.load(file)
    return kept["head"], kept["rows"]


def check_generator(path):
    """Raises ValueError unless a file holds a generator that was trained on MNIST, whose digits it is compared with."""
    if read_generator(path)[2] != MNIST.sha256:
        raise ValueError(f"{path} was not trained on MNIST's digits")


def add_generator(parser):
    """Declares --generator, a trained one or several, by default the reference run's and the best, and --keep."""
    default, what = [REFERENCE_GENERATOR, BEST_GENERATOR], "checkpoints, or generators alone"
    parser.add_argument("--generator", type=file_for(check_generator), nargs="+", default=default, help=what)
    parser.add_argument("--keep", action="store_true", help=KEEP)


def draw_seeded(parser, paths, labels, width=1.0):
    """Returns {path: digits, (N, 1, S, S), of the trained generator in it} for labels (N,), all from the same noise.

    width: the noise's standard deviation; training has 1.
    Ends the program if a generator does not fit the class in cgan.py, or if their S differ.
    """
    from cgan import generate, load_generator  # not above: flags are checked before Jittor compiles

    drawn = {}
    for path in paths:
        try:
            generator = load_generator(path)
        except Mismatch as error:
            parser.error(f"argument --generator: {error}")
        noise = width * np.random.default_rng(0).standard_normal((len(labels), generator.latent_dim))
        drawn[os.path.relpath(path)] = generate(generator, noise, labels)
    sizes = {images.shape[-1] for images in drawn.values()}
    if len(sizes) > 1:
        parser.error(f"argument --generator: all must draw images of one size, not of {sorted(sizes)}")
    return drawn


def real_and_drawn(parser, paths):
    """Returns images and labels of training digits and of test digits, and {path: images of its generator's digits}.

    10,000 of each, of the generators' size: training digits that the classifier never saw, generated ones of the test
    digits' labels.
    """
    from support.digit_classifier import split
    from support.mnist import load_mnist

    drawn = draw_seeded(parser, paths, load_mnist(train=False).arrays()[1])
    img_size = next(iter(drawn.values())).shape[-1]
    return split(seen=False, img_size=img_size), load_mnist(False, img_size).arrays(), drawn


def digit_features(images):
    """Returns the digit classifier's features of images, (n, 128)."""
    from support import digit_classifier

    return digit_classifier.read_labels(digit_classifier.load(), images)[0]
