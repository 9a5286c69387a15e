"""A small convolutional network that reads digits, for metrics that mean something on digits.

    python -m support.digit_classifier      trains it again on 50,000 of MNIST's training images
    python -m support.digit_classifier --data_root DIR --output FILE        trains one for other images

`digit_classifier.npz` beside this file holds its weights. cgan.py and fid.py take from it the label accuracy (is the
digit drawn the digit asked for?) and the features for a Fréchet distance that sees digits, where Inception's see
photographs. The other 10,000 training images it never sees: their scores are what real digits reach.
"""

import os

import numpy as np
from tqdm import tqdm

from support import idx
from support.device import jt, nn, set_seed
from support.flags import Parser, file_path, typed_path
from support.inception_weights import sha256
from support.mnist import load_mnist
from support.saved.checkpoint import read_generator
from support.saved.classifier import WEIGHTS, read_classifier
from support.saved.paths import atomic_write

IMG_SIZE = 32
KEPT_BACK = 6  # one in so many of MNIST's training images is kept from the classifier


class DigitClassifier(nn.Module):
    """Reads the label of an image: images (N, 1, S, S) in [-1, 1], resized to 32 x 32 -> logits (N, n_labels)."""

    def __init__(self, n_labels=10):
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
        self.last = nn.Linear(128, n_labels)

    def features(self, images):
        """Returns the penultimate layer's features, (N, 128), each at least 0."""
        if images.shape[-1] != IMG_SIZE:
            images = nn.resize(images, (IMG_SIZE, IMG_SIZE), mode="bilinear", align_corners=False)
        x = self.body(images)
        return nn.relu(self.penultimate(x.reshape(x.shape[0], -1)))

    def execute(self, images):
        return self.last(self.dropout(self.features(images)))


def load(path=WEIGHTS):
    """Returns a file's classifier, in evaluation mode, with the file's `sha256`; raises ValueError if it holds none."""
    weights = read_classifier(path)
    del weights["data"]
    model = DigitClassifier(len(weights["last.bias"]))
    model.load_state_dict(weights)
    model.sha256 = sha256(path)
    model.eval()
    return model


def find(data, path=None):
    """Returns the classifier for images with this SHA-256, see support.idx.Facts, or None if there is none for them.

    path: the file to look into; None for the one that reads MNIST's digits.
    """
    path = path if path and os.path.exists(path) else WEIGHTS
    return load(path) if read_classifier(path)["data"] == data else None


def read_labels(model, images, batch_size=100):
    """Returns (features (N, 128), labels (N,)) as arrays, for images (N, 1, S, S) in [-1, 1]."""
    features, labels = [], []
    with jt.no_grad():
        for start in range(0, len(images), batch_size):
            batch_features = model.features(jt.array(images[start : start + batch_size]))
            features.append(batch_features.numpy())
            labels.append(model.last(batch_features).numpy().argmax(1))
    return np.concatenate(features), np.concatenate(labels)


def reading(path, images):
    """Returns how the images of a generator are read, as the end of a sentence, or "" if no classifier knows its data.

    path: as support.saved.checkpoint.read_generator takes it.
    """
    config, _, data = read_generator(path)
    classifier = find(data, config.get("classifier"))
    if not classifier:
        return ""
    labels = read_labels(classifier, images)[1]
    names = [config["labels"][label] for label in labels]
    return f", read as {('' if max(map(len, config['labels'])) == 1 else ' ').join(names)} by a classifier"


def split(seen, img_size=IMG_SIZE, data_root=None):
    """Returns the images and labels of MNIST's training set that the classifier learns from, or those it never sees.

    They are drawn: MNIST's two kinds of writers alternate, so that every sixth image would be of one kind.
    """
    dataset = load_mnist(True, img_size, data_root)
    order = np.random.RandomState(0).permutation(dataset.total_len)  # unlike a Generator's, the same in every NumPy
    unseen = dataset.total_len // KEPT_BACK
    return dataset[order[unseen:] if seen else order[:unseen]]


def shift(images, rng, most=2):
    """Returns the images (N, 1, S, S), each moved by up to `most` pixels in both directions, -1 filling the edge."""
    n, _, size, _ = images.shape
    padded = np.pad(images, [(0, 0), (0, 0), (most, most), (most, most)], constant_values=-1)
    down, right = rng.integers(0, 2 * most + 1, (2, n, 1, 1))
    rows, columns = np.arange(size).reshape(1, -1, 1) + down, np.arange(size).reshape(1, 1, -1) + right
    return padded[np.arange(n).reshape(-1, 1, 1), 0, rows, columns][:, None]


def train(data=None, data_root=None, n_epochs=8, batch_size=128, lr=0.002, seed=0):
    """Trains a classifier, with a learning rate that falls to 0; returns it.

    data: images (N, 1, S, S) in [-1, 1] and labels (N,) int32; None for the training images of data_root, as
    support.mnist.load_mnist takes it, or those of MNIST that split() has for it. The accuracy that is printed is on the
    test images.
    """
    set_seed(seed)
    rng = np.random.default_rng(seed)
    if data is None:
        own = idx.data_facts(data_root) != idx.MNIST
        data = load_mnist(True, IMG_SIZE, data_root).arrays() if own else split(True, IMG_SIZE, data_root)
    images, labels = data
    test_images, test_labels = load_mnist(False, IMG_SIZE, data_root).arrays()
    model, batch_size = DigitClassifier(idx.data_facts(data_root).n_labels), min(batch_size, len(images))
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
        accuracy = (read_labels(model, test_images)[1] == test_labels).mean()
        print(f"[Epoch {epoch}/{n_epochs}] [test accuracy {accuracy:.4f}]", flush=True)
    return model


def main():
    parser = Parser("Trains the classifier behind digit FID and label accuracy.")
    what = "MNIST's four files, or one folder per class (default: Jittor's own MNIST)"
    parser.add_argument("--data_root", type=typed_path, help=what)
    parser.add_argument("--output", type=file_path(), default=WEIGHTS, help="the .npz to write")
    opt = parser.parse_args()
    if opt.data_root and opt.output == WEIGHTS:
        parser.error("argument --output: must name a file of its own for other images than MNIST's")
    folder = os.path.dirname(os.path.abspath(opt.output))
    if os.path.isdir(opt.output) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        parser.error(f"argument --output: must be a file in a folder that can be written, not {opt.output}")
    try:
        data = idx.check(opt.data_root).sha256
        trained = {name: value.numpy() for name, value in train(data_root=opt.data_root).state_dict().items()}
        atomic_write(opt.output, lambda file: np.savez_compressed(file, data=data, **trained))
    except ValueError as error:
        parser.error(f"argument --data_root: {error}")
    except OSError as error:
        parser.error(f"argument --output: {opt.output}: {error.strerror}")
    print(f"wrote {opt.output}")


if __name__ == "__main__":
    main()
