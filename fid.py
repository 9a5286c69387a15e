"""The Fréchet Inception Distance (FID) and its unbiased sibling KID between two sets of images.

FID compares the images as a network trained on ImageNet sees them (Heusel et al. 2017, "GANs Trained by a
Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"): it takes the 2048 features that Inception-v3
computes for every image, describes each set by their mean mu and covariance C, and returns

    |mu_a - mu_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))

Smaller is more alike; 0 is reached by equal sets. The value depends on how many images it is computed from
(few images: far too high), so only values from equally many images can be compared.
"""

import http.client
import os
import urllib.request

import numpy as np

from support.device import jt, quiet
from support.inception_weights import read_weights

# isort: split
from jittor import models, nn
from jittor_utils.misc import download_url_to_local

HUB = "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/"  # what Jittor calls jittorhub://
HUB_FILE = "inception_v3.pkl"


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
    a, b = (np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x for x in (a, b))
    trace_of_root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(mean_term + spread - 2 * trace_of_root, 0.0))  # rounding may end just below 0


def kernel_distance(a, b):
    """Returns the Kernel Inception Distance (KID): the squared maximum mean discrepancy with (x.y / d + 1)^3.

    a: features (n, d); b: features (m, d); n, m >= 2. Computed in float64. Its expectation does not depend on the
    number of images, as FID's does; it is unbiased, and so may be slightly negative. Raises ValueError as
    frechet_distance does. Source: Bińkowski et al. 2018, "Demystifying MMD GANs".
    """
    a, b = as_features(a, b)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))  # no image paired with itself

    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean())


def hub_weights():
    """Returns the path of Inception-v3's pretrained weights, fetched from Jittor's hub at the first call.

    Raises OSError where there is no network. A download that broke off is not kept.
    """
    path = os.path.join(jt.compiler.ck_path, HUB_FILE)
    if not os.path.isfile(path):
        urllib.request.urlopen(HUB + HUB_FILE, timeout=10).close()  # fails soon and silently without a network
        try:
            with quiet():
                download_url_to_local(HUB + HUB_FILE, HUB_FILE + ".part", jt.compiler.ck_path, None)
        except RuntimeError as error:
            raise OSError(str(error))
        os.replace(path + ".part", path)
    return path


def find_hub_weights():
    """Returns the path of Jittor's own weights; None, after one sentence on what to do, where they cannot be had."""
    try:
        path = hub_weights()
        read_weights(path)
        return path
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        print(
            f"FID is left out, as Inception-v3's weights could not be had ({reason}): "
            f"fetch {HUB}{HUB_FILE} and give --inception_weights PATH."
        )
        return None


def inception_features(images, weights=None, batch_size=50):
    """Returns Inception-v3's features after its global average pool: (N, 2048) float32.

    images: (N, 1 or 3, H, W) in [-1, 1], array or jittor Var; resized to 299 x 299 (bilinear), a single
    channel stands for all three. weights: a path (.pkl, .npz), {name: array}, or None for Jittor's own.
    Raises ValueError on images of another shape and on weights that are not Inception-v3's, OSError
    where weights is None and there is no network.
    """
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), not {tuple(images.shape)}")
    if not isinstance(weights, dict):
        weights = read_weights(weights or hub_weights())
    model = models.inception_v3(aux_logits=False)
    model.fc = nn.Identity()
    model.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith(("AuxLogits.", "fc."))}
    )
    model.eval()
    features = []
    with jt.no_grad():
        for start in range(0, len(images), batch_size):
            batch = jt.array(images[start : start + batch_size]).float32()
            batch = nn.resize(batch, (299, 299), mode="bilinear", align_corners=False)
            if batch.shape[1] == 1:
                batch = jt.concat([batch] * 3, dim=1)
            features.append(model(batch).numpy())
    return np.concatenate(features)
