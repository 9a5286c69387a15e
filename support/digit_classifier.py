"""A small convolutional network that reads digits, for figures that mean something on digits.

    python -m support.digit_classifier      trains it again on MNIST's 60,000 training images

`digit_classifier.npz` beside this file holds its weights. cgan.py and fid.py take from it the label accuracy (is the
digit drawn the digit asked for?) and the features for a Fréchet distance that sees digits, where Inception's see
photographs.
"""

import os

import numpy as np
from tqdm import tqdm

from support.device import jt, nn
from support.saved.paths import atomic_write
from support.mnist import load_mnist

WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "digit_classifier.npz")
IMG_SIZE = 32


class DigitClassifier(nn.Module):
    """Reads the digit in an image: images (N, 1, S, S) in [-1, 1], resized to 32 x 32 -> logits (N, 10)."""

    def __init__(self):
        super().__init__()

        def block(n_in, n_out, kernel, stride):
            convolution = nn.Conv(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
            return [convolution, nn.BatchNorm(n_out), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, 16, 5, 2),
            *block(16, 32, 3, 1),
            *block(32, 64, 3, 2),
            *block(64, 64, 3, 1),
            *block(64, 64, 3, 2),
        )
        self.penultimate = nn.Linear(64 * 4 * 4, 128)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(128, 10)

    def features(self, images):
        """Returns the penultimate layer's features, (N, 128), each at least 0."""
        if images.shape[-1] != IMG_SIZE:
            images = nn.resize(images, (IMG_SIZE, IMG_SIZE), mode="bilinear", align_corners=False)
        x = self.body(images)
        return nn.relu(self.penultimate(x.reshape(x.shape[0], -1)))

    def execute(self, images):
        return self.last(self.dropout(self.features(images)))


def load(path=WEIGHTS):
    """Returns the trained classifier in evaluation mode."""
    model = DigitClassifier()
    with np.load(path, allow_pickle=False) as weights:
        model.load_state_dict(dict(weights))
    model.eval()
    return model


def read_digits(model, images, batch_size=500):
    """Returns (features (N, 128), digits (N,)) as arrays, for images (N, 1, S, S) in [-1, 1]."""
    features, digits = [], []
    with jt.no_grad():
        for start in range(0, len(images), batch_size):
            batch_features = model.features(jt.array(images[start : start + batch_size]))
            features.append(batch_features.numpy())
            digits.append(model.last(batch_features).numpy().argmax(1))
    return np.concatenate(features), np.concatenate(digits)


def shift(images, rng, most=2):
    """Returns the images (N, 1, S, S), each moved by up to `most` pixels in both directions, -1 filling the edge."""
    n, _, size, _ = images.shape
    padded = np.pad(images, [(0, 0), (0, 0), (most, most), (most, most)], constant_values=-1)
    down, right = rng.integers(0, 2 * most + 1, (2, n, 1, 1))
    rows, columns = np.arange(size).reshape(1, -1, 1) + down, np.arange(size).reshape(1, 1, -1) + right
    return padded[np.arange(n).reshape(-1, 1, 1), 0, rows, columns][:, None]


def train(data=None, n_epochs=8, batch_size=128, lr=0.002, seed=0):
    """Trains a classifier, with a learning rate that falls to 0; returns it.

    data: images (N, 1, S, S) in [-1, 1] and labels (N,) int32; None for MNIST's training images.
    """
    jt.set_global_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = data or load_mnist(train=True, img_size=IMG_SIZE).arrays()
    test_images, test_labels = load_mnist(train=False, img_size=IMG_SIZE).arrays()
    model = DigitClassifier()
    optimizer = nn.Adam(model.parameters(), lr)
    n_steps, step = n_epochs * (len(images) // batch_size), 0
    for epoch in range(1, n_epochs + 1):
        model.train()
        order = rng.permutation(len(images))[: len(images) // batch_size * batch_size].reshape(-1, batch_size)
        for picked in tqdm(order, desc=f"Epoch {epoch}/{n_epochs}", disable=None):
            optimizer.lr = lr * (1 - step / n_steps)
            logits = model(jt.array(shift(images[picked], rng)))
            optimizer.step(nn.cross_entropy_loss(logits, jt.array(labels[picked])))
            step += 1
        model.eval()
        accuracy = (read_digits(model, test_images)[1] == test_labels).mean()
        print(f"[Epoch {epoch}/{n_epochs}] [test accuracy {accuracy:.4f}]", flush=True)
    return model


if __name__ == "__main__":
    trained = {name: value.numpy() for name, value in train().state_dict().items()}
    atomic_write(WEIGHTS, lambda file: np.savez_compressed(file, **trained))
    print(f"wrote {WEIGHTS}")
