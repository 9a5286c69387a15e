"""What an evaluation measures: the report's FID, and metrics that mean something on digits (docs/metrics.md)."""

import contextlib
import sys
import textwrap
from functools import partial

import numpy as np

from support import digit_classifier, idx
from support.device import jt
from support.inception import find_weights, load_inception
from support.inception_weights import NONE, sha256

STREAMS = {"inception": 1, "digits": 2}  # of random numbers: no metric depends on which others are computed


@contextlib.contextmanager
def evaluation_mode(network):
    """Puts a network into evaluation mode, without gradients, and every layer of it back as it was.

    Jittor's own network.train() would do more: it switches every layer on, dropout too, which is created off.
    """
    modes = [(layer, layer.is_training()) for layer in network.modules()]
    for layer, _ in modes:
        layer.is_train = False
    try:
        with jt.no_grad():
            yield
    finally:
        for layer, is_train in modes:
            layer.is_train = is_train


@contextlib.contextmanager
def null_if_it_fails(what):
    """Has whatever fails inside end as one sentence that says what is null in the log: no score is worth a run."""
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more, which ends the run
        raise
    except Exception as error:  # of a network that was changed in whatever way, or for want of memory
        why = textwrap.shorten(f"{type(error).__name__}: {error}".rstrip(": "), 300)
        print(f"{what} failed and is null in the log: {why}", file=sys.stderr)


def in_parts(function, *arrays, size):
    """Returns function(*arrays) as an array, computed from `size` rows at a time, which bounds the memory."""
    starts = range(0, len(arrays[0]), size)
    parts = ([jt.array(array[start : start + size]) for array in arrays] for start in starts)
    return np.concatenate([function(*part).numpy() for part in parts])


def stream(seed, epoch, name):
    """Returns the random numbers that one metric of one evaluation draws from."""
    return np.random.default_rng((seed, epoch, STREAMS[name]))


class Evaluation:
    """Scores a generator and its discriminator. Training's random numbers are not disturbed.

    dataset: the test set, a support.mnist.TransformedMNIST; opt: cgan.py's flags; draw: (generator, noise, labels) ->
    images, as an array; fid: the module fid.py; real_above: the validity above which the discriminator takes an image
    for a real one, None if its loss knows no such border.
    Inception's weights are looked for, and perhaps fetched, at once; networks and the test images' features are loaded
    when first needed, and then once.
    """

    def __init__(self, dataset, opt, draw, fid, real_above):
        self.dataset, self.opt, self.draw, self.fid, self.real_above = dataset, opt, draw, fid, real_above
        self.facts, self.loaded = idx.data_facts(opt.data_root), False
        self.label_fid = "digit_fid" if self.facts == idx.MNIST else "label_fid"
        self.weights = find_weights(opt.inception_weights) if jt.rank == 0 else None  # now, as it may take minutes
        if not self.weights and opt.inception_weights:
            opt.inception_weights = NONE  # which the log notes, on a resume as a change

    def load(self):
        self.test_images, self.test_labels = self.dataset.arrays()
        self.inception = None
        self.classifier = digit_classifier.find(self.facts.sha256, self.opt.classifier)
        if self.classifier:
            self.test_features, _ = digit_classifier.read_labels(self.classifier, self.test_images)
        else:
            print(
                "Label FID and label accuracy are left out, as these images are not MNIST's digits: python -m "
                "support.digit_classifier --data_root DIR --output FILE trains a classifier for --classifier FILE."
            )
        self.loaded = True

    def __call__(self, networks, epoch):
        """Returns what the log holds of one evaluation: what the methods below return.

        networks: {"generator": ..., "discriminator": ..., and perhaps "ema": the generator's running average, which
        then draws; the generator's own scores, on the same noise, are under "generator"}. Scores that fail are None.
        """
        if not self.loaded:
            self.load()
        scores, images = self.score(networks.get("ema", networks["generator"]), epoch)
        if self.real_above is not None:
            real, generated = [self.test_images, self.test_labels], [images, self.test_labels]
            scores.update(d_accuracy_real=None, d_accuracy_generated=None)
            with null_if_it_fails(f"epoch {epoch}: the discriminator's accuracy"):
                scores["d_accuracy_real"] = self.is_real(networks["discriminator"], *real)
                scores["d_accuracy_generated"] = 1 - self.is_real(networks["discriminator"], *generated)
        if "ema" in networks:
            scores["generator"], _ = self.score(networks["generator"], epoch)
        return scores

    def is_real(self, discriminator, images, labels):
        """Returns how many of the images the discriminator takes for real ones, from 0 to 1.

        Raises ValueError if its answers are not (N, 1), FloatingPointError if one is not finite.
        """
        with evaluation_mode(discriminator):
            validity = in_parts(discriminator, images, labels.astype(np.int32), size=500)
        if validity.shape != (len(images), 1):
            raise ValueError(f"the answers to {len(images)} images are {validity.shape}, not {(len(images), 1)}")
        if not np.isfinite(validity).all():
            raise FloatingPointError("an answer is not finite")
        return float((validity[:, 0] > self.real_above).mean())

    def score(self, generator, epoch):
        """Returns the scores of a generator, and the images that it drew for the labels of the test set."""
        draw, opt = partial(self.draw, generator), self.opt
        scores = {"fid": None, "kid": None, "fid_samples": opt.fid_samples}
        with null_if_it_fails(f"epoch {epoch}: FID and KID"):
            scores.update(self.inception_scores(draw, epoch))
        rng = stream(opt.seed, epoch, "digits")
        images = draw(rng.standard_normal((len(self.test_labels), opt.latent_dim)), self.test_labels)
        scores.update({self.label_fid: None, "label_accuracy": None})
        with null_if_it_fails(f"epoch {epoch}: {self.label_fid.replace('_fid', ' FID')} and label accuracy"):
            scores.update(self.label_scores(images))
        return scores, images

    def label_scores(self, images):
        """Returns the scores of generated images (N, 1, S, S), drawn for the labels of the test images, one for each.

        digit_fid: Fréchet distance to the test images, on the classifier's features; label_fid if they are no digits.
        label_accuracy, class_accuracy: how often the classifier, whose SHA-256 is classifier_sha256, reads the label
        asked for, in all and by class, None for one without test images. {} without a classifier.
        """
        if not self.classifier:
            return {}
        features, read = digit_classifier.read_labels(self.classifier, images)
        right = read == self.test_labels
        classes = [right[self.test_labels == label] for label in range(self.facts.n_labels)]
        return {
            self.label_fid: self.fid.frechet_distance(features, self.test_features),
            "label_accuracy": float(right.mean()),
            "class_accuracy": [float(found.mean()) if len(found) else None for found in classes],
            "classifier_sha256": self.classifier.sha256,
        }

    def inception_scores(self, draw, epoch):
        """Returns the report's FID, and KID, of opt.fid_samples random test images against as many generated ones.

        The test images are drawn once for a run, and the others for their labels. {} without Inception's weights, whose
        name is `inception` and whose SHA-256 is inception_sha256.
        """
        opt = self.opt
        if not self.weights:
            return {}
        if not self.inception:  # here, as a failure costs these scores alone
            name, path = self.weights
            self.weights_facts = {"inception": name, "inception_sha256": sha256(path)}
            self.picked = stream(opt.seed, 0, "inception").permutation(len(self.test_images))[: opt.fid_samples]
            inception = load_inception(path)
            self.real = self.fid.inception_features(self.test_images[self.picked], inception)
            self.inception = inception
        noise = stream(opt.seed, epoch, "inception").standard_normal((opt.fid_samples, opt.latent_dim))
        generated = self.fid.inception_features(draw(noise, self.test_labels[self.picked]), self.inception)
        return {
            "fid": self.fid.frechet_distance(self.real, generated),
            "kid": self.fid.kernel_distance(self.real, generated),
            **self.weights_facts,
        }
