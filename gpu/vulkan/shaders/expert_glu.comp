#version 460
// h[p, j] = act(w * gate[j] . x[row] + gate_bias[j]) * (w * up[j] . x[row] + up_bias[j]), w being the
// pair's weight if there are weights: GLU_OUTS outputs of T pairs of one expert per work-group. MODE:
//   BOTH    as above
//   ALONE   there is no up: the second factor is 1
//   FIRST   h = the first argument of act, without act: leaves the second factor in h
//   SECOND  the second factor is what is in h
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 9) const uint MODE = 0;
layout(constant_id = 10) const uint ACT = 0;
#include "common.glsl"
#include "dot_tile.glsl"
#include "vector.glsl"
#include "act.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t table, scales, x, pairs, h, weights, grid;
    uint k, hidden, ffn, gate_step, up_step, gate_gap, up_gap;
    uint scale_rows, scale_cols, gate_first, up_first;
    uint gate_bias_dtype, gate_bias_step, up_bias_dtype, up_bias_step;
    float limit, alpha;
} p;

layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Expert {
    uint64_t gate, up, gate_bias, up_bias;
    uint pair_begin, pair_count;
};

const uint BOTH = 0, FIRST = 2, SECOND = 3; // glu_mode in vk_ops.c
const uint GLU_OUTS = MODE == BOTH ? R / 2 : R;

void main()
{
    uint j0 = gl_WorkGroupID.x * GLU_OUTS, t0 = gl_WorkGroupID.z * T;
    Expert e = Expert(p.table + uint64_t(gl_WorkGroupID.y) * 40ul);
    if (t0 >= e.pair_count)
        return;
    weight_grid = p.grid;
    Scales scales = Scales(0ul, p.scale_rows, p.scale_cols, p.gate_first);
    if (SCALES != SCALES_NONE) // of gate and of up, an expert after the other
        scales.at = U64s(p.scales).v[2 * gl_WorkGroupID.y];
    dot_outputs(0, GLU_OUTS, e.gate, p.gate_step, p.gate_gap, scales, j0, p.ffn, p.hidden);
    if (MODE == BOTH) {
        scales.first = p.up_first;
        if (SCALES != SCALES_NONE)
            scales.at = U64s(p.scales).v[2 * gl_WorkGroupID.y + 1];
        dot_outputs(GLU_OUTS, GLU_OUTS, e.up, p.up_step, p.up_gap, scales, j0, p.ffn, p.hidden);
    }
    [[unroll]] for (uint i = 0; i < DOT_X; i++) {
        uint pair = e.pair_begin + min(t0 + dot_row(i), e.pair_count - 1);
        dot_x[i] = p.x + uint64_t(U32s(p.pairs).v[pair] / p.k) * p.hidden * 4ul;
    }
    dot_tile(p.hidden);
    Vector gate_bias = Vector(e.gate_bias, p.gate_bias_dtype, p.gate_bias_step);
    Vector up_bias = Vector(e.up_bias, p.up_bias_dtype, p.up_bias_step);
    for (uint i = gl_LocalInvocationID.x; i < GLU_OUTS * T; i += WG) {
        uint s = i % GLU_OUTS, j = j0 + s, t = i / GLU_OUTS;
        if (j >= p.ffn || t0 + t >= e.pair_count)
            continue;
        uint64_t row = e.pair_begin + t0 + t;
        F32s h = F32s(p.h + row * p.ffn * 4ul);
        float weight = 1.0, up = 1.0;
        if (p.weights != 0ul)
            weight = F32s(p.weights).v[U32s(p.pairs).v[uint(row)]];
        if (MODE == BOTH)
            up = weight * dot_sum(GLU_OUTS + s, t) + vector_or_zero(up_bias, j);
        if (MODE == SECOND)
            up = h.v[j];
        float gate = weight * dot_sum(s, t) + vector_or_zero(gate_bias, j);
        h.v[j] = MODE == FIRST ? gate : activate(ACT, gate, up, p.limit, p.alpha);
    }
}
