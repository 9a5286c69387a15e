"""Opens an image's file such that its pixels are what a viewer shows; where they may not be, refuses it by name."""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

MODES = ("1", "L", "P", "RGB", "RGBA")  # of PIL's, with at most 8 bits
ORIENTATION = 0x0112  # EXIF's tag for how the camera was held
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from PIL's limit on it is an error below


def open_image(path):
    """Returns a PNG or JPEG file as an image of PIL's in one of MODES.

    It is upright, and whole where it has alpha. 16-bit colour is read with PIL's 8 bits.
    Raises ValueError that names the file where it cannot be read, or is animated, transparent or in another mode.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data.startswith(b"\x89PNG") and b"acTL" in data[: data.find(b"IDAT")]:  # PIL would make room for its frames
            raise ValueError("it is animated; save the one frame that is meant")
        # In memory: from a file, PIL would make room for as much as its chunks claim to hold
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {image.width:,} x {image.height:,} pixels, which takes too much memory")
            image.load()
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("LA", "PA") or (image.mode in MODES and "transparency" in image.info):
                image = image.convert("RGBA")
    except Exception as error:  # whatever a damaged file makes its decoder raise
        what = "it is neither" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a PNG or JPEG image: {what}")
    if image.mode not in MODES:
        raise ValueError(f"{path} is not 8-bit gray or RGB, but {image.mode} in PIL's words: convert it first")
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent pixels: put it on a background first")
    return image
