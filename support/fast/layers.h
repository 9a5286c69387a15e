// A stack of linear layers for a CPU, each with batch normalisation (optional) and an activation; see layers.py.
//
// Activations lie feature by feature in panels of NR items of the batch: item j of feature i of `features` is at
// (j / NR * features + i) * NR + j % NR. So every product reads both factors as they lie, a feature's batch is one
// core's alone, and what follows a product works on rows that are still in the cache. Every number is computed in an
// order that does not depend on how many cores there are. The items that fill the last panel are 0 in every gradient.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>

namespace jittor {
namespace stack {

#ifdef __AVX512F__
constexpr long LANES = 16, MR = 12;
#else
constexpr long LANES = 8, MR = 6;
#endif
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
constexpr long NR = 2 * LANES;  // a tile of MR x NR sums is what the registers hold
constexpr long DEPTH = 256, BACK_DEPTH = 128, ROWS = 96;  // blocks that stay in the first and second cache
#define FUNCTION static

// Calls f(from, to) on every core, each with its share of 0..n in whole multiples of `unit`.
template <class F>
static void share(long n, long unit, F f) {
    #pragma omp parallel
    {
        long units = (n + unit - 1) / unit, core = omp_get_thread_num(), cores = omp_get_num_threads();
        f(units * core / cores * unit, std::min(n, units * (core + 1) / cores * unit));
    }
}

// Calls f(position) for the n items of feature i.
template <class F>
static inline void each(long n, long features, long i, F f) {
    for (long first = 0; first < n; first += NR) {
        long at = first * features + i * NR;
        if (n - first >= NR)
            for (long j = 0; j < NR; j++) f(at + j);
        else
            for (long j = 0; j < n - first; j++) f(at + j);
    }
}

static inline float total(float x) { return x; }  // a feature is one thread's alone
static inline bool first_thread() { return true; }

#include "layer.h"

// c (R, NR) = a (R, depth) b (depth, NR), added to what is there where `add`; R: `rows`, but at most MR.
template <long R = MR>
static void tile(long rows, long depth, const float* a, long row, long step, const float* b, float* c, long c_row,
                 bool add = false) {
    if (rows < R) return tile<R == 1 ? 1 : R - 1>(rows, depth, a, row, step, b, c, c_row, add);
    Vec sums[R][2];
    for (long i = 0; i < R; i++)
        for (long j = 0; j < 2; j++) sums[i][j] = add ? *(const Vec*)(c + i * c_row + j * LANES) : Vec{};
    for (long k = 0; k < depth; k++, a += step, b += NR) {
        __builtin_prefetch(a + (MR + k % MR) * row);  // what the next tile reads of a weight matrix
        Vec b0 = *(const Vec*)b, b1 = *(const Vec*)(b + LANES);
        #pragma GCC unroll 12
        for (long i = 0; i < R; i++) {
            float x = a[i * row];
            sums[i][0] += x * b0;
            sums[i][1] += x * b1;
        }
    }
    for (long i = 0; i < R; i++)
        for (long j = 0; j < 2; j++) *(Vec*)(c + i * c_row + j * LANES) = sums[i][j];
}

// Features from..to of weight (n_out, n_in) x.
static void product(const float* weight, long n_out, long n_in, const float* x, float* y, long n, long from, long to) {
    for (long k = 0; k < n_in; k += DEPTH)
        for (long first = 0; first < n; first += NR)
            for (long i = from; i < to; i += MR)
                tile(to - i, std::min(DEPTH, n_in - k), weight + i * n_in + k, n_in, 1, x + first * n_in + k * NR,
                     y + first * n_out + i * NR, NR, k > 0);
}

// Features from..to of weight' d, where weight is (n_out, features) with rows n_in apart
static void product_back(const float* weight, long n_out, long n_in, const float* d, float* x, long features, long n,
                         long from, long to) {
    for (long k = 0; k < n_out; k += BACK_DEPTH)
        for (long i = from; i < to; i += MR)
            for (long first = 0; first < n; first += NR)
                tile(to - i, std::min(BACK_DEPTH, n_out - k), weight + k * n_in + i, 1, n_in,
                     d + first * n_out + k * NR, x + first * features + i * NR, NR, k > 0);
}

// d_weight (n_out, n_in) = delta x'
static void product_weight(const Layer& l, long n) {
    long panels = (l.n_in + NR - 1) / NR;
    std::unique_ptr<float[]> turned(new float[panels * n * NR]);  // x in panels of features, item by item
    share(l.n_in, NR, [&](long from, long to) {
        for (long panel = from; panel < to; panel += NR)
            for (long j = 0; j < n; j++)
                for (long k = panel; k < std::min(panel + NR, to); k++)
                    turned[panel * n + j * NR + k - panel] = l.x[(j / NR * l.n_in + k) * NR + j % NR];
    });
    share(l.n_out, MR, [&](long from, long to) {
        std::unique_ptr<float[]> delta(new float[n * MR]);
        for (long i = from; i < to; i += MR) {
            long rows = std::min(MR, to - i);
            for (long r = 0; r < rows; r++) {
                long item = 0;
                each(n, l.n_out, i + r, [&](long at) { delta[item++ * MR + r] = l.delta[at]; });
            }
            for (long k = 0; k < l.n_in; k += NR) {
                const float* x = turned.get() + k * n;
                float *d_weight = l.d_weight + i * l.n_in + k, last[MR * NR];
                if (l.n_in - k >= NR) {
                    tile(rows, n, delta.get(), 1, MR, x, d_weight, l.n_in);
                    continue;
                }
                tile(rows, n, delta.get(), 1, MR, x, last, NR);
                for (long r = 0; r < rows; r++)
                    std::copy(last + r * NR, last + r * NR + l.n_in - k, d_weight + r * l.n_in);
            }
        }
    });
}

// rows (n, width) -> panels of `features`, from feature `offset` on
static void to_panels(const float* rows, float* panels, long n, long width, long features, long offset) {
    share(width, NR, [&](long from, long to) {
        for (long first = 0; first < n; first += NR)
            for (long k = from; k < to; k += NR)
                for (long j = 0; j < NR; j++)
                    for (long i = k; i < std::min(k + NR, to); i++) {
                        float x = first + j < n ? rows[(first + j) * width + i] : 0;
                        panels[first * features + (offset + i) * NR + j] = x;
                    }
    });
}

// panels -> rows (n, features)
static void to_rows(const float* panels, float* rows, long n, long features) {
    share(features, NR, [&](long from, long to) {
        for (long k = from; k < to; k += NR)
            for (long j = 0; j < n; j++)
                for (long i = k; i < std::min(k + NR, to); i++)
                    rows[j * features + i] = panels[j / NR * NR * features + i * NR + j % NR];
    });
}

template <size_t L, size_t W>
static void forward(Layer (&layers)[L], const Input (&inputs)[W], long n, float* kept, float* y) {
    place(layers, n, kept, nullptr);
    long offset = 0;
    for (const Input& input : inputs) {
        to_panels(input.rows, kept, n, input.width, layers[0].n_in, offset);
        offset += input.width;
    }
    for (Layer& l : layers)
        share(l.n_out, MR, [&](long from, long to) {
            for (long i = from; i < to; i += ROWS) {
                product(l.weight, l.n_out, l.n_in, l.x, l.y, n, i, std::min(i + ROWS, to));
                for (long r = i; r < std::min(i + ROWS, to); r++) activate(l, n, r);
            }
        });
    to_rows(layers[L - 1].y, y, n, layers[L - 1].n_out);
}

template <size_t L>
static void backward(Layer (&layers)[L], long n, const float* dy, float* kept, float* deltas) {
    place(layers, n, kept, deltas);
    to_panels(dy, layers[L - 1].delta, n, layers[L - 1].n_out, layers[L - 1].n_out, 0);
    for (long i = L - 1; i >= 0; i--)
        share(layers[i].n_out, MR, [&](long from, long to) {
            Layer* l = layers + i;
            if (i < long(L) - 1) product_back(l[1].weight, l[1].n_out, l[1].n_in, l[1].delta, l->delta, l->n_out, n, from, to);
            for (long r = from; r < to; r++) activate_back(*l, n, r);
        });
}

template <size_t L>
static void backward_weights(Layer (&layers)[L], long n, float* kept, float* deltas) {
    place(layers, n, kept, deltas);
    for (Layer& l : layers) product_weight(l, n);
}

// The gradient of `width` features of the input, from `offset` on.
static void backward_input(const Layer& l, long n, const float* delta, float* dx, long width, long offset) {
    std::unique_ptr<float[]> panels(new float[(n + NR - 1) / NR * NR * width]);
    share(width, MR, [&](long from, long to) {
        product_back(l.weight + offset, l.n_out, l.n_in, delta, panels.get(), width, n, from, to);
    });
    to_rows(panels.get(), dx, n, width);
}

}  // namespace stack
}  // namespace jittor
