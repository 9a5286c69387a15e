"""The layers written for speed compute what jittor.nn's compute, values and gradients."""

from pathlib import Path

import numpy as np
import pytest
from conftest import done, slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cgan
from benchmarks import plain
from support.device import jt, nn, set_seed
from support.fast import layers
from support.fast.layers import Embedding, FusedSequential, Stack, Tanh

pytestmark = pytest.mark.usefixtures("processor")


def results(model, inputs, weighting):
    """Returns output, gradients of inputs and parameters, and running statistics, as arrays."""
    set_seed(0)  # what Dropout draws
    inputs = [jt.array(x) for x in inputs]
    y = model(*inputs)
    trained = {name: p for name, p in model.named_parameters() if not p.is_stop_grad()}
    loss, variables = (y * jt.array(weighting)).sum(), [*inputs, *trained.values()]
    gradients = jt.grad(loss, variables, retain_graph=True)
    with layers.gradients_once():
        again = jt.grad(loss, variables)
    ours = isinstance(model, FusedSequential) and {*map(type, model.parts([x.shape[1] for x in inputs]))} == {Stack}
    if ours or not jt.flags.use_cuda:  # there Jittor's own layers add up in any order
        for gradient, once in zip(gradients, again):
            np.testing.assert_array_equal(gradient.numpy(), once.numpy())
    names = [*(f"input {i}" for i in range(len(inputs))), *trained]
    found = {"y": y, **dict(zip(names, gradients))}
    found.update({name: p for name, p in model.named_parameters() if p.is_stop_grad()})
    return {name: value.numpy() for name, value in found.items()}


def meets_a_kink(model, inputs):
    """Returns whether a LeakyReLU is given a number so near to 0 that rounding decides on which side it is.

    A number that is 0, as behind Dropout or ReLU, is on no side.
    """
    set_seed(0)  # as in results
    x = jt.concat([jt.array(x) for x in inputs], dim=1)
    for layer in model:
        if isinstance(layer, nn.LeakyReLU) and ((x != 0) & (jt.abs(x) < 1e-6)).numpy().any():
            return True
        x = layer(x)
    return False


def compare(layers, plain_layers, widths, n, seed=0, uncertain=()):
    """Asserts that both compute the same; uncertain: parameters whose gradient is rounding noise, 0 by rights."""
    rng = np.random.default_rng(seed)
    ours, theirs = FusedSequential(*layers), plain.Sequential(*plain_layers)
    for layer in ours:
        if isinstance(layer, nn.BatchNorm1d):  # begins with ones and zeros, which would hide what is left out
            for var in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                if isinstance(var, jt.Var):  # else it is not affine
                    low = 0.5 if var is layer.weight or var is layer.running_var else -1
                    var.assign(rng.uniform(low, 2, var.shape).astype(np.float32))
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    inputs = None
    while inputs is None or meets_a_kink(theirs, inputs):
        theirs.load_state_dict(state)
        inputs = [rng.standard_normal((n, width)).astype(np.float32) for width in widths]
    theirs.load_state_dict(state)  # without the running statistics of these looks
    weighting = rng.standard_normal((n, layers[-1 if type(layers[-1]) is nn.Linear else -2].weight.shape[0]))
    a, b = (results(model, inputs, weighting.astype(np.float32)) for model in (ours, theirs))
    assert a.keys() == b.keys()
    for name in a:
        if name in uncertain:
            assert not a[name].any() and np.abs(b[name]).max() < 1e-3
        else:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5 * np.abs(b[name]).max(), err_msg=name)
    return ours


def generator_like(sizes, tanh):
    layers = [nn.Linear(*sizes[:2]), nn.LeakyReLU(0.2)]
    for pair in zip(sizes[1:], sizes[2:-1]):
        layers += [nn.Linear(*pair), nn.BatchNorm1d(pair[1], eps=0.8), nn.LeakyReLU(0.2)]
    return [*layers, nn.Linear(*sizes[-2:]), tanh()]


@pytest.mark.parametrize("n", [2, 17, 31, 33, 63, 64, 128, 300])
def test_generators_stack(n):
    uncertain = ["2.bias", "5.bias"]
    sizes = (13, 21, 35, 50, 71)
    ours = compare(generator_like(sizes, Tanh), generator_like(sizes, nn.Tanh), [4, 9], n, uncertain=uncertain)
    assert [type(part) for part in ours.parts([4, 9])] == [Stack]


@pytest.mark.parametrize("n", [17, 64, 300])
def test_without_avx512(processor, n):
    """On a processor that has it, the other half of layers.h."""
    if processor == "cuda":
        pytest.skip("of the CPU's layers only")
    layers.graph.without_avx512(True)
    try:
        test_generators_stack(n)
        test_discriminators_stack(n)
    finally:
        layers.graph.without_avx512(False)
    compiled = [path.read_text() for path in Path(jt.flags.cache_path, "jit").glob("stack*JIT_narrow*.cc")]
    assert len(compiled) > 1 and all("#undef __AVX512F__" in text for text in compiled)


@pytest.mark.parametrize("n", [2, 63, 64, 128, 300])
def test_discriminators_stack(n):
    def layers():
        first, *others = [nn.Linear(1034, 300), nn.Linear(300, 257), nn.Linear(257, 100), nn.Linear(100, 1)]
        layers = [first, nn.LeakyReLU(0.2)]
        for linear in others[:-1]:
            layers += [linear, nn.Dropout(0.4), nn.LeakyReLU(0.2)]
        return [*layers, others[-1]]

    ours = compare(layers(), layers(), [1024, 10], n)
    assert [type(part) for part in ours.parts([1024, 10])] == [Stack]


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_the_reports_networks_in_double_precision(network):
    """What they compute differs by rounding alone from the same formulas in double precision."""
    opt, rng = cgan.parse_flags([]), np.random.default_rng(0)
    model = (cgan.make_generator(opt) if network == "generator" else cgan.Discriminator(10, 32, 512)).model
    widths = [10, 100] if network == "generator" else [1024, 10]
    (stack,) = model.parts(widths)
    inputs = [jt.array(rng.standard_normal((64, width)).astype(np.float32)) for width in widths]
    singles = [*inputs, *stack.parameters()]

    def values(variables, function):
        y = function(variables[: len(widths)], variables[len(widths) :])
        weighting = jt.array(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)).cast(y.dtype)
        return [var.numpy() for var in (y, *jt.grad((y * weighting).sum(), variables))]

    found = [values(singles, lambda inputs, _: model(*inputs))]
    with jt.flag_scope(use_cuda=0):  # Jittor's product of doubles fails on a GPU
        doubles = [var.float64() for var in singles]
        found.append(values(doubles, lambda inputs, rest: layers.by_operators(stack.numbers, inputs, iter(rest))))
    assert found[1][0].dtype == np.float64
    for ours, exact in zip(*found):
        assert np.abs(ours - exact).max() <= 1e-5 * max(np.abs(exact).max(), 1e-3), exact.shape


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.integers(2, 130),
    st.lists(st.integers(1, 200), min_size=1, max_size=3),
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.sampled_from([0.01, 0.2, 1.5]),
    st.booleans(),
)
def test_any_sizes(n, widths, sizes, slope, tanh):
    sizes = [sum(widths), *sizes]

    def layers(last):
        linears = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:])]
        return [layer for linear in linears for layer in (linear, nn.LeakyReLU(slope))][:-1] + [last()] * tanh

    compare(layers(Tanh), layers(nn.Tanh), widths, n, seed=n)


@pytest.mark.parametrize(
    "change",
    [
        lambda: nn.BatchNorm1d(8, is_train=False),
        lambda: nn.BatchNorm1d(8, affine=False, is_train=False),
        lambda: nn.Dropout(0.4, is_train=True),
        lambda: nn.ReLU(),
        lambda: nn.LeakyReLU(0.0),
        lambda: nn.Linear(8, 8, bias=False),
    ],
)
def test_with_what_a_stack_does_not_know_the_same_is_computed(change):
    def layers():
        first = [nn.Linear(13, 8), change(), nn.LeakyReLU(0.2)]
        return [*first, nn.Linear(8, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Linear(6, 3)]

    compare(layers(), layers(), [4, 9], 33, uncertain=["3.bias"])


@pytest.mark.parametrize(
    "layers, inputs",
    [
        ([nn.Linear(5, 3)], [(4, 6)]),
        ([nn.Linear(5, 3)], [(4, 2), (3, 3)]),
        ([nn.Linear(5, 7), nn.Linear(8, 3)], [(4, 5)]),
        ([nn.Linear(5, 7), nn.BatchNorm1d(6)], [(4, 5)]),
        ([nn.Linear(5, 7), nn.ReLU(), nn.Linear(8, 3)], [(4, 5)]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(layers, inputs):
    with pytest.raises((AssertionError, RuntimeError)):
        FusedSequential(*layers)(*[jt.randn(shape) for shape in inputs]).sync()


CHANGES = {
    "a hook": lambda layers: layers[0].register_forward_hook(lambda layer, args, y: 2 * y),
    "a hook on what does nothing": lambda layers: layers[1].register_forward_hook(lambda layer, args, y: 2 * y),
    "frozen": lambda layers: layers[0].requires_grad_(False),
    "evaluation": lambda layers: setattr(layers[2], "is_train", False),
    "eps": lambda layers: setattr(layers[2], "eps", 0.5),
    "another weight": lambda layers: setattr(layers[0], "weight", jt.ones((1, 5))),  # is broadcast
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_after_the_first_call_counts(change):
    layers = [nn.Linear(5, 3), nn.Dropout(0.4), nn.BatchNorm1d(3), nn.LeakyReLU(0.2), nn.Linear(3, 2)]
    ours, theirs = FusedSequential(*layers), nn.Sequential(*layers)
    x, weighting = (np.random.default_rng(0).standard_normal((4, n)).astype(np.float32) for n in (5, 2))
    ours(jt.array(x)).sync()
    change(layers)
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    found = []
    for model in (ours, theirs):
        model.load_state_dict(state)
        found.append(results(model, [x], weighting))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


class Split(nn.Module):
    def execute(self, x):
        return x.reshape(len(x), 2, -1)


@pytest.mark.parametrize("x", [np.ones((4, 5)), np.ones((4, 2, 5)), np.ones(5), np.ones((4, 5), np.float64)])
@pytest.mark.parametrize("between", [nn.LeakyReLU(0.2), Split()], ids=["stack", "another shape"])
def test_with_one_input_it_takes_the_place_of_jittors(x, between):
    """Whatever its shape and type, errors too."""
    layers = [nn.Linear(5, 6), between, nn.Linear(6 if isinstance(between, nn.LeakyReLU) else 3, 2)]
    found = []
    for model in (FusedSequential(*layers), nn.Sequential(*layers)):
        try:
            found.append(model(jt.array(x)).numpy())
        except Exception as error:
            found.append(type(error))
    assert type(found[0]) is type(found[1])
    if isinstance(found[0], np.ndarray):
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    else:
        assert found[0] is found[1]


def test_no_layers_are_their_inputs():
    np.testing.assert_array_equal(FusedSequential()(jt.ones((2, 3)), jt.zeros((2, 1))).numpy(), [[1, 1, 1, 0]] * 2)


def test_what_is_not_known_is_jittors_own():
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3), nn.Dropout(0.5), nn.Linear(3, 2)]
    model = FusedSequential(*layers)
    assert [type(part) for part in model.parts([5])] == [Stack, nn.ReLU, Stack]
    model.eval()
    parts = model.parts([5])
    assert [type(part) for part in parts] == [Stack, nn.BatchNorm1d, nn.ReLU, Stack]
    layers[4].is_train = True
    assert [type(part) for part in model.parts([5])][-3:] == [Stack, nn.Dropout, Stack]


def test_tanh_and_its_gradients_are_right_for_any_number():
    values = np.float32([-1e30, -200, -46, -44, -20, -3, -0.5, 0, 1e-20, 0.5, 3, 20, 44, 46, 200, 1e30])
    x = jt.array(values)
    y = Tanh()(x)
    first = jt.grad((3 * y).sum(), x, retain_graph=True)
    second = jt.grad(first.sum(), x)
    np.testing.assert_allclose(y.numpy(), np.tanh(values), rtol=1e-5)
    slope = 3 / np.cosh(np.clip(values.astype(float), -99, 99)) ** 2
    np.testing.assert_allclose(first.numpy(), slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.numpy(), -2 * np.tanh(values) * slope, rtol=1e-5, atol=1e-6)


def penalty_on_inputs(model, x):
    """As Wasserstein with gradient penalty has it."""
    return ((jt.grad(model(x).sum(), x).sqr().sum(1) + 1e-12).sqrt() - 1).sqr().mean()


def penalty_on_weights(model, x):
    weights = [p for p in model.parameters() if not p.is_stop_grad()]
    return sum(gradient.sqr().sum() for gradient in jt.grad(model(x).sqr().sum(), weights))


def third_order(model, x):
    first = jt.grad(model(x).sqr().sum(), x)
    return jt.grad(first.sqr().sum(), x).sqr().mean()


@pytest.mark.parametrize("penalty", [penalty_on_inputs, slow(penalty_on_weights), slow(third_order)])
def test_gradients_of_gradients_are_jittors(penalty):
    layers = [nn.Linear(30, 24), nn.LeakyReLU(0.2), nn.Linear(24, 20), nn.BatchNorm1d(20, eps=0.8), nn.LeakyReLU(0.2)]
    layers += [nn.Linear(20, 6), Tanh(), nn.Linear(6, 1)]
    values, found = np.random.default_rng(0).standard_normal((9, 30)).astype(np.float32), []
    for kind in (FusedSequential, nn.Sequential):
        for running, value in ((layers[3].running_mean, 0), (layers[3].running_var, 1)):
            running.assign(jt.full((20,), float(value)))
        model, x = kind(*layers), jt.array(values)
        loss = penalty(model, x)
        trained = {name: p for name, p in model.named_parameters() if not p.is_stop_grad()}
        arrays = dict(zip(["x", *trained], jt.grad(loss, [x, *trained.values()])), loss=loss)
        arrays.update({name: p for name, p in model.named_parameters() if p.is_stop_grad()})
        found.append({name: var.numpy() for name, var in arrays.items()})
    for name, theirs in found[1].items():
        ours = found[0][name]
        if name == "2.bias":  # normalisation takes it away again: its gradient is rounding noise
            assert max(np.abs(ours).max(), np.abs(theirs).max()) < 1e-4
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max(), err_msg=name)
    assert all(found[0][name].any() for name in ("x", "0.weight", "2.weight"))


def test_running_statistics_are_those_of_the_passes_before():
    """Whoever reads them, and whether or not somebody reads the outputs."""
    layers, found = [nn.Linear(5, 3), nn.BatchNorm1d(3), nn.LeakyReLU(0.2)], []
    x = jt.array(np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32))
    for model in (FusedSequential(*layers), nn.Sequential(*layers)):
        running = layers[1].running_mean
        running.assign(jt.zeros(3))
        y = model(x)
        means = [running.numpy()]
        with jt.no_grad():
            model(x)
        jt.sync_all()
        means.append(running.numpy())
        between, y = running.copy(), model(x)
        found.append([*means, between.numpy(), running.numpy(), y.numpy()])
    np.testing.assert_allclose(found[0][:4], found[1][:4], rtol=1e-5)


def test_labels_of_an_embedding():
    """A label that the table does not have shows in what is computed, and what is no labels is Jittor's."""
    embedding = Embedding(3, 2)
    values = embedding.weight.numpy()
    found = embedding(jt.array([0, 3, -1, 2])).numpy()
    np.testing.assert_array_equal(found, [values[0], [np.nan] * 2, [np.nan] * 2, values[2]])
    for labels in ([0, 2], np.array([True, False, True])):
        np.testing.assert_array_equal(embedding(jt.array(labels)).numpy(), values[[0, 2]])


def test_embedding_and_its_gradients():
    values = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    labels = np.arange(30).reshape(5, 6) % 7
    embedding = Embedding(8, 4)
    embedding.weight.assign(values)
    y = embedding(jt.array(labels))
    first = jt.grad((y**3).sum(), embedding.weight, retain_graph=True)
    second = jt.grad(first.sqr().sum(), embedding.weight)
    with layers.gradients_once():
        once = jt.grad((embedding(jt.array(labels)) ** 3).sum(), embedding.weight)
    count = np.bincount(labels.ravel(), minlength=8)[:, None]
    np.testing.assert_array_equal(y.numpy(), values[labels])
    for gradient in (first, once):
        np.testing.assert_allclose(gradient.numpy(), count * 3 * values**2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.numpy(), count**2 * 36 * values**3, rtol=1e-4, atol=1e-5)


def train(steps, n=64):
    """Returns the losses of so many of cgan.py's steps on random images, and the discriminator's last layer."""
    set_seed(0)
    rng, opt = np.random.default_rng(0), cgan.parse_flags([])
    generator, discriminator = cgan.Generator(100, 10, 32), cgan.Discriminator(10, 32, 512)
    optimizers = [cgan.Adam(net.parameters(), lr=0.0002, betas=(0.5, 0.999)) for net in (generator, discriminator)]
    jt.sync_all()
    found = []
    for _ in range(steps):
        images, labels = jt.array(rng.random((n, 1, 32, 32), np.float32)), jt.array(rng.integers(0, 10, n))
        losses = cgan.training_step(opt, generator, discriminator, *optimizers, images, labels)
        found.append([loss.item() for loss in losses.values()])
    return np.array(found), discriminator.model[8].weight.numpy()


@pytest.mark.parametrize("steps, names", [(10, list(plain.JITTORS_OWN)), (20, ["FusedSequential"])])
def test_a_training_is_the_plain_loops(monkeypatch, steps, names):
    """Fewer steps if the optimizers differ too: what rounding does to their first steps grows soon.

    Within 28 steps a change of 1e-7 in one weight matrix has grown to more than the bound.
    """
    ours, _ = train(steps)
    for name in names:
        monkeypatch.setattr(cgan, name, plain.JITTORS_OWN[name])
    theirs, _ = train(steps)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def print_training(n):
    losses, weight = train(5, int(n))
    print((losses.tobytes() + weight.tobytes()).hex())


@pytest.mark.slow
@pytest.mark.parametrize("n", [63, 64, 300])
def test_the_same_bits_with_any_number_of_threads(n):
    found = set()
    for threads in ("1", "2", "2", "3"):
        process = done(print_training, n, OMP_NUM_THREADS=threads, nvcc_path="")
        found.add(process.stdout.split()[-1])
    assert len(found) == 1
