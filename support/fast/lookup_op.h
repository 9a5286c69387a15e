// The rows of a table that labels name, from 0 on, or the way back, which is its gradient: what rows bring, added up in
// their order. For a label that the table does not have it is NaN, and nothing.
#pragma once
#include "op.h"

namespace jittor {

struct LookupOp final : Op {
    Var *x, *labels, *y;
    int64 rows;
    // rows: 0 for (x (table's rows, width), labels (any)) -> (any, width); else for the way back, to (rows, width)
    LookupOp(Var* x, Var* labels, int64 rows=0);

    const char* name() const override { return "lookup"; }
    VarPtr grad(Var* out, Var* dout, Var* v, int v_index) override;
    DECLARE_jit_run;
};

}  // namespace jittor
