"""Adam as one operator (adam_op.cc): what jittor.nn.Adam computes, on all cores of a CPU or as one kernel of a GPU."""

import math

from support.device import jt, nn
from support.fast.layers import gradients_once, graph

SETTINGS = {"lr", "eps", "betas", "weight_decay"}  # that a group of parameters may have of its own


class Adam(nn.Adam):
    """jittor.nn.Adam (Kingma & Ba 2015), whose update is one operator on all cores, or one kernel of a GPU.

    Jittor's own update makes several passes over memory, on a CPU on one core. Its option to compile element-wise
    kernels for all cores is no way out: reductions compiled with it have a data race. Here every element is one
    thread's alone, so that the same seed gives the same bits. Parameters are new ones after a step, as in Jittor, so
    that the gradient of an output computed before it is still that of the old ones. With weight decay, several groups,
    settings of a group's own or other types than float32, it is Jittor's update.
    """

    def step(self, loss=None, retain_graph=False):
        group, *others = self.param_groups
        if loss is None and "grads" not in group:  # after loss.backward(), as in PyTorch
            raise ValueError("no gradient yet: in Jittor, step(loss) computes it, or backward(loss) of the optimizer")
        if self.weight_decay or others or SETTINGS & group.keys():
            return super().step(loss, retain_graph)
        with gradients_once():
            self.pre_step(loss, retain_graph)
        b1, b2 = self.betas
        trained = [i for i, p in enumerate(group["params"]) if not p.is_stop_grad()]  # not running statistics
        lists = ([group[key][i] for i in trained] for key in ("grads", "params", "m", "values"))
        # A rate may be one of NumPy's numbers, which an operator does not take
        step_size = float(self.lr * math.sqrt(1 - b2**self.n_step) / (1 - b1**self.n_step))
        if not graph.adam_step(*lists, step_size, b1, b2, self.eps):
            return super().step()
        self.post_step()
        jt.sync_all()  # now, as the moments are written in place
