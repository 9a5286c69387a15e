"""Layers of jittor.nn that are slow or wrong on a CPU, under their own names.

Sequential runs the linear layers in it, each with the normalisation and the activation behind it, as one operator
(layers.h); Tanh's gradient is wrong in Jittor. Each computes what jittor.nn's class of that name computes, with the
same parameters; on a GPU, Sequential is that class.
"""

import os

from support.device import jt

# isort: split
from jittor import nn

with open(os.path.join(os.path.dirname(__file__), "layers.h")) as file:
    HEADER = file.read()
PANEL = 32  # items of a batch are computed in panels of 16, on some processors of 32


class HyperbolicTangent(jt.Function):
    """x -> tanh(x), with the gradient 1 - tanh(x)^2."""

    def execute(self, x):
        self.tanh = x.tanh()
        return self.tanh

    def grad(self, grad):
        return grad * (1 - self.tanh * self.tanh)


class Tanh(nn.Module):
    """jittor.nn.Tanh, whose gradient on a CPU, 1 / cosh(x)^2 by approximate division, is NaN where |x| > 45."""

    def execute(self, x):
        return HyperbolicTangent.apply(x)


# A layer's numbers and arrays in layers.h, in its order
FIELDS = ["n_in", "n_out", "slope", "norm", "eps", "momentum", "weight", "bias", "scale", "shift"]
FIELDS += ["running_mean", "running_var", "d_weight", "d_bias", "d_scale", "d_shift"]


class Stack:
    """Linear layers with what follows each as operators, (N, n_in) -> (N, n_out).

    groups: [(Linear, BatchNorm in training mode or None, LeakyReLU, Tanh or None)].
    """

    def __init__(self, groups):
        self.groups, self.numbers, names = groups, [], []
        for i, (linear, norm, activation) in enumerate(groups):
            n_out, n_in = linear.weight.shape
            slope = 1 if activation is None else 0 if isinstance(activation, Tanh) else leaky_slope(activation)
            numbers = {"n_in": n_in, "n_out": n_out, "slope": slope}
            names += [f"weight{i}", f"bias{i}"]
            if norm:
                numbers.update(norm="true", eps=norm.eps, momentum=norm.momentum)
                names += [f"scale{i}", f"shift{i}"]
            self.numbers.append(numbers)
        self.norms = [norm for _, norm, _ in groups if norm]
        self.shapes = [var.shape for var in self.parameters()]
        self.is_weight = [name.startswith("weight") for name in names]
        weights = [name for name in names if name.startswith("weight")]
        running = [f"running_{part}{i}" for i, group in enumerate(groups) if group[1] for part in ("mean", "var")]
        d_vectors = [f"d_{name}" for name in names if name not in weights]
        self.forward = self.source("forward(layers, n, x, kept, y)", ["x", *names], ["y", "kept", *running])
        self.backward = self.source(
            "backward(layers, n, dy, kept, deltas)", ["dy", "kept", *names], ["deltas", *d_vectors]
        )
        self.backward_weights = self.source(
            "backward_weights(layers, n, kept, deltas)", ["kept", "deltas"], [f"d_{name}" for name in weights]
        )
        self.backward_input = self.source("backward_input(layers[0], n, deltas, dx)", ["deltas", "weight0"], ["dx"])

    def source(self, call, inputs, outputs):
        """Returns C++ that makes `call`, with inputs and outputs by these names."""
        places = [(name, f"in{i}_p") for i, name in enumerate(inputs)]
        places += [(name, f"out{i}_p") for i, name in enumerate(outputs)]
        layers = []
        for i, numbers in enumerate(self.numbers):
            fields = {**numbers, **{field: f"{field}{i}" for field in FIELDS if f"{field}{i}" in dict(places)}}
            layers.append("{" + ", ".join(f".{field} = {fields[field]}" for field in FIELDS if field in fields) + "}")
        pointers = " ".join(f"float* {name} = {place};" for name, place in places)
        return f'long n = data["n"]; {pointers}\nstack::Layer layers[] = {{{", ".join(layers)}}};\nstack::{call};'

    def parameters(self):
        return [
            var
            for linear, norm, _ in self.groups
            for layer in (linear, norm)
            if layer
            for var in (layer.weight, layer.bias)
        ]

    def __call__(self, x):
        return StackFunction(self)(x, *self.parameters())


def operator(source, n, inputs, shapes, changed=()):
    """Returns new Vars of these shapes. changed: Vars that are written in place, after the new ones."""
    outputs = [jt.empty(shape) for shape in shapes]
    jt.code(inputs, [*outputs, *changed], cpu_header=HEADER, cpu_src=source, data={"n": n})
    return outputs


class StackFunction(jt.Function):
    """(x (N, n_in), *parameters) -> y (N, n_out)."""

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def execute(self, x, *parameters):
        stack, n = self.stack, x.shape[0]
        self.n, self.x_shape, self.has_dx, self.parameters = n, x.shape, not x.is_stop_grad(), parameters
        items = -(-n // PANEL) * PANEL
        self.deltas = items * sum(group["n_out"] for group in stack.numbers)
        kept = items * stack.numbers[0]["n_in"] + self.deltas
        kept += sum((items + 1) * group["n_out"] for group in stack.numbers if "norm" in group)
        running = [var for norm in stack.norms for var in (norm.running_mean, norm.running_var)]
        shapes = [(n, stack.numbers[-1]["n_out"]), (kept,)]
        y, self.kept = operator(stack.forward, n, [x, *parameters], shapes, running)
        return y

    def grad(self, dy):
        stack, kept, n = self.stack, self.kept, self.n
        vectors = [shape for shape, is_weight in zip(stack.shapes, stack.is_weight) if not is_weight]
        deltas, *d_vectors = operator(stack.backward, n, [dy, kept, *self.parameters], [(self.deltas,), *vectors])
        # Operators of their own: Jittor runs them only where somebody asks for these gradients
        weights = [shape for shape, is_weight in zip(stack.shapes, stack.is_weight) if is_weight]
        d_weights = operator(stack.backward_weights, n, [kept, deltas], weights)
        dx = None
        if self.has_dx:
            (dx,) = operator(stack.backward_input, n, [deltas, self.parameters[0]], [self.x_shape])
        d_weights, d_vectors = iter(d_weights), iter(d_vectors)
        return [dx, *(next(d_weights if is_weight else d_vectors) for is_weight in stack.is_weight)]


def leaky_slope(layer):
    return layer.kw.get("scale", layer.args[0] if layer.args else 0.01)


class Sequential(nn.Sequential):
    """jittor.nn.Sequential, with the linear layers that it knows as one operator where it can."""

    def execute(self, x):
        if jt.flags.use_cuda or x.ndim != 2 or x.dtype != "float32":
            return super().execute(x)
        for part in self.parts():
            x = part(x)
        return x

    def parts(self):
        """Returns the layers, with every group of them that a Stack computes replaced by it."""
        layers = [layer for layer in self if not (isinstance(layer, nn.Dropout) and not (layer.is_train and layer.p))]
        key = [(id(layer), getattr(layer, "is_train", None)) for layer in layers]
        if self.__dict__.get("known") != key:
            self.known, self.found = key, find_stacks(layers)
        return self.found


def find_stacks(layers):
    parts, groups, i = [], [], 0

    def close():
        if groups:
            parts.append(Stack(list(groups)))
            groups.clear()

    while i < len(layers):
        linear = layers[i]
        if type(linear) is not nn.Linear or linear.bias is None:
            close()
            parts.append(linear)
            i += 1
            continue
        i += 1
        norm = activation = None
        if i < len(layers) and is_norm(layers[i]):
            norm = layers[i]
            i += 1
        if i < len(layers) and is_activation(layers[i]):
            activation = layers[i]
            i += 1
        groups.append((linear, norm, activation))
    close()
    return parts


def is_norm(layer):
    return type(layer) is nn.BatchNorm1d and layer.is_train and layer.affine and not (layer.sync and jt.in_mpi)


def is_activation(layer):
    return type(layer) is Tanh or (type(layer) is nn.LeakyReLU and leaky_slope(layer) > 0)
