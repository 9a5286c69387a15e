"""Trains as cgan.py does, with Jittor's own layers and Adam in the place of this project's faster ones.

    python -m benchmarks.plain --n_epochs 10 --output_dir plain         cgan.py's flags, but for --cpu and --digits

What comes out should differ as much as two seeds do, and no more: benchmarks/compare.py compares it.
"""

from support.device import jt, nn

import cgan
from support.runs.process import outlive_terminal, start_run


class Sequential(nn.Sequential):
    """jittor.nn.Sequential, which takes inputs to be laid side by side, as support.fast.layers.Sequential does."""

    def execute(self, *inputs):
        return super().execute(jt.concat(list(inputs), dim=1))


def main():
    opt = cgan.parse_flags()
    outlive_terminal()
    start_run(opt)
    cgan.Sequential, cgan.Tanh, cgan.Adam = Sequential, nn.Tanh, nn.Adam
    cgan.train(opt)


if __name__ == "__main__":
    main()
