"""Makes an animation of a run's sample grids, which all show the same digits getting sharper.

python -m support.pages.animation images training.gif
"""

from PIL import Image, ImageDraw

from support.flags import Parser
from support.saved.paths import atomic_write, find_grids

FRAMES = 40  # at most; dense at the start, where the digits change most
LEVELS = 16  # of gray: a smaller file, and hardly to be seen
MILLISECONDS, LAST = 200, 3000  # that a frame is shown
CAPTION = 16  # pixels


def pick(items, count=FRAMES):
    """Returns up to `count` of `items` in their order, with the first and the last, at quadratically growing steps."""
    last = len(items) - 1
    return [items[i] for i in sorted({round(last * (k / (count - 1)) ** 2) for k in range(count)})]


def frame(path, batches):
    """Returns a sample grid with the number of batches done written below it; raises OSError."""
    with Image.open(path) as grid:
        picture = Image.new("L", (grid.width, grid.height + CAPTION))
        picture.paste(grid.convert("L"))
    ImageDraw.Draw(picture).text((4, picture.height - CAPTION + 2), f"{batches:,} batches", fill=255)
    return picture.quantize(LEVELS)


def animate(folder, target):
    """Writes the grids <batches>.png of `folder` as a GIF that loops; raises OSError, ValueError if there are none."""
    grids = find_grids(folder)
    if not grids:
        raise ValueError(f"{folder} holds no sample grids of cgan.py")
    frames = [frame(path, batches) for batches, path in pick(list(grids.items()))]
    durations = [MILLISECONDS] * (len(frames) - 1) + [LAST]
    settings = {"append_images": frames[1:], "duration": durations, "loop": 0}
    atomic_write(target, lambda file: frames[0].save(file, format="GIF", save_all=True, **settings))


if __name__ == "__main__":
    parser = Parser("Makes an animation of a run's sample grids.")
    parser.add_argument("folder", help="the run's images/")
    parser.add_argument("target", help="the GIF to write")
    opt = parser.parse_args()
    try:
        animate(opt.folder, opt.target)
    except (ValueError, OSError) as error:
        parser.error(str(error))
