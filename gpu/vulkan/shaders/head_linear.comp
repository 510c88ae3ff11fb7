#version 460
// y[r, h, i] = sum_k w[h * head_rows + row_off + i, k] x[r, h, k]: one head, R of its outputs and
// T rows per work-group.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "dot_tile.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t w, x, y, grid;
    Scales scales;
    uint cols, n_rows, head_rows, row_off, n_sub;
    uint x_stride, x_head_stride, y_stride, y_head_stride, unused;
} p;

void main()
{
    uint o0 = gl_WorkGroupID.x * R, h = gl_WorkGroupID.y, r0 = gl_WorkGroupID.z * T;
    uint64_t first = uint64_t(h) * p.head_rows + p.row_off;
    weight_grid = p.grid;
    Scales scales = Scales(p.scales.at, p.scales.rows, p.scales.cols, uint(first));
    dot_outputs(0, R, p.w + first * weight_bytes(p.cols), 1, 1, scales, o0, p.n_sub, p.cols);
    [[unroll]] for (uint i = 0; i < DOT_X; i++) {
        uint64_t row = min(r0 + dot_row(i), p.n_rows - 1);
        dot_x[i] = p.x + (row * p.x_stride + uint64_t(h) * p.x_head_stride) * 4ul;
    }
    dot_tile(p.cols);
    for (uint i = gl_LocalInvocationID.x; i < R * T; i += WG) {
        uint o = o0 + i % R, r = r0 + i / R;
        if (o >= p.n_sub || r >= p.n_rows)
            continue;
        uint64_t at = uint64_t(r) * p.y_stride + uint64_t(h) * p.y_head_stride;
        F32s(p.y + at * 4ul).v[o] = dot_sum(i % R, i / R);
    }
}
