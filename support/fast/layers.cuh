// A stack of linear layers for an NVIDIA GPU, each with batch normalisation (optional) and an activation; see layers.py.
//
// Activations lie item by item. A block computes some features of a layer for the whole batch, with what follows the
// product; what it multiplies next is on its way into shared memory meanwhile. All layers are one kernel, whose blocks
// wait for each other behind each: starting a kernel takes as long as computing a layer. Every sum is computed in an
// order that depends on the sizes alone.
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "helper_cuda.h"

namespace jittor {
namespace fast {

constexpr int THREADS = 512, WARPS = THREADS / 32, NR = 1;
constexpr int MOST_LAYERS = 12, MOST_INPUTS = 8;  // a kernel takes them as its arguments, of at most 4 KB
constexpr int ITEMS = 64, DEPTH = 64;         // of a tile, and how much of both factors is a stage in shared memory
constexpr int FEATURES = 16, COLUMNS = 64;    // of a tile: of a layer's product, of a weight's gradient
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

// Bytes of shared memory for a tile of so many columns: `stages` parts of both factors, and then the sums.
static __host__ __device__ int bytes_of(int columns, int stages) {
    return std::max(stages * DEPTH * (ITEMS + 4 + columns), THREADS * 16) * int(sizeof(float));
}

// Calls store(i, j, sum over k of a(i, k) b(j, k)) for i < ITEMS and j < WIDTH; a and b give where a number is, or null
// for 0. A_ROWS, B_ROWS: whether numbers of following k, not of following i or j, lie side by side. Every thread adds up
// SHARE of DEPTH products for 4 x 4 of the tile; then one thread adds the SHARES sums.
template <int WIDTH, bool A_ROWS, bool B_ROWS, class A, class B, class Store>
static __device__ void product(int depth, int stages, A a, B b, Store store) {
    constexpr int PAD = ITEMS + 4, SLOT = DEPTH * (PAD + WIDTH), SHARES = THREADS * 16 / (ITEMS * WIDTH);
    constexpr int SHARE = DEPTH / SHARES;
    extern __shared__ float4 memory[];
    float* shared = (float*)memory;
    int thread = threadIdx.x, row = thread % 16 * 4, column = thread % (WIDTH * 4) / 16 * 4, share = thread / (WIDTH * 4);
    float sums[16] = {};
    // Which of `rows` a thread fetches, and of DEPTH: neighbours read what lies side by side, and write to other banks
    auto at_row = [](bool by_k, int rows, int e) { return by_k ? e / 8 % rows : e % rows; };
    auto at_k = [](bool by_k, int rows, int e) { return by_k ? e % 8 + e / (8 * rows) * 8 : e / rows; };
    auto copy = [&](float* to, const float* from) {
        __pipeline_memcpy_async(to, from ? from : a(0, 0), sizeof(float), from ? 0 : sizeof(float));
    };
    auto fetch = [&](int k) {
        float *a_part = shared + k / DEPTH % stages * SLOT, *b_part = a_part + DEPTH * PAD;
        #pragma unroll
        for (int e = thread; k < depth && e < ITEMS * DEPTH; e += THREADS) {
            int i = at_row(A_ROWS, ITEMS, e), j = at_k(A_ROWS, ITEMS, e);
            copy(a_part + j * PAD + i, a(i, k + j));
        }
        #pragma unroll
        for (int e = thread; k < depth && e < WIDTH * DEPTH; e += THREADS) {
            int i = at_row(B_ROWS, WIDTH, e), j = at_k(B_ROWS, WIDTH, e);
            copy(b_part + j * WIDTH + i, b(i, k + j));
        }
        __pipeline_commit();
    };
    for (int stage = 0; stage < stages - 1; stage++) fetch(stage * DEPTH);
    for (int k = 0; k < depth; k += DEPTH) {
        stages == 4 ? __pipeline_wait_prior(2) : stages == 3 ? __pipeline_wait_prior(1) : __pipeline_wait_prior(0);
        __syncthreads();
        fetch(k + (stages - 1) * DEPTH);
        const float *a_part = shared + k / DEPTH % stages * SLOT, *b_part = a_part + DEPTH * PAD;
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
static __device__ void product_all(const float* x, int depth, Weight weight, float* y, int n, int first, int features,
                                   int stages) {
    for (int item = 0; item < n; item += ITEMS)
        product<FEATURES, true, B_ROWS>(
            depth, stages, [&](int i, int k) { return item + i < n && k < depth ? x + (item + i) * depth + k : nullptr; },
            [&](int j, int k) { return first + j < features && k < depth ? weight(first + j, k) : nullptr; },
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
typedef Few<InputGradient, MOST_INPUTS> InputGradients;

static __host__ __device__ int blocks_of(long n, long unit) { return (n + unit - 1) / unit; }

static KERNEL forward_all(Layers layers, int n, int stages, Inputs inputs, float* kept, float* y) {
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
        auto weight = [&](int j, int k) { return l.weight + j * int(l.n_in) + k; };
        for (int first = blockIdx.x * FEATURES; first < l.n_out; first += gridDim.x * FEATURES) {
            product_all<true>(l.x, l.n_in, weight, l.y, n, first, l.n_out, stages);
            int i = first + threadIdx.x / 32;
            if (i >= l.n_out) continue;
            activate(l, n, i);
            if (layer == layers.n - 1) each(n, l.n_out, i, [&](long at) { y[at] = l.y[at]; });
        }
    }
}

static KERNEL backward_all(Layers layers, int n, int stages, InputGradients inputs, const float* dy) {
    for (int layer = layers.n - 1; layer >= 0; layer--) {
        bool last = layer == layers.n - 1;
        const Layer &l = layers.all[layer], &above = layers.all[last ? layer : layer + 1];
        if (!last) cooperative_groups::this_grid().sync();
        auto weight = [&](int j, int k) { return above.weight + k * int(above.n_in) + j; };
        for (int first = blockIdx.x * FEATURES; first < l.n_out; first += gridDim.x * FEATURES) {
            if (!last) product_all<false>(above.delta, above.n_out, weight, l.delta, n, first, l.n_out, stages);
            int i = first + threadIdx.x / 32;
            if (i >= l.n_out) continue;
            if (last) each(n, l.n_out, i, [&](long at) { l.delta[at] = dy[at]; });
            activate_back(l, n, i);
        }
    }
    if (inputs.n) cooperative_groups::this_grid().sync();
    const Layer& l = layers.all[0];
    int block = blockIdx.x;
    for (int i = 0; i < inputs.n; i++) {
        const InputGradient& input = inputs.all[i];
        auto weight = [&](int j, int k) { return l.weight + k * int(l.n_in) + input.offset + j; };
        for (; block * FEATURES < input.width; block += gridDim.x)
            product_all<false>(l.delta, l.n_out, weight, input.dx, n, block * FEATURES, input.width, stages);
        block -= blocks_of(input.width, FEATURES);
    }
}

// d_weight (n_out, n_in) = delta' x: a block computes ITEMS x COLUMNS of it, of whatever layer, and of all looks the
// sum; the last blocks compute `sums`.
static __global__ __launch_bounds__(THREADS, 2) void weight_gradients(Layers layers, int n, int stages, Looks looks, Sums sums) {
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
        product<COLUMNS, false, false>(
            depth, stages,
            [&](int i, int k) { return out + i < n_out && k < depth ? look(k).delta + k % n * n_out + out + i : nullptr; },
            [&](int j, int k) { return in + j < n_in && k < depth ? look(k).x + k % n * n_in + in + j : nullptr; },
            [&](int i, int j, float sum) {
                if (out + i < n_out && in + j < n_in) l.d_weight[(out + i) * n_in + in + j] = sum;
            });
        return;
    }
    const Sum& s = sums.all[block];
    for (int i = threadIdx.x; i < s.n; i += THREADS) s.sum[i] = s.a[i] + s.b[i];
}

static int attribute(cudaDeviceAttr name) {
    int device = 0, value = 0;
    checkCudaErrors(cudaGetDevice(&device));
    checkCudaErrors(cudaDeviceGetAttribute(&value, name, device));
    return value;
}

// Starts a kernel with as many stages as the GPU has shared memory for, `stages` at most. together: blocks wait for each
// other, and so there are no more than run at a time.
template <class... Parameters>
static void start(void (*kernel)(Layers, int, int, Parameters...), int columns, int stages, int blocks,
                  bool together, const std::vector<Layer>& layers, int n, Parameters... parameters) {
    static const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    static const int processors = attribute(cudaDevAttrMultiProcessorCount);
    while (stages > 2 && bytes_of(columns, stages) > most) stages--;
    static const bool ready = [&] {
        checkCudaErrors(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of(columns, stages)));
        return true;
    }();
    Layers all(layers);
    void* arguments[] = {&all, &n, &stages, &parameters...};
    auto start = together ? cudaLaunchCooperativeKernel<void> : cudaLaunchKernel<void>;
    if (together) blocks = std::min(blocks, processors);
    checkCudaErrors(start((void*)kernel, blocks, THREADS, arguments, bytes_of(columns, stages), 0));
}

static int widest(const std::vector<Layer>& layers) {
    int blocks = 1;
    for (const Layer& l : layers) blocks = std::max(blocks, blocks_of(l.n_out, FEATURES));
    return blocks;
}

static void forward(std::vector<Layer>& layers, const std::vector<Input>& inputs, long n, float* kept, float* y) {
    place(layers, n, kept, nullptr);
    start(forward_all, FEATURES, 4, widest(layers), true, layers, n, Inputs(inputs), kept, y);
}

static void backward(std::vector<Layer>& layers, const std::vector<InputGradient>& inputs, long n, const float* dy,
                     float* kept, float* deltas) {
    place(layers, n, kept, deltas);
    int blocks = widest(layers);
    for (const InputGradient& input : inputs) blocks = std::max(blocks, blocks_of(input.width, FEATURES));
    start(backward_all, FEATURES, 4, blocks, true, layers, n, InputGradients(inputs), dy);
}

// looks: the layers, once or twice, as often as they were used; the gradients, sums of all, go where the first says.
static void backward_weights(std::vector<std::vector<Layer>>& looks, const std::vector<Sum>& sums, long n) {
    int blocks = sums.size();
    for (const Layer& l : looks[0]) blocks += blocks_of(l.n_out, ITEMS) * blocks_of(l.n_in, COLUMNS);
    std::vector<Look> of_looks;
    for (auto& layers : looks)
        for (const Layer& l : layers) of_looks.push_back({l.x, l.delta});
    start(weight_gradients, COLUMNS, 2, blocks, false, looks[0], n, Looks(of_looks), Sums(sums));
}

}  // namespace fast
}  // namespace jittor
