"""The Fréchet Inception Distance (FID) and its unbiased sibling KID between two sets of images.

FID compares the images as a network trained on ImageNet sees them (Heusel et al. 2017, "GANs Trained by a
Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"): it takes the 2048 features that Inception-v3
computes for every image, describes each set by their mean mu and covariance C, and returns

    |mu_a - mu_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))

Smaller is more alike; 0 is reached by equal sets. The value depends on how many images it is computed from
(few images: far too high), so only values from equally many images can be compared.

    python fid.py real_folder generated_folder
    python fid.py mnist generated_folder --features digits      on a digit classifier's features, no download
    python fid.py real_folder --save_stats real.npz             keeps what FID needs of a set
    python fid.py real.npz generated_folder                     takes it instead of the images
"""

from support import terminal

if __name__ == "__main__":
    terminal.take_over()

import hashlib
import os
import sys
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image
from scipy import linalg
from tqdm import tqdm

from support.flags import Parser, whole_number
from support.images import image_source, open_image
from support.inception_weights import known_sha256, sha256, weights_file
from support.saved.classifier import WEIGHTS
from support.saved.paths import atomic_write
from support.saved.statistics import Statistics, check_fit, new_file, save_statistics
from support.terminal import refuse


def parse_flags(argv=None):
    """Returns the flags of the command line; ends with one line and status 2 if one is wrong."""
    parser = Parser("FID and KID between two sets of images; smaller is more alike.")
    what = "a folder of images, an .npz or .npy of images or statistics, or mnist (its test set)"
    parser.add_argument("real", type=image_source, help=what)
    parser.add_argument("generated", type=image_source, nargs="?", help="the same; not needed with --save_stats")
    parser.add_argument("--features", choices=["inception", "digits"], default="inception", help="whose features")
    parser.add_argument("--inception_weights", type=weights_file, help="a file, jittor or original: docs/metrics.md")
    parser.add_argument("--batch_size", type=whole_number(1), help="images at a time (default: 10; GPU 50; digits 100)")
    parser.add_argument("--save_stats", type=new_file, metavar="FILE", help="keep the statistics of real in this .npz")
    opt = parser.parse_args(argv)
    if opt.generated is None and not opt.save_stats:
        parser.error("the following arguments are required: generated (or --save_stats)")
    if opt.save_stats and isinstance(opt.real, Statistics):
        parser.error("argument --save_stats: real is a file of statistics already")
    opt.weights = WEIGHTS if opt.features == "digits" else opt.inception_weights
    try:
        check_fit((opt.real, opt.generated), opt.features, known_sha256(opt.weights))
    except ValueError as error:
        parser.error(error)
    return opt


if __name__ == "__main__":
    opt = parse_flags()  # before Jittor is imported: its first import compiles for minutes

from support import digit_classifier
from support.device import jt, nn
from support.evaluation import in_parts
from support.inception import find_weights, load_inception
from support.mnist import load_mnist

BATCH_SIZE = 50 if jt.flags.use_cuda else 10  # of Inception: on a CPU, more do not fit the caches and take longer


def as_features(*sets):
    """Returns the sets as float64; raises ValueError if they are not (n, d) and (m, d), finite, n, m >= 2."""
    sets = [np.asarray(features, np.float64) for features in sets]
    if any(features.ndim != 2 for features in sets) or len({features.shape[1] for features in sets}) > 1:
        raise ValueError(f"features must be (n, d) and (m, d), not {' and '.join(str(x.shape) for x in sets)}")
    if min(map(len, sets)) < 2:
        raise ValueError(f"a set needs at least 2 images, not {min(map(len, sets))}")
    if not all(np.isfinite(features).all() for features in sets):
        raise ValueError("features must be finite, but hold NaN or infinity")
    return sets


def frechet_distance(a, b):
    """Returns the Fréchet distance between two Gaussians that have the sets' means and covariances.

    a: features (n, d); b: features (m, d); n, m >= 2. Computed in float64; real and at least 0.
    Raises ValueError on fewer than 2 rows, different widths, NaN or infinity.

    No matrix square root is needed: with A and B the centred features, divided by sqrt(n - 1) and sqrt(m - 1),
    C_a = A'A and C_b = B'B, and the eigenvalues of C_a C_b are the squared singular values of A B'. So the trace
    of the root is their sum. If n > d, A's triangular factor (d, d) stands in for it: A'A = R'R.
    """
    return distance_of_statistics(*map(describe, as_features(a, b)))


def describe(features):
    """Returns the Statistics of features (n, d), float64."""
    n, d = features.shape
    mean = features.mean(0)
    centred = (features - mean) / np.sqrt(n - 1)
    # scipy's wheels bring a fast LAPACK, which a numpy that pip built from source lacks
    factor = linalg.qr(centred, mode="r")[0][:d] if n > d else centred
    return Statistics(mean, np.sum(centred**2), factor, n)


def distance_of_statistics(a, b):
    """Returns the Fréchet distance between two Statistics."""
    trace_of_root = linalg.svdvals(a.factor @ b.factor.T).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + (a.spread + b.spread) - 2 * trace_of_root
    return float(max(distance, 0.0))  # rounding may end just below 0


def kernel_distance(a, b):
    """Returns the Kernel Inception Distance (KID): the squared maximum mean discrepancy with (x.y / d + 1)^3.

    a: features (n, d); b: features (m, d); n, m >= 2. Computed in float64. Its expectation does not depend on the
    number of images, as FID's does; it is unbiased, and so may be slightly negative. Raises ValueError as
    frechet_distance does. Source: Bińkowski et al. 2018, "Demystifying MMD GANs".
    """
    a, b = as_features(a, b)

    def total(x, y):
        """Returns the kernel's sum over all pairs, 1000 rows at a time, which bounds the memory."""
        return sum(((x[i : i + 1000] @ y.T / x.shape[1] + 1) ** 3).sum() for i in range(0, len(x), 1000))

    def mean_of_pairs(x):
        itself = (((x * x).sum(1) / x.shape[1] + 1) ** 3).sum()  # no image is paired with itself
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * total(a, b) / (len(a) * len(b)))


def inception_features(images, weights=None, batch_size=BATCH_SIZE):
    """Returns Inception-v3's features after its global average pool: (N, 2048) float32.

    images: (N, 1 or 3, H, W) in [-1, 1], array or jittor Var; resized to 299 x 299 (bilinear), a single channel
    stands for all three. weights: as load_inception takes them, or a model that it returned.
    Raises ValueError on images of another shape, and what load_inception raises.
    """
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), not {tuple(images.shape)}")
    model = weights if isinstance(weights, nn.Module) else load_inception(weights)

    def features(batch):
        batch = nn.resize(batch.float32(), (299, 299), mode="bilinear", align_corners=False)
        return model(batch if batch.shape[1] == 3 else jt.concat([batch] * 3, dim=1))

    with jt.no_grad():
        return in_parts(features, images, size=batch_size)


def read_image(item, mode, size):
    """Returns an image as (C, size, size) in [-1, 1], resized as pytorch-fid does; mode: PIL's "L" or "RGB".

    item: its path, or an array (H, W) or (H, W, 3) uint8.
    """
    image = open_image(item) if isinstance(item, str) else Image.fromarray(item)
    pixels = np.asarray(image.convert(mode), np.float32) / 127.5 - 1
    pixels = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    return nn.resize(jt.array(pixels[None]), (size, size), mode="bilinear", align_corners=False).numpy()[0]


def features_of(images, extract, batch_size):
    """Returns the features (N, d) of N images: extract(images[i:j]) of batch_size at a time, with a progress bar."""
    starts = tqdm(range(0, len(images), batch_size), desc="features", disable=None)
    return np.concatenate([extract(images[start : start + batch_size]) for start in starts])


def kept_features(images, extract, batch_size, weights):
    """Returns features_of(images, ...), kept in Jittor's cache: the second time nothing is computed.

    images: an array; weights: the SHA-256 of the weights behind `extract`.
    """
    name = hashlib.sha256(weights.encode() + images.tobytes()).hexdigest()
    path = os.path.join(jt.compiler.ck_path, f"features-{name}.npy")
    try:
        features = np.load(path, allow_pickle=False)
        print(f"its features were computed before; delete {path} to have them computed anew")
    except (OSError, ValueError, EOFError):  # missing or damaged
        features = features_of(images, extract, batch_size)
        try:
            atomic_write(path, lambda file: np.save(file, features))
        except OSError as error:
            print(f"its features cannot be kept for the next time: {error}")
    return features


class Network(NamedTuple):
    """What computes features: extract, images (N, C, size, size) in [-1, 1] -> (N, d); mode: PIL's name of C's kind."""

    extract: Callable
    mode: str
    size: int
    weights: str  # the SHA-256 of its file


def load_network(opt):
    """Returns the Network that the flags name, None if they name none and no images are to be seen by it."""
    if opt.features == "digits":
        model = digit_classifier.load(opt.weights)
        opt.batch_size = opt.batch_size or 100
        extract, size = (lambda x: digit_classifier.read_labels(model, x, len(x))[0]), digit_classifier.IMG_SIZE
        return Network(extract, "L", size, sha256(opt.weights))
    if all(isinstance(source, Statistics) for source in (opt.real, opt.generated)):
        return None
    found = find_weights(opt.weights)
    if not found:
        sys.exit(2)
    _, path = found
    model = load_inception(path)
    return Network(lambda images: inception_features(images, model, len(images)), "RGB", 299, sha256(path))


def measure(name, source, network, batch_size):
    """Prints what a source is; returns its features (N, d), None of Statistics, and the size MNIST was prepared at."""
    if isinstance(source, str):  # mnist
        images, _ = load_mnist(train=False).arrays()
        size = images.shape[-1]
        print(f"{name}: {len(images)} images, MNIST's test set, prepared at {size} x {size}")
        return kept_features(images, network.extract, batch_size, network.weights), size
    print(f"{name}: {source.said}")
    if isinstance(source, Statistics):
        return None, source.size

    def extract(items):
        return network.extract(np.stack([read_image(item, network.mode, network.size) for item in items]))

    return features_of(source.items, extract, batch_size), 0


def main(opt):
    """Prints the scores; returns the program's exit status. Raises ValueError if there is no value."""
    network = load_network(opt)
    check_fit((opt.real, opt.generated), opt.features, network and network.weights)
    sets, statistics, status = [], [], 0
    for name, source in ("real", opt.real), ("generated", opt.generated):
        if source is None:
            return status
        features, size = measure(name, source, network, opt.batch_size or BATCH_SIZE)
        features = features if features is None else as_features(features)[0]
        sets.append(features)
        if name == "real" and opt.save_stats:
            try:  # what was saved is used, so that the file gives the same value to the last digit
                of = {"features": opt.features, "weights": network.weights, "size": size}
                statistics.append(save_statistics(opt.save_stats, features, **of))
                print(f"wrote {opt.save_stats}")
                continue
            except OSError as error:
                print(f"{opt.save_stats} cannot be written: {error.strerror or error}", file=sys.stderr)
                status = 1
        statistics.append(source if features is None else describe(features))
    counts = " and ".join(str(source.count or "unknown") for source in statistics)
    print(f"FID: {distance_of_statistics(*statistics):.4f} ({counts} images)")
    if any(features is None for features in sets):
        print("KID is left out: it needs all features of both sets, which statistics do not hold")
    else:
        print(f"KID: {kernel_distance(*sets):.6f}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(opt))
    except ValueError as error:
        refuse(error)
