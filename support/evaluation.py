"""What an evaluation measures: the report's FID, and figures that mean something on digits (docs/metrics.md)."""

from functools import partial

import numpy as np

import fid
from support import digit_classifier
from support.device import jt
from support.flags import N_DIGITS
from support.inception import sha256

STREAMS = {"inception": 1, "digits": 2}  # of random numbers: no figure depends on which others are computed


def stream(seed, epoch, name):
    """Returns the random numbers that one figure of one evaluation draws from."""
    return np.random.default_rng((seed, epoch, STREAMS[name]))


def score_digits(images, labels, classifier, test_features):
    """Returns the digit figures of generated images (N, 1, S, S) in [-1, 1] and the labels (N,) they were drawn for.

    digit_fid: Fréchet distance to the test images, on the digit classifier's features.
    label_accuracy, class_accuracy: how often the classifier reads the digit asked for, in all and by class.
    """
    features, digits = digit_classifier.read_digits(classifier, images)
    return {
        "digit_fid": fid.frechet_distance(features, test_features),
        "label_accuracy": float((digits == labels).mean()),
        "class_accuracy": [float((digits[labels == label] == label).mean()) for label in np.unique(labels)],
    }


def draw_digits(draw, rng, latent_dim, n_classes, n=N_DIGITS):
    """Returns n images and their labels. draw: (noise (n, latent_dim), labels (n,)) -> images (n, 1, S, S)."""
    labels = np.arange(n) % min(n_classes, 10)
    return draw(rng.standard_normal((n, latent_dim)), labels), labels


def judge(discriminator, images, labels, batch_size=500):
    """Returns whether the discriminator takes each image for a real one, (N,): is it nearer to 1 than to 0?"""
    modes = [(layer, layer.is_train) for layer in discriminator.modules() if hasattr(layer, "is_train")]
    discriminator.eval()
    with jt.no_grad():
        parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
        judged = [discriminator(jt.array(images[p]), jt.array(labels[p].astype(np.int32))).numpy() for p in parts]
    discriminator.train()  # its parameters get gradients again, and all its dropout is switched on
    for layer, is_train in modes:
        layer.is_train = is_train
    return np.concatenate(judged)[:, 0] > 0.5


class Evaluation:
    """Scores a generator and its discriminator. Training's random numbers are not disturbed.

    dataset: the test set, a support.mnist.TransformedMNIST; opt: cgan.py's flags;
    draw: (generator, noise, labels) -> images, as an array.
    Networks and the test images' features are loaded when first needed, and then once.
    """

    def __init__(self, dataset, opt, draw):
        self.dataset, self.opt, self.draw, self.loaded = dataset, opt, draw, False

    def load(self):
        self.test_images, self.test_labels = self.dataset.arrays()
        self.weights = self.opt.inception_weights or fid.find_hub_weights()
        if self.weights:
            self.weights_sha256, self.inception = sha256(self.weights), fid.load_inception(self.weights)
        self.inception_features = {}  # of test images, by their number
        self.classifier = digit_classifier.load()
        self.test_features, _ = digit_classifier.read_digits(self.classifier, self.test_images)
        self.loaded = True

    def __call__(self, networks, epoch):
        """Returns what the log holds of one evaluation: what score_digits and inception_scores return, and more.

        networks: {"generator": ..., "discriminator": ..., and perhaps "average": the generator's running average, which
        then draws; the generator's own scores, on the same noise, are under "generator"}.
        d_accuracy_real, d_accuracy_generated: how often the discriminator is right on all test images and on the
        generated digits.
        """
        if not self.loaded:
            self.load()
        scores, images, labels = self.score(networks.get("average", networks["generator"]), epoch)
        judged_real = judge(networks["discriminator"], self.test_images, self.test_labels)
        scores["d_accuracy_real"] = float(judged_real.mean())
        scores["d_accuracy_generated"] = float(1 - judge(networks["discriminator"], images, labels).mean())
        if "average" in networks:
            scores["generator"], *_ = self.score(networks["generator"], epoch)
        return scores

    def score(self, generator, epoch):
        """Returns the scores of a generator, and the digits that it drew for them."""
        draw, opt = partial(self.draw, generator), self.opt
        scores = self.inception_scores(draw, epoch)
        images, labels = draw_digits(draw, stream(opt.seed, epoch, "digits"), opt.latent_dim, opt.n_classes)
        scores.update(score_digits(images, labels, self.classifier, self.test_features))
        return scores, images, labels

    def inception_scores(self, draw, epoch):
        """Returns the report's FID, and KID, of opt.fid_samples random test images against as many generated ones.

        Both are None without Inception's weights, whose SHA-256 is inception_sha256.
        """
        opt, rng = self.opt, stream(self.opt.seed, epoch, "inception")
        if not self.weights:
            return {"fid": None, "kid": None, "fid_samples": opt.fid_samples}
        picked = rng.choice(len(self.test_images), opt.fid_samples, replace=False)
        new = [i for i in picked if i not in self.inception_features]
        if new:
            self.inception_features.update(zip(new, fid.inception_features(self.test_images[new], self.inception)))
        real = np.stack([self.inception_features[i] for i in picked])
        noise = rng.standard_normal((opt.fid_samples, opt.latent_dim))
        generated = draw(noise, rng.integers(0, opt.n_classes, opt.fid_samples))
        generated = fid.inception_features(generated, self.inception)
        return {
            "fid": fid.frechet_distance(real, generated),
            "kid": fid.kernel_distance(real, generated),
            "fid_samples": opt.fid_samples,
            "inception_sha256": self.weights_sha256,
        }
