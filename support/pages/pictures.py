"""Pictures of drawn digits."""

import errno
import os
import textwrap

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.saved.paths import MARK, atomic_write, is_own_picture

NOT_OURS = "lacks this program's mark, as pictures of its earlier versions do, and is not replaced"
GAP = 2  # pixels between two digits


def to_gray(values):
    """Returns values in [-1, 1] as gray levels, whole numbers from 0 to 255."""
    return ((values + 1) * 127.5).round().astype(np.uint8)


def save_picture(path, values):
    """Writes values (H, W) in [-1, 1] as a gray PNG with this program's MARK; raises OSError.

    A picture without it, which is the user's own, is not replaced.
    """
    if os.path.exists(path) and not is_own_picture(path):
        raise FileExistsError(errno.EEXIST, NOT_OURS, path)
    picture, mark = Image.fromarray(to_gray(values)), PngInfo()
    mark.add_text(*MARK)
    atomic_write(path, lambda file: picture.save(file, format="PNG", pnginfo=mark))


def stretch(images):
    """Returns images stretched to [-1, 1]; the half percent of the values at either end is clipped.

    It shows the noise that an untrained generator draws, whose values lie close together. JGAN's cgan.py does
    so too, with all values; but then a few outliers would set the range.
    """
    low, high = np.percentile(images, [0.5, 99.5])
    return ((images - low) / max(high - low, 1e-6) * 2 - 1).clip(-1, 1)


def labels_of(text, names):
    """Returns the rows of a text as lists of labels, None for a gap.

    names: what each label is called. If that is one character for each, every character is a label and every space a
    gap; else every word is a label. Raises ValueError that says what is none.
    """
    single = all(len(name) == 1 for name in names)
    numbers = {name: label for label, name in enumerate(names)}
    if single:
        numbers[" "] = None
    rows = [list(row) if single else row.split() for row in text.split("\n")]
    unknown = sorted({word for row in rows for word in row} - set(numbers))
    if unknown:
        learned = textwrap.shorten(", ".join(names), 300, placeholder=" ...")
        raise ValueError(f"learned the labels {learned}, not {', '.join(unknown)}")
    return [[numbers[word] for word in row] for row in rows]


def lay_out(rows, images):
    """Returns rows of labels, as labels_of makes them, as values (H, W) in [-1, 1], black around the images.

    images: (labels in rows, 1, S, S) in [-1, 1], in their order.
    """
    size = images.shape[-1] + GAP
    canvas = np.full((size * len(rows) + GAP, size * max(map(len, rows)) + GAP), -1.0)
    remaining = iter(images[:, 0])
    for y, row in enumerate(rows):
        for x, label in enumerate(row):
            if label is not None:
                top, left = size * y + GAP, size * x + GAP
                canvas[top : top + size - GAP, left : left + size - GAP] = next(remaining)
    return canvas
