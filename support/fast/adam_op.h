// Adam's update of all parameters as one operator in Jittor's graph; adam.py calls it.
#pragma once
#include "op.h"
#include "var_holder.h"

namespace jittor {

struct AdamOp final : Op {
    vector<Var*> from, to;
    float step_size, b1, c1, b2, c2, eps;
    // n gradients, n parameters, n of each moment -> n new parameters; the moments are written in place
    // @attrs(multiple_outputs)
    AdamOp(vector<Var*>&& vars, float64 step_size, float64 b1, float64 b2, float64 eps);

    const char* name() const override { return "adam"; }
    DECLARE_jit_run;
};

// Returns whether it could update the parameters: all arrays must be float32, and those of a parameter of one size.
// @pyjt(adam_step)
bool adam_step(const vector<VarHolder*>& gradients, const vector<VarHolder*>& parameters, const vector<VarHolder*>& means, const vector<VarHolder*>& squares, float64 step_size, float64 b1, float64 b2, float64 eps);

}  // namespace jittor
