"""Classification accuracy score: how well does a network read real digits that was trained on generated ones only?

    python -m benchmarks.accuracy_score                     results/best/generator.npz: 3 minutes on one core
    python -m benchmarks.accuracy_score --real              the same network, trained on the real training images

Source: Ravuri & Vinyals 2019, "Classification Accuracy Score for Conditional Generative Models". The network is that of
support/digit_classifier.py, which also says how it is trained; 60,000 generated digits, 6,000 of each, stand in for the
training images. Its accuracy on the test images is printed after every epoch; the last one counts.
"""

import numpy as np

from benchmarks.common import add_generator, draw_seeded
from support.flags import Parser
from support.idx import MNIST


def main():
    parser = Parser("Accuracy on real digits of a classifier trained on generated ones.")
    add_generator(parser)
    parser.add_argument("--real", action="store_true", help="train on the real training images instead")
    opt = parser.parse_args()
    from support import digit_classifier  # not above: flags are checked before Jittor compiles

    data = None
    if not opt.real:
        drawn, labels = draw_seeded(parser, [opt.generator], MNIST.n_train)
        data = *drawn.values(), labels.astype(np.int32)
    digit_classifier.train(data)


if __name__ == "__main__":
    main()
