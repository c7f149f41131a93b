// Element-wise functions of one tensor: all kinds of UNARY, SQR, SQRT, LOG, SIN, COS, SCALE, CLAMP, LEAKY_RELU,
// SOFTCAP. f32, f16 and bf16 in any pair, computed in f32. Floor: bytes of source and result over memory bandwidth;
// from the caches the functions with an exponential take about 12 to 25 operations a lane.
#include "cpu/elementwise.h"
#include "cpu/level.h"
#include "cpu/vmath.h"

GGR_KERNELS_BEGIN

namespace {

// y[0 .. n) = f(x[0 .. n)), y may be x; `p`: the step's parameters.
using Apply = void (*)(float* y, const float* x, int64_t n, const float* p);

template <vf (*F)(vf x, const float* p)>
void apply(float* y, const float* x, int64_t n, const float* p) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore(y + i, F(vload(x + i), p));
    if (i < n) vstore_part(y + i, F(vload_part(x + i, n - i), p), n - i);
}

inline vf zero() { return vset(0.0f); }

inline vf op_abs(vf x, const float*) { return vabs(x); }
inline vf op_sgn(vf x, const float*) {
    return vselect(x > zero(), vset(1.0f), vselect(x < zero(), vset(-1.0f), zero()));
}
inline vf op_neg(vf x, const float*) { return -x; }
inline vf op_step(vf x, const float*) { return vselect(x > zero(), vset(1.0f), zero()); }
inline vf op_tanh(vf x, const float*) { return vtanh(x); }
inline vf op_elu(vf x, const float*) { return vselect(x > zero(), x, vexpm1(x)); }
inline vf op_relu(vf x, const float*) { return vmax(x, zero()); }
inline vf op_sigmoid(vf x, const float*) { return vsigmoid(x); }
inline vf op_gelu(vf x, const float*) { return vgelu(x); }
inline vf op_gelu_quick(vf x, const float*) { return vgelu_quick(x); }
inline vf op_gelu_erf(vf x, const float*) { return vgelu_erf(x); }
inline vf op_silu(vf x, const float*) { return vsilu(x); }
inline vf hard(vf x) { return vmin(vmax((x + 3.0f) / 6.0f, zero()), vset(1.0f)); }
inline vf op_hardswish(vf x, const float*) { return x * hard(x); }
inline vf op_hardsigmoid(vf x, const float*) { return hard(x); }
inline vf op_exp(vf x, const float*) { return vexp(x); }
inline vf op_expm1(vf x, const float*) { return vexpm1(x); }
inline vf op_softplus(vf x, const float*) { return vsoftplus(x); }
inline vf op_sqrt_softplus(vf x, const float*) { return vsqrt(vsoftplus(x)); }
// alpha_n, alpha_p, beta, eps
inline vf op_xielu(vf x, const float* p) {
    const vf positive = (p[1] * x + p[2]) * x;
    const vf negative = (vexpm1(vmin(x, vset(p[3]))) - x) * p[0] + p[2] * x;
    return vselect(x > zero(), positive, negative);
}
inline vf op_floor(vf x, const float*) { return vfloor(x); }
inline vf op_ceil(vf x, const float*) { return vceil(x); }
inline vf op_round(vf x, const float*) { return vround_away(x); }
inline vf op_trunc(vf x, const float*) { return vtrunc(x); }

inline vf op_sqr(vf x, const float*) { return x * x; }
inline vf op_sqrt(vf x, const float*) { return vsqrt(x); }
inline vf op_log(vf x, const float*) { return vlog(x); }
inline vf op_sin(vf x, const float*) { return vsin(x); }
inline vf op_cos(vf x, const float*) { return vcos(x); }
inline vf op_scale(vf x, const float* p) { return x * p[0] + p[1]; }
inline vf op_zero(vf, const float*) { return zero(); }
// before, after
inline vf op_softcap(vf x, const float* p) { return p[1] * vtanh(p[0] * x); }
inline vf op_clamp(vf x, const float* p) { return vmax(vmin(x, vset(p[1])), vset(p[0])); }
inline vf op_leaky_relu(vf x, const float* p) { return vmax(x, zero()) + p[0] * vmin(x, zero()); }

bool run(const Step& step, int64_t begin, int64_t end, Worker&) {
    const Tensor &dst = *step.dst, &x = *step.src[0];
    const Apply fn = reinterpret_cast<Apply>(step.arg.i64[6]);
    const bool direct =
        x.type == TYPE_F32 && dst.type == TYPE_F32 && x.nb[0] == sizeof(float) && dst.nb[0] == sizeof(float);
    float tile[TILE];
    for (int64_t index = begin; index < end; ++index) {
        const Item item = item_of(step, index);
        const uint8_t* px = row_at(x, item.i1, item.i2, item.i3) + item.at * x.nb[0];
        uint8_t* pd = row_at(dst, item.i1, item.i2, item.i3) + item.at * dst.nb[0];
        if (direct) {
            fn(reinterpret_cast<float*>(pd), reinterpret_cast<const float*>(px), item.n, step.arg.f32);
            continue;
        }
        for (int64_t i = 0; i < item.n; i += TILE) {
            const int64_t n = item.n - i < TILE ? item.n - i : TILE;
            load_tile(tile, x.type, px + i * x.nb[0], x.nb[0], n);
            fn(tile, tile, n, step.arg.f32);
            store_tile(dst.type, pd + i * dst.nb[0], dst.nb[0], tile, n);
        }
    }
    return true;
}

// Relies on: source and result of one shape. `cost`: see work_of.
bool add_step(PlanBuilder& builder, const Tensor& node, Apply fn, int64_t cost, const float* params, int n_params) {
    const Tensor& x = *node.src[0];
    if (!is_float(x.type) || !is_float(node.type))
        return builder.unsupported(node, "types %s -> %s", type_traits(x.type)->name, type_traits(node.type)->name);
    const Split split = split_rows(node, is_contiguous(x) && is_contiguous(node));
    Step& step = builder.add(run, node, split.items, work_of(n_elements(node), cost));
    keep_split(step, split);
    step.arg.i64[6] = reinterpret_cast<int64_t>(fn);
    for (int i = 0; i < n_params; ++i) step.arg.f32[i] = params[i];
    return true;
}

template <vf (*F)(vf x, const float* p), int COST, int PARAMS>
bool prepare(PlanBuilder& builder, const Tensor& node) {
    const float params[2] = {param_f32(node, 0), param_f32(node, 1)};
    return add_step(builder, node, apply<F>, COST, params, PARAMS);
}

// Scaling by 0 is how clients reset a state that may hold anything, NaN too.
bool prepare_scale(PlanBuilder& builder, const Tensor& node) {
    const bool reset = param_f32(node, 0) == 0.0f && param_f32(node, 1) == 0.0f;
    return reset ? prepare<op_zero, 1, 0>(builder, node) : prepare<op_scale, 1, 2>(builder, node);
}

struct Kind {
    Apply fn;
    int cost;
};

bool prepare_unary(PlanBuilder& builder, const Tensor& node) {
    static constexpr Kind KIND[UNARY_COUNT_] = {
        {apply<op_abs>, 1},         {apply<op_sgn>, 1},        {apply<op_neg>, 1},   {apply<op_step>, 1},
        {apply<op_tanh>, 6},        {apply<op_elu>, 4},        {apply<op_relu>, 1},  {apply<op_sigmoid>, 4},
        {apply<op_gelu>, 5},        {apply<op_gelu_quick>, 5}, {apply<op_silu>, 4},  {apply<op_hardswish>, 2},
        {apply<op_hardsigmoid>, 2}, {apply<op_exp>, 4},        {apply<op_expm1>, 4}, {apply<op_softplus>, 8},
        {apply<op_gelu_erf>, 8},    {apply<op_xielu>, 5},      {apply<op_floor>, 1}, {apply<op_ceil>, 1},
        {apply<op_round>, 1},       {apply<op_trunc>, 1},
    };
    const int32_t kind = node.params[0];
    if (kind == UNARY_SQRT_SOFTPLUS) return add_step(builder, node, apply<op_sqrt_softplus>, 10, nullptr, 0);
    if (kind < 0 || kind >= UNARY_COUNT_ || KIND[kind].fn == nullptr)
        return builder.unsupported(node, "unary kind %d", kind);
    const float params[4] = {param_f32(node, 1), param_f32(node, 2), param_f32(node, 3), param_f32(node, 4)};
    return add_step(builder, node, KIND[kind].fn, KIND[kind].cost, params, 4);
}

}  // namespace

void register_unary(OpTable& table) {
    table.prepare[OP_UNARY] = prepare_unary;
    table.prepare[OP_SQR] = prepare<op_sqr, 1, 0>;
    table.prepare[OP_SQRT] = prepare<op_sqrt, 2, 0>;
    table.prepare[OP_LOG] = prepare<op_log, 5, 0>;
    table.prepare[OP_SIN] = prepare<op_sin, 5, 0>;
    table.prepare[OP_COS] = prepare<op_cos, 5, 0>;
    table.prepare[OP_SCALE] = prepare_scale;
    table.prepare[OP_SOFTCAP] = prepare<op_softcap, 6, 2>;
    table.prepare[OP_CLAMP] = prepare<op_clamp, 1, 2>;
    table.prepare[OP_LEAKY_RELU] = prepare<op_leaky_relu, 1, 1>;
}

GGR_KERNELS_END
