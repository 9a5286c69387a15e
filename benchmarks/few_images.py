"""Shows what a Fréchet distance can tell from few images: real and generated digits, against real test images.

    python -m benchmarks.few_images

On the digit classifier's features, with the generator in results/reference. Every row is the mean and the range of ten
draws, but for the last, which takes all 10,000 test images.
"""

import numpy as np

from cgan import Generator, generate
from fid import frechet_distance, kernel_distance
from support import digit_classifier
from support.checkpoint import read_generator
from support.flags import REFERENCE_GENERATOR

DRAWS = 10


def scores(features, real, count, rng):
    """Returns (distances, kernel distances) of `count` rows of each set: arrays over the draws."""
    pairs = []
    for _ in range(DRAWS if count < len(real) else 1):
        a, b = (x[rng.choice(len(x), count, replace=False)] for x in (real, features))
        pairs.append((frechet_distance(a, b), kernel_distance(a, b)))
    return np.transpose(pairs)


def main():
    sizes, arrays = read_generator(REFERENCE_GENERATOR)
    generator = Generator(*sizes)
    generator.load_state_dict(arrays)
    rng = np.random.default_rng(0)
    labels = np.arange(10000) % 10
    images = {
        "real training digits": digit_classifier.mnist_images(train=True)[0][:10000],
        "generated": generate(generator, rng.standard_normal((len(labels), sizes[0])), labels),
    }
    classifier = digit_classifier.load()
    real, _ = digit_classifier.read_digits(classifier, digit_classifier.mnist_images(train=False)[0])
    features = {name: digit_classifier.read_digits(classifier, value)[0] for name, value in images.items()}
    print("| images | " + " | ".join(f"{name}: digit FID | digit KID" for name in features) + " |")
    print("| --- " * (1 + 2 * len(features)) + "|")
    for count in (100, 1000, 10000):
        cells = []
        for values in features.values():
            for figure, form in zip(scores(values, real, count, rng), ("{:.1f}", "{:.3f}")):
                spread = f" ({form.format(figure.min())} to {form.format(figure.max())})" if len(figure) > 1 else ""
                cells.append(form.format(figure.mean()) + spread)
        print(f"| {count} and {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
