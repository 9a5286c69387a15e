"""Lays out drawn digits as text: words in a row, rows below each other."""

import numpy as np
from PIL import Image

GAP = 2  # pixels between two digits


def lay_out(text, images):
    """Returns a picture (PIL, gray) of `text`, whose digits look like `images`.

    text: digits, spaces and newlines, at least one digit; images: (digits in text, 1, S, S) in [-1, 1], in their order.
    """
    rows = text.split("\n")
    size = images.shape[-1] + GAP
    canvas = np.full((size * len(rows) + GAP, size * max(map(len, rows)) + GAP), -1.0)
    remaining = iter(images[:, 0])
    for y, row in enumerate(rows):
        for x, character in enumerate(row):
            if character.isdigit():
                top, left = size * y + GAP, size * x + GAP
                canvas[top : top + size - GAP, left : left + size - GAP] = next(remaining)
    return Image.fromarray(((canvas + 1) * 127.5).round().astype(np.uint8))
