"""What several benchmarks share: Markdown tables, and trained generators with the digits that they draw."""

import os
from functools import partial

import numpy as np

from support.flags import file_for
from support.idx import MNIST
from support.saved.checkpoint import Mismatch, read_generator
from support.saved.paths import BEST_GENERATOR


def markdown(head, rows):
    """Returns the Markdown table of a head and rows, each a list of texts."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(line.replace("|  |", "| |") for line in lines)


def check_generator(path):
    """Raises ValueError unless a file holds a generator that was trained on MNIST, whose digits it is compared with."""
    if read_generator(path)[2] != MNIST.sha256:
        raise ValueError(f"{path} was not trained on MNIST's digits")


def add_generator(parser, default=BEST_GENERATOR, nargs=None):
    """Declares --generator: a trained one, or several."""
    what = f"a checkpoint, or its generator alone{' (several may be named)' if nargs else ''}"
    parser.add_argument("--generator", type=file_for(check_generator), default=default, nargs=nargs, help=what)


def load_generators(parser, paths):
    """Returns ({path: trained generator}, the size of the images that they draw).

    Ends the program if it differs, or if one does not fit the class in cgan.py.
    """
    from cgan import load_generator  # not above: tables need no Jittor

    try:
        generators = {os.path.relpath(path): load_generator(path) for path in paths}
    except Mismatch as error:
        parser.error(f"argument --generator: {error}")
    sizes = {generator.img_size for generator in generators.values()}
    if len(sizes) > 1:
        parser.error(f"argument --generator: all must draw images of one size, not of {sorted(sizes)}")
    return generators, sizes.pop()


def draw_seeded(generator, n=MNIST.n_test):
    """Returns n digits of a generator, (n, 1, S, S), and their labels, (n,), always from the same noise."""
    from cgan import generate
    from support.evaluation import draw_digits

    draw = partial(generate, generator)
    return draw_digits(draw, np.random.default_rng(0), generator.latent_dim, MNIST.n_labels, n)
