// Linear layers with what follows each as operators in Jittor's graph; layers.py calls them. What they compute is in
// layers.h, or on a GPU in layers.cuh.
#pragma once
#include "op.h"
#include "ops/tape_op.h"
#include "var_holder.h"

namespace jittor {

constexpr int MOST_LAYERS = 12, MOST_INPUTS = 8;  // of a plan: a GPU's kernel takes them as its arguments, of at most 4 KB

struct StackPlan {  // what is the same in every step
    struct Layer {
        long n_in, n_out;
        float slope;  // of the activation below 0; 0: tanh
        bool norm;
        float eps, momentum;
    };
    vector<Layer> layers;
    vector<int64> widths;     // of the inputs, (n, width) each
    vector<NanoVector> shapes;  // of the parameters, layer by layer: weight, bias, and of a norm scale and shift
    size_t norms = 0;
    GradCallback second;      // from the gradients of all gradients, dy, inputs, parameters to those of dy and so on
};

struct StackOp final : Op {
    // From inputs, parameters and running statistics: y, and what the gradients need
    //     FORWARD   inputs, parameters, running -> y, kept, running
    //     OUTPUT    y, kept, inputs, parameters -> the same y, with a gradient
    // From dy: an operator for each part, as Jittor runs only those that somebody asks for
    //     BACKWARD  dy, kept, parameters -> deltas, gradients of all parameters but weights
    //     WEIGHTS   kept, deltas -> gradients of weights; of two looks of one network their sum, then of vectors too
    //     INPUT     deltas, weight of the first layer -> gradient of input `index`
    // From one of these gradients, which may be differentiated itself: of input or parameter `index`, counted in this order
    //     GRADIENT  gradient, dy, inputs, parameters -> the same gradient, with a gradient
    enum Kind { FORWARD, OUTPUT, BACKWARD, WEIGHTS, INPUT, GRADIENT };
    int kind;
    StackPlan* plan;
    int number;  // of the plan
    int64 n, index;
    vector<Var*> from, to;
    // @attrs(multiple_outputs)
    StackOp(int kind, int plan, int64 n, int64 index, vector<Var*>&& vars);

    const char* name() const override { return "stack"; }
    void grads(Var** douts, VarPtr* dins) override;
    DECLARE_jit_run;
};

// Returns [MOST_LAYERS, MOST_INPUTS].
// @pyjt(most)
vector<int> most();

// Returns the number of a plan. sizes: n_in and n_out of each layer; numbers: slope, norm (0 or 1), eps, momentum of each.
// @pyjt(new_plan)
int new_plan(const vector<int64>& sizes, const vector<float64>& numbers, const vector<int64>& widths, GradCallback&& second);

// Returns [y (n, n_out)] of inputs (n, width), parameters and running statistics, which move; [] if one does not fit.
// @pyjt(run_stack)
vector<VarHolder*> run_stack(int plan, const vector<VarHolder*>& inputs, const vector<VarHolder*>& parameters, const vector<VarHolder*>& running);

// Whether layers.h computes as on a processor without AVX-512, which tests ask for.
// @pyjt(without_avx512)
void without_avx512(bool now);

// Whether gradients that are asked for now are not to be differentiated themselves.
// @pyjt(gradients_once)
void gradients_once(bool now);

// Has gradients of a network that was used twice added up while they are computed, where Jittor would add them up then.
// @pyjt(sum_looks)
void sum_looks(const vector<VarHolder*>& gradients);

}  // namespace jittor
