"""Classification accuracy score: how well does a network read real digits that was trained on generated ones only?

    python -m benchmarks.accuracy_score         the reference run's generator and the best one: 10 minutes on one core

Source: Ravuri & Vinyals 2019, "Classification Accuracy Score for Conditional Generative Models". The network is that of
support/digit_classifier.py, which also says how it is trained; 50,000 generated digits stand in for the training images
that another network learns from, with the same labels. Accuracies are on the test images, after the last epoch.
"""

from benchmarks.common import add_generator, draw_seeded, show
from support.flags import Parser


def main():
    parser = Parser("Accuracy on real digits of a classifier trained on generated ones.")
    add_generator(parser)
    opt = parser.parse_args()
    from support import digit_classifier  # not above: flags are checked before Jittor compiles
    from support.mnist import load_mnist

    seen, labels = digit_classifier.split(seen=True)
    sets = {"the real training images": seen, **draw_seeded(parser, opt.generator, labels)}
    images, digits = load_mnist(False, digit_classifier.IMG_SIZE).arrays()
    rows = []
    for name, learned in sets.items():
        read = digit_classifier.read_labels(digit_classifier.train((learned, labels)), images)[1]
        rows.append([name, f"{(read == digits).mean():.4f}"])
    show(opt.keep, "accuracy_score", ["the classifier learned from", "test images that it reads right"], rows)


if __name__ == "__main__":
    main()
