"""The file that a classifier of images is kept in: its weights, and which images it was trained on."""

import os

import numpy as np

from support.saved.checkpoint import blaming
from support.saved.paths import PROJECT

WEIGHTS = os.path.join(PROJECT, "support", "digit_classifier.npz")  # of the digits of MNIST


def read_classifier(path):
    """Returns {name: array} of a file that support/digit_classifier.py wrote, 'data' in it as text.

    'data' is the SHA-256 of the training set, 'last.bias' has a number for every label. Raises ValueError that names
    the file if it is no such file.
    """
    with blaming(f"{path} is not a classifier of support/digit_classifier.py"):
        with np.load(path, allow_pickle=False) as file:
            weights = dict(file)
        return {**weights, "data": str(weights["data"]), "last.bias": weights["last.bias"]}
