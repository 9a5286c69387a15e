"""Checks of what the user typed, done before Jittor is imported, whose first import compiles for minutes."""

import argparse
import math
import os
import tempfile

from support import idx
from support.saved.checkpoint import read_checkpoint, read_generator
from support.saved.paths import BEST_GENERATOR, FOLDERS, checkpoint_path, machine_memory
from support.inception import read_weights
from support.runs.process import PROCESSES, refuse

MOST = 2**31 - 1
N_DIGITS = 10000  # that an evaluation draws, equally many of each class


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with exit status 2.

    A flag is declared with fixed=True where it cannot change within a run, and with recorded=False where it says how a
    run is started, not what it is.
    """

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)
        self.source = None  # the file that the flags come from, where it is not the command line

    def add_argument(self, *names, fixed=False, recorded=True, **settings):
        if settings.get("default") not in (None, argparse.SUPPRESS):
            settings["help"] += " (default: %(default)s)"
        action = super().add_argument(*names, **settings)
        action.fixed, action.recorded = fixed, recorded and action.dest != "help"
        return action

    def error(self, message):
        if self.source:
            message = f"{self.source}: {message}"
        refuse(" ".join(message.split()))

    def config(self, opt):
        """Returns {flag: value} of what makes a run what it is."""
        return {action.dest: getattr(opt, action.dest) for action in self._actions if action.recorded}

    def fixed(self):
        """Returns the names of the flags that cannot change within a run."""
        return [action.dest for action in self._actions if action.fixed]

    def take_defaults(self, config):
        """Makes {flag: value}, as a file holds it, the defaults of the recorded flags; parse_args checks them."""
        for action in self._actions:
            value = config.get(action.dest)
            if action.recorded and value is not None:
                if isinstance(action.default, bool) != isinstance(value, bool):
                    self.error(f"argument --{action.dest}: cannot be {value!r}")
                action.default = value if isinstance(value, bool) else str(value)  # argparse checks text


def whole_number(least):
    """Returns an argparse type: a whole number of at least `least`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= MOST:
            what = f"a whole number of at least {least} and at most {MOST:,}"
            raise argparse.ArgumentTypeError(f"must be {what}, not '{text}'")
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


def digit_text(text):
    """argparse type: digits to draw, in words and rows; \\n also stands for a new row."""
    text = "\n".join(row.rstrip() for row in text.replace("\\n", "\n").split("\n")).strip("\n")
    strange = sorted(set(text) - set("0123456789 \n"))
    if strange or not text.strip():
        what = f"not {''.join(strange)!r}" if strange else "at least one of them"
        raise argparse.ArgumentTypeError(f"must be digits, with spaces and newlines between them, {what}")
    return text


def file_for(read):
    """Returns an argparse type: the path of a file that `read` can read, which raises ValueError where it cannot."""

    def checked(text):
        try:
            read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error))
        return text

    return checked


weights_file = file_for(read_weights)  # of Inception-v3's weights, or the word original
generator_file = file_for(read_generator)  # a checkpoint, or what holds its generator alone


def add_generator(parser, default=BEST_GENERATOR, nargs=None):
    """Declares --generator, for programs that look at a trained one, or at several."""
    what = f"a checkpoint, or its generator alone{' (several may be named)' if nargs else ''}"
    parser.add_argument("--generator", type=generator_file, default=default, nargs=nargs, help=what)


def resume(parser, opt, argv):
    """Returns the flags of the run that opt.resume names, those in `argv` above the checkpoint's.

    Ends the program where there is no such checkpoint, or a flag does not fit its networks or epochs.
    On the result, `resume` is the checkpoint's path and `checkpoint` what read_checkpoint returns.
    """
    path = opt.resume or checkpoint_path(opt.output_dir)
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        missing = "" if os.path.exists(path) else ": there is no run to go on with"
        parser.error(f"argument --resume: {error}{missing}")
    log = checkpoint["log"]
    fixed = {name: log["config"].get(name, parser.get_default(name)) for name in parser.fixed()}
    saved = dict(log["config"])
    for change in log["changes"]:
        saved.update(change.get("config", {}))
    run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if checkpoint_path(run) == os.path.abspath(path):
        parser.set_defaults(output_dir=os.path.relpath(run))
    parser.source = path  # of whatever is wrong now: argv was right before
    parser.take_defaults(saved)
    opt = parser.parse_args(argv)
    parser.source = None
    opt.resume, opt.checkpoint = path, checkpoint
    for name, before in fixed.items():
        if getattr(opt, name) != before:
            value = getattr(opt, name)
            parser.error(f"argument --{name}: the run in {path} has {before}, which cannot become {value}")
    if opt.n_epochs < checkpoint["epoch"]:
        parser.error(f"argument --n_epochs: must be at least {checkpoint['epoch']}, the epochs done in {path}")
    return opt


def find_generator(parser, opt):
    """Returns the path of the generator to draw with: --resume's, else the run's, else the project's."""
    own = checkpoint_path(opt.output_dir)
    path = opt.resume or (own if os.path.exists(own) else BEST_GENERATOR)
    try:
        sizes, _ = read_generator(path)
    except ValueError as error:
        parser.error(f"argument --digits: {error}")
    unknown = sorted({digit for digit in opt.digits if digit.isdigit() and int(digit) >= sizes["n_classes"]})
    if unknown:
        learned = f"the generator in {path} learned the labels up to {sizes['n_classes'] - 1}"
        parser.error(f"argument --digits: {learned}, not {', '.join(unknown)}")
    return path


def check_folders(parser, output_dir, names=FOLDERS):
    """Ends the program where folders under output_dir cannot be made or written; leaves no trace."""
    for name in names:
        path = os.path.abspath(os.path.join(output_dir, name))
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        try:
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            what = f"must be a folder that can be written, but {path}: {error.strerror}"
            parser.error(f"argument --output_dir: {what}")


def check_training_flags(parser, opt):
    """Ends the program where flags of cgan.py that are right by themselves do not fit the data or each other."""
    check_folders(parser, opt.output_dir)
    n_images, n_test_images, highest_label, opt.data_sha256 = idx.MNIST
    try:
        if opt.data_root is not None:
            n_images, n_test_images, highest_label, opt.data_sha256 = idx.read_data_root(opt.data_root)
    except ValueError as error:
        parser.error(f"argument --data_root: {error}")
    if opt.checkpoint and opt.checkpoint["data"] != opt.data_sha256:
        parser.error(f"argument --data_root: the run in {opt.resume} was trained on other images")
    if opt.n_classes <= highest_label:
        parser.error(f"argument --n_classes: must be at least {highest_label + 1}, the labels go up to {highest_label}")
    if opt.fid_samples > n_test_images:
        parser.error(f"argument --fid_samples: must be at most {n_test_images}, the number of test images")
    n_whole, last = divmod(n_images, opt.batch_size)
    batches = [opt.batch_size] + [last] * (last > 0 and (opt.max_batches or n_images) > n_whole)
    if 1 in batches:
        parser.error(
            f"argument --batch_size: must not leave a last batch of 1, on which batch normalisation cannot train, "
            f"as {opt.batch_size} does with {n_images} images"
        )
    if any(batch % PROCESSES for batch in batches):
        sizes = " and of the last batch, ".join(map(str, batches))
        parser.error(f"argument --batch_size: {PROCESSES} processes must get equal parts of a batch, {sizes}")
    check_memory(parser, opt, n_images)


def check_memory(parser, opt, n_images):
    """Ends the program where a flag alone would take more memory than the machine has."""
    machine = machine_memory()
    pixels, trained = opt.img_size**2, 16  # bytes a parameter: itself, its gradient and two moments, in float32
    # An image of the training set has a byte a pixel; one that is drawn 4, and 4 again as the network's output
    for name, needed in {
        "img_size": (n_images + 8 * N_DIGITS + trained * opt.hidden_d) * pixels,
        "hidden_d": trained * opt.hidden_d * (opt.hidden_d + pixels),
        "latent_dim": 8 * max(opt.batch_size, N_DIGITS) * opt.latent_dim,
        "n_classes": trained * opt.n_classes**2,
        "batch_size": 8 * min(opt.batch_size, n_images) * pixels,
    }.items():
        if needed > machine:
            value, gigabytes = getattr(opt, name), f"{needed / 1e9:,.0f} GB of memory, of {machine / 1e9:.0f} here"
            parser.error(f"argument --{name}: {value} would take at least {gigabytes}")
