"""Layers of jittor.nn that are slow or wrong on a CPU, under their own names.

Linear is slow there, as its product transposes the large factor; Tanh's gradient is wrong. Each computes what
jittor.nn's layer of that name computes; on a GPU, Linear is that layer.
"""

from support.device import jt

# isort: split
from jittor import nn


class Product(jt.Function):
    """x (N, n_in), weight (n_out, n_in) -> x weight' (N, n_out), from the transpose of weight x', which is faster.

    oneDNN is slow where its second factor is transposed and large; so the small x is, not the weight.
    """

    def execute(self, x, weight):
        self.saved = x, weight
        return nn.matmul_transpose(weight, x).transpose()

    def grad(self, grad):
        x, weight = self.saved
        shape = (x.shape[0], *weight.shape)
        grad_weight = (grad.broadcast(shape, [2]) * x.broadcast(shape, [1])).sum(0)  # grad' x, no transpose stored
        return nn.matmul(grad, weight), grad_weight


class Linear(nn.Linear):
    """jittor.nn.Linear: x (N, n_in) -> x weight' + bias (N, n_out)."""

    def execute(self, x):
        if jt.flags.use_cuda:
            return super().execute(x)
        return Product.apply(x, self.weight) + self.bias


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
