"""Inception-v3, the network whose features FID compares."""

import os
from types import SimpleNamespace

from support import inception_sources
from support.device import jt, nn
from support.inception_weights import read_weights

AVERAGING = "5b 5c 5d 6b 6c 6d 6e 7b 7c".split()  # blocks in which one branch averages 3 x 3 pixels


def pool(x, kernel_size, op, padding=0, stride=None):
    """Is nn.pool, but leaves x as it is for an average: average_later() has put that behind a convolution."""
    return x if op == "mean" else nn.pool(x, kernel_size, op, padding, stride)


def average_later(branch, count_padding):
    """Has a branch average after its 1 x 1 convolution, which has fewer channels: the same, to rounding, and faster.

    ceil_mode has Jittor compile one loop for the average; at stride 1 it changes no shape.
    """
    average = nn.AvgPool2d(3, stride=1, padding=1, ceil_mode=True, count_include_pad=count_padding)
    branch.conv = nn.Sequential(branch.conv, average)


def load_inception(weights=None):
    """Returns Jittor's Inception-v3 in evaluation mode, (N, 3, 299, 299) in [-1, 1] -> (N, 2048).

    weights: as inception_sources.find takes them. Those that FID was defined with get the pooling of their network
    (docs/metrics.md). Raises OSError if there are none, ValueError that names a file and what is wrong with it.
    """
    # A path that find_weights returned was read and checked a moment ago
    path = weights if os.path.isabs(weights or "") else inception_sources.find(weights, jt.compiler.ck_path)[1]
    arrays, original = read_weights(path)
    model = jt.models.inception_v3(aux_logits=False)
    execute, blocks = model.execute, jt.models.inception
    patched = SimpleNamespace(**{**vars(nn), "pool": pool})  # for what the blocks' functions know as nn
    model.fc = nn.Identity()
    model.load_state_dict(arrays)
    for block in AVERAGING[:-1] if original else AVERAGING:
        average_later(getattr(model, f"Mixed_{block}").branch_pool, count_padding=not original)
    if original:
        last = model.Mixed_7c

        def with_maximum(x):
            pooled = last.branch_pool(nn.pool(x, 3, "maximum", stride=1, padding=1))
            return jt.concat([*last._forward(x)[:-1], pooled], dim=1)

        last.execute = with_maximum  # its pooling is no average

    def without_averages(x):
        blocks.nn = patched
        try:
            return execute(x)
        finally:
            blocks.nn = nn

    model.execute = without_averages
    model.eval()
    return model


def find_weights(wanted):
    """Returns (name, path) of weights as inception_sources.find does; None, after one sentence, if there are none."""
    try:
        return inception_sources.find(wanted, jt.compiler.ck_path)
    except OSError as error:
        print(f"FID is left out, as {error}.")
