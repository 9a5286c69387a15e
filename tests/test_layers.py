"""The layers written for a CPU compute what Jittor's compute."""

import numpy as np
import pytest

from support import layers
from support.device import jt


@pytest.mark.parametrize("n, n_in, n_out", [(64, 1034, 512), (1, 7, 3), (128, 512, 1)])
def test_linear_is_jittors_linear(n, n_in, n_out):
    plain, fast, x = jt.nn.Linear(n_in, n_out), layers.Linear(n_in, n_out), jt.randn(n, n_in)
    fast.load_state_dict({name: value.numpy() for name, value in plain.state_dict().items()})
    weighting = jt.randn(n, n_out)
    results = []
    for layer in (plain, fast):
        y = layer(x)
        results.append([y, *jt.grad((y * weighting).sum(), [x, layer.weight, layer.bias])])
    for ours, theirs in zip(*reversed(results)):
        scale = np.abs(theirs.numpy()).max()
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6, atol=1e-6 * scale)


def test_tanh_and_its_gradient_are_right_for_any_number():
    values = np.float32([-1e30, -200, -46, -44, -3, -0.5, 0, 1e-20, 0.5, 3, 44, 46, 200, 1e30] * 8)
    x = jt.array(values)
    y = layers.Tanh()(x)
    np.testing.assert_allclose(y.numpy(), np.tanh(values), rtol=1e-5)
    gradient = jt.grad((3 * y).sum(), x).numpy()
    np.testing.assert_allclose(gradient, 3 / np.cosh(np.clip(values.astype(float), -99, 99)) ** 2, rtol=1e-5, atol=1e-6)
