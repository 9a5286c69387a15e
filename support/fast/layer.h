// A linear layer and what follows it, feature by feature, on a CPU or a GPU. The header that includes this declares
//     FUNCTION                  what stands before a function,
//     NR                        items of a batch are kept in whole multiples of it,
//     each(n, features, i, f)   calls f(position) for those of the n items of feature i that are this thread's,
//     total(x)                  the sum of x over the threads that share a feature,
//     first_thread()            whether this one writes what they have found.
struct Layer : StackPlan::Layer {  // y = activation(norm(weight x + bias)); what an operator does not need stays null
    const float *weight, *bias, *scale, *shift;
    float *running_mean, *running_var, *d_weight, *d_bias, *d_scale, *d_shift;
    const float* x;                       // what place() adds: input,
    float *y, *normed, *inverse_std;      // what the gradients need,
    float* delta;                         // gradient of weight x + bias
};

struct Input {  // of several that lie side by side in x
    const float* rows;  // (n, width)
    long width;
};

struct Sum {  // of two arrays
    const float *a, *b;
    float* sum;
    long n;
};

// From weight x to y, in place, for feature i.
FUNCTION void activate(const Layer& l, long n, long i) {
    float *y = l.y, bias = l.bias[i], slope = l.slope;
    auto along = [&](auto f) { each(n, l.n_out, i, f); };
    if (l.norm) {
        float sum = 0, squares = 0;
        along([&](long at) { sum += y[at]; });
        float mean = total(sum) / n;
        along([&](long at) { squares += (y[at] - mean) * (y[at] - mean); });
        float var = total(squares) / n, inverse_std = 1 / std::sqrt(var + l.eps), scale = l.scale[i], shift = l.shift[i];
        if (first_thread()) {
            l.inverse_std[i] = inverse_std;
            l.running_mean[i] += (mean + bias - l.running_mean[i]) * l.momentum;
            l.running_var[i] += (var - l.running_var[i]) * l.momentum;
        }
        along([&](long at) {
            l.normed[at] = (y[at] - mean) * inverse_std;
            y[at] = l.normed[at] * scale + shift;
        });
        bias = 0;  // in the mean
    }
    if (slope)
        along([&](long at) {
            float z = y[at] + bias;
            y[at] = z > 0 ? z : slope * z;
        });
    else
        along([&](long at) { y[at] = std::tanh(y[at] + bias); });
}

// From y's gradient to that of weight x + bias, in place, for feature i; and the gradients of its parameters.
FUNCTION void activate_back(const Layer& l, long n, long i) {
    float *d = l.delta, slope = l.slope, sum = 0, product = 0;
    const float *y = l.y, *normed = l.normed;
    auto along = [&](auto f) { each(n, l.n_out, i, f); };
    if (slope)
        along([&](long at) { d[at] *= y[at] > 0 ? 1 : slope; });
    else
        along([&](long at) { d[at] *= 1 - y[at] * y[at]; });
    along([&](long at) { sum += d[at]; });
    sum = total(sum);
    if (first_thread()) l.d_bias[i] = l.norm ? 0 : sum;  // normalisation takes the bias away again
    if (!l.norm) return;
    along([&](long at) { product += d[at] * normed[at]; });
    product = total(product);
    if (first_thread()) {
        l.d_scale[i] = product;
        l.d_shift[i] = sum;
    }
    float factor = l.scale[i] * l.inverse_std[i], mean = sum / n, slant = product / n;
    along([&](long at) { d[at] = factor * (d[at] - mean - normed[at] * slant); });
}

// Gives every layer its place in what is kept: x, then y, and where it normalises normed and inverse_std.
static void place(std::vector<Layer>& layers, long n, float* kept, float* deltas) {
    long items = (n + NR - 1) / NR * NR;
    const float* x = kept;
    kept += layers[0].n_in * items;
    for (Layer& l : layers) {
        l.x = x;
        x = l.y = kept;
        kept += l.n_out * items;
        if (l.norm) {
            l.normed = kept;
            l.inverse_std = kept + l.n_out * items;
            kept = l.inverse_std + l.n_out;
        }
        l.delta = deltas;
        deltas += l.n_out * items;
    }
}
