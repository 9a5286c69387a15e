#include "lookup_op.h"

#include <cmath>

#include "ops/op_register.h"
#include "var.h"

namespace jittor {

#ifndef JIT

static auto make_lookup = get_op_info("lookup").get_constructor<VarPtr, Var*, Var*, int64>();

LookupOp::LookupOp(Var* x, Var* labels, int64 rows) : x(x), labels(labels), rows(rows) {
    flags.set(NodeFlags::_cuda);
    int64 width = x->shape[x->shape.size() - 1];
    NanoVector shape = labels->shape;
    if (rows) shape = NanoVector(rows);
    shape.push_back(width);
    y = create_output(shape, x->dtype());
}

VarPtr LookupOp::grad(Var* out, Var* dout, Var* v, int v_index) {
    return v_index ? VarPtr() : make_lookup(dout, labels, rows ? 0 : x->shape[0]);
}

void LookupOp::jit_prepare(JK& jk) {
    jk << "«T:" << x->dtype() << "«LABEL:" << labels->dtype() << "«OF:" << JK::hex(FAST_VERSION);
}

#else  // JIT

#ifdef JIT_cuda
static __global__ void look_up(const T* x, const LABEL* labels, T* y, int64 n, int64 width, int64 size) {
    int64 at = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    if (at >= n * width) return;
    int64 label = labels[at / width];
    y[at] = label >= 0 && label < size ? x[label * width + at % width] : T(NAN);
}

static __global__ void sum_up(const T* x, const LABEL* labels, T* y, int64 n, int64 width, int64 rows) {
    int64 at = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    if (at >= rows * width) return;
    T sum = 0;
    #pragma unroll 8
    for (int64 i = 0; i < n; i++) {
        T value = x[i * width + at % width];  // of every row: several are on their way at a time
        sum += labels[i] == at / width ? value : T(0);
    }
    y[at] = sum;
}
#endif

void LookupOp::jit_run() {
    int64 n = labels->num, width = x->shape[x->shape.size() - 1];
    auto *in = x->ptr<T>(), *out = y->ptr<T>();
    auto* label = labels->ptr<LABEL>();
    int64 size = rows ? rows : x->shape[0];
#ifdef JIT_cuda
    if (rows)
        sum_up<<<(rows * width + 255) / 256, 256>>>(in, label, out, n, width, rows);
    else if (n)
        look_up<<<(n * width + 255) / 256, 256>>>(in, label, out, n, width, size);
#else
    std::fill(out, out + y->num, T(rows ? 0 : NAN));
    for (int64 i = 0; i < n; i++) {
        int64 from = (rows ? i : label[i]) * width, to = (rows ? label[i] : i) * width;
        for (int64 j = 0; label[i] >= 0 && label[i] < size && j < width; j++)
            if (rows)
                out[to + j] += in[from + j];
            else
                out[to + j] = in[from + j];
    }
#endif
}

#endif

}  // namespace jittor
