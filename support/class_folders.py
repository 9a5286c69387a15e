"""Reads a data set that is a folder with one subfolder per class; without Jittor.

The classes are named by their folders, a name's spaces as underscores, and come in the order of their names or numbers.
Test images lie in test/ beside train/; without these two, every tenth image of a class, by name, is one.
"""

import hashlib
import os
import struct
from collections import Counter

import numpy as np
from PIL import Image
from tqdm import tqdm

from support.images import ENDINGS, is_own, list_images, open_image


def find_folders(folder):
    """Returns {name: path} of the folders in a folder, but for those that programs and systems hide there."""
    with os.scandir(folder) as entries:
        return {x.name: x.path for x in entries if x.is_dir() and is_own(x.name)}


def find_classes(folder):
    """Returns {name of a class: paths of its images}, in the order of labels, and a Counter of other files' endings.

    A class without images is left out. Raises ValueError if two have one name.
    """
    folders, classes, others = find_folders(folder), {}, Counter()
    by_number = all(name.isdecimal() for name in folders)
    for name in sorted(folders, key=lambda name: (int(name) if by_number else 0, name)):
        paths, _, left_out = list_images(folders[name])
        label = "_".join(name.split())
        if paths and label in classes:
            raise ValueError(f"{folder} holds two folders for the class {label}")
        classes.update({label: paths} if paths else {})
        others += left_out
    return classes, others


def find_sets(data_root):
    """Returns {class: paths} of the training and of the test images, and a Counter of other files' endings.

    Raises ValueError that says what is missing.
    """
    folders = find_folders(data_root)
    if {"train", "test"} <= set(folders):
        (train, others), (test, more) = find_classes(folders["train"]), find_classes(folders["test"])
        others += more
    elif "test" in folders or ("train" in folders and len(folders) > 1):
        found = ", ".join(sorted(folders))
        raise ValueError(f"{data_root} holds {found}: name two folders train and test, or one per class")
    else:
        classes, others = find_classes(folders["train"] if list(folders) == ["train"] else data_root)
        train = {name: [path for i, path in enumerate(paths, 1) if i % 10] for name, paths in classes.items()}
        test = {name: paths[9::10] for name, paths in classes.items()}
    if not train:
        kinds = ", ".join(ENDINGS)
        raise ValueError(f"{data_root} holds neither MNIST's four files nor a subfolder of images per class ({kinds})")
    unknown = ", ".join(name for name in test if name not in train)
    if unknown:
        raise ValueError(f"{folders['test']} holds classes that have no training images: {unknown}")
    return train, test, others


def read_pictures(classes, labels, what):
    """Yields (label, picture) of all images of {class: paths}, each gray or RGB; a bar shows if it takes long.

    labels: the names of the classes by number. Raises ValueError that names a file that cannot be read.
    """
    items = [(labels.index(name), path) for name, paths in classes.items() for path in paths]
    for label, path in tqdm(items, desc=what, disable=None, delay=2, leave=False):
        picture = open_image(path)
        yield label, picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def read_facts(data_root):
    """Returns what support.idx.Facts holds; the checksum is of what the images show, whatever files hold them."""
    *sets, _ = find_sets(data_root)
    labels, counts, sha256 = tuple(sets[0]), [], []
    for classes in sets:
        digest = hashlib.sha256()
        for label, picture in read_pictures(classes, labels, f"Checking {data_root}"):
            digest.update(struct.pack(">3i", label, *picture.size) + picture.mode.encode() + picture.tobytes())
        counts.append(sum(map(len, classes.values())))
        sha256.append(digest.hexdigest())
    return (*counts, labels, *sha256)


def read_codes(data_root, train, size):
    """Returns the training or test images as grays (N, size, size) uint8, and their labels (N,) int32.

    As in the report, each is resized, to a square whatever its shape, and then made gray.
    """
    sets = find_sets(data_root)
    classes = sets[0 if train else 1]
    n = sum(map(len, classes.values()))
    codes, labels = np.empty((n, size, size), np.uint8), np.empty(n, np.int32)
    for i, (label, picture) in enumerate(read_pictures(classes, tuple(sets[0]), f"Reading {data_root}")):
        codes[i], labels[i] = picture.resize((size, size), Image.BILINEAR).convert("L"), label
    return codes, labels
