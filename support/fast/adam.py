"""Adam for a CPU: what jittor.nn.Adam computes, as one operator on all cores."""

import math

from support.device import jt, nn
from support.fast.layers import gradients_once

ADAM_HEADER = """
#include <algorithm>
#include <cmath>
namespace jittor {
static void adam(const float* __restrict__ g, const float* __restrict__ old, float* __restrict__ p,
                 float* __restrict__ m, float* __restrict__ v, long n, float step_size, float b1, float c1, float b2,
                 float c2, float eps) {
    // Blocks of one size: where a vector ends does not depend on how many cores there are, and so no bit does
    #pragma omp parallel for if (n > 10000)
    for (long first = 0; first < n; first += 4096) {
        #pragma omp simd
        for (long i = first; i < std::min(n, first + 4096); i++) {
            m[i] = b1 * m[i] + c1 * g[i];
            v[i] = b2 * v[i] + c2 * g[i] * g[i];
            p[i] = old[i] - step_size * m[i] / (std::sqrt(v[i]) + eps);
        }
    }
}
}
"""


SETTINGS = {"lr", "eps", "betas", "weight_decay"}  # that a group of parameters may have of its own


class Adam(nn.Adam):
    """jittor.nn.Adam (Kingma & Ba 2015), whose update is one operator on all cores.

    Jittor's own update runs on one core and in several passes over memory. Its option to compile element-wise kernels
    for all cores is no way out: reductions compiled with it have a data race. Here every element is one core's alone,
    so that the same seed gives the same bits. Parameters are new ones after a step, as in Jittor, so that the gradient
    of an output computed before it is still that of the old ones. With weight decay, several groups or settings of a
    group's own, it is Jittor's update.
    """

    def step(self, loss=None, retain_graph=False):
        group, *others = self.param_groups
        if jt.flags.use_cuda or self.weight_decay or others or SETTINGS & group.keys():
            return super().step(loss, retain_graph)
        with gradients_once():
            self.pre_step(loss, retain_graph)
        b1, b2 = self.betas
        trained = [i for i, p in enumerate(group["params"]) if not p.is_stop_grad()]  # not running statistics
        grads, params, m, v = ([group[key][i] for i in trained] for key in ("grads", "params", "m", "values"))
        n, new = len(trained), [jt.empty(p.shape) for p in params]
        step_size = self.lr * math.sqrt(1 - b2**self.n_step) / (1 - b1**self.n_step)
        jt.code(
            grads + params,
            new + m + v,
            cpu_header=ADAM_HEADER,
            cpu_src="".join(
                f"adam(in{i}_p, in{n + i}_p, out{i}_p, out{n + i}_p, out{2 * n + i}_p, in{i}->num,"
                'data["step_size"], data["b1"], data["c1"], data["b2"], data["c2"], data["eps"]);\n'
                for i in range(n)
            ),
            # 1 - b1 and 1 - b2 in double, before they become float32: of 0.99999999 nothing would be left
            data={"step_size": step_size, "b1": b1, "c1": 1 - b1, "b2": b2, "c2": 1 - b2, "eps": self.eps},
        )
        for param, value in zip(params, new):
            param.update(value)
        self.post_step()
        jt.sync_all()  # now, as the moments are written in place
