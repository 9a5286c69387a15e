"""Reads and checks the four files that MNIST comes in, gzipped, in the idx format; without Jittor."""

import functools
import gzip
import hashlib
import os
import struct
from typing import NamedTuple

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
FILES = [  # of the training and of the test set
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
]


class Facts(NamedTuple):
    """What is known of a data set: the number of its images and labels, and the SHA-256 of its two parts."""

    n_train: int
    n_test: int
    n_labels: int
    sha256: str  # of the training set, which is what a classifier or a generator knows
    test_sha256: str

    def checksums(self):
        """Returns what a log holds of the data."""
        return {"train": self.sha256, "test": self.test_sha256}


MNIST = Facts(
    60000,
    10000,
    10,
    "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
)


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


@functools.lru_cache(maxsize=None)
def data_facts(data_root):
    """Returns the Facts of the data set in a folder, None for the real MNIST, after checking its four files.

    Raises ValueError that names the file and what is wrong.
    """
    if data_root is None:
        return MNIST
    highest, counts, sha256 = 0, [], []
    for images, labels in FILES:
        n_images, pixels = read_idx(os.path.join(data_root, images), IMAGE_MAGIC)
        n_labels, values = read_idx(os.path.join(data_root, labels), LABEL_MAGIC)
        if n_labels != n_images:
            raise ValueError(f"{data_root}: {images} holds {n_images} images, but {labels} {n_labels} labels")
        counts.append(n_images)
        highest = max(highest, max(values))
        sha256.append(hashlib.sha256(pixels + values).hexdigest())
    return Facts(*counts, highest + 1, *sha256)
