"""MNIST as the report reads it (section on data): Jittor's loader, resized, gray, from [0, 1] to [-1, 1].

Jittor's own loader transforms every image anew in every epoch; here they are transformed once.
"""

import os
import sys

import numpy as np

from support.device import jt, quiet  # noqa: F401, before the next imports

# isort: split
import jittor.transform as transform
from jittor.dataset.mnist import MNIST


class TransformedMNIST(MNIST):
    """MNIST's training or test set: batches of images (N, 1, S, S) float32 in [-1, 1] and labels (N,) int32.

    img_size: S, in pixels; data_root: a folder with the four MNIST-format .gz files, or None for Jittor's own MNIST.
    Memory: a byte a pixel, 61 MB for 60,000 images of 32 x 32.
    """

    def __init__(self, train, img_size=32, data_root=None):
        preprocessing = transform.Compose(
            [transform.Resize(img_size), transform.Gray(), transform.ImageNormalize(mean=[0.5], std=[0.5])]
        )
        # Jittor joins folder and file name as they stand, so the folder needs its slash.
        where = {} if data_root is None else {"data_root": os.path.join(data_root, ""), "download": False}
        with quiet():
            super().__init__(train=train, transform=preprocessing, **where)
        self.grays = np.full(256, np.nan, np.float32)
        codes = []
        for start in range(0, self.total_len, 1000):
            items = range(start, min(start + 1000, self.total_len))
            images = np.stack([super(TransformedMNIST, self).__getitem__(i)[0] for i in items])
            codes.append(np.rint((images + 1) * 127.5).astype(np.uint8))
            self.grays[codes[-1]] = images
        self.codes = np.concatenate(codes)

    def __getitem__(self, index):
        return self.grays[self.codes[index]], self.mnist["labels"][index]

    def arrays(self):
        """Returns all images, (N, 1, S, S) float32 in [-1, 1], and labels, (N,) int32."""
        return self.grays[self.codes], self.mnist["labels"].astype(np.int32)


def load_mnist(train, img_size=32, data_root=None):
    """Returns a TransformedMNIST; ends the program with one sentence where there is no MNIST."""
    try:
        return TransformedMNIST(train, img_size, data_root)
    except RuntimeError:
        sys.exit("MNIST is not here and could not be fetched: pip install -r requirements.txt, or give --data_root DIR")
