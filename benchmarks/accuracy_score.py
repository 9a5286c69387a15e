"""Classification accuracy score: how well does a network read real digits that was trained on generated ones only?

    python -m benchmarks.accuracy_score                     results/best/generator.npz: 3 minutes on one core
    python -m benchmarks.accuracy_score --real              the same network, trained on the real training images

Source: Ravuri & Vinyals 2019, "Classification Accuracy Score for Conditional Generative Models". The network is that of
support/digit_classifier.py, which also says how it is trained; 60,000 generated digits, 6,000 of each, stand in for the
training images. Its accuracy on the test images is printed after every epoch; the last one counts.
"""

import numpy as np

from benchmarks.variety import draw_seeded
from cgan import load_generator
from support import digit_classifier
from support.flags import Parser, add_generator


def main():
    parser = Parser("Accuracy on real digits of a classifier trained on generated ones.")
    add_generator(parser)
    parser.add_argument("--real", action="store_true", help="train on the real training images instead")
    opt = parser.parse_args()
    if opt.real:
        digit_classifier.train()
        return
    images, labels = draw_seeded(load_generator(opt.generator), n=60000)
    digit_classifier.train((images, labels.astype(np.int32)))


if __name__ == "__main__":
    main()
