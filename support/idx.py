"""Checks the four files that MNIST comes in, without Jittor: gzipped, in the idx format."""

import gzip
import hashlib
import os
import struct

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
CHUNK, MAX_CHUNKS = 2**20, 1000  # bytes read at a time, and how often; MNIST's largest file takes 47 MB
FILES = [  # of the training and of the test set
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
]
# (training images, test images, highest label, SHA-256 of training images and labels) of the real MNIST
MNIST = 60000, 10000, 9, "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b"


def read_idx(path, magic):
    """Returns (number of items, bytes of all items) of a gzipped idx file; raises ValueError naming `path`."""
    try:
        with gzip.open(path, "rb") as file:
            chunks = [file.read(CHUNK)]  # not all at once: gzip would take that much memory for any file
            while chunks[-1] and len(chunks) < MAX_CHUNKS:
                chunks.append(file.read(CHUNK))
        data = b"".join(chunks)
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
    """Checks the four files of a data set in MNIST's format.

    Returns (number of training images, number of test images, highest label, SHA-256 of training images and labels).
    Raises ValueError that names the file and what is wrong.
    """
    highest, counts, sha256 = 0, [], []
    for images, labels in FILES:
        n_images, pixels = read_idx(os.path.join(folder, images), IMAGE_MAGIC)
        n_labels, values = read_idx(os.path.join(folder, labels), LABEL_MAGIC)
        if n_labels != n_images:
            raise ValueError(f"{folder}: {images} holds {n_images} images, but {labels} {n_labels} labels")
        counts.append(n_images)
        highest = max(highest, max(values))
        sha256.append(hashlib.sha256(pixels + values).hexdigest())
    return (*counts, highest, sha256[0])
