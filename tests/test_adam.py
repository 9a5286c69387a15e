"""Adam as one operator computes what Jittor's does."""

import numpy as np
import pytest

import cgan
from support.device import jt, nn, set_seed
from support.fast.adam import Adam
from support.fast.layers import FusedSequential, Tanh

pytestmark = pytest.mark.usefixtures("processor")


def test_adam_is_jittors_adam():
    """50 steps of the whole generator on the same gradients."""
    noise, labels = jt.randn(64, 100), jt.randint(0, 10, (64,))
    generators = [cgan.Generator(100, 10, 32) for _ in range(2)]
    generators[1].load_state_dict({name: value.numpy() for name, value in generators[0].state_dict().items()})
    kinds = zip((nn.Adam, Adam), generators)
    optimizers = [kind(generator.parameters(), lr=0.0002, betas=(0.5, 0.999)) for kind, generator in kinds]
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


VALUES, GRADIENT = np.float32([3, -2]), np.float32([0.5, 1])


def steps(kind, n=2, groups=({},), dtype="float32", **settings):
    """Returns the parameters of all groups after n steps, all with the same gradient."""
    parameters = [jt.array(VALUES).cast(dtype) for _ in groups]
    optimizer = kind([{"params": [p], **group} for p, group in zip(parameters, groups)], **{"lr": 0.1, **settings})
    for _ in range(n):
        optimizer.step(sum((p * jt.array(GRADIENT).cast(dtype)).sum() for p in parameters))
    return np.array([p.numpy() for p in parameters])


def test_a_step_without_a_gradient_is_one_sentence():
    with pytest.raises(ValueError, match=r"no gradient yet: in Jittor, step\(loss\)"):
        Adam([jt.array(VALUES)], lr=0.1).step()


def test_a_rate_may_be_one_of_numpys_numbers():
    np.testing.assert_array_equal(steps(Adam, lr=np.float64(0.1)), steps(Adam))


SETTINGS = [{"weight_decay": 0.1}, {"groups": [{"lr": 0.5}]}, {"groups": [{}, {}]}]


@pytest.mark.parametrize("settings", [*SETTINGS, {"dtype": "float16"}, {"dtype": "float64"}])
def test_settings_that_the_operator_does_not_know_are_jittors(settings):
    ours, theirs = (steps(kind, **settings) for kind in (Adam, nn.Adam))
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - VALUES).min() > 0.1


@pytest.mark.parametrize("betas", [(0.99999999, 0.999), (0.5, 0.9999999)])
def test_decay_rates_next_to_one_move_the_parameters_as_jittors(betas):
    ours, theirs = (steps(kind, n=5, betas=betas) - VALUES for kind in (Adam, nn.Adam))
    assert np.abs(theirs).min() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("sequential", [FusedSequential, nn.Sequential])
@pytest.mark.parametrize("kind", [Adam, nn.Adam], ids=["ours", "jittor's"])
def test_an_output_from_before_a_step_has_the_gradients_of_the_parameters_from_before(kind, sequential):
    """So the discriminator may be trained first, and the generator then through what it said before."""
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    set_seed(0)
    model = sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3), Tanh(), nn.Linear(3, 1))
    optimizer, x = kind(model.parameters(), lr=0.1), jt.array(values)

    def gradients(y):
        first = jt.grad(y.sum(), x, retain_graph=True)
        return first, first.sqr().sum()

    y, later = model(x), model(x)
    (before, squares), (_, square) = gradients(y), gradients(later)
    before, expected = before.numpy(), jt.grad(squares, x).numpy()
    optimizer.step(model(jt.array(values[::-1].copy())).sqr().sum())
    np.testing.assert_allclose(gradients(later)[0].numpy(), before, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(jt.grad(square, x).numpy(), expected, rtol=1e-4, atol=1e-7)
    now = gradients(model(x))[0].numpy()
    assert np.abs(now - before).max() > 0.1 * np.abs(before).max()


@pytest.mark.parametrize("sizes", [(4, 4), (4, 5), (4, 4, 4)])
def test_a_network_that_is_used_several_times_in_a_step_and_an_input_that_is_trained(sizes):
    """Gradients of two looks are added up while they are computed."""
    rng, found = np.random.default_rng(0), []
    inputs = [rng.standard_normal((n, 5)).astype(np.float32) for n in sizes]
    for kind, sequential in ((Adam, FusedSequential), (nn.Adam, nn.Sequential)):
        set_seed(0)
        model = sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        trained = jt.array(inputs[0])
        optimizer = kind([trained, *model.parameters()], lr=0.1)
        for _ in range(3):
            looks = [model(x) for x in (trained, *map(jt.array, inputs[1:]))]
            optimizer.step(sum(((y - i) ** 2).mean() for i, y in enumerate(looks)) + model(trained).mean())
        # But for the bias before the norm, whose gradient is rounding noise, and the running mean, which has it
        names = [name for name, p in model.named_parameters() if p.requires_grad and name != "2.bias"]
        found.append([trained.numpy(), *(model.state_dict()[name].numpy() for name in names)])
    for ours, theirs in zip(*found):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
