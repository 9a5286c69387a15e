"""Checks of what the user typed, done before Jittor is imported, whose first import compiles for minutes."""

import argparse
import gzip
import math
import os
import struct
import tempfile

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049  # of the idx format that MNIST comes in
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with exit status 2."""

    def __init__(self, description):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def whole_number(least):
    """Returns an argparse type: a whole number of at least `least`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not '{text}'")
        return value

    return parse


def number(text, holds, rule):
    """Returns the float in `text`, for which `holds` must be true; the error quotes `rule`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not holds(value):
        raise argparse.ArgumentTypeError(f"must be {rule}, not '{text}'")
    return value


def positive(text):
    return number(text, lambda value: value > 0, "a positive number, such as 0.0002")


def decay_rate(text):
    return number(text, lambda value: 0 <= value < 1, "a number from 0 up to but not including 1")


def output_folder(text):
    """argparse type: a folder that exists or can be made, in which files can be written; leaves no trace."""
    folder = os.path.abspath(text)
    for path in [folder] + [os.path.join(folder, name) for name in ("images", "results")]:
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        try:
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise argparse.ArgumentTypeError(f"must be a folder that can be written, but {path}: {error.strerror}")
    return text


def read_idx(path, magic):
    """Returns (number of items, bytes of all items) of a gzipped idx file; raises ValueError naming `path`."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing")
    except (OSError, EOFError, ValueError) as error:  # EOFError: cut off; gzip.BadGzipFile is an OSError
        raise ValueError(f"{path} is not a whole gzip file: {error}")
    except Exception as error:  # zlib.error: the compressed bytes are damaged
        raise ValueError(f"{path} is damaged: {error}")
    header = 16 if magic == IMAGE_MAGIC else 8
    if len(data) < header or struct.unpack(">i", data[:4])[0] != magic:
        raise ValueError(f"{path} is not MNIST's idx format")
    count = struct.unpack(">i", data[4:8])[0]
    size = struct.unpack(">ii", data[8:16]) if header == 16 else (1, 1)
    if header == 16 and size != (28, 28):
        raise ValueError(f"{path} holds images of {size[0]} x {size[1]}, not 28 x 28")
    if count < 1 or len(data) != header + count * size[0] * size[1]:
        raise ValueError(f"{path} does not hold the {count} items that its header promises")
    return count, data[header:]


def check_data_root(folder):
    """Checks the four MNIST-format files.

    Returns (number of training images, number of test images, highest label).
    Raises ValueError that names the file and what is wrong.
    """
    highest = 0
    counts = {}
    for part, (images, labels) in MNIST_FILES.items():
        counts[part], _ = read_idx(os.path.join(folder, images), IMAGE_MAGIC)
        n_labels, values = read_idx(os.path.join(folder, labels), LABEL_MAGIC)
        if n_labels != counts[part]:
            raise ValueError(f"{folder}: {counts[part]} {part} images, but {n_labels} labels")
        highest = max(highest, max(values))
    return counts["train"], counts["test"], highest
