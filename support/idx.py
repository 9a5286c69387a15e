"""Reads and checks a data set, MNIST's four files in the idx format or a folder of images; without Jittor."""

import functools
import gzip
import hashlib
import os
import re
import struct
import textwrap
from typing import NamedTuple

import numpy as np
from PIL import Image

from support import class_folders

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
FILES = [  # of the training and of the test set
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
]
# How they are named elsewhere: unpacked, with dots for dashes, or emnist-letters-test-images-idx3-ubyte.gz
OTHER_NAMES = re.compile(r"(?:.*[-_.])?(train|t10k|test)[-_.](images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?", re.I)


class Facts(NamedTuple):
    """What is known of a data set: how many images it has, its labels' names, and the SHA-256 of its two sets.

    Training counts the labels from 0, in the order of their names, and knows none without a training image.
    """

    n_train: int
    n_test: int
    labels: tuple
    sha256: str  # of the training set, which is what a classifier or a generator knows
    test_sha256: str

    @property
    def n_labels(self):
        return len(self.labels)

    def checksums(self):
        """Returns what a log holds of the data."""
        return {"train": self.sha256, "test": self.test_sha256}


MNIST = Facts(
    60000,
    10000,
    tuple("0123456789"),
    "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
)


def find_files(data_root):
    """Returns the paths of the four files in a folder, as FILES lists them, or None if it holds none of them.

    Raises ValueError that names what is missing, or files of which only one can be meant.
    """
    found = {}
    for name in sorted(os.listdir(data_root)):
        match = OTHER_NAMES.fullmatch(name)
        if match and os.path.isfile(os.path.join(data_root, name)):
            kind = match[1].lower().replace("test", "t10k"), match[2].lower()
            found.setdefault(kind, []).append(name)
    if not found:
        return None

    def choose(name):
        names = found.get(tuple(name.split("-")[:2]), [])
        path = os.path.join(data_root, name)
        if name not in names and len({other.rpartition(".gz")[0] or other for other in names}) > 1:
            raise ValueError(f"{path} could be {' or '.join(names)}: keep each data set in a folder of its own")
        if not names:
            raise ValueError(f"{path} is missing")
        return path if name in names else os.path.join(data_root, names[0])

    return [tuple(map(choose, names)) for names in FILES]


def read_idx(path, magic, items=10000):
    """Yields an idx file's items, some at a time: images (n, 28, 28) or labels (n,) uint8. It may be gzipped.

    Raises ValueError that names `path` and what is wrong with it.
    """
    is_gzip, length = False, 16 if magic == IMAGE_MAGIC else 8
    try:
        with open(path, "rb") as packed:
            is_gzip = packed.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(packed) if is_gzip else packed as file:
                header = file.read(length)
                if len(header) < length or struct.unpack(">i", header[:4])[0] != magic:
                    raise ValueError(f"{path} is not MNIST's idx format")
                count, size = struct.unpack(">i", header[4:8])[0], np.frombuffer(header[8:], ">i4")
                if magic == IMAGE_MAGIC and size.tolist() != [28, 28]:
                    raise ValueError(f"{path} holds images of {' x '.join(map(str, size))}, not 28 x 28")
                for start in range(0, count, items):
                    n = min(items, count - start)
                    part = file.read(n * int(np.prod(size)))
                    if len(part) < n * np.prod(size):
                        break
                    yield np.frombuffer(part, np.uint8).reshape(n, *size)
                if count < 1 or len(part) < n * np.prod(size) or file.read(1):
                    raise ValueError(f"{path} does not hold the {count} items that its header promises")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing")
    except (OSError, EOFError) as error:  # EOFError: cut off; gzip.BadGzipFile is an OSError
        raise ValueError(f"{path} is not a whole gzip file: {error}" if is_gzip else f"{path}: {error}")
    except ValueError:
        raise
    except Exception as error:  # zlib.error: the compressed bytes are damaged
        raise ValueError(f"{path} is damaged: {error}")


def read_labels(path):
    """Returns the labels in an idx file, (N,) uint8; raises what read_idx raises."""
    return np.concatenate(list(read_idx(path, LABEL_MAGIC)))


def idx_facts(files):
    """Returns the Facts of four idx files, as find_files returns them; raises ValueError that says what is wrong."""
    counts, found, sha256 = [], [], []
    for images, labels in files:
        values, digest, n_images = read_labels(labels), hashlib.sha256(), 0
        for part in read_idx(images, IMAGE_MAGIC):
            digest.update(part)
            n_images += len(part)
        if len(values) != n_images:
            raise ValueError(f"{images} holds {n_images} images, but {labels} {len(values)} labels")
        digest.update(values)
        counts.append(n_images)
        found.append(np.unique(values).tolist())
        sha256.append(digest.hexdigest())
    unknown = sorted(set(found[1]) - set(found[0]))
    if unknown:
        raise ValueError(f"{files[1][1]} holds labels that no training image has: {', '.join(map(str, unknown))}")
    return Facts(*counts, tuple(map(str, found[0])), *sha256)


@functools.lru_cache(maxsize=None)
def data_facts(data_root):
    """Returns the Facts of the data set in a folder, None for the real MNIST, after checking and reading all of it.

    Raises ValueError that names the file and what is wrong.
    """
    if data_root is None:
        return MNIST
    if not os.path.isdir(data_root):
        raise ValueError(f"{data_root} {'is not a folder' if os.path.exists(data_root) else 'is missing'}")
    try:
        files = find_files(data_root)
        facts = idx_facts(files) if files else Facts(*class_folders.read_facts(data_root))
    except OSError as error:
        raise ValueError(f"{error.filename or data_root}: {error.strerror}")
    if min(facts.n_train, facts.n_test) < 2:
        raise ValueError(f"{data_root} holds {facts.n_train} training and {facts.n_test} test images: 2 of each needed")
    return facts


def check(data_root):
    """Returns what data_facts does, of the images that are there now: in a notebook, others may have been before."""
    data_facts.cache_clear()
    return data_facts(data_root)


def describe(data_root):
    """Returns one line: what was found in a folder of data, and what was left out."""
    facts, others = data_facts(data_root), ""
    if not find_files(data_root):
        left_out = class_folders.find_sets(data_root)[2]
        others = "".join(f", {number} {ending}" for ending, number in sorted(left_out.items()))
        others = f"; files left out: {others[2:]}" if others else ""
    labels = textwrap.shorten(", ".join(facts.labels), 300, placeholder=" ...")
    return f"{data_root}: {facts.n_train:,} training and {facts.n_test:,} test images, labels {labels}{others}"


def read_codes(data_root, train, size):
    """Returns the training or test images of a folder as grays (N, size, size) uint8, and their labels (N,) int32.

    Beside the result it holds a small part of the images at a time. Raises ValueError as data_facts does.
    """
    files, facts = find_files(data_root), data_facts(data_root)
    if not files:
        return class_folders.read_codes(data_root, train, size)
    images, labels = files[0 if train else 1]
    codes, done = np.empty((facts.n_train if train else facts.n_test, size, size), np.uint8), 0
    for part in read_idx(images, IMAGE_MAGIC):
        codes[done : done + len(part)] = resize(part, size)
        done += len(part)
    return codes, np.searchsorted(list(map(int, facts.labels)), read_labels(labels)).astype(np.int32)


def resize(images, size, chunk=1000):
    """Returns images (N, H, W) uint8 as (N, size, size), as Jittor's transform.Resize does with each of them.

    Pillow resizes rows first, then columns. Laid out as one high image, many are resized in one call.
    """

    def rows(images):
        n, height, width = images.shape
        one = Image.fromarray(images.reshape(n * height, width)).resize((size, n * height), Image.BILINEAR)
        return np.asarray(one).reshape(n, height, size).transpose(0, 2, 1)

    return np.concatenate([rows(rows(images[i : i + chunk])) for i in range(0, len(images), chunk)])
