"""Opens an image's file such that its pixels are what a viewer shows; where they may not be, refuses it by name."""

import warnings

from PIL import Image, ImageOps

ORIENTATION = 0x0112  # EXIF's tag for how the camera was held
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from PIL's limit on it is an error below


def open_image(path):
    """Returns a PNG or JPEG file as an image of PIL's in a mode of at most 8 bits ("1", "L", "P", "RGB", "RGBA").

    It is upright, and whole where it has alpha. 16-bit colour is read with PIL's 8 bits.
    Raises ValueError that names the file where it cannot be read, or is animated, transparent or in another mode.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {image.width:,} x {image.height:,} pixels, which takes too much memory")
            image.load()
            animated = getattr(image, "is_animated", False) and image.format == "PNG"  # a JPEG's first is the picture
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
    except Exception as error:  # whatever a damaged file makes its decoder raise
        raise ValueError(f"{path} cannot be read as a PNG or JPEG image: {error or type(error).__name__}")
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise ValueError(f"{path} is not 8-bit gray or RGB, but {image.mode} in PIL's words: convert it first")
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent pixels: put it on a background first")
    if animated:
        raise ValueError(f"{path} is animated: save the one frame that is meant")
    return image
