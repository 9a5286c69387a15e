"""MNIST, read once, is what Jittor's own loader gives."""

import numpy as np
import pytest

from support.mnist import MNIST, load_mnist


@pytest.mark.parametrize("img_size", [32, 20])
def test_images_are_what_jittors_loader_gives(img_size):
    ours = load_mnist(train=False, img_size=img_size)
    theirs = MNIST(train=False, transform=ours.transform)
    images, labels = ours.arrays()
    assert images.shape == (10000, 1, img_size, img_size) and ours.codes.nbytes == 10000 * img_size**2
    for i in range(0, 10000, 97):
        for a, b, c in zip(ours[i], theirs[i], (images[i], labels[i])):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_what_jittors_loader_gives(drop_last):
    ours = load_mnist(train=False)
    theirs = MNIST(train=False, transform=ours.transform)
    for dataset in (ours, theirs):
        dataset.set_attrs(batch_size=640, shuffle=True, drop_last=drop_last)
        dataset._shuffle_rng = np.random.default_rng(3)
    batches = [[[var.numpy() for var in batch] for batch in dataset] for dataset in (ours, theirs)]
    assert len(batches[0]) == len(batches[1]) == (15 if drop_last else 16)
    for a, b in zip(*batches):
        for x, y in zip(a, b):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_the_whole_of_mnist():
    training, test = load_mnist(train=True).set_attrs(batch_size=64, shuffle=True), load_mnist(train=False)
    assert (training.total_len, test.total_len, len(training)) == (60000, 10000, 938)
    images, labels = next(iter(training))
    assert tuple(images.shape) == (64, 1, 32, 32) and tuple(labels.shape) == (64,)
    assert images.min().item() == -1 and images.max().item() == 1
    np.testing.assert_array_equal(np.bincount(training.labels)[:3], [5923, 6742, 5958])  # the real MNIST
