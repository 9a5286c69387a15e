"""Adam as one operator computes what Jittor's does."""

import numpy as np
import pytest

import cgan
from support.fast import adam
from support.device import jt


@pytest.mark.slow
def test_adam_is_jittors_adam():
    """50 steps of the whole generator on the same gradients."""
    noise, labels = jt.randn(64, 100), jt.randint(0, 10, (64,))
    generators = [cgan.Generator(100, 10, 32) for _ in range(2)]
    generators[1].load_state_dict({name: value.numpy() for name, value in generators[0].state_dict().items()})
    optimizers = [
        kind(generator.parameters(), lr=0.0002, betas=(0.5, 0.999))
        for kind, generator in zip((jt.nn.Adam, adam.Adam), generators)
    ]
    targets = jt.rand(64, 1, 32, 32)
    for _ in range(50):
        optimizers[0].backward(((generators[0](noise, labels) - targets) ** 2).mean())
        gradients = optimizers[0].param_groups[0]["grads"]
        optimizers[1].backward(sum((p * g.detach()).sum() for p, g in zip(generators[1].parameters(), gradients)))
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[0].n_step == optimizers[1].n_step == 50
    for ours, theirs in zip(generators[1].parameters(), generators[0].parameters()):
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:  # a running statistic moves with the passes, which only one of the two makes
            assert np.abs(ours.numpy() - theirs.numpy()).max() < 1e-6
    for moments in ("m", "values"):
        for ours, theirs in zip(*(optimizer.param_groups[0][moments] for optimizer in reversed(optimizers))):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-9)


def test_settings_that_the_operator_does_not_know_are_jittors():
    values, gradient = np.float32([3, -2]), np.float32([0.5, 1])
    for settings in ({"weight_decay": 0.1}, {"groups": [{"lr": 0.5}]}, {"groups": [{}, {}]}):
        groups, found = settings.pop("groups", [{}]), []
        for kind in (jt.nn.Adam, adam.Adam):
            parameters = [jt.array(values) for _ in groups]
            optimizer = kind([{"params": [p], **group} for p, group in zip(parameters, groups)], lr=0.1, **settings)
            optimizer.step(sum((p * jt.array(gradient)).sum() for p in parameters))
            found.append(np.array([p.numpy() for p in parameters]))
        np.testing.assert_array_equal(*found)
        assert (found[0] != values).all()
