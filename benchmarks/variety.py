"""How varied are the digits that a generator draws, and does it copy its training images?

    python -m benchmarks.variety                            the reference run's generator and the best one
    python -m benchmarks.variety --generator checkpoint.npz --picture nearest.png       another, or several
    python -m benchmarks.variety --runs compared                      all that benchmarks.compare trained in this folder

docs/results.md explains the tables. Every distance is between the digit classifier's features of two images. The real
digits, which are also the training images of the last table, are those that it never saw; the generators did. The
picture shows 20 digits of the last generator, each above the nearest of all training images.
"""

import os

import numpy as np

from benchmarks import compare, differences
from benchmarks.common import add_generator, digit_features, draw_seeded, real_and_drawn, show
from support.flags import Parser
from support.saved.paths import checkpoint_path

CHUNK = 100  # rows at a time, which bounds the memory
SHOWN = 20
WIDTHS = (1.0, 1.1, 1.2)  # standard deviations of the noise
UNSEEN = "real digits, unseen"  # training images that the classifier never saw


def squared_distances(a, b):
    """Yields the squared Euclidean distances (rows, m) of features a (n, d) and b (m, d), chunk by chunk of a."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = (b**2).sum(1)
    for start in range(0, len(a), CHUNK):
        part = a[start : start + CHUNK]
        yield np.maximum((part**2).sum(1)[:, None] + norms - 2 * part @ b.T, 0)


def balls_around(points, centres, k):
    """Returns how many balls hold each point, (n,), and whether each ball holds any of the points, (m,).

    The ball around a centre reaches as far as its k-th nearest neighbour among the centres.
    """
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in squared_distances(centres, centres)])
    counts, filled = [], np.zeros(len(centres), bool)
    for distances in squared_distances(points, centres):
        inside = distances <= radii
        counts.append(inside.sum(1))
        filled |= inside.any(0)
    return np.concatenate(counts), filled


def variety(real, generated):
    """Returns the metrics of generated features (m, d) beside real ones (n, d).

    precision, recall: the share of generated digits within the real ones' balls, and the reverse, k = 3 (Kynkäänniemi
    et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models").
    density, coverage: how many real balls hold a generated digit, over k, and the share of real balls that hold any,
    k = 5 (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models").
    """
    counts, covered = balls_around(generated, real, k=5)
    return {
        "precision": (balls_around(generated, real, k=3)[0] > 0).mean(),
        "recall": (balls_around(real, generated, k=3)[0] > 0).mean(),
        "density": counts.mean() / 5,
        "coverage": covered.mean(),
    }


def of_runs(parser, folder):
    """Returns head and rows of the table of the finished runs of benchmarks.compare in a folder, its search too."""
    from support.mnist import load_mnist

    (test, labels), runs, rows = load_mnist(train=False).arrays(), {}, []
    of_test = digit_features(test)
    for name, flags in (*compare.planned(), *compare.planned(search=True)):
        path = checkpoint_path(os.path.join(folder, name, f"seed{flags['seed']}"))
        finished = os.path.exists(compare.kept_log(name, flags["seed"]))
        if name != compare.PLAIN:
            runs.setdefault(name, {})[flags["seed"]] = path if finished and os.path.exists(path) else None
    for name, paths in runs.items():
        if not all(paths.values()):
            continue
        drawn = draw_seeded(parser, paths.values(), labels)
        found = [variety(of_test, digit_features(images)) for images in drawn.values()]
        columns = {metric: [metrics[metric] for metrics in found] for metric in found[0]}
        seeds = f"{min(paths)} to {max(paths)}" if len(paths) > 1 else str(*paths)
        shown = differences.run_by_run if compare.far_apart(columns["recall"]) else compare.mean_and_spread
        cells = [shown(values, 3) for values in columns.values()]
        rows.append([f"`{compare.flags_of(name + compare.EMA)}`", seeds, *cells])
    if not rows:
        parser.error(f"argument --runs: no configuration has all its runs in {folder}")
    return ["the averages of", "seeds", *columns], rows


def of_noise(parser, path):
    """Returns head and rows of the table of a generator that draws from wider noise."""
    from fid import frechet_distance
    from support.digit_classifier import load, read_labels
    from support.mnist import load_mnist

    labels, classifier, rows = load_mnist(train=False).arrays()[1], load(), []
    drawn = {width: images for width in WIDTHS for images in draw_seeded(parser, [path], labels, width).values()}
    of_test = digit_features(load_mnist(False, drawn[WIDTHS[0]].shape[-1]).arrays()[0])
    for width, images in drawn.items():
        of_drawn, read = read_labels(classifier, images)
        metrics = variety(of_test, of_drawn)
        scores = [f"{(read == labels).mean():.4f}", f"{frechet_distance(of_drawn, of_test):.2f}"]
        rows.append([f"{width}", *scores, *(f"{value:.3f}" for value in metrics.values())])
    return ["width of the noise", "label accuracy", "digit FID", *metrics], rows


def nearest(features, others):
    """Returns the number of each feature's nearest among the others, (n,), and its distance, (n,)."""
    found = [(d.argmin(1), d.min(1)) for d in squared_distances(features, others)]
    numbers, squares = map(np.concatenate, zip(*found))
    return numbers, np.sqrt(squares)


def main():
    parser = Parser("Variety of generated digits, and their nearest training images.")
    add_generator(parser)
    parser.add_argument("--runs", help="the folder of benchmarks.compare's runs, whose averages are measured instead")
    parser.add_argument(
        "--noise", action="store_true", help="the last generator's digits from wider and wider noise instead"
    )
    parser.add_argument("--picture", help="where to draw the last one's digits above their nearest training images")
    opt = parser.parse_args()
    if sum(map(bool, (opt.runs, opt.noise, opt.picture))) > 1:
        parser.error("--runs, --noise and --picture cannot be given together")
    if opt.runs:
        return show(opt.keep, "variety_of_runs", *of_runs(parser, opt.runs))
    if opt.noise:
        return show(opt.keep, "variety_of_noise", *of_noise(parser, opt.generator[-1]))
    (real, real_labels), (test, labels), drawn = real_and_drawn(parser, opt.generator)
    from fid import frechet_distance  # not above: flags are checked before Jittor compiles
    from support.digit_classifier import load, read_labels, split

    others, _ = split(seen=True, img_size=real.shape[-1])
    others = others if opt.picture else others[: len(test)]
    noise = np.random.default_rng(0).uniform(-1, 1, test.shape).astype(np.float32)
    classifier, rows, of = load(), [], {}
    of_others, of_test = (read_labels(classifier, images)[0] for images in (others, test))
    for name, images in {UNSEEN: real, **drawn, "random noise": noise}.items():
        of[name], read = read_labels(classifier, images)
        accuracy = (read == (real_labels if name == UNSEEN else labels)).mean()
        rows.append([name, f"{accuracy:.4f}", f"{frechet_distance(of[name], of_test):.2f}"])
    show(opt.keep, "scale", ["images", "label accuracy", "digit FID"], rows)

    of_real, of_drawn = of[UNSEEN], {name: of[name] for name in drawn}
    scores = {name: variety(of_test, features) for name, features in {UNSEEN: of_real, **of_drawn}.items()}
    rows = [[name, *(f"{value:.3f}" for value in metrics.values())] for name, metrics in scores.items()]
    show(opt.keep, "variety", ["", *scores[UNSEEN]], rows)
    rows = []
    for name, features in {"other training digits": of_others[: len(test)], **of_drawn}.items():
        distances = to_training, to_test = [nearest(features, near)[1] for near in (of_real, of_test)]
        first = np.argsort(np.minimum(to_training, to_test))[: len(features) // 100]
        rows.append([name, *(f"{np.percentile(found, share):.2f}" for share in (1, 50) for found in distances)])
        rows[-1].append(str((to_training < to_test)[first].sum()))
    head = [f"{share}, to {images}" for share in ("first percentile", "median") for images in ("training", "test")]
    head = ["distance to the nearest of 10,000", *(f"{which} images" for which in head)]
    show(opt.keep, "copies", [*head, f"of the nearest {len(first)}, to a training image"], rows)
    if opt.picture:
        from support.pages import pictures

        *_, last = drawn
        training, of_training = np.concatenate([real, others]), np.concatenate([of_real, of_others])
        pairs = np.concatenate([drawn[last][:SHOWN], training[nearest(of_drawn[last][:SHOWN], of_training)[0]]])
        pictures.save_picture(opt.picture, pictures.lay_out([[0] * SHOWN] * 2, pairs))
        print(f"wrote {opt.picture}: {SHOWN} generated digits above their nearest training images")


if __name__ == "__main__":
    main()
