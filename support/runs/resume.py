"""What a command line stands for: a new run, one that goes on, or digits to draw; read and checked before Jittor is."""

import contextlib
import os
import shlex
import sys
import tempfile

import numpy as np

from support import idx, limits
from support.flags import file_for, whole_path
from support.pages.pictures import NOT_OURS, labels_of
from support.saved.checkpoint import latest, read_checkpoint, read_generator, read_scores
from support.saved.classifier import read_classifier
from support.saved.log import is_number, name_of
from support.saved.paths import (
    BEST_GENERATOR,
    FOLDERS,
    PROJECT,
    best_path,
    checkpoint_path,
    digits_path,
    is_own_picture,
)
from support.terminal import PROCESSES, RANK


def classifier_file(text):
    """argparse type: the whole path of a file that read_classifier can read."""
    return file_for(read_classifier)(whole_path(text))


class Unread(str):
    """The path of weights that a run was scored with, which a parser does not check: without them the run goes on."""


def read_flags(parser, argv=None):
    """Returns the flags of cgan.py, those of the run that --resume names below those of `argv`.

    Whatever can be wrong with them ends the program here, with one line and status 2. `resume` on the result is the
    checkpoint's path, or None.
    """
    opt, checkpoint = parser.parse_args(argv), None
    if opt.export or opt.npz:
        return check_export(parser, opt, argv)
    if opt.n:
        parser.error("argument --n: is how many images --export and --npz write; epochs are --n_epochs")
    if opt.resume is not None and not opt.digits:
        opt, checkpoint = resume(parser, opt, argv)
    for name in FOLDERS:
        check_folder(parser, "output_dir", os.path.join(opt.output_dir, name))
    if opt.digits:
        check_digits(parser, opt)
    else:
        check_training_flags(parser, opt, checkpoint)
    return opt


def draws(opt):
    """Returns whether a command line asks for a trained generator's images, and not for training."""
    return bool(opt.digits or opt.export or opt.npz)


def resume(parser, opt, argv):
    """Returns the flags of the run that opt.resume names, those of `argv` above them, and what read_checkpoint returns.

    Ends the program if there is no such checkpoint, or if a flag does not fit its networks or epochs.
    """
    path = opt.resume or checkpoint_path(opt.output_dir)
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        missing = "" if os.path.exists(path) else ": there is no run to go on with"
        parser.error(f"argument --resume: {error}{missing}")
    log = checkpoint["log"]
    run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if checkpoint_path(run) == os.path.abspath(path):
        parser.set_defaults(output_dir=os.path.relpath(run))
    parser.source = path  # of whatever is wrong now: argv was right before
    config = latest(log, "config")
    for name in ("inception_weights", "classifier"):
        value = config.get(name)
        if isinstance(value, str) and (name == "inception_weights" or not os.path.exists(value)):
            config[name] = Unread(value)
    opt = parser.parse_args(argv, config)
    parser.source = None
    unknown = ", ".join(name for name, value in config.items() if value is not None and name not in opt.recorded)
    if unknown and not RANK:
        print(f"{path} has flags that this script does not know; they are left out: {unknown}", file=sys.stderr)
    opt.resume = path
    for name in parser.fixed():
        value, before = getattr(opt, name), log["config"].get(name, parser.get_default(name))
        if value != before:
            parser.error(f"argument --{name}: the run in {path} has {before}, which cannot become {value}")
    if opt.n_epochs < checkpoint["epoch"]:
        parser.error(f"argument --n_epochs: must be at least {checkpoint['epoch']}, the epochs done in {path}")
    return opt, checkpoint


def goes_on_in_place(opt):
    """Returns whether a run goes on in the folder where it was."""
    return opt.resume is not None and os.path.realpath(opt.resume) == os.path.realpath(checkpoint_path(opt.output_dir))


def describe_saved(output_dir):
    """Returns one sentence: which epochs are saved, and the command that goes on from there, in whatever folder."""
    try:
        with np.load(checkpoint_path(output_dir), allow_pickle=False) as file:
            epoch = int(file["epoch"])
    except OSError:
        return "Nothing is saved yet."
    except Exception:  # a damaged file can raise anything; --overwrite may have met one
        return f"{checkpoint_path(output_dir)} is not a checkpoint of cgan.py."
    script = os.path.abspath(sys.argv[0])
    if os.path.dirname(script) != PROJECT:  # neither cgan.py nor a copy beside it, but what imports it
        script = os.path.join(PROJECT, "cgan.py")
    command = shlex.join(["python", script, "--resume", "--output_dir", os.path.abspath(output_dir)])
    return f"Saved up to epoch {epoch} in {checkpoint_path(output_dir)}; to go on: {command}"


def generator_path(opt):
    """Returns the path of the generator to draw with: --resume's, else the run's last epoch's, else the project's."""
    own = checkpoint_path(opt.output_dir)
    return opt.resume or (own if os.path.exists(own) else BEST_GENERATOR)


def describe_generator(path):
    """Returns which generator draws: "the generator in PATH after epoch 50 (digit FID 5.1)", as far as it is known."""
    scores = read_scores(path)
    known = [f" ({name_of(x)[0]} {scores[x]:.3g})" for x in ("digit_fid", "label_fid") if is_number(scores.get(x))]
    return "".join([f"the generator in {path} after epoch {scores['epoch']}", *known])


def describe_better(opt):
    """Returns a second line that names the run's best generator if its last epoch's has drawn and is another, or ""."""
    last = generator_path(opt)
    best = os.path.join(os.path.dirname(last), os.path.basename(best_path("")))
    if os.path.basename(last) == os.path.basename(checkpoint_path("")):
        with contextlib.suppress(ValueError):  # there is none
            if read_scores(best)["epoch"] != read_scores(last)["epoch"]:
                words = f"--resume {shlex.quote(os.path.abspath(best))}"
                return f"\nThe best of this run draws with {words}: {describe_generator(best)}."
    return ""


def check_export(parser, opt, argv):
    """Returns the flags of a command line with --export or --npz, with the run's seed unless it gives another.

    Ends the program if there is no generator to draw with, or if the images have no place to go.
    """
    path, flag = generator_path(opt), "export" if opt.export else "npz"
    if PROCESSES > 1:
        parser.error(f"argument --{flag}: one process writes the images: start it without mpirun")
    if opt.digits:
        parser.error(f"argument --digits: draws one picture, --{flag} single images: ask for one of them")
    try:
        config, *_ = read_generator(path)
    except ValueError as error:
        parser.error(f"argument --{flag}: {error}")
    parser.source = path  # of a seed that is none
    opt = parser.parse_args(argv, {"seed": config.get("seed")})
    parser.source = None
    if opt.export:
        check_folder(parser, "export", opt.export)
        if os.path.isdir(opt.export) and os.listdir(opt.export):
            parser.error(f"argument --export: {opt.export} holds something already: name a new folder")
    if opt.npz:
        check_folder(parser, "npz", os.path.dirname(os.path.abspath(opt.npz)))
        if os.path.lexists(opt.npz):
            parser.error(f"argument --npz: {opt.npz} is there already: name a new file")
    return opt


def check_digits(parser, opt):
    """Sets opt.rows to the labels to draw, as labels_of returns them.

    Ends the program without a generator, without a place for the picture, or for a label that was not learned.
    """
    path, target = generator_path(opt), digits_path(opt.output_dir)
    if os.path.exists(target) and not is_own_picture(target):
        parser.error(f"argument --digits: {target} {NOT_OURS}: move it away, or give another --output_dir")
    try:
        names = read_generator(path)[0]["labels"]
    except ValueError as error:
        parser.error(f"argument --digits: {error}")
    try:
        opt.rows = labels_of(opt.digits, names)
    except ValueError as error:
        parser.error(f"argument --digits: the generator in {path} {error}")


def check_folder(parser, flag, path):
    """Ends the program if the folder that a flag names cannot be made or written; leaves no trace."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        parser.error(f"argument --{flag}: must be a folder that can be written, but {path}: {error.strerror}")


def check_training_flags(parser, opt, checkpoint):
    """Ends the program if flags of cgan.py that are right by themselves do not fit the data or each other."""
    try:
        facts = idx.check(opt.data_root)
    except ValueError as error:
        parser.error(f"argument --data_root: {error}")
    if checkpoint and checkpoint["data"] != facts.sha256:
        parser.error(f"argument --data_root: the run in {opt.resume} was trained on other images")
    if checkpoint and checkpoint["log"].get("data", facts.checksums()) != facts.checksums():  # older logs have none
        parser.error(f"argument --data_root: the run in {opt.resume} was scored on other test images")
    known = opt.classifier and not isinstance(opt.classifier, Unread)
    if known and read_classifier(opt.classifier)["data"] != facts.sha256:
        parser.error(f"argument --classifier: {opt.classifier} was trained on other images")
    if opt.n_classes is None:
        opt.n_classes = facts.n_labels
    if opt.n_classes != facts.n_labels:
        parser.error(f"argument --n_classes: must be {facts.n_labels}, the number of labels that the images have")
    if opt.fid_samples > facts.n_test:
        parser.error(f"argument --fid_samples: must be at most {facts.n_test}, the number of test images")
    n_whole, last = divmod(facts.n_train, opt.batch_size)
    batches = [opt.batch_size] + [last] * (last > 0 and (opt.max_batches or facts.n_train) > n_whole)
    if 1 in batches:
        parser.error(
            f"argument --batch_size: must not leave a last batch of 1, on which batch normalisation cannot train, "
            f"as {opt.batch_size} does with {facts.n_train} images"
        )
    if any(batch % PROCESSES for batch in batches):
        sizes = " and ".join(map(str, batches))
        parser.error(
            f"argument --batch_size: {PROCESSES} processes must share each batch evenly, but there are {sizes} images"
        )
    check_memory(parser, opt, facts)


def check_memory(parser, opt, facts):
    """Ends the program if a flag alone would take more memory than there is for this process."""
    most = limits.memory()
    pixels, trained = opt.img_size**2, 16  # bytes a parameter: itself, its gradient and two moments, in float32
    hidden = getattr(opt, "hidden_d", 0)
    # An image of the training set has a byte a pixel; one that is drawn 4, and 4 again as the network's output
    for name, needed in {
        "img_size": (facts.n_train + 8 * facts.n_test + trained * hidden) * pixels,
        "hidden_d": trained * hidden * (hidden + pixels),
        "latent_dim": 8 * max(opt.batch_size, facts.n_test) * opt.latent_dim,
        "n_classes": trained * opt.n_classes**2,
        "batch_size": 8 * min(opt.batch_size, facts.n_train) * pixels,
    }.items():
        if needed > most:
            needs = f"{getattr(opt, name)} would take at least {needed / 1e9:,.0f} GB of memory"
            parser.error(f"argument --{name}: {needs}, but only {most / 1e9:.1f} are available")
