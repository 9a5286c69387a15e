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
#include <vector>

namespace jittor {
namespace fast {

#ifdef __AVX512F__
constexpr long LANES = 16, MR = 12;
#elif defined(__AVX__)
constexpr long LANES = 8, MR = 6;
#else  // such as ARM; g++ keeps wider vectors than a processor's in memory
constexpr long LANES = 4, MR = 8;
#endif
typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
constexpr long NR = 2 * LANES;  // a tile of MR x NR sums is what the registers hold
constexpr long DEPTH = 256, BACK_DEPTH = 128, ROWS = 96;  // blocks that stay in the first and second cache
#define FUNCTION static

// Calls f(from, to) for parts of 0..n in whole multiples of `unit`, on every core. Cores differ in speed, and others use
// them, too: one that is free takes the next part. All cores get half of what is left, together, and again, down to about
// a unit each. What is called below runs on every core.
template <class F>
static void share(long n, long unit, F f) {
    long units = (n + unit - 1) / unit, cores = omp_get_num_threads(), rounds = 1;
    while (cores > 1 && units >> rounds >= cores) rounds++;
    auto left = [&](long round) { return round < rounds ? units >> round : 0; };
    auto start = [&](long part) {
        long now = left(part / cores), then = left(part / cores + 1);
        return (units - now + (now - then) * (part % cores) / cores) * unit;
    };
    #pragma omp for schedule(dynamic) nowait
    for (long part = 0; part < rounds * cores; part++)
        if (start(part) < start(part + 1)) f(start(part), std::min(n, start(part + 1)));
}

// Calls f(position) for the n items of feature i.
template <class F>
static inline void each(long n, long features, long i, F f) {
    for (long first = 0; first < n; first += NR) {
        long at = first * features + i * NR;
        if (n - first >= NR)
            #pragma GCC unroll 1  // else g++ unrolls 16 items before it looks for vectors, and finds none
            for (long j = 0; j < NR; j++) f(at + j);
        else
            for (long j = 0; j < n - first; j++) f(at + j);
    }
}

static inline float total(float x) { return x; }  // a feature is one thread's alone
static inline bool first_thread() { return true; }

#include "layer.h"

// A block of a matrix that is read or written next: fetched line by line meanwhile.
struct Next {
    const float* at;
    long row, rows, columns, column = 0;

    void fetch(long lines) {
        for (; lines > 0 && rows > 0; lines--) {
            __builtin_prefetch(at + column);
            if ((column += 16) >= columns) column = 0, at += row, rows--;
        }
    }
};

// c (R, NR) = a (R, depth) b (depth, NR), added to what is there where `add`; R: `rows`, but at most MR. a's numbers
// lie `row` and `step` apart, and `jump` more after every NR steps.
template <long R = MR>
__attribute__((noinline))  // so g++ makes a copy for each caller's strides: weights' gradients take up to a tenth less
static void tile(long rows, long depth, const float* a, long row, long step, long jump, const float* b, float* c,
                 long c_row, bool add, Next& next) {
    if (rows < R) return tile<R == 1 ? 1 : R - 1>(rows, depth, a, row, step, jump, b, c, c_row, add, next);
    Vec sums[R][2];
    #pragma GCC unroll 12  // here and below: else g++ has the sums in memory before and after the loop
    for (long i = 0; i < R; i++)
        for (long j = 0; j < 2; j++) sums[i][j] = add ? *(const Vec*)(c + i * c_row + j * LANES) : Vec{};
    for (long left = depth; left > 0; left -= NR, a += jump) {
        next.fetch((MR * NR * NR + 1023) / 1024);  // with 64 items, a block while a block is computed
        #pragma GCC unroll 1  // else -Ofast adds products of several steps up first, which takes more registers
        for (long k = std::min(left, NR); k > 0; k--, a += step, b += NR) {
            Vec b0 = *(const Vec*)b, b1 = *(const Vec*)(b + LANES);
            #pragma GCC unroll 12
            for (long i = 0; i < R; i++) {
                float x = a[i * row];
                sums[i][0] += x * b0;
                sums[i][1] += x * b1;
            }
        }
    }
    #pragma GCC unroll 12
    for (long i = 0; i < R; i++)
        for (long j = 0; j < 2; j++) *(Vec*)(c + i * c_row + j * LANES) = sums[i][j];
}

// Features from..to of weight (n_out, n_in) x; those up to `end` come next.
static void product(const float* weight, long n_out, long n_in, const float* x, float* y, long n, long from, long to,
                    long end) {
    for (long k = 0; k < n_in; k += DEPTH) {
        long i1 = k + DEPTH < n_in ? from : to, k1 = k + DEPTH < n_in ? k + DEPTH : 0;
        Next next{weight + i1 * n_in + k1, n_in, std::min(ROWS, end - i1), std::min(DEPTH, n_in - k1)};
        for (long first = 0; first < n; first += NR)
            for (long i = from; i < to; i += MR)
                tile(to - i, std::min(DEPTH, n_in - k), weight + i * n_in + k, n_in, 1, 0, x + first * n_in + k * NR,
                     y + first * n_out + i * NR, NR, k > 0, next);
    }
}

// Features from..to of weight' d, where weight is (n_out, features) with rows n_in apart
static void product_back(const float* weight, long n_out, long n_in, const float* d, float* x, long features, long n,
                         long from, long to) {
    constexpr long ROW = ROWS + 16;  // an odd number of cache lines: rows 4 kB apart drive each other out of the cache
    alignas(64) float block[BACK_DEPTH * ROW];
    for (long k = 0; k < n_out; k += BACK_DEPTH)
        for (long f = from; f < to; f += ROWS) {
            long depth = std::min(BACK_DEPTH, n_out - k), width = std::min(ROWS, to - f);
            const float* part = weight + k * n_in + f;
            for (long r = 0; r < depth; r++) std::copy(part + r * n_in, part + r * n_in + width, block + r * ROW);
            long f1 = f + ROWS < to ? f + ROWS : from, k1 = f + ROWS < to ? k : k + BACK_DEPTH;
            Next next{weight + k1 * n_in + f1, n_in, std::min(BACK_DEPTH, n_out - k1), std::min(ROWS, to - f1)};
            for (long first = 0; first < n; first += NR)
                for (long i = 0; i < width; i += MR)
                    tile(width - i, depth, block + i, 1, ROW, 0, d + first * n_out + k * NR,
                         x + first * features + (f + i) * NR, NR, k > 0, next);
        }
}

// to (columns, rows) = from (rows, columns)', with rows to_row and from_row apart
static void turn(const float* from, long from_row, long rows, long columns, float* to, long to_row) {
    constexpr long SIZE = LANES * LANES;
    for (long i = 0; i < rows; i += LANES)
        for (long j = 0; j < columns; j += LANES) {
            if (rows - i < LANES || columns - j < LANES) {
                for (long k = i; k < std::min(i + LANES, rows); k++)
                    for (long l = j; l < std::min(j + LANES, columns); l++) to[l * to_row + k] = from[k * from_row + l];
                continue;
            }
            float a[SIZE], b[SIZE];
            for (long k = 0; k < LANES; k++) *(Vec*)(a + k * LANES) = *(const Vec*)(from + (i + k) * from_row + j);
            for (long step = 1; step < LANES; step *= 2) {  // riffled so often, a square lies turned; g++ finds vectors
                for (long k = 0; k < SIZE / 2; k++) b[2 * k] = a[k], b[2 * k + 1] = a[k + SIZE / 2];
                for (long k = 0; k < LANES; k++) *(Vec*)(a + k * LANES) = *(const Vec*)(b + k * LANES);
            }
            for (long k = 0; k < LANES; k++) *(Vec*)(to + (j + k) * to_row + i) = *(const Vec*)(a + k * LANES);
        }
}

// x in panels of features, item by item
static void turn_input(const Layer& l, long n, float* turned) {
    share(l.n_in, NR, [&](long from, long to) {
        for (long k = from; k < to; k += NR)
            for (long first = 0; first < n; first += NR)
                turn(l.x + first * l.n_in + k * NR, NR, std::min(NR, to - k), std::min(NR, n - first),
                     turned + k * n + first * NR, NR);
    });
}

// d_weight (n_out, n_in) = delta x', added to what is there where `add`
static void product_weight(const Layer& l, const float* delta, const float* turned, long n, long i, long rows, long k,
                           bool add, Next& next) {
    long jump = (l.n_out - 1) * NR, columns = std::min(NR, l.n_in - k);
    float *d_weight = l.d_weight + i * l.n_in + k, last[MR * NR];
    if (columns == NR && !add) return tile(rows, n, delta + i * NR, NR, 1, jump, turned + k * n, d_weight, l.n_in, false, next);
    tile(rows, n, delta + i * NR, NR, 1, jump, turned + k * n, last, NR, false, next);
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) d_weight[r * l.n_in + c] = last[r * NR + c] + (add ? d_weight[r * l.n_in + c] : 0);
}

// rows (n, width) -> panels of `features`, from feature `offset` on
static void to_panels(const float* rows, float* panels, long n, long width, long features, long offset) {
    share(width, NR, [&](long from, long to) {
        for (long first = 0; first < n; first += NR) {
            float* panel = panels + first * features + (offset + from) * NR;
            if (n - first < NR) std::fill(panel, panel + (to - from) * NR, 0);
            turn(rows + first * width + from, width, std::min(NR, n - first), to - from, panel, NR);
        }
    });
}

// panels -> rows (n, features)
static void to_rows(const float* panels, float* rows, long n, long features) {
    share(features, NR, [&](long from, long to) {
        for (long first = 0; first < n; first += NR)
            turn(panels + first * features + from * NR, NR, to - from, std::min(NR, n - first),
                 rows + first * features + from, features);
    });
}

static void forward(std::vector<Layer>& layers, const std::vector<Input>& inputs, long n, float* kept, float* y) {
    place(layers, n, kept, nullptr);
    #pragma omp parallel
    {
        long offset = 0;
        for (const Input& input : inputs) {
            to_panels(input.rows, kept, n, input.width, layers[0].n_in, offset);
            offset += input.width;
        }
        for (Layer& l : layers) {
            #pragma omp barrier
            share(l.n_out, MR, [&](long from, long to) {
                for (long i = from; i < to; i += ROWS) {
                    product(l.weight, l.n_out, l.n_in, l.x, l.y, n, i, std::min(i + ROWS, to), to);
                    for (long r = i; r < std::min(i + ROWS, to); r++) activate(l, n, r);
                }
            });
        }
        #pragma omp barrier
        to_rows(layers.back().y, y, n, layers.back().n_out);
    }
}

static void backward(std::vector<Layer>& layers, long n, const float* dy, float* kept, float* deltas) {
    place(layers, n, kept, deltas);
    #pragma omp parallel
    {
        to_panels(dy, layers.back().delta, n, layers.back().n_out, layers.back().n_out, 0);
        for (long i = layers.size() - 1; i >= 0; i--) {
            #pragma omp barrier
            share(layers[i].n_out, MR, [&](long from, long to) {
                Layer* l = &layers[i];
                if (l != &layers.back())
                    product_back(l[1].weight, l[1].n_out, l[1].n_in, l[1].delta, l->delta, l->n_out, n, from, to);
                for (long r = from; r < to; r++) activate_back(*l, n, r);
            });
        }
    }
}

// The gradient of `width` features of the input, from `offset` on.
static void backward_input(const Layer& l, long n, const float* delta, float* dx, long width, long offset) {
    std::unique_ptr<float[]> panels(new float[(n + NR - 1) / NR * NR * width]);
    #pragma omp parallel
    {
        share(width, MR, [&](long from, long to) {
            product_back(l.weight + offset, l.n_out, l.n_in, delta, panels.get(), width, n, from, to);
        });
        #pragma omp barrier
        to_rows(panels.get(), dx, n, width);
    }
}

// looks: the layers, once for each time that they were used; the gradients, sums of all, go where the first says.
static void backward_weights(std::vector<std::vector<Layer>>& looks, const std::vector<Sum>& sums, long n) {
    long size = 0;
    for (const Layer& l : looks[0]) size += (l.n_in + NR - 1) / NR * NR * n;
    std::unique_ptr<float[]> turned(new float[looks.size() * size]);
    #pragma omp parallel
    {
        float* at = turned.get();
        for (auto& look : looks)
            for (const Layer& l : look) turn_input(l, n, at), at += (l.n_in + NR - 1) / NR * NR * n;
        #pragma omp barrier
        at = turned.get();
        for (size_t layer = 0; layer < looks[0].size(); layer++) {
            const Layer& l = looks[0][layer];
            share(l.n_out, MR, [&](long from, long to) {
                for (long first = from, end; first < to; first = end) {
                    end = std::min(to, first + (n > DEPTH ? ROWS : MR));  // of a large batch less is read again
                    Next next{l.d_weight + end * l.n_in, l.n_in, std::min(MR, to - end), l.n_in};
                    for (long k = 0; k < l.n_in; k += NR)
                        for (long i = first; i < end; i += MR)
                            for (size_t look = 0; look < looks.size(); look++)
                                product_weight(l, looks[look][layer].delta, at + look * size, n, i, std::min(MR, end - i), k,
                                               look > 0, next);
                }
            });
            at += (l.n_in + NR - 1) / NR * NR * n;
        }
    }
    for (const Sum& s : sums)
        for (long i = 0; i < s.n; i++) s.sum[i] = s.a[i] + s.b[i];
}

}  // namespace fast
}  // namespace jittor
