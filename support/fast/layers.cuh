// A stack of linear layers for an NVIDIA GPU, each with batch normalisation (optional) and an activation; see layers.py.
//
// Activations lie item by item. A block computes FEATURES features of a layer for the whole batch, with what follows the
// product. All layers are one kernel, whose blocks wait for each other behind each: starting a kernel takes as long as
// computing a layer. Every sum is computed in an order that depends on the sizes alone.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "helper_cuda.h"

namespace jittor {
namespace fast {

constexpr int THREADS = 512, WARPS = THREADS / 32, NR = 1;
constexpr int MOST_LAYERS = 12, MOST_INPUTS = 8;  // a kernel takes them as its arguments, of at most 4 KB
constexpr int ITEMS = 64, FEATURES = WARPS, DEPTH = 64;  // of a tile, and how much of both factors is in shared memory
#define FUNCTION static __device__
#define KERNEL __global__ __launch_bounds__(THREADS, 1) void

// Calls f(position) for the items of feature i that are this thread's; a warp shares a feature.
template <class F>
static __device__ void each(long n, long features, long i, F f) {
    for (long at = threadIdx.x % 32 * features + i; at < n * features; at += 32 * features) f(at);
}

static __device__ float total(float x) {
    for (int distance = 16; distance; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

static __device__ bool first_thread() { return threadIdx.x % 32 == 0; }

#include "layer.h"

// Calls store(i, j, sum over k of a(i, k) b(j, k)) for i < ITEMS and j < FEATURES.
// A_ROWS, B_ROWS: whether values of following k, not of following i or j, lie side by side. Two warps add up SHARE of
// DEPTH products, each for 8 of the features; then one thread adds the SHARES sums.
template <bool A_ROWS, bool B_ROWS, class A, class B, class Store>
static __device__ void product(int depth, A a, B b, Store store) {
    constexpr int A_EACH = ITEMS * DEPTH / THREADS, B_EACH = FEATURES * DEPTH / THREADS, PAD = ITEMS + 4;
    constexpr int SHARES = WARPS * 8 / FEATURES, SHARE = DEPTH / SHARES;
    alignas(16) __shared__ float shared[SHARES * ITEMS * FEATURES];  // both parts, and then the sums
    float *a_part = shared, *b_part = shared + DEPTH * PAD;
    static_assert(DEPTH * (PAD + FEATURES) <= SHARES * ITEMS * FEATURES, "");
    int thread = threadIdx.x, row = thread % 16 * 4, column = thread % (FEATURES * 4) / 16 * 4;
    int share = thread / (FEATURES * 4);
    float sums[16] = {}, next_a[A_EACH], next_b[B_EACH];
    // Which of `rows` a thread reads, and of DEPTH: neighbours read what lies side by side, and write to other banks
    auto at_row = [](bool by_k, int rows, int e) { return by_k ? e / 8 % rows : e % rows; };
    auto at_k = [](bool by_k, int rows, int e) { return by_k ? e % 8 + e / (8 * rows) * 8 : e / rows; };
    auto read = [&](int k) {
        #pragma unroll
        for (int r = 0; r < A_EACH; r++) {
            int e = thread + r * THREADS;
            next_a[r] = a(at_row(A_ROWS, ITEMS, e), k + at_k(A_ROWS, ITEMS, e));
        }
        #pragma unroll
        for (int r = 0; r < B_EACH; r++) {
            int e = thread + r * THREADS;
            next_b[r] = b(at_row(B_ROWS, FEATURES, e), k + at_k(B_ROWS, FEATURES, e));
        }
    };
    read(0);
    for (int k = 0; k < depth; k += DEPTH) {
        __syncthreads();
        #pragma unroll
        for (int r = 0; r < A_EACH; r++) {
            int e = thread + r * THREADS;
            a_part[at_k(A_ROWS, ITEMS, e) * PAD + at_row(A_ROWS, ITEMS, e)] = next_a[r];
        }
        #pragma unroll
        for (int r = 0; r < B_EACH; r++) {
            int e = thread + r * THREADS;
            b_part[at_k(B_ROWS, FEATURES, e) * FEATURES + at_row(B_ROWS, FEATURES, e)] = next_b[r];
        }
        __syncthreads();
        if (k + DEPTH < depth) read(k + DEPTH);
        #pragma unroll 4
        for (int j = share * SHARE; j < (share + 1) * SHARE; j++) {
            float4 x = *(float4*)(a_part + j * PAD + row), w = *(float4*)(b_part + j * FEATURES + column);
            float xs[] = {x.x, x.y, x.z, x.w}, ws[] = {w.x, w.y, w.z, w.w};
            #pragma unroll
            for (int r = 0; r < 16; r++) sums[r] += xs[r / 4] * ws[r % 4];
        }
    }
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < 16; r++) shared[(share * ITEMS + row + r / 4) * FEATURES + column + r % 4] = sums[r];
    __syncthreads();
    for (int e = thread; e < ITEMS * FEATURES; e += THREADS) {
        float sum = 0;
        for (int w = 0; w < SHARES; w++) sum += shared[w * ITEMS * FEATURES + e];
        store(e / FEATURES, e % FEATURES, sum);
    }
    __syncthreads();
}

// y (n, features) = x (n, depth) weight', of FEATURES features from `first` on.
template <bool B_ROWS, class Weight>
static __device__ void product_all(const float* x, int depth, Weight weight, float* y, int n, int first, int features) {
    for (int item = 0; item < n; item += ITEMS)
        product<true, B_ROWS>(
            depth, [&](int i, int k) { return item + i < n && k < depth ? x[(item + i) * depth + k] : 0; },
            [&](int j, int k) { return first + j < features && k < depth ? weight(first + j, k) : 0; },
            [&](int i, int j, float sum) {
                if (item + i < n && first + j < features) y[(item + i) * features + first + j] = sum;
            });
}

template <class T, int MOST>
struct Few {
    T all[MOST];
    int n;

    Few(const std::vector<T>& some) : n(some.size()) { std::copy(some.begin(), some.end(), all); }
    __device__ const T* begin() const { return all; }
    __device__ const T* end() const { return all + n; }
};
typedef Few<Layer, MOST_LAYERS> Layers;
typedef Few<Input, MOST_INPUTS> Inputs;

static KERNEL forward_all(Layers layers, int n, Inputs inputs, float* kept, float* y) {
    int offset = 0, n_in = layers.all[0].n_in;
    for (const Input& input : inputs) {
        int width = input.width;
        for (int at = blockIdx.x * THREADS + threadIdx.x; at < n * width; at += gridDim.x * THREADS)
            kept[at / width * n_in + offset + at % width] = input.rows[at];
        offset += width;
    }
    for (const Layer& l : layers) {
        cooperative_groups::this_grid().sync();
        auto weight = [&](int j, int k) { return l.weight[j * int(l.n_in) + k]; };
        for (int first = blockIdx.x * FEATURES; first < l.n_out; first += gridDim.x * FEATURES) {
            product_all<true>(l.x, l.n_in, weight, l.y, n, first, l.n_out);
            int i = first + threadIdx.x / 32;
            if (i >= l.n_out) continue;
            activate(l, n, i);
            if (&l + 1 == layers.end()) each(n, l.n_out, i, [&](long at) { y[at] = l.y[at]; });
        }
    }
}

static KERNEL backward_all(Layers layers, int n, const float* dy) {
    for (int layer = layers.n - 1; layer >= 0; layer--) {
        bool last = layer == layers.n - 1;
        const Layer &l = layers.all[layer], &above = layers.all[last ? layer : layer + 1];
        if (!last) cooperative_groups::this_grid().sync();
        auto weight = [&](int j, int k) { return above.weight[k * int(above.n_in) + j]; };
        for (int first = blockIdx.x * FEATURES; first < l.n_out; first += gridDim.x * FEATURES) {
            if (!last) product_all<false>(above.delta, above.n_out, weight, l.delta, n, first, l.n_out);
            int i = first + threadIdx.x / 32;
            if (i >= l.n_out) continue;
            if (last) each(n, l.n_out, i, [&](long at) { l.delta[at] = dy[at]; });
            activate_back(l, n, i);
        }
    }
}

static KERNEL input_gradient(Layer l, int n, const float* delta, float* dx, int width, int offset) {
    auto weight = [&](int j, int k) { return l.weight[k * int(l.n_in) + offset + j]; };
    product_all<false>(delta, l.n_out, weight, dx, n, blockIdx.x * FEATURES, width);
}

static __host__ __device__ int blocks_of(long n, long unit) { return (n + unit - 1) / unit; }

// d_weight (n_out, n_in) = delta' x: a block computes ITEMS x FEATURES of it, of whatever layer. other: the same
// layers used once more, whose gradients are added, or none.
static KERNEL weight_gradients(Layers layers, Layers other, int n) {
    int block = blockIdx.x;
    for (int layer = 0; layer < layers.n; layer++) {
        const Layer& l = layers.all[layer];
        int n_in = l.n_in, n_out = l.n_out, rows = blocks_of(n_out, ITEMS), blocks = rows * blocks_of(n_in, FEATURES);
        if (block >= blocks) {
            block -= blocks;
            continue;
        }
        int out = block % rows * ITEMS, in = block / rows * FEATURES;
        for (int look = 0; look < (other.n ? 2 : 1); look++) {
            const float *delta = look ? other.all[layer].delta : l.delta, *x = look ? other.all[layer].x : l.x;
            product<false, false>(
                n, [&](int i, int k) { return out + i < n_out && k < n ? delta[k * n_out + out + i] : 0; },
                [&](int j, int k) { return in + j < n_in && k < n ? x[k * n_in + in + j] : 0; },
                [&](int i, int j, float sum) {
                    float* d_weight = l.d_weight + (out + i) * n_in + in + j;
                    if (out + i < n_out && in + j < n_in) *d_weight = look ? *d_weight + sum : sum;
                });
        }
        return;
    }
}

// Starts a kernel whose blocks wait for each other: as many as it has work for, but no more than run at a time.
template <class... Parameters>
static void start(void (*kernel)(Layers, int, Parameters...), const std::vector<Layer>& layers, int n, Parameters... parameters) {
    static const int most = [] {
        int device = 0, processors = 0;
        checkCudaErrors(cudaGetDevice(&device));
        checkCudaErrors(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
        return processors;
    }();
    int blocks = 1;
    for (const Layer& l : layers) blocks = std::max(blocks, blocks_of(l.n_out, FEATURES));
    Layers all(layers);
    void* arguments[] = {&all, &n, &parameters...};
    checkCudaErrors(cudaLaunchCooperativeKernel((void*)kernel, std::min(blocks, most), THREADS, arguments, 0, 0));
}

static void forward(std::vector<Layer>& layers, const std::vector<Input>& inputs, long n, float* kept, float* y) {
    place(layers, n, kept, nullptr);
    start(forward_all, layers, n, Inputs(inputs), kept, y);
}

static void backward(std::vector<Layer>& layers, long n, const float* dy, float* kept, float* deltas) {
    place(layers, n, kept, deltas);
    start(backward_all, layers, n, dy);
}

// looks: the layers, once or twice, as often as they were used; the gradients, sums of all, go where the first says.
static void backward_weights(std::vector<std::vector<Layer>>& looks, long n) {
    int blocks = 0;
    for (const Layer& l : looks[0]) blocks += blocks_of(l.n_out, ITEMS) * blocks_of(l.n_in, FEATURES);
    weight_gradients<<<blocks, THREADS>>>(looks[0], looks.size() > 1 ? looks[1] : std::vector<Layer>(), n);
}

static KERNEL add_all(Few<Sum, 3 * MOST_LAYERS> sums) {
    const Sum& s = sums.all[blockIdx.x];
    for (int i = threadIdx.x; i < s.n; i += THREADS) s.sum[i] = s.a[i] + s.b[i];
}

static void add(const std::vector<Sum>& sums) { add_all<<<sums.size(), THREADS>>>(sums); }

// The gradient of `width` features of the input, from `offset` on.
static void backward_input(const Layer& l, long n, const float* delta, float* dx, long width, long offset) {
    input_gradient<<<blocks_of(width, FEATURES), THREADS>>>(l, n, delta, dx, width, offset);
}

template <class Label>
static KERNEL look_up_all(const float* table, const Label* labels, float* rows, int n, int width) {
    int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < n) rows[at] = table[labels[at / width] * width + at % width];
}

// The rows (n / width, width) of a table that `labels` name.
template <class Label>
static void look_up(const float* table, const Label* labels, float* rows, long n, long width) {
    look_up_all<<<blocks_of(n, THREADS), THREADS>>>(table, labels, rows, n, width);
}

template <class Label>
static KERNEL sum_up_all(const float* rows, const Label* labels, float* table, int n, int size, int width) {
    int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= size * width) return;
    float sum = 0;
    for (int i = 0; i < n; i++)
        if (labels[i] == at / width) sum += rows[i * width + at % width];
    table[at] = sum;
}

// The gradient of the table (size, width) from that of its rows (n, width).
template <class Label>
static void sum_up(const float* rows, const Label* labels, float* table, long n, long size, long width) {
    sum_up_all<<<blocks_of(size * width, THREADS), THREADS>>>(rows, labels, table, n, size, width);
}

}  // namespace fast
}  // namespace jittor
