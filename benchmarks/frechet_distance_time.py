"""Times fid.frechet_distance beside the formula as it is printed, with scipy's matrix square root.

    python -m benchmarks.frechet_distance_time

Features are drawn, not negative and moving together as Inception's do; best of three runs (sqrtm: one).
"""

import os
import time

import numpy as np
from scipy.linalg import sqrtm

from fid import frechet_distance

SIZES = [(100, 100, 2048), (3000, 3000, 2048), (10000, 10000, 128)]


def draw_features(n, d, seed, factors=64):
    """Returns (n, d) float64; every seed draws from the same distribution."""
    mix = np.random.default_rng(0).normal(size=(factors, d))
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, factors)) @ mix + rng.normal(size=(n, d)), 0)


def sqrtm_distance(a, b):
    """The formula of Heusel et al. 2017, as FID scripts compute it."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariance_a + covariance_b - 2 * root.real)


def best_time(function, a, b, runs):
    """Returns (seconds of the fastest run, its result)."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function(a, b)
        times.append(time.perf_counter() - start)
    return min(times), result


def main():
    print(f"{os.cpu_count()} cores\n")
    print("| images | features | this project | sqrtm | ratio | difference |\n| --- | --- | --- | --- | --- | --- |")
    for n, m, d in SIZES:
        a, b = draw_features(n, d, 1), draw_features(m, d, 2)
        ours, distance = best_time(frechet_distance, a, b, runs=3)
        theirs, expected = best_time(sqrtm_distance, a, b, runs=1)
        difference = abs(distance / expected - 1)
        print(f"| {n} and {m} | {d} | {ours:.3f} s | {theirs:.2f} s | {theirs / ours:.1f} x | {difference:.0e} |")


if __name__ == "__main__":
    main()
