"""Trains as cgan.py does, with Jittor's own layers and Adam instead of this project's faster ones.

    python -m benchmarks.plain --n_epochs 10 --output_dir plain         cgan.py's flags, but for --cpu and --digits

What comes out should differ as much as two seeds do, and no more: benchmarks/compare.py compares it.
"""

import cgan
from support.device import jt, nn
from support.runs.process import start_run


class Sequential(nn.Sequential):
    """jittor.nn.Sequential of several inputs, which it concatenates as FusedSequential does."""

    def execute(self, *inputs):
        return super().execute(jt.concat(list(inputs), dim=1))


JITTORS_OWN = {"Adam": nn.Adam, "FusedSequential": Sequential, "Tanh": nn.Tanh}  # by their names in cgan.py


def main():
    opt = cgan.parse_flags()
    start_run(opt)
    vars(cgan).update(JITTORS_OWN)
    cgan.train(opt)


if __name__ == "__main__":
    main()
