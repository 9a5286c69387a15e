#include "lookup_op.h"

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
    jk << "«T:" << x->dtype() << "«LABEL:" << labels->dtype() << "«BACK:" << JK::hex1(rows > 0);
}

#else  // JIT

#ifdef JIT_cuda
static __global__ void look_up(const T* x, const LABEL* labels, T* y, int64 n, int64 width) {
    int64 at = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    if (at < n * width) y[at] = x[labels[at / width] * width + at % width];
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
#ifdef JIT_cuda
    if (rows)
        sum_up<<<(rows * width + 255) / 256, 256>>>(in, label, out, n, width, rows);
    else
        look_up<<<(n * width + 255) / 256, 256>>>(in, label, out, n, width);
#else
    int64 size = rows ? rows : x->shape[0];
    std::fill(out, out + (rows ? rows * width : 0), T(0));
    for (int64 i = 0; i < n; i++) {
        if (label[i] < 0 || label[i] >= size) LOGf << "a label is" << label[i] >> "; there are" << size << "labels, from 0 on";
        for (int64 j = 0; j < width; j++)
            if (rows)
                out[label[i] * width + j] += in[i * width + j];
            else
                out[i * width + j] = in[label[i] * width + j];
    }
#endif
}

#endif

}  // namespace jittor
