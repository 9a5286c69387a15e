"""A generator's digits for other programs: single PNGs in a folder for each label, or arrays in one file."""

import os
import tempfile

import numpy as np
from PIL import Image
from tqdm import tqdm

from support.evaluation import stream
from support.pages.pictures import to_gray
from support.runs.resume import describe_better, describe_generator, generator_path
from support.saved.checkpoint import read_generator, read_scores
from support.saved.paths import atomic_write
from support.terminal import unfinished

A_PART = 100  # images of each label that are drawn at a time


def export(opt, generator, draw):
    """Writes opt.n images of each label, by default 1000, into the folder opt.export and into the file opt.npz.

    draw: (generator, noise (N, latent_dim), labels (N,)) -> images (N, 1, S, S) in [-1, 1], as an array. Raises
    OSError; what is not finished is taken away, also by Ctrl-C.
    """
    path, n = generator_path(opt), opt.n or 1000
    epoch = read_scores(path)["epoch"]
    if opt.export:
        write_folder(opt.export, parts(opt.seed, epoch, generator, draw, n), read_generator(path)[0]["labels"], n)
    if opt.npz:
        write_arrays(opt.npz, parts(opt.seed, epoch, generator, draw, n), generator.n_classes)
    what = f"{n:,} images of each of {generator.n_classes} labels, drawn by {describe_generator(path)}"
    print(f"{' and '.join(filter(None, (opt.export, opt.npz)))}: {what}{describe_better(opt)}")


def parts(seed, epoch, generator, draw, n):
    """Yields n images of each label in gray levels, uint8 (N, S, S) at a time, behind a progress bar.

    Their labels count up, and begin with 0 again after the last.
    """
    rng = stream(seed, epoch, "digits")
    with tqdm(total=n * generator.n_classes, desc="images", disable=None) as bar:
        for first in range(0, n, A_PART):
            count = min(A_PART, n - first) * generator.n_classes
            noise = rng.standard_normal((count, generator.latent_dim))
            yield to_gray(draw(generator, noise, np.arange(count) % generator.n_classes)[:, 0])
            bar.update(count)


def write_folder(folder, images, names, n):
    """Writes what `parts` yields as folder/<label>/<number>.png; zeros before both keep them in order."""
    made = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    width = max(map(len, names)) if all(name.isdecimal() for name in names) else 0
    labels, n_classes = [name.zfill(width) for name in names], len(names)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            unfinished.add(folder if made else beside)
            for label in labels:
                os.mkdir(os.path.join(beside, label))
            for i, image in enumerate(image for part in images for image in part):
                name = f"{i // n_classes:0{len(str(n - 1))}}.png"
                Image.fromarray(image).save(os.path.join(beside, labels[i % n_classes], name))
            for label in labels:
                os.rename(os.path.join(beside, label), os.path.join(folder, label))
    finally:
        unfinished.clear()
        if made and not os.listdir(folder):
            os.rmdir(folder)


def write_arrays(path, images, n_classes):
    """Writes what `parts` yields as an .npz: images, uint8 (N, S, S), and labels (N,)."""
    images = np.concatenate(list(images))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    atomic_write(path, lambda file: np.savez(file, images=images, labels=np.arange(len(images)) % n_classes))
