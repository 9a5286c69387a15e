"""Adam as one operator: what jittor.nn.Adam computes, on all cores of a CPU or as one kernel of a GPU."""

import functools
import math
import os
import zlib

from support.device import jt, nn
from support.fast.layers import gradients_once, graph
from support.saved.paths import write_if_new


def header(name, text):
    """Returns the line that includes a header, which is written beside Jittor's kernels.

    Jittor passes an operator's source on at every call, and a line is passed on in less time than a file. The file's
    name changes with the text, and so the operators that include it are compiled anew.
    """
    path = os.path.join(jt.flags.cache_path, f"{zlib.crc32(text.encode()):08x}_{name}")
    write_if_new(path, text)
    return f'#include "{path}"\n'


# What both processors have: a parameter's arrays, and what happens to each of its n numbers
UPDATE = """
#include <algorithm>
#include <cmath>
namespace jittor {
struct Parameter {
    const float *g, *old;
    float *p, *m, *v;
    long n;
};
struct Settings {
    float step_size, b1, c1, b2, c2, eps;
};
FUNCTION void update(const Parameter& a, const Settings& s, long i) {
    a.m[i] = s.b1 * a.m[i] + s.c1 * a.g[i];
    a.v[i] = s.b2 * a.v[i] + s.c2 * a.g[i] * a.g[i];
    a.p[i] = a.old[i] - s.step_size * a.m[i] / (std::sqrt(a.v[i]) + s.eps);
}
"""
CPU = f"""
#define FUNCTION static inline
{UPDATE}
template <size_t N>
static void adam(const Parameter (&parameters)[N], const Settings& s) {{
    for (const Parameter& a : parameters) {{
        // Blocks of one size: where a vector ends does not depend on how many cores there are, and so no bit does
        #pragma omp parallel for if (a.n > 10000)
        for (long first = 0; first < a.n; first += 4096) {{
            #pragma omp simd
            for (long i = first; i < std::min(a.n, first + 4096); i++) update(a, s, i);
        }}
    }}
}}
}}
"""
CUDA = f"""
#define FUNCTION static __device__
{UPDATE}
struct Group {{  // no more, as a kernel's arguments may take 4 KB
    Parameter parameters[64];
}};
static __global__ void update_all(Group group, Settings s) {{
    const Parameter& a = group.parameters[blockIdx.y];
    for (long i = blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * blockDim.x) update(a, s, i);
}}
template <size_t N>
static void adam(const Parameter (&parameters)[N], const Settings& s) {{
    for (size_t first = 0; first < N; first += 64) {{
        Group group;
        size_t n = std::min(N - first, size_t(64));
        std::copy(parameters + first, parameters + first + n, group.parameters);
        update_all<<<dim3(256, n), 256>>>(group, s);
    }}
}}
}}
"""
HEADERS = {"cpu": header("adam.h", CPU), "cuda": header("adam.cuh", CUDA)}
SETTINGS = {"lr", "eps", "betas", "weight_decay"}  # that a group of parameters may have of its own


@functools.lru_cache(maxsize=None)
def source_of(n):
    """Returns C++ that updates n parameters. Its inputs: n gradients, n parameters, n of each moment."""
    parameters = ", ".join(
        f"{{in{i}_p, in{n + i}_p, out{i}_p, in{2 * n + i}_p, in{3 * n + i}_p, in{i}->num}}" for i in range(n)
    )
    numbers = ", ".join(f'float(data["{name}"])' for name in ("step_size", "b1", "c1", "b2", "c2", "eps"))
    return f"Parameter parameters[] = {{{parameters}}};\nadam(parameters, Settings{{{numbers}}});"


class Adam(nn.Adam):
    """jittor.nn.Adam (Kingma & Ba 2015), whose update is one operator on all cores, or one kernel of a GPU.

    Jittor's own update makes several passes over memory, on a CPU on one core. Its option to compile element-wise
    kernels for all cores is no way out: reductions compiled with it have a data race. Here every element is one
    thread's alone, so that the same seed gives the same bits. Parameters are new ones after a step, as in Jittor, so
    that the gradient of an output computed before it is still that of the old ones. With weight decay, several groups
    or settings of a group's own, it is Jittor's update.
    """

    def step(self, loss=None, retain_graph=False):
        group, *others = self.param_groups
        if self.weight_decay or others or SETTINGS & group.keys():
            return super().step(loss, retain_graph)
        with gradients_once():
            self.pre_step(loss, retain_graph)
        b1, b2 = self.betas
        trained = [i for i, p in enumerate(group["params"]) if not p.is_stop_grad()]  # not running statistics
        grads, params, m, v = ([group[key][i] for i in trained] for key in ("grads", "params", "m", "values"))
        n, shapes = len(trained), [p.shape for p in params]
        step_size = self.lr * math.sqrt(1 - b2**self.n_step) / (1 - b1**self.n_step)
        # 1 - b1 and 1 - b2 in double, before they become float32: of 0.99999999 nothing would be left
        data = {"step_size": step_size, "b1": b1, "c1": 1 - b1, "b2": b2, "c2": 1 - b2, "eps": self.eps}
        graph.sum_looks(grads)
        processor = "cuda" if jt.flags.use_cuda else "cpu"
        sources = {f"{processor}_header": HEADERS[processor], f"{processor}_src": source_of(n)}
        new = jt.code(shapes, ["float32"] * n, grads + params + m + v, data=data, **sources)
        for param, value in zip(params, new):
            param.update(value)
        self.post_step()
        jt.sync_all()  # now, as the moments are written in place
