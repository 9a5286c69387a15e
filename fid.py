"""The Fréchet Inception Distance (FID) and its unbiased sibling KID between two sets of images.

FID compares the images as a network trained on ImageNet sees them (Heusel et al. 2017, "GANs Trained by a
Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"): it takes the 2048 features that Inception-v3
computes for every image, describes each set by their mean mu and covariance C, and returns

    |mu_a - mu_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))

Smaller is more alike; 0 is reached by equal sets. The value depends on how many images it is computed from
(few images: far too high), so only values from equally many images can be compared.

    python fid.py real_folder generated_folder
    python fid.py mnist generated_folder --features digits      on a digit classifier's features, no download
"""

import sys

import numpy as np
from scipy import linalg
from tqdm import tqdm

from support.flags import Parser, whole_number
from support.images import image_source, open_image
from support.inception_weights import weights_file


def parse_flags(argv=None):
    """Returns the flags of the command line; ends with one line and status 2 if one is wrong."""
    parser = Parser("FID and KID between two sets of images; smaller is more alike.")
    for name in ("real", "generated"):
        parser.add_argument(name, type=image_source, help="a folder of PNG or JPEG images, or mnist (its test set)")
    parser.add_argument("--features", choices=["inception", "digits"], default="inception", help="whose features")
    parser.add_argument("--inception_weights", type=weights_file, help="a file, or original (default: Jittor's)")
    parser.add_argument("--batch_size", type=whole_number(1), default=50, help="images at a time")
    return parser.parse_args(argv)


if __name__ == "__main__":
    opt = parse_flags()  # before Jittor is imported: its first import compiles for minutes

from support import digit_classifier
from support.device import jt, nn
from support.evaluation import in_parts
from support.inception import find_hub_weights, load_inception
from support.mnist import load_mnist


def as_features(a, b):
    """Returns both sets as float64; raises ValueError if they are not (n, d) and (m, d), finite, n, m >= 2."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (n, d) and (m, d), not {a.shape} and {b.shape}")
    for features in (a, b):
        if len(features) < 2:
            raise ValueError(f"a set needs at least 2 images, not {len(features)}")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, but hold NaN or infinity")
    return a, b


def frechet_distance(a, b):
    """Returns the Fréchet distance between two Gaussians that have the sets' means and covariances.

    a: features (n, d); b: features (m, d); n, m >= 2. Computed in float64; real and at least 0.
    Raises ValueError on fewer than 2 rows, different widths, NaN or infinity.

    No matrix square root is needed: with A and B the centred features, divided by sqrt(n - 1) and sqrt(m - 1),
    C_a = A'A and C_b = B'B, and the eigenvalues of C_a C_b are the squared singular values of A B'. So the trace
    of the root is their sum. If n > d, A's triangular factor (d, d) stands in for it: A'A = R'R.
    """
    a, b = as_features(a, b)
    mean_term = np.sum((a.mean(0) - b.mean(0)) ** 2)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    spread = np.sum(a**2) + np.sum(b**2)  # trace(C_a) + trace(C_b)
    # scipy's wheels bring a fast LAPACK, which a numpy that pip built from source lacks
    a, b = (linalg.qr(x, mode="r")[0][: x.shape[1]] if len(x) > x.shape[1] else x for x in (a, b))
    trace_of_root = linalg.svdvals(a @ b.T).sum()
    return float(max(mean_term + spread - 2 * trace_of_root, 0.0))  # rounding may end just below 0


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


def inception_features(images, weights=None, batch_size=50):
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


def read_image(path, mode, size):
    """Returns an image file as (C, size, size) in [-1, 1], resized as pytorch-fid does; mode: PIL's "L" or "RGB"."""
    pixels = np.asarray(open_image(path).convert(mode), np.float32) / 127.5 - 1
    pixels = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    return nn.resize(jt.array(pixels[None]), (size, size), mode="bilinear", align_corners=False).numpy()[0]


def features_of(source, extract, mode, size, batch_size):
    """Returns the features (N, d) of a source as `image_source` returns it.

    extract: a function of images (N, C, size, size) in [-1, 1] that returns their features.
    """
    images = load_mnist(train=False).arrays()[0] if source == "mnist" else source
    features = []
    for start in tqdm(range(0, len(images), batch_size), desc="features", disable=None):
        batch = images[start : start + batch_size]
        if source != "mnist":
            batch = np.stack([read_image(path, mode, size) for path in batch])
        features.append(extract(batch))
    return np.concatenate(features)


def main(opt):
    if opt.features == "digits":
        classifier = digit_classifier.load()
        settings = (lambda images: digit_classifier.read_labels(classifier, images)[0]), "L", digit_classifier.IMG_SIZE
    else:
        weights = opt.inception_weights or find_hub_weights()
        if not weights:
            sys.exit(2)
        model = load_inception(weights)
        settings = (lambda images: inception_features(images, model, opt.batch_size)), "RGB", 299
    real, generated = (features_of(source, *settings, opt.batch_size) for source in (opt.real, opt.generated))
    print(f"FID: {frechet_distance(real, generated):.4f} ({len(real)} and {len(generated)} images)")
    print(f"KID: {kernel_distance(real, generated):.6f}")


if __name__ == "__main__":
    main(opt)
