// A stack of linear layers for an NVIDIA GPU, each with batch normalisation (optional) and an activation; see layers.py.
//
// Activations lie item by item. A block computes some features of a layer for the whole batch, with what follows the
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
constexpr int ITEMS = 64, FEATURES = WARPS, COLUMNS = 64;  // of a tile: of a layer's product, of a weight's gradient
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

// Both factors' parts of a product, and then the sums: one for all products of a kernel.
static __device__ float* shared_memory() {
    alignas(16) __shared__ float numbers[THREADS * 16];
    return numbers;
}

// Calls store(i, j, sum over k of a(i, k) b(j, k)) for i < ITEMS and j < WIDTH. A_ROWS, B_ROWS: whether numbers of
// following k, not of following i or j, lie side by side. Every thread adds up SHARE of DEPTH products for 4 x 4 of the
// tile, and fetches the next DEPTH meanwhile; then one thread adds the SHARES sums.
template <int WIDTH, int DEPTH, bool A_ROWS, bool B_ROWS, class A, class B, class Store>
static __device__ void product(int depth, A a, B b, Store store) {
    constexpr int A_EACH = ITEMS * DEPTH / THREADS, B_EACH = WIDTH * DEPTH / THREADS, PAD = ITEMS + 4;
    constexpr int SHARES = THREADS * 16 / (ITEMS * WIDTH), SHARE = DEPTH / SHARES;
    static_assert(DEPTH * (PAD + WIDTH) <= THREADS * 16, "");
    float *shared = shared_memory(), *a_part = shared, *b_part = shared + DEPTH * PAD;
    int thread = threadIdx.x, row = thread % 16 * 4, column = thread % (WIDTH * 4) / 16 * 4, share = thread / (WIDTH * 4);
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
            next_b[r] = b(at_row(B_ROWS, WIDTH, e), k + at_k(B_ROWS, WIDTH, e));
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
            b_part[at_k(B_ROWS, WIDTH, e) * WIDTH + at_row(B_ROWS, WIDTH, e)] = next_b[r];
        }
        __syncthreads();
        if (k + DEPTH < depth) read(k + DEPTH);
        #pragma unroll 4
        for (int j = share * SHARE; j < (share + 1) * SHARE; j++) {
            float4 x = *(float4*)(a_part + j * PAD + row), w = *(float4*)(b_part + j * WIDTH + column);
            float xs[] = {x.x, x.y, x.z, x.w}, ws[] = {w.x, w.y, w.z, w.w};
            #pragma unroll
            for (int r = 0; r < 16; r++) sums[r] += xs[r / 4] * ws[r % 4];
        }
    }
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < 16; r++) shared[(share * ITEMS + row + r / 4) * WIDTH + column + r % 4] = sums[r];
    __syncthreads();
    for (int e = thread; e < ITEMS * WIDTH; e += THREADS) {
        float sum = 0;
        #pragma unroll
        for (int w = 0; w < SHARES; w++) sum += shared[w * ITEMS * WIDTH + e];
        store(e / WIDTH, e % WIDTH, sum);
    }
    __syncthreads();
}

// y (n, features) = x (n, depth) weight', of FEATURES features from `first` on.
template <bool B_ROWS, class Weight>
static __device__ void product_all(const float* x, int depth, Weight weight, float* y, int n, int first, int features) {
    for (int item = 0; item < n; item += ITEMS)
        product<FEATURES, 64, true, B_ROWS>(
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
};
struct Look {
    const float *x, *delta;
};
typedef Few<Layer, MOST_LAYERS> Layers;
typedef Few<Look, 2 * MOST_LAYERS> Looks;
typedef Few<Sum, 3 * MOST_LAYERS> Sums;
typedef Few<Input, MOST_INPUTS> Inputs;

static __host__ __device__ int blocks_of(long n, long unit) { return (n + unit - 1) / unit; }

static KERNEL forward_all(Layers layers, int n, Inputs inputs, float* kept, float* y) {
    int offset = 0, n_in = layers.all[0].n_in;
    for (int i = 0; i < inputs.n; i++) {
        int width = inputs.all[i].width;
        for (int at = blockIdx.x * THREADS + threadIdx.x; at < n * width; at += gridDim.x * THREADS)
            kept[at / width * n_in + offset + at % width] = inputs.all[i].rows[at];
        offset += width;
    }
    for (int layer = 0; layer < layers.n; layer++) {
        const Layer& l = layers.all[layer];
        cooperative_groups::this_grid().sync();
        auto weight = [&](int j, int k) { return l.weight[j * int(l.n_in) + k]; };
        for (int first = blockIdx.x * FEATURES; first < l.n_out; first += gridDim.x * FEATURES) {
            product_all<true>(l.x, l.n_in, weight, l.y, n, first, l.n_out);
            int i = first + threadIdx.x / 32;
            if (i >= l.n_out) continue;
            activate(l, n, i);
            if (layer == layers.n - 1) each(n, l.n_out, i, [&](long at) { y[at] = l.y[at]; });
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

// d_weight (n_out, n_in) = delta' x: a block computes ITEMS x COLUMNS of it, of whatever layer, and of all looks the
// sum; the last blocks compute `sums`.
static __global__ __launch_bounds__(THREADS, 2) void weight_gradients(Layers layers, int n, Looks looks, Sums sums) {
    int block = blockIdx.x;
    for (int layer = 0; layer < layers.n; layer++) {
        const Layer& l = layers.all[layer];
        int n_in = l.n_in, n_out = l.n_out, rows = blocks_of(n_out, ITEMS), blocks = rows * blocks_of(n_in, COLUMNS);
        if (block >= blocks) {
            block -= blocks;
            continue;
        }
        int out = block % rows * ITEMS, in = block / rows * COLUMNS, depth = looks.n / layers.n * n;
        auto look = [&](int k) { return looks.all[k / n * layers.n + layer]; };
        product<COLUMNS, 32, false, false>(
            depth, [&](int i, int k) { return out + i < n_out && k < depth ? look(k).delta[k % n * n_out + out + i] : 0; },
            [&](int j, int k) { return in + j < n_in && k < depth ? look(k).x[k % n * n_in + in + j] : 0; },
            [&](int i, int j, float sum) {
                if (out + i < n_out && in + j < n_in) l.d_weight[(out + i) * n_in + in + j] = sum;
            });
        return;
    }
    const Sum& s = sums.all[block];
    for (int i = threadIdx.x; i < s.n; i += THREADS) s.sum[i] = s.a[i] + s.b[i];
}

// Starts a kernel whose blocks wait for each other: no more than run at a time.
template <class... Parameters>
static void start(void (*kernel)(Layers, int, Parameters...), const std::vector<Layer>& layers, int n,
                  Parameters... parameters) {
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

// The gradient of `width` features of the input, from `offset` on.
static void backward_input(const Layer& l, long n, const float* delta, float* dx, long width, long offset) {
    input_gradient<<<blocks_of(width, FEATURES), THREADS>>>(l, n, delta, dx, width, offset);
}

// looks: the layers, once or twice, as often as they were used; the gradients, sums of all, go where the first says.
static void backward_weights(std::vector<std::vector<Layer>>& looks, const std::vector<Sum>& sums, long n) {
    int blocks = sums.size();
    for (const Layer& l : looks[0]) blocks += blocks_of(l.n_out, ITEMS) * blocks_of(l.n_in, COLUMNS);
    std::vector<Look> of_looks;
    for (auto& layers : looks)
        for (const Layer& l : layers) of_looks.push_back({l.x, l.delta});
    weight_gradients<<<blocks, THREADS>>>(looks[0], n, of_looks, sums);
}

}  // namespace fast
}  // namespace jittor
