"""Layers of jittor.nn that are slow, on a CPU wrong, or on a GPU different in every run.

FusedSequential is jittor.nn.Sequential with several inputs, which it concatenates. It runs linear layers, each with the
normalisation and the activation behind it, as operators of Jittor's graph (stack_op.cc, which calls layers.h, on a GPU
layers.cuh). Tanh is jittor.nn.Tanh with a gradient that is right everywhere, Embedding one that is the same in every
run. All have the same parameters and compute the same numbers.
"""

import contextlib
import functools
import itertools
import operator

from support.device import graph, jt, nn

MOST_LAYERS, MOST_INPUTS = graph.most()  # of a Stack


class Tanh(nn.Module):
    """jittor.nn.Tanh, whose gradient on a CPU, 1 / cosh(x)^2 by approximate division, is NaN if |x| > 45."""

    def execute(self, x):
        return x.clamp(-20, 20).tanh()  # float32 has 1 for tanh(20)


class Stack:
    """Linear layers, each with its normalisation and activation, as operators.

    Inputs (N, any), side by side -> (N, n_out).

    groups: [(Linear, BatchNorm in training mode or None, LeakyReLU, Tanh or None)]; widths: the inputs'.
    If an input or a parameter is of another shape or type, the layers themselves compute.
    """

    def __init__(self, groups, widths):
        self.groups = groups
        sizes, numbers = [], []
        for linear, norm, activation in groups:
            sizes += reversed(linear.weight.shape)
            slope = 1 if activation is None else 0 if isinstance(activation, Tanh) else leaky_slope(activation)
            numbers += [slope, 1, norm.eps, norm.momentum] if norm else [slope, 0, 0, 0]
        self.numbers = tuple(map(float, numbers))
        self.plan = plan_of(tuple(sizes), self.numbers, tuple(widths))
        self.norms = [norm for _, norm, _ in groups if norm]
        self.layers = [layer for linear, norm, _ in groups for layer in (linear, norm) if layer]

    def parameters(self):
        return [var for layer in self.layers for var in (layer.weight, layer.bias)]

    def __call__(self, *inputs):
        running = [var for norm in self.norms for var in (norm.running_mean, norm.running_var)]
        for y in graph.run_stack(self.plan, inputs, self.parameters(), running):
            return y
        x = concat(*inputs)
        for group in self.groups:
            for layer in filter(None, group):
                x = layer(x)
        return x


@functools.lru_cache(maxsize=None)
def plan_of(sizes, numbers, widths):
    """Returns the number under which stack_op.cc knows layers of these sizes (n_in, n_out, ...) and numbers."""
    return graph.new_plan(sizes, numbers, widths, functools.partial(second_gradients, numbers, len(widths)))


def second_gradients(numbers, n_inputs, *variables):
    """Returns the gradients of (dy, *inputs, *parameters) from those of what they are the first gradients of.

    variables: (gradients of the first gradients of inputs and parameters, or None; dy, *inputs, *parameters). They come
    from Jittor's own operators, as a gradient penalty asks for them.
    """
    n = len(variables) // 2
    # Copies: what follows leads back to no other use of them
    second, (dy, *variables) = variables[:n], (var.clone() for var in variables[n:])
    y = by_operators(numbers, variables[:n_inputs], iter(variables[n_inputs:]))
    first = jt.grad((y * dy).sum(), variables, retain_graph=True)
    total = sum((x * d).sum() for x, d in zip(first, second) if d is not None)
    return jt.grad(total, [dy, *variables], retain_graph=True)


def by_operators(numbers, inputs, parameters):
    """Returns y (N, n_out) of a stack's layers from Jittor's own operators; no running statistics move."""
    x = concat(*inputs)
    for slope, norm, eps, _ in zip(*[iter(numbers)] * 4):
        x = jt.nn.linear(x, next(parameters), next(parameters))
        if norm:
            centred = x - x.mean(0)
            x = centred / jt.sqrt((centred * centred).mean(0) + eps) * next(parameters) + next(parameters)
        x = jt.nn.leaky_relu(x, slope) if slope else Tanh()(x)
    return x


@contextlib.contextmanager
def gradients_once():
    """Spares the gradients that are asked for inside what differentiating them a second time would need."""
    graph.gradients_once(True)
    try:
        yield
    finally:
        graph.gradients_once(False)


def leaky_slope(layer):
    return layer.kw.get("scale", layer.args[0] if layer.args else 0.01)


class Embedding(nn.Embedding):
    """jittor.nn.Embedding whose gradient is added up in a fixed order on a GPU too, in which Jittor's varies.

    Labels count from 0; one that the table does not have gives NaN.
    """

    def execute(self, x):
        ours = isinstance(x, jt.Var) and x.dtype in ("int32", "int64")
        return graph.ops.lookup(self.weight, x) if ours else super().execute(x)


class FusedSequential(nn.Sequential):
    """jittor.nn.Sequential that takes several inputs (N, any) and concatenates them; linear layers run as Stacks."""

    def execute(self, *inputs):
        inputs = inputs if len(inputs) <= MOST_INPUTS else [concat(*inputs)]
        first, *others = self.parts([x.shape[-1] for x in inputs])
        x = first(*inputs)
        for part in others:
            x = part(x)
        return x

    def parts(self, widths):
        """Returns the layers, with all of them that a Stack computes replaced by it; the first takes all inputs."""
        # What the parts depend on: which layers there are, and what is set on them
        layers = self.layers.values()
        now = [widths, *layers, *itertools.chain.from_iterable(map(dict.values, map(vars, layers)))]
        then = self.__dict__.get("known", ())
        if len(now) != len(then) or widths != then[0] or not all(map(operator.is_, now[1:], then[1:])):
            layers = [layer for layer in self if not (is_known(layer, nn.Dropout) and not (layer.is_train and layer.p))]
            self.known, self.found = now, find_stacks(layers, widths)
        return self.found


def concat(*inputs):
    return jt.concat(list(inputs), dim=1) if len(inputs) > 1 else inputs[0]


def find_stacks(layers, widths):
    """Returns the layers in their order, every sequence of them that a Stack computes replaced by it."""
    parts, groups, layers = [], [], [*layers, None]
    width = sum(widths)  # of what the next layer gets; None: not known
    while layers:
        layer = layers.pop(0)
        if is_linear(layer) and width in (None, layer.weight.shape[1]) and len(groups) < MOST_LAYERS:
            width = layer.weight.shape[0]
            norm = layers.pop(0) if is_norm(layers[0]) else None
            groups.append((layer, norm, layers.pop(0) if is_activation(layers[0]) else None))
            continue
        if groups:
            parts.append(Stack(groups, [groups[0][0].weight.shape[1]] if parts else widths))
            groups = []
        if layer is not None:
            parts.append(layer)
            width = None
    return parts if parts and isinstance(parts[0], Stack) else [concat, *parts]


HOOKS = {"execute", "__fhook__", "__fhook2__", "__bihook__", "__bohook__"}


def is_known(layer, kind):
    """Returns whether a layer is of this kind, and nothing is hooked to it, replaced or frozen in it alone."""
    return type(layer) is kind and not HOOKS & vars(layer).keys() and getattr(layer, "_requires_grad", True)


def is_linear(layer):
    return is_known(layer, nn.Linear) and layer.bias is not None


def is_norm(layer):
    known = is_known(layer, nn.BatchNorm1d) and layer.is_train and layer.affine
    return known and not (layer.sync and jt.in_mpi)


def is_activation(layer):
    return is_known(layer, Tanh) or (is_known(layer, nn.LeakyReLU) and leaky_slope(layer) > 0)
