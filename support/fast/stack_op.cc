// Of what Jittor defines, only names that begin with JIT are known here
#ifdef JIT_narrow
#undef __AVX512F__
#endif
#include "stack_op.h"

#include <algorithm>
#include <deque>
#include <map>

#include "ops/op_register.h"
#include "var.h"

#ifdef JIT
#ifdef JIT_cuda
#include "layers.cuh"
#else
#include "layers.h"
#endif
#endif

namespace jittor {

#ifndef JIT

static auto& plans = *new std::deque<StackPlan>;  // never deleted: what is Python's in it would go after Python
static bool once = false, narrow = false;
EXTERN_LIB bool no_grad;
static auto make_stack = get_op_info("stack").get_constructor<vector<VarPtr>, int, int, int64, int64, vector<Var*>&&>();

int new_plan(const vector<int64>& sizes, const vector<float64>& numbers, const vector<int64>& widths, GradCallback&& second) {
    StackPlan plan;
    for (size_t i = 0; i < sizes.size() / 2; i++) {
        const float64* of = &numbers[4 * i];
        plan.layers.push_back({sizes[2 * i], sizes[2 * i + 1], float(of[0]), of[1] != 0, float(of[2]), float(of[3])});
        const auto& l = plan.layers.back();
        plan.shapes.push_back({l.n_out, l.n_in});
        for (int vectors = l.norm ? 3 : 1; vectors; vectors--) plan.shapes.push_back({l.n_out});
        plan.norms += l.norm;
    }
    plan.widths = widths;
    plan.second = move(second);
    plans.push_back(move(plan));
    return plans.size() - 1;
}

vector<int> most() { return {MOST_LAYERS, MOST_INPUTS}; }
void gradients_once(bool now) { once = now; }
void without_avx512(bool now) { narrow = now; }

static StackOp* is_stack(Op* op, int kind) {
    return op && !strcmp(op->name(), "stack") && ((StackOp*)op)->kind == kind ? (StackOp*)op : nullptr;
}

StackOp::StackOp(int kind, int plan_number, int64 n, int64 index, vector<Var*>&& vars)
    : kind(kind), plan(&plans[plan_number]), number(plan_number), n(n), index(index), from(vars) {
    flags.set(NodeFlags::_cuda);
    auto& layers = plan->layers;
    auto make = [&](NanoVector shape) {
        to.push_back(create_output(shape, ns_float32));
        // Gradients of outputs go by OUTPUT and GRADIENT alone
        if (kind != OUTPUT && kind != GRADIENT) to.back()->flags.set(NodeFlags::_stop_grad);
        return to.back();
    };
    auto make_all = [&](size_t dimensions) {
        for (auto& shape : plan->shapes)
            if (shape.size() == dimensions) make(shape);
    };
    int64 items = (n + 31) / 32 * 32, deltas = 0;  // a panel of layers.h has at most 32 items
    for (auto& l : layers) deltas += items * l.n_out;
    if (kind == OUTPUT || kind == GRADIENT)
        flags.set(NodeFlags::_grads);
    else
        flags.set(NodeFlags::_manual_set_vnbb);
    if (kind == FORWARD) {
        int64 kept = items * layers[0].n_in + deltas;
        for (auto& l : layers) kept += l.norm * (items + 1) * l.n_out;
        make({n, layers.back().n_out});
        make({kept});
        for (size_t i = vars.size() - 2 * plan->norms; i < vars.size(); i++) make(vars[i]->shape)->share_with(vars[i]);
    }
    if (kind == OUTPUT || kind == GRADIENT) make(vars[0]->shape)->share_with(vars[0]);
    if (kind == BACKWARD) make({deltas}), make_all(1);
    if (kind == WEIGHTS) make_all(2);
    if (kind == WEIGHTS && vars.size() > 2) make_all(1);
    if (kind == INPUT) make({n, plan->widths[index]});
}

void StackOp::grads(Var** douts, VarPtr* dins) {
    if (!douts[0]) return;
    size_t inputs = plan->widths.size(), all = inputs + plan->shapes.size();
    vector<Var*> rest(from.begin() + 2, from.end());  // inputs and parameters
    if (kind == GRADIENT) {
        vector<Var*> vars(all, nullptr);
        vars[index] = douts[0];
        vars.insert(vars.end(), from.begin() + 1, from.end());
        plan->second.func(vars.size(), vars.data(), 1 + all, dins + 1);
        return;
    }
    Var *dy = douts[0], *kept = from[1];
    vector<Var*> vars = {dy, kept};
    vars.insert(vars.end(), rest.begin() + inputs, rest.end());
    auto back = make_stack(BACKWARD, number, n, 0, move(vars));
    auto weights = make_stack(WEIGHTS, number, n, 0, {kept, back[0]});
    size_t weight = 0, vector_at = 1;
    for (size_t i = 0; i < all; i++) {
        VarPtr gradient = i < inputs                              ? make_stack(INPUT, number, n, i, {back[0], rest[inputs]})[0]
                          : plan->shapes[i - inputs].size() == 2 ? weights[weight++]
                                                                 : back[vector_at++];
        if (rest[i]->is_stop_grad()) continue;
        if (!once) {
            vector<Var*> again = {gradient.ptr, dy};
            again.insert(again.end(), rest.begin(), rest.end());
            gradient = move(make_stack(GRADIENT, number, n, i, move(again))[0]);
        }
        dins[2 + i] = move(gradient);
    }
}

vector<VarHolder*> run_stack(int number, const vector<VarHolder*>& inputs, const vector<VarHolder*>& parameters, const vector<VarHolder*>& running) {
    auto& plan = plans[number];
    auto fits = [](Var* v, const NanoVector& shape) { return v->dtype() == ns_float32 && v->shape == shape; };
    int64 n = inputs[0]->var->shape[0];
    if (inputs.size() != plan.widths.size() || parameters.size() != plan.shapes.size()) return {};
    vector<Var*> vars;
    for (size_t i = 0; i < inputs.size(); i++) {
        vars.push_back(inputs[i]->var);
        if (!fits(vars.back(), {n, plan.widths[i]})) return {};
    }
    for (size_t i = 0; i < parameters.size(); i++) {
        vars.push_back(parameters[i]->var);
        if (!fits(vars.back(), plan.shapes[i])) return {};
    }
    vector<Var*> all = vars;
    for (auto* v : running) all.push_back(v->var);
    auto forward = make_stack(StackOp::FORWARD, number, n, 0, move(all));
    for (size_t i = 0; i < running.size(); i++) *running[i] = move(forward[2 + i]);
    if (no_grad) return {new VarHolder(move(forward[0]))};
    vars.insert(vars.begin(), {forward[0].ptr, forward[1].ptr});
    return {new VarHolder(move(make_stack(StackOp::OUTPUT, number, n, 0, move(vars))[0]))};
}

void sum_looks(const vector<VarHolder*>& gradients) {
    std::map<vector<StackOp*>, vector<VarPtr>> sums;
    for (auto* gradient : gradients) {
        Op* sum = gradient->var->input();
        if (!sum || sum->ns != ns_add || sum->inputs().size() != 2) continue;
        vector<StackOp*> looks;  // BACKWARD of both
        vector<size_t> places;
        for (Var* part : sum->inputs()) {
            auto* op = is_stack(part->input(), StackOp::WEIGHTS);
            if (!op) op = is_stack(part->input(), StackOp::BACKWARD);
            if (!op) break;
            places.push_back(std::find(op->to.begin(), op->to.end(), part) - op->to.begin());
            if (op->kind == StackOp::BACKWARD) places.back() += op->plan->layers.size() - 1;
            looks.push_back(op->kind == StackOp::WEIGHTS ? is_stack(op->from[1]->input(), StackOp::BACKWARD) : op);
        }
        if (looks.size() < 2 || !looks[0] || !looks[1] || places[0] != places[1]) continue;
        if (looks[0]->plan != looks[1]->plan || looks[0]->n != looks[1]->n) continue;
        auto& made = sums[looks];
        if (made.empty()) {
            vector<Var*> vars;
            for (auto* look : looks) vars.insert(vars.end(), {look->from[1], look->to[0]});
            for (auto* look : looks) vars.insert(vars.end(), look->to.begin() + 1, look->to.end());
            made = make_stack(StackOp::WEIGHTS, looks[0]->number, looks[0]->n, 0, move(vars));
        }
        *gradient = VarPtr(made[places[0]]);
    }
}

void StackOp::jit_prepare(JK& jk) {
    if (kind == OUTPUT || kind == GRADIENT) return;  // nothing is to be done
    static const char* names[] = {"FORWARD", "", "BACKWARD", "WEIGHTS", "INPUT"};
    jk << "«KIND:" << names[kind] << "«OF:" << JK::hex(FAST_VERSION);
    if (narrow) jk << "«JIT_narrow:1";
}

#else  // JIT

void StackOp::jit_run() {
    constexpr int k = @KIND;
    size_t inputs = plan->widths.size(), n_layers = plan->layers.size(), n_vectors = plan->shapes.size() - n_layers;
    std::vector<fast::Layer> layers;
    for (auto& l : plan->layers) {
        layers.emplace_back();
        static_cast<StackPlan::Layer&>(layers.back()) = l;
    }
    auto in = [&](size_t i) { return from[i]->ptr<float>(); };
    auto out = [&](size_t i) { return to[i]->ptr<float>(); };
    auto parameters = [&](size_t at) {
        for (auto& l : layers) {
            l.weight = in(at++), l.bias = in(at++);
            if (l.norm) l.scale = in(at++), l.shift = in(at++);
        }
    };
    auto gradients = [&](size_t at, bool weights, bool vectors) {
        for (auto& l : layers) {
            if (weights) l.d_weight = out(at++);
            if (vectors) l.d_bias = out(at++);
            if (vectors && l.norm) l.d_scale = out(at++), l.d_shift = out(at++);
        }
    };
    if (k == FORWARD) {
        parameters(inputs);
        size_t at = 2;
        for (auto& l : layers)
            if (l.norm) l.running_mean = out(at++), l.running_var = out(at++);
        std::vector<fast::Input> rows;
        for (size_t i = 0; i < inputs; i++) rows.push_back({in(i), plan->widths[i]});
        fast::forward(layers, rows, n, out(1), out(0));
    }
    if (k == BACKWARD) {
        parameters(2), gradients(1, false, true);
        fast::backward(layers, n, in(0), in(1), out(0));
    }
    if (k == WEIGHTS) {
        gradients(0, true, false);
        std::vector<std::vector<fast::Layer>> looks;
        std::vector<fast::Sum> sums;
        for (size_t look = 0; look < (from.size() > 2 ? 2 : 1); look++) {
            looks.push_back(layers);
            fast::place(looks.back(), n, in(2 * look), in(2 * look + 1));
        }
        for (size_t i = 0; from.size() > 2 && i < n_vectors; i++)
            sums.push_back({in(4 + i), in(4 + n_vectors + i), out(n_layers + i), to[n_layers + i]->num});
        fast::backward_weights(looks, sums, n);
    }
    if (k == INPUT) {
        layers[0].weight = in(1);
        int64 offset = 0;
        for (int64 i = 0; i < index; i++) offset += plan->widths[i];
        fast::backward_input(layers[0], n, in(0), out(0), plan->widths[index], offset);
    }
}

#endif

}  // namespace jittor
