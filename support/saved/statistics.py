"""The file that the statistics of a set of images are kept in, for the Fréchet distance: no image is needed again."""

import os
from argparse import ArgumentTypeError
from typing import NamedTuple, Optional

import numpy as np
from scipy import linalg

from support.saved.checkpoint import save_arrays

NAMES = ("mean", "covariance"), ("mu", "sigma")  # of the arrays in this project's files, and in pytorch-fid's
WIDTHS = {"inception": 2048, "digits": 128}  # of the features


class Statistics(NamedTuple):
    """What the Fréchet distance needs of a set of features, and what they are features of.

    mean: (d,) float64; spread: the trace of the covariance; factor: (r, d) float64, a matrix whose F'F is the
    covariance; count: how many images; features: of which network, a name in WIDTHS; weights: the SHA-256 of its file;
    size: at which MNIST was prepared, 0 for images taken as they are; said: how a line calls the set.
    What is not known is None.
    """

    mean: np.ndarray
    spread: float
    factor: np.ndarray
    count: Optional[int] = None
    features: Optional[str] = None
    weights: Optional[str] = None
    size: Optional[int] = None
    said: str = ""


def from_arrays(arrays, path):
    """Returns the Statistics in {name: array} of a file of this project or of pytorch-fid; raises ValueError."""
    own = NAMES[0][0] in arrays
    mean, covariance = (arrays[name] for name in NAMES[0 if own else 1])
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
        raise ValueError(
            f"{path}: the mean must be (d,) and the covariance (d, d), floats, not {mean.shape} and {covariance.shape}"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
        raise ValueError(f"{path}: mean and covariance must be finite, and the covariance symmetric")
    # Of few images most eigenvalues are 0; what rounding makes of them is left out, as its roots would add up
    values, vectors = linalg.eigh(covariance)
    rounding = len(mean) * np.finfo(np.float64).eps * max(values[-1], 0)
    if values[0] < -1e-6 * max(values[-1], 0) or values[-1] < 0:
        raise ValueError(f"{path}: its covariance matrix is wrong: it has a negative variance in one direction")
    kept = values > rounding
    factor = np.sqrt(values[kept])[:, None] * vectors.T[kept]
    if not own:
        known, said = {}, f"statistics in {path} of unknown weights and an unknown number of images"
        said += " (pytorch-fid's own weights are --inception_weights original): whether they fit is not checked"
    else:
        try:
            known = {name: arrays[name].item() for name in ("count", "features", "weights", "size")}
            fits = known["features"] in WIDTHS and known["count"] >= 2 and known["size"] >= 0
        except (KeyError, ValueError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{path} does not say which images its statistics are of: count, features, weights, size")
        at = " prepared at {0} x {0}".format(known["size"]) if known["size"] else ""
        said = f"statistics of {known['count']} images{at} in {path}"
    return Statistics(mean, np.trace(covariance), factor, **known, said=said)


def save_statistics(path, values, **known):
    """Writes the statistics of features (n, d), finite, n >= 2, as an .npz, and returns them as they lie there.

    known: Statistics' features, weights and size. Raises OSError.
    """
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    covariance = (values - mean).T @ (values - mean) / (len(values) - 1)
    save_arrays(path, {"mean": mean, "covariance": covariance, "count": len(values), **known})
    with np.load(path, allow_pickle=False) as file:
        return from_arrays(dict(file), path)


def new_file(text):
    """argparse type: an .npz that does not exist yet, in a folder that does."""
    folder = os.path.dirname(os.path.abspath(text))
    if not text.lower().endswith(".npz"):
        raise ArgumentTypeError(f"must end in .npz, not '{text}'")
    if os.path.lexists(text):
        raise ArgumentTypeError(f"{text} exists already: name another file, or delete it first")
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise ArgumentTypeError(f"{folder} is not a folder that can be written to")
    return text


def check_fit(sources, features, weights=None):
    """Raises ValueError that names what is wrong if Statistics among the sources do not fit.

    features: the network's name in WIDTHS; weights: the SHA-256 of its file, None if it is not known yet.
    """
    for source in sources:
        if not isinstance(source, Statistics):
            continue
        if source.features and source.features != features:
            raise ValueError(f"{source.said}: they are of other features: give --features {source.features}")
        if len(source.mean) != WIDTHS[features]:
            what = f"{len(source.mean)} features an image, but --features {features} has {WIDTHS[features]}"
            raise ValueError(f"{source.said}: they are of {what}")
        weights = weights or source.weights
        if source.weights and source.weights != weights:
            what = f"of weights with the SHA-256 {source.weights}, not {weights}"
            raise ValueError(f"{source.said}: they are {what}: give their own weights, or measure the set anew")
