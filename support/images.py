"""Reads the pictures that people bring, with the pixels that a viewer shows."""

import argparse
import os

from PIL import Image, ImageOps

from support.flags import file_for

ENDINGS = (".png", ".jpg", ".jpeg")
MODES = ("1", "L", "P", "RGB", "RGBA")  # of PIL's, with at most 8 bits


def open_image(path):
    """Returns a PNG or JPEG file as an image of PIL's in one of MODES, upright. 16-bit colour is read in 8 bits.

    Raises ValueError that names the file if it cannot be read, or is animated, transparent or in another mode.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.format == "PNG" and image.is_animated:
                raise ValueError("it is animated; save the one frame that is meant")
            image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "PA") or (image.mode in MODES and "transparency" in image.info):
            image = image.convert("RGBA")
    except Exception as error:  # whatever a damaged file makes its decoder raise
        raise ValueError(f"{path} cannot be read as a PNG or JPEG image: {error or type(error).__name__}")
    if image.mode not in MODES:
        raise ValueError(f"{path} is not 8-bit gray or RGB, but {image.mode} in PIL's words: convert it first")
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent pixels: put it on a background first")
    return image


def image_source(text):
    """argparse type: the word mnist, or a folder of at least 2 images, returned as the sorted list of their paths."""
    if text == "mnist":
        return text
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"must be a folder of images or the word mnist, not '{text}'")
    paths = [os.path.join(text, name) for name in sorted(os.listdir(text)) if name.lower().endswith(ENDINGS)]
    if len(paths) < 2:
        raise argparse.ArgumentTypeError(f"must hold at least 2 PNG or JPEG images, but {text} holds {len(paths)}")
    return [file_for(open_image)(path) for path in paths]
