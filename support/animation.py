"""Makes an animation of a run's sample grids, which all show the same digits getting sharper.

python -m support.animation images training.gif
"""

import glob
import os

from PIL import Image, ImageDraw

from support.files import replace_file
from support.flags import Parser

FRAMES = 40  # at most; dense at the start, where the digits change most
LEVELS = 16  # of gray: a smaller file, and hardly to be seen
MILLISECONDS, LAST = 200, 3000  # that a frame is shown
CAPTION = 16  # pixels


def pick(items, count=FRAMES):
    """Returns up to `count` of `items` in their order, with the first and the last, at quadratically growing steps."""
    last = len(items) - 1
    return [items[i] for i in sorted({round(last * (k / (count - 1)) ** 2) for k in range(count)})]


def frame(path):
    """Returns a sample grid with the number of batches in its name written below it."""
    with Image.open(path) as grid:
        picture = Image.new("L", (grid.width, grid.height + CAPTION))
        picture.paste(grid.convert("L"))
    batches = int(os.path.splitext(os.path.basename(path))[0])
    ImageDraw.Draw(picture).text((4, grid.height + 2), f"{batches:,} batches", fill=255)
    return picture.quantize(LEVELS)


def animate(folder, target):
    """Writes the grids <batches>.png of `folder` as a GIF that loops; raises ValueError where there are none."""
    paths = glob.glob(os.path.join(glob.escape(folder), "[0-9]*.png"))
    if not paths:
        raise ValueError(f"{folder} holds no sample grids of cgan.py")
    paths.sort(key=lambda path: int(os.path.splitext(os.path.basename(path))[0]))
    frames = [frame(path) for path in pick(paths)]
    durations = [MILLISECONDS] * (len(frames) - 1) + [LAST]
    settings = {"append_images": frames[1:], "duration": durations, "loop": 0}
    replace_file(target, lambda file: frames[0].save(file, format="GIF", save_all=True, **settings))


if __name__ == "__main__":
    parser = Parser("Makes an animation of a run's sample grids.")
    parser.add_argument("folder", help="the run's images/")
    parser.add_argument("target", help="the GIF to write")
    opt = parser.parse_args()
    try:
        animate(opt.folder, opt.target)
    except (ValueError, OSError) as error:
        parser.error(str(error))
