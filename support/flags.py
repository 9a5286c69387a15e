"""Checks of what the user typed, done before Jittor is imported, whose first import compiles for minutes."""

import argparse
import gzip
import hashlib
import math
import os
import struct
import tempfile

from PIL import Image

from support.checkpoint import checkpoint_path, holds_run, read_checkpoint, read_generator
from support.inception_weights import read_weights

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049  # of the idx format that MNIST comes in
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REFERENCE_GENERATOR = os.path.join(PROJECT, "results", "reference", "generator.npz")
MNIST_SHA256 = "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"  # training images and labels
FIXED = ("latent_dim", "n_classes", "img_size", "hidden_d", "ema", "batch_size", "max_batches", "seed")  # in a run
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
MNIST_FILES = [  # of the training and of the test set
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with exit status 2."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)

    def add_argument(self, *names, **settings):
        if settings.get("default") not in (None, argparse.SUPPRESS):
            settings["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **settings)

    source = None  # the file that the flags come from, where it is not the command line

    def error(self, message):
        if self.source:
            message = f"{self.source}: {message}"
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


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
    path = os.path.abspath(text)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"must be a folder that can be written, but {path}: {error.strerror}")
    return text


def digit_text(text):
    """argparse type: digits to draw; spaces and newlines, also written as \\n, part them into words and rows."""
    text = "\n".join(row.rstrip() for row in text.replace("\\n", "\n").split("\n")).strip("\n")
    strange = sorted(set(text) - set("0123456789 \n"))
    if strange or not text.strip():
        what = f"not {''.join(strange)!r}" if strange else "at least one of them"
        raise argparse.ArgumentTypeError(f"must be digits, parted by spaces and newlines, {what}")
    return text


def weights_file(text):
    """argparse type: a file of Inception-v3's weights, or the word original."""
    try:
        read_weights(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return text


def image_source(text):
    """argparse type: the word mnist, or a folder of at least 2 images, returned as the sorted list of their paths."""
    if text == "mnist":
        return text
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"must be a folder of images or the word mnist, not '{text}'")
    paths = [os.path.join(text, name) for name in sorted(os.listdir(text)) if name.lower().endswith(IMAGE_ENDINGS)]
    if len(paths) < 2:
        raise argparse.ArgumentTypeError(f"must hold at least 2 PNG or JPEG images, but {text} holds {len(paths)}")
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
        except Exception as error:  # whatever a damaged file makes its decoder raise
            raise argparse.ArgumentTypeError(f"{path} cannot be read as an image: {error}")
    return paths


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


def read_data_root(folder):
    """Checks the four MNIST-format files.

    Returns (number of training images, number of test images, highest label, SHA-256 of training images and labels).
    Raises ValueError that names the file and what is wrong.
    """
    highest, counts, sha256 = 0, [], []
    for images, labels in MNIST_FILES:
        n_images, pixels = read_idx(os.path.join(folder, images), IMAGE_MAGIC)
        n_labels, values = read_idx(os.path.join(folder, labels), LABEL_MAGIC)
        if n_labels != n_images:
            raise ValueError(f"{folder}: {images} holds {n_images} images, but {labels} {n_labels} labels")
        counts.append(n_images)
        highest = max(highest, max(values))
        sha256.append(hashlib.sha256(pixels + values).hexdigest())
    return (*counts, highest, sha256[0])


def parse_resumed(parser, argv):
    """Returns the flags of a run: with --resume the checkpoint's, but for those on the command line.

    Ends the program where there is no such checkpoint, or a flag does not fit its networks, data or epochs.
    On the result, `resume` is the checkpoint's path and `checkpoint` what read_checkpoint returns, both None for a run
    from the start.
    """
    opt = parser.parse_args(argv)
    opt.checkpoint = None
    if opt.resume is None:
        return opt
    path = opt.resume or checkpoint_path(opt.output_dir)
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        parser.error(f"argument --resume: {error}")
    saved = dict(checkpoint["log"]["config"])
    folder, name = os.path.split(os.path.abspath(path))
    if (os.path.basename(folder), name) == ("results", "checkpoint.npz"):
        saved["output_dir"] = os.path.relpath(os.path.dirname(folder))  # where it is now, should it have been moved
    given = {word.split("=")[0] for word in argv}
    taken = {name: value for name, value in saved.items() if f"--{name}" not in given and value not in (None, False)}
    parser.source = path
    opt = parser.parse_args([f"--{k}" if v is True else f"--{k}={v}" for k, v in taken.items()] + argv)
    parser.source = None
    opt.resume, opt.checkpoint = path, checkpoint
    for name in FIXED:
        value = getattr(opt, name)
        if value != saved.get(name):
            parser.error(f"argument --{name}: the run in {path} has {saved.get(name)}, which cannot become {value}")
    if opt.n_epochs < checkpoint["epoch"]:
        parser.error(f"argument --n_epochs: must be at least {checkpoint['epoch']}, the epochs done in {path}")
    return opt


def run_config(opt):
    """Returns {flag: value} of what makes a run what it is: all flags but those that say how it is started."""
    start = ("resume", "overwrite", "digits", "checkpoint", "data_sha256", "generator")
    return {name: value for name, value in vars(opt).items() if name not in start}


def find_generator(parser, opt):
    """Returns (path, sizes, arrays) of the generator to draw with: --resume's, else the run's, else the project's."""
    paths = [opt.resume, checkpoint_path(opt.output_dir), REFERENCE_GENERATOR]
    path = next((path for path in paths if path and os.path.exists(path)), REFERENCE_GENERATOR)
    try:
        return (path, *read_generator(path))
    except ValueError as error:
        parser.error(f"argument --digits: {error}")


def check_training_flags(parser, opt):
    """Ends the program where flags of cgan.py that are right by themselves do not fit the data or each other."""
    n_images, n_test_images, highest_label, opt.data_sha256 = 60000, 10000, 9, MNIST_SHA256
    try:
        for name in ("images", "results"):
            output_folder(os.path.join(opt.output_dir, name))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --output_dir: {error}")
    own = opt.resume and os.path.realpath(opt.resume) == os.path.realpath(checkpoint_path(opt.output_dir))
    if holds_run(opt.output_dir) and not (own or opt.overwrite or opt.digits):
        parser.error(
            f"argument --output_dir: {opt.output_dir} holds a run already: --resume goes on with it, another "
            "--output_dir keeps it, --overwrite deletes it"
        )
    opt.overwrite = opt.overwrite and not own
    try:
        if opt.data_root is not None:
            n_images, n_test_images, highest_label, opt.data_sha256 = read_data_root(opt.data_root)
    except ValueError as error:
        parser.error(f"argument --data_root: {error}")
    if opt.checkpoint and opt.checkpoint["data"] != opt.data_sha256:
        parser.error(f"argument --data_root: the run in {opt.resume} was trained on other images")
    if opt.n_classes <= highest_label:
        parser.error(f"argument --n_classes: must be at least {highest_label + 1}, the labels go up to {highest_label}")
    if opt.fid_samples > n_test_images:
        parser.error(f"argument --fid_samples: must be at most {n_test_images}, the number of test images")
    if n_images % opt.batch_size == 1 and (opt.max_batches or n_images) > n_images // opt.batch_size:
        parser.error(
            f"argument --batch_size: must not leave a last batch of 1, on which batch normalisation cannot train, "
            f"as {opt.batch_size} does with {n_images} images"
        )
