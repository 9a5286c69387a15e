"""Finds and reads the images that people bring, with the pixels that a viewer shows."""

import argparse
import collections
import os
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from support.flags import typed_path
from support.saved import statistics
from support.saved.checkpoint import blaming
from support.saved.paths import GRID, digits_path

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # what Pillow calls them
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
MODES = ("1", "L", "P", "RGB", "RGBA")  # of PIL's, with at most 8 bits
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # in lower case, and all that begins with a dot
TILE = 10  # pixels: at least as wide, with its edge, is a digit in a grid


class Images(NamedTuple):
    """A set of images, and how a line calls it. items: paths, or arrays (H, W) or (H, W, 3) uint8."""

    items: list
    said: str


def open_image(path):
    """Returns an image file as an image of PIL's in one of MODES, upright. 16-bit colour is read in 8 bits.

    Raises ValueError that names the file if it cannot be read, or is animated, transparent or in another mode.
    """
    with blaming(f"{path} cannot be read as an image ({', '.join(FORMATS)})"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damage that it reads past
        with Image.open(path, formats=FORMATS) as image:
            is_photograph = image.format in ("JPEG", "MPO")  # of its pictures the first is the main one
            if getattr(image, "is_animated", False) and not is_photograph:
                raise ValueError("it is animated or has several pages; save the one that is meant")
            image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "PA") or (image.mode in MODES and "transparency" in image.info):
            image = image.convert("RGBA")
    if image.mode not in MODES:
        raise ValueError(f"{path} is not 8-bit gray or RGB, but {image.mode} in PIL's words: convert it first")
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent pixels: put it on a background first")
    return image


def is_sheet(path, size):
    """Tells whether an image, of size (width, height), is a run's sample grid or --digits' picture, by name and place.

    Those lie in, or in a folder of, an images/ that has a results/ beside it.
    """
    width, height = size
    *folders, name = os.path.abspath(path).split(os.sep)
    above = (os.sep.join([*folders[:i], "results"]) for i, folder in enumerate(folders) if folder == "images")
    tile = (height - 2) // 10  # of ten rows, with 2 pixels between them and around them
    is_grid = GRID.fullmatch(name) and tile >= TILE and (height - 2) % 10 == (width - 2) % tile == 0
    return bool(is_grid or name == os.path.basename(digits_path(""))) and any(map(os.path.isdir, above))


def is_own(name):
    """Tells whether a file or folder is no system's or program's, by its name."""
    return not name.startswith(".") and name.lower() not in LEFT_BY_SYSTEMS


def list_images(folder):
    """Returns the paths of the images in a folder and in those below it, and Counters of the endings of these images
    and of other files; what systems leave there is passed over. Raises ValueError that names what cannot be read.
    """

    def fail(error):
        raise ValueError(f"{error.filename}: {error.strerror}")

    paths, used, left_out, seen = [], collections.Counter(), collections.Counter(), set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        where = os.path.realpath(place)
        folders[:] = [] if where in seen else sorted(filter(is_own, folders))  # a link may lead to a folder above it
        for name in sorted(filter(is_own, [] if where in seen else names)):
            ending = os.path.splitext(name)[1].lower()
            (used if ending in ENDINGS else left_out)[ending or "without an ending"] += 1
            if ending in ENDINGS:
                paths.append(os.path.join(place, name))
        seen.add(where)
    return paths, used, left_out


def find_images(folder):
    """Returns the Images in a folder and in those below it, each read once; what systems leave there is passed over.

    Raises ValueError if there are fewer than 2, or if one cannot be read.
    """
    paths, used, left_out = list_images(folder)
    counts, others = (", ".join(f"{n} {ending}" for ending, n in sorted(x.items())) for x in (used, left_out))
    others = f"; left out: {others}" if others else ""
    if len(paths) < 2:
        raise ValueError(f"must hold at least 2 images ({' '.join(ENDINGS)}), but {folder} holds {len(paths)}{others}")
    for path in paths:
        if is_sheet(path, open_image(path).size):
            raise ValueError(f"{path} is a run's own sheet of many digits, which would count as one: leave it out")
    return Images(paths, f"{len(paths)} images in {folder} ({counts}{others})")


def array_images(values, path):
    """Returns the Images in an array: (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), uint8 or floats in [-1, 1].

    Floats are rounded to 8 bits, as a PNG would hold them. Raises ValueError that names `path` if it is another.
    """
    last, first = (values.ndim == 4 and values.shape[axis] in (1, 3) for axis in (3, 1))
    if len(values) < 2 or not (values.ndim == 3 or last != first):
        shapes = "(N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
        raise ValueError(f"{path} holds an array {values.shape}, which is not {shapes} with N of at least 2")
    if values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if not -1 <= low < 0 < high <= 1:
            what = "floats must go from -1 (black) to 1 (white)"
            raise ValueError(f"{path}: {what}, not from {low:.4g} to {high:.4g}; or save uint8, from 0 to 255")
        values = ((values + 1) * 127.5).round().astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(f"{path} holds {values.dtype}: images must be uint8, from 0 to 255, or floats from -1 to 1")
    values = values.transpose(0, 2, 3, 1) if first else values
    values = values[..., 0] if values.shape[3:] == (1,) else values
    return Images(values, f"{len(values)} images in {path}")


def array_source(path):
    """Returns the Images or the Statistics that an .npy or .npz holds; raises ValueError that names what is wrong."""
    with blaming(f"{path} cannot be read as .npz or .npy"), open(path, "rb") as file:
        found = np.load(file, allow_pickle=False)
        arrays = {"": found} if isinstance(found, np.ndarray) else dict(found)
    if any(set(names) <= set(arrays) for names in statistics.NAMES):
        return statistics.from_arrays(arrays, path)
    images = {name: values for name, values in arrays.items() if values.ndim in (3, 4)}
    if len(images) != 1:
        names = f" ({', '.join(images)})" if images else ""
        what = f"holds {len(images)} arrays{names} of three or four dimensions"
        raise ValueError(f"{path} {what}: it must hold the statistics of a set, or one array of images")
    return array_images(*images.values(), path)


def image_source(text):
    """argparse type: a set of images. Returns the word mnist, Images or a support.saved.statistics.Statistics.

    text: mnist, a folder, or an .npy or .npz of images or statistics.
    """
    try:
        if text == "mnist":
            if os.path.lexists(text):
                raise ValueError(
                    "mnist means MNIST's test set, but here is also a file or folder of that name: for "
                    "that, give ./mnist; for the test set, rename it first"
                )
            return text
        text = typed_path(text)
        if os.path.isdir(text):
            return find_images(text)
        if os.path.isfile(text) and text.lower().endswith((".npz", ".npy")):
            return array_source(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    raise argparse.ArgumentTypeError(f"must be a folder of images, an .npz or .npy, or the word mnist, not '{text}'")
