#version 460
// y[r, o] = scale * sum_k w[o, k] x[r, k]  (+ bias[o])  (+ y[r, o]): a work-group makes R outputs of
// T rows.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "dot_tile.glsl"
#include "vector.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t w, x, y, grid;
    Vector bias;
    Scales scales;
    uint w_step, w_gap, rows, cols, n_rows, x_stride, y_stride, accumulate;
    float scale;
} p;

void main()
{
    uint o0 = group_index() * R, r0 = gl_WorkGroupID.z * T;
    if (o0 >= p.rows)
        return;
    weight_grid = p.grid;
    dot_outputs(0, R, p.w, p.w_step, p.w_gap, p.scales, o0, p.rows, p.cols);
    [[unroll]] for (uint i = 0; i < DOT_X; i++)
        dot_x[i] = p.x + uint64_t(min(r0 + dot_row(i), p.n_rows - 1)) * p.x_stride * 4ul;
    dot_tile(p.cols);
    for (uint i = gl_LocalInvocationID.x; i < R * T; i += WG) {
        uint o = o0 + i % R, r = r0 + i / R;
        if (o >= p.rows || r >= p.n_rows)
            continue;
        F32s y = F32s(p.y + uint64_t(r) * p.y_stride * 4ul);
        float v = p.scale * dot_sum(i % R, i / R) + vector_or_zero(p.bias, o);
        if (p.accumulate != 0)
            v += y.v[o];
        y.v[o] = v;
    }
}
