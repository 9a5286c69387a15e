"""Layers of jittor.nn that are slow, on a CPU wrong, or on a GPU different in every run.

FusedSequential is jittor.nn.Sequential with several inputs, which it concatenates. It runs linear layers, each with the
normalisation and the activation behind it, as one operator (layers.h, on a GPU layers.cuh). Tanh is jittor.nn.Tanh with
a gradient that is right everywhere, Embedding one that is the same in every run. All have the same parameters and
compute the same numbers.
"""

import contextlib
import operator
import os
import zlib

from support.device import jt, nn
from support.saved.paths import write_if_new


def header(name, text):
    """Returns the line that includes a header, which is written beside Jittor's kernels.

    Jittor passes an operator's source on at every call, and a line is passed on in less time than a file. The file's
    name changes with the text, and so the operators that include it are compiled anew.
    """
    path = os.path.join(jt.flags.cache_path, f"{zlib.crc32(text.encode()):08x}_{name}")
    write_if_new(path, text)
    return f'#include "{path}"\n'


def read(name):
    with open(os.path.join(os.path.dirname(__file__), name)) as file:
        return file.read()


HEADERS = {
    processor: header(name, read(name).replace('#include "layer.h"', read("layer.h")))
    for processor, name in (("cpu", "layers.h"), ("cuda", "layers.cuh"))
}
MOST_LAYERS = 24  # in a Stack: a GPU's kernel takes them as its arguments, of at most 4 KB
PANEL = 32  # items of a batch that layers.h computes together, at most (its NR)


class Tanh(nn.Module):
    """jittor.nn.Tanh, whose gradient on a CPU, 1 / cosh(x)^2 by approximate division, is NaN if |x| > 45."""

    def execute(self, x):
        return x.clamp(-20, 20).tanh()  # float32 has 1 for tanh(20)


# A layer's numbers and arrays in layers.h, in its order
FIELDS = ["n_in", "n_out", "slope", "norm", "eps", "momentum", "weight", "bias", "scale", "shift"]
FIELDS += ["running_mean", "running_var", "d_weight", "d_bias", "d_scale", "d_shift"]


class Stack:
    """Linear layers with what follows each as operators: inputs (N, any), side by side -> (N, n_out).

    groups: [(Linear, BatchNorm in training mode or None, LeakyReLU, Tanh or None)]; widths: the inputs'.
    If an input or a parameter is of another shape or type, the layers themselves compute.
    """

    def __init__(self, groups, widths):
        self.widths = widths
        self.groups, self.numbers, self.shapes, names = groups, [], [], []
        for i, (linear, norm, activation) in enumerate(groups):
            n_out, n_in = linear.weight.shape
            slope = 1 if activation is None else 0 if isinstance(activation, Tanh) else leaky_slope(activation)
            numbers = {"n_in": n_in, "n_out": n_out, "slope": slope}
            names += [f"weight{i}", f"bias{i}"]
            self.shapes += [(n_out, n_in), (n_out,)]
            if norm:
                numbers.update(norm="true", eps=norm.eps, momentum=norm.momentum)
                names += [f"scale{i}", f"shift{i}"]
                self.shapes += [(n_out,), (n_out,)]
            self.numbers.append(numbers)
        self.norms = [norm for _, norm, _ in groups if norm]
        self.is_weight = [name.startswith("weight") for name in names]
        weights = [name for name in names if name.startswith("weight")]
        running = [f"running_{part}{i}" for i, group in enumerate(groups) if group[1] for part in ("mean", "var")]
        d_vectors = [f"d_{name}" for name in names if name not in weights]
        offsets = [sum(widths[:i]) for i in range(len(widths))]
        inputs = [f"x{i}" for i in range(len(widths))]
        rows = ", ".join(f"{{{x}, {width}}}" for x, width in zip(inputs, widths))
        calls = [f"Input inputs[] = {{{rows}}}", "forward(layers, inputs, n, kept, y)"]
        self.forward = self.source(calls, [*inputs, *names], ["y", "kept", *running])
        self.backward = self.source(
            ["backward(layers, n, dy, kept, deltas)"], ["dy", "kept", *names], ["deltas", *d_vectors]
        )
        self.backward_weights = self.source(
            ["backward_weights(layers, n, kept, deltas)"], ["kept", "deltas"], [f"d_{name}" for name in weights]
        )
        self.backward_inputs = [
            self.source([f"backward_input(layers[0], n, deltas, dx, {w}, {at})"], ["deltas", "weight0"], ["dx"])
            for w, at in zip(widths, offsets)
        ]

    def source(self, calls, inputs, outputs):
        """Returns C++ that makes these calls, with inputs and outputs by these names."""
        places = [(name, f"in{i}_p") for i, name in enumerate(inputs)]
        places += [(name, f"out{i}_p") for i, name in enumerate(outputs)]
        layers = []
        for i, numbers in enumerate(self.numbers):
            fields = {**numbers, **{field: f"{field}{i}" for field in FIELDS if f"{field}{i}" in dict(places)}}
            layers.append("{" + ", ".join(f".{field} = {fields[field]}" for field in FIELDS if field in fields) + "}")
        pointers = " ".join(f"float* {name} = {place};" for name, place in places)
        calls = " ".join(f"stack::{call};" for call in calls)
        return f'long n = data["n"]; {pointers}\nstack::Layer layers[] = {{{", ".join(layers)}}};\n{calls}'

    def parameters(self):
        return [
            var
            for linear, norm, _ in self.groups
            for layer in (linear, norm)
            if layer
            for var in (layer.weight, layer.bias)
        ]

    def by_operators(self, variables):
        """Returns y (N, n_out) of (*inputs, *parameters), from Jittor's operators; no running statistics move."""
        x, parameters = concat(*variables[: len(self.widths)]), iter(variables[len(self.widths) :])
        for _, norm, activation in self.groups:
            weight, bias = next(parameters), next(parameters)
            x = jt.nn.linear(x, weight, bias)
            if norm:
                scale, shift = next(parameters), next(parameters)
                centred = x - x.mean(0)
                x = centred / jt.sqrt((centred * centred).mean(0) + norm.eps) * scale + shift
            x = activation(x) if activation else x
        return x

    def __call__(self, *inputs):
        parameters = self.parameters()
        shapes = [(len(inputs[0]), width) for width in self.widths] + self.shapes
        if any(var.shape != shape or var.dtype != "float32" for var, shape in zip([*inputs, *parameters], shapes)):
            x = concat(*inputs)
            for group in self.groups:
                for layer in filter(None, group):
                    x = layer(x)
            return x
        return StackFunction(self)(*inputs, *parameters)


once = False  # whether the gradients that are being computed are not to be differentiated themselves


@contextlib.contextmanager
def gradients_once():
    """Spares the gradients that are asked for inside what differentiating them a second time would need."""
    global once
    once = True
    try:
        yield
    finally:
        once = False


def code(source, headers, data, *variables):
    """Returns jittor.code(*variables) for what Jittor computes on. headers: {"cpu": C++, "cuda": CUDA C++}."""
    processor = "cuda" if jt.flags.use_cuda else "cpu"
    sources = {f"{processor}_header": headers[processor], f"{processor}_src": source}
    return jt.code(*variables, data=data, **sources)


def new_vars(source, n, inputs, shapes, changed=()):
    """Returns new Vars of these shapes. changed: Vars that are written in place, after the new ones."""
    if not changed:  # makes its outputs itself, in less time
        return code(source, HEADERS, {"n": n}, shapes, ["float32"] * len(shapes), inputs)
    outputs = [jt.empty(shape) for shape in shapes]
    code(source, HEADERS, {"n": n}, inputs, [*outputs, *changed])
    return outputs


class StackFunction(jt.Function):
    """(*inputs (N, any), *parameters) -> y (N, n_out)."""

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def __call__(self, *variables):
        self.originals, self.ids = variables, [var.id for var in variables]
        self.constant = [var.is_stop_grad() for var in variables[: len(self.stack.widths)]]
        return super().__call__(*variables)

    def execute(self, *variables):
        self.values = variables  # stay what they are, also if an optimizer's step gives the originals new values
        stack, n = self.stack, variables[0].shape[0]
        items = -(-n // PANEL) * PANEL
        self.deltas = items * sum(group["n_out"] for group in stack.numbers)
        kept = items * stack.numbers[0]["n_in"] + self.deltas
        kept += sum((items + 1) * group["n_out"] for group in stack.numbers if "norm" in group)
        running = [var for norm in stack.norms for var in (norm.running_mean, norm.running_var)]
        shapes = [(n, stack.numbers[-1]["n_out"]), (kept,)]
        y, self.kept = new_vars(stack.forward, n, list(variables), shapes, running)
        return y

    def grad(self, dy):
        gradient = StackGradient(self)
        return gradient.execute(dy) if once else gradient(dy, *self.originals)


class StackGradient(jt.Function):
    """(dy (N, n_out), *inputs, *parameters) -> the gradients of inputs and parameters of a StackFunction."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __call__(self, dy, *variables):
        self.dy = dy
        return super().__call__(dy, *variables)

    def execute(self, dy, *_):
        stack, kept, n = self.function.stack, self.function.kept, dy.shape[0]
        parameters = self.function.values[len(stack.widths) :]
        vectors = [shape for shape, is_weight in zip(stack.shapes, stack.is_weight) if not is_weight]
        shapes = [(self.function.deltas,), *vectors]
        deltas, *d_vectors = new_vars(stack.backward, n, [dy, kept, *parameters], shapes)
        # Operators of their own: Jittor runs them only if somebody asks for these gradients
        weights = [shape for shape, is_weight in zip(stack.shapes, stack.is_weight) if is_weight]
        d_weights = new_vars(stack.backward_weights, n, [kept, deltas], weights)
        d_inputs = [
            None if constant else new_vars(source, n, [deltas, parameters[0]], [(n, width)])[0]
            for source, width, constant in zip(stack.backward_inputs, stack.widths, self.function.constant)
        ]
        d_weights, d_vectors = iter(d_weights), iter(d_vectors)
        return [*d_inputs, *(next(d_weights if is_weight else d_vectors) for is_weight in stack.is_weight)]

    def grad(self, *second):
        """The gradient of a gradient, as a gradient penalty asks for it, comes from Jittor's own operators."""
        function = self.function
        if [var.id for var in function.originals] != function.ids:
            raise RuntimeError(
                "a gradient of a gradient must be taken before an optimizer's step changes the weights; "
                "jittor.nn.Sequential takes it afterwards too"
            )
        # Copies: what follows leads back to no other use of them
        dy, *variables = (var.clone() for var in (self.dy, *function.originals))
        y = function.stack.by_operators(variables)
        first = jt.grad((y * dy).sum(), variables, retain_graph=True)
        total = sum((x * d).sum() for x, d in zip(first, second) if d is not None)
        return jt.grad(total, [dy, *variables], retain_graph=True)


def leaky_slope(layer):
    return layer.kw.get("scale", layer.args[0] if layer.args else 0.01)


class Embedding(nn.Embedding):
    """jittor.nn.Embedding whose gradient is added up in a fixed order on a GPU too, in which Jittor's varies."""

    def execute(self, x):
        ours = jt.flags.use_cuda and self.weight.dtype == "float32"
        return Lookup()(self.weight, x) if ours else super().execute(x)


class Lookup(jt.Function):
    """(table (rows, width), labels (any)) -> their rows (any, width), on a GPU."""

    def execute(self, table, labels):
        self.labels, self.size = labels, table.shape
        source = "stack::look_up(in0_p, in1_p, out0_p, out0->num, in0_shape1);"
        return new_vars(source, 0, [table, labels], [(*labels.shape, table.shape[1])])[0]

    def grad(self, dy):
        if once:
            source = "stack::sum_up(in0_p, in1_p, out0_p, in1->num, out0_shape0, out0_shape1);"
            return new_vars(source, 0, [dy, self.labels], [self.size])[0], None
        one_hot = (self.labels.reshape(1, -1) == jt.arange(self.size[0]).reshape(-1, 1)).float32()
        return jt.matmul(one_hot, dy.reshape(-1, self.size[1])), None


class FusedSequential(nn.Sequential):
    """jittor.nn.Sequential that takes several inputs (N, any) and concatenates them; linear layers run as Stacks."""

    def execute(self, *inputs):
        first, *others = self.parts([x.shape[-1] for x in inputs])
        x = first(*inputs)
        for part in others:
            x = part(x)
        return x

    def parts(self, widths):
        """Returns the layers, with all of them that a Stack computes replaced by it; the first takes all inputs."""
        # What the parts depend on: which layers there are, and what is set on them beside their parameters
        layers = self.layers.values()
        set_on_them = (value for layer in layers for value in vars(layer).values())
        now = [widths, *layers, *(value for value in set_on_them if not isinstance(value, jt.Var))]
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


KINDS = (nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Dropout, Tanh)
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
