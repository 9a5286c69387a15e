#include "adam_op.h"

#include <algorithm>
#include <cmath>

#include "ops/op_register.h"
#include "stack_op.h"
#include "var.h"

namespace jittor {

#ifndef JIT

static auto make_adam = get_op_info("adam").get_constructor<vector<VarPtr>, vector<Var*>&&, float64, float64, float64, float64>();

// 1 - b1 and 1 - b2 in double, before they become float: of 0.99999999 nothing would be left
AdamOp::AdamOp(vector<Var*>&& vars, float64 step_size, float64 b1, float64 b2, float64 eps)
    : from(vars), step_size(step_size), b1(b1), c1(1 - b1), b2(b2), c2(1 - b2), eps(eps) {
    flags.set(NodeFlags::_cuda);
    flags.set(NodeFlags::_manual_set_vnbb);
    size_t n = vars.size() / 4;
    for (size_t i = n; i < 2 * n; i++) to.push_back(create_output(vars[i]->shape, ns_float32));
}

bool adam_step(const vector<VarHolder*>& gradients, const vector<VarHolder*>& parameters, const vector<VarHolder*>& means, const vector<VarHolder*>& squares, float64 step_size, float64 b1, float64 b2, float64 eps) {
    for (auto* holders : {&gradients, &parameters, &means, &squares})
        for (size_t i = 0; i < parameters.size(); i++) {
            Var* v = (*holders)[i]->var;
            if (v->dtype() != ns_float32 || v->num != parameters[i]->var->num) return false;
        }
    sum_looks(gradients);
    vector<Var*> vars;
    for (auto* holders : {&gradients, &parameters, &means, &squares})
        for (auto* holder : *holders) vars.push_back(holder->var);
    auto updated = make_adam(move(vars), step_size, b1, b2, eps);
    for (size_t i = 0; i < updated.size(); i++) {
        VarHolder parameter(move(updated[i]));
        parameters[i]->update(&parameter);
    }
    return true;
}

void AdamOp::jit_prepare(JK& jk) { jk << "«OF:" << JK::hex(FAST_VERSION); }

#else  // JIT

struct Parameter {
    const float *g, *old;
    float *p, *m, *v;
    int64 n;
};

struct Settings {
    float step_size, b1, c1, b2, c2, eps;
};

#ifdef JIT_cuda
#define FUNCTION static __device__
#else
#define FUNCTION static inline
#endif

FUNCTION void update(const Parameter& a, const Settings& s, int64 i) {
    a.m[i] = s.b1 * a.m[i] + s.c1 * a.g[i];
    a.v[i] = s.b2 * a.v[i] + s.c2 * a.g[i] * a.g[i];
    a.p[i] = a.old[i] - s.step_size * a.m[i] / (std::sqrt(a.v[i]) + s.eps);
}

#ifdef JIT_cuda

struct Group {  // no more, as a kernel's arguments may take 4 KB
    Parameter parameters[64];
};

static __global__ void update_all(Group group, Settings s) {
    const Parameter& a = group.parameters[blockIdx.y];
    for (int64 i = blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * blockDim.x) update(a, s, i);
}

static void update_each(const vector<Parameter>& parameters, const Settings& s) {
    for (size_t first = 0; first < parameters.size(); first += 64) {
        Group group;
        size_t n = std::min(parameters.size() - first, size_t(64));
        std::copy_n(&parameters[first], n, group.parameters);
        update_all<<<dim3(256, n), 256>>>(group, s);
    }
}

#else

static void update_each(const vector<Parameter>& parameters, const Settings& s) {
    // Blocks of one size: where a vector ends does not depend on how many cores there are, and so no bit does
    #pragma omp parallel
    for (const Parameter& a : parameters) {
        #pragma omp for schedule(dynamic, 8) nowait
        for (int64 first = 0; first < a.n; first += 4096) {
            #pragma omp simd
            for (int64 i = first; i < std::min(a.n, first + 4096); i++) update(a, s, i);
        }
    }
}

#endif

void AdamOp::jit_run() {
    vector<Parameter> parameters;
    size_t n = to.size();
    auto in = [&](size_t i) { return from[i]->ptr<float>(); };
    for (size_t i = 0; i < n; i++)
        parameters.push_back({in(i), in(n + i), to[i]->ptr<float>(), in(2 * n + i), in(3 * n + i), to[i]->num});
    update_each(parameters, {step_size, b1, c1, b2, c2, eps});
}

#endif

}  // namespace jittor
