"""MNIST as the report reads it (section on data): Jittor's loader, resized, gray, from [0, 1] to [-1, 1].

Jittor's own loader transforms every image anew in every epoch; here they are transformed once.
"""

import contextlib

import numpy as np
from PIL import Image

from support import idx
from support.device import jt
from support.terminal import RANK

transform, MNIST = jt.transform, jt.dataset.mnist.MNIST
# (codes (n, pixels), labels (n,), grays (256,), order (m,)) -> images and labels of order[first:first + their number]
PICK = """
static __global__ void pick(const unsigned char* codes, const int* labels, const float* grays, const int* order,
                            float* images, int* picked, long pixels) {
    long image = order[blockIdx.x];
    for (long i = threadIdx.x; i < pixels; i += blockDim.x)
        images[blockIdx.x * pixels + i] = grays[codes[image * pixels + i]];
    if (threadIdx.x == 0) picked[blockIdx.x] = labels[image];
}
"""


class TransformedMNIST(jt.dataset.Dataset):
    """MNIST's training or test set: batches of images (N, 1, S, S) float32 in [-1, 1] and labels (N,) int32.

    img_size: S, in pixels; data_root: a folder as support.idx.data_facts takes it, or None for Jittor's own MNIST.
    Memory: a byte a pixel, 61 MB for 60,000 images of 32 x 32; a GPU holds them too, and gathers the batches there.
    """

    def __init__(self, train, img_size=32, data_root=None):
        # What an image goes through. Here idx.resize() and a table of all grays compute the same, for all at once
        gray = [transform.Gray(), transform.ImageNormalize(mean=[0.5], std=[0.5])]
        super().__init__()
        self.transform = transform.Compose([transform.Resize(img_size), *gray])
        if data_root is None:
            with contextlib.redirect_stdout(None):  # it says where it takes them from
                images, labels = MNIST(train=train).mnist.values()
            self.codes, self.labels = idx.resize(images, img_size), labels.astype(np.int32)
        else:
            self.codes, self.labels = idx.read_codes(data_root, train, img_size)
        self.set_attrs(total_len=len(self.codes))
        every_gray = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        self.grays, self.on_gpu = transform.Compose(gray)(every_gray).ravel(), None

    def __getitem__(self, index):
        return self.grays[self.codes[index, None]], self.labels[index]

    def __iter__(self):
        order, size = np.asarray(self._get_index_list(), np.int32), self.real_batch_size  # this process's share
        own = type(self).__getitem__ is TransformedMNIST.__getitem__ and not self.keep_numpy_array
        gather = lambda first, last: self[order[first:last]]  # noqa: E731
        if jt.flags.use_cuda and own:
            gather = self.gather_on_gpu(order)
        for i in range(self.batch_len):
            yield self.to_jittor(gather(i * size, min((i + 1) * size, len(order))))

    def gather_on_gpu(self, order):
        """Returns a function (first, last) -> images and labels of order[first:last], Vars without gradient."""
        if self.on_gpu is None:
            self.on_gpu = [jt.array(array) for array in (self.codes, self.labels, self.grays)]
        inputs, (height, width) = [*self.on_gpu, jt.array(order)], self.codes.shape[1:]
        source = 'pick<<<out1->num, 256>>>(in0_p, in1_p, in2_p, in3_p + long(data["first"]), out0_p, out1_p, '
        source += f"{height * width});"

        def gather(first, last):
            shapes, kinds = [(last - first, 1, height, width), (last - first,)], ["float32", "int32"]
            batch = jt.code(shapes, kinds, inputs, cuda_header=PICK, cuda_src=source, data={"first": first})
            return [var.stop_grad() for var in batch]

        return gather

    def arrays(self):
        """Returns all images, (N, 1, S, S) float32 in [-1, 1], and labels, (N,) int32."""
        return self[np.arange(self.total_len)]


def load_mnist(train, img_size=32, data_root=None):
    """Returns a TransformedMNIST; ends the program with one sentence if there is no MNIST.

    Of images that come in folders it says, with the training set, what was found there.
    """
    if data_root and train and not RANK:
        print(idx.describe(data_root), flush=True)
    try:
        return TransformedMNIST(train, img_size, data_root)
    except RuntimeError:
        words = "MNIST is not here and could not be fetched: pip install -r requirements.txt, or give --data_root DIR"
        raise SystemExit(words) from None
