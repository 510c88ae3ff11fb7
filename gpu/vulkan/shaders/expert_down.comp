#version 460
// out[pairs[p], i] = weights[pairs[p]] * (down[i] . h[p] + bias[i]): R outputs of T pairs of one
// expert per work-group. Without weights (address 0): times 1.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "dot_tile.glsl"
#include "vector.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t table, scales, h, pairs, weights, y, grid;
    uint hidden, ffn, down_step, down_gap, bias_dtype, bias_step;
    uint scale_rows, scale_cols, down_first, unused;
} p;

layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Expert {
    uint64_t down, bias;
    uint pair_begin, pair_count;
};

void main()
{
    uint o0 = gl_WorkGroupID.x * R, t0 = gl_WorkGroupID.z * T;
    Expert e = Expert(p.table + uint64_t(gl_WorkGroupID.y) * 24ul);
    if (t0 >= e.pair_count)
        return;
    weight_grid = p.grid;
    Scales scales = Scales(0ul, p.scale_rows, p.scale_cols, p.down_first);
    if (SCALES != SCALES_NONE)
        scales.at = U64s(p.scales).v[gl_WorkGroupID.y];
    dot_outputs(0, R, e.down, p.down_step, p.down_gap, scales, o0, p.hidden, p.ffn);
    [[unroll]] for (uint i = 0; i < DOT_X; i++) {
        uint64_t row = e.pair_begin + min(t0 + dot_row(i), e.pair_count - 1);
        dot_x[i] = p.h + row * p.ffn * 4ul;
    }
    dot_tile(p.ffn);
    Vector bias = Vector(e.bias, p.bias_dtype, p.bias_step);
    for (uint i = gl_LocalInvocationID.x; i < R * T; i += WG) {
        uint o = o0 + i % R, t = t0 + i / R;
        if (o >= p.hidden || t >= e.pair_count)
            continue;
        uint pair = U32s(p.pairs).v[e.pair_begin + t];
        float weight = 1.0;
        if (p.weights != 0ul)
            weight = F32s(p.weights).v[pair];
        F32s(p.y + uint64_t(pair) * p.hidden * 4ul).v[o] =
            weight * (dot_sum(i % R, i / R) + vector_or_zero(bias, o));
    }
}
