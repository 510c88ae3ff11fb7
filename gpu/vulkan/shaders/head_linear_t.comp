#version 460
// The same weights read the other way: y[r, h, k] = sum_i w[h * head_rows + row_off + i, k]
// x[r, h, i]. An invocation owns the W_UNIT k of a unit of one head and T rows, and walks down i.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint T = 1;
layout(constant_id = 3) const uint SCALES = 0; // scales.glsl
#include "weight.glsl"
#include "scales.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t w, x, y, grid;
    Scales scales;
    uint cols, n_rows, head_rows, row_off, n_sub;
    uint x_stride, x_head_stride, y_stride, y_head_stride, unused;
} p;

void main()
{
    uint u = gl_WorkGroupID.x * WG + gl_LocalInvocationID.x;
    uint h = gl_WorkGroupID.y, r0 = gl_WorkGroupID.z * T;
    if (u * W_UNIT >= p.cols)
        return;
    uint64_t first = uint64_t(h) * p.head_rows + p.row_off;
    uint64_t x[T];
    WBlock acc[T * W_EIGHTS];
    weight_grid = p.grid;
    [[unroll]] for (uint t = 0; t < T; t++) {
        uint64_t row = min(r0 + t, p.n_rows - 1);
        x[t] = p.x + (row * p.x_stride + uint64_t(h) * p.x_head_stride) * 4ul;
    }
    [[unroll]] for (uint j = 0; j < T * W_EIGHTS * W_VECS; j++)
        acc[j / W_VECS].v[j % W_VECS] = vec4(0.0);
    for (uint i = 0; i < p.n_sub; i++) {
        WUnit w = weight_unit(p.w + (first + i) * weight_bytes(p.cols), u, p.cols);
        float scale = 1.0;
        if (SCALES != SCALES_NONE) {
            uint64_t row = scales_row(SCALES, p.scales, uint(first) + i, 1, p.cols);
            scale = scales_value(SCALES, row, u * W_UNIT / p.scales.cols);
        }
        [[unroll]] for (uint e = 0; e < W_EIGHTS; e++) {
            WBlock eight = weight_eight(w, u, e, p.cols);
            if (SCALES != SCALES_NONE)
                eight = block_scaled(eight, scale);
            [[unroll]] for (uint t = 0; t < T; t++) {
                vec4 xi = vec4(F32s(x[t]).v[i]);
                [[unroll]] for (uint j = 0; j < W_VECS; j++)
                    acc[t * W_EIGHTS + e].v[j] = fma(eight.v[j], xi, acc[t * W_EIGHTS + e].v[j]);
            }
        }
    }
    [[unroll]] for (uint t = 0; t < T; t++) {
        if (r0 + t >= p.n_rows)
            break;
        uint64_t at = uint64_t(r0 + t) * p.y_stride + uint64_t(h) * p.y_head_stride;
        F32s y = F32s(p.y + at * 4ul);
        [[unroll]] for (uint j = 0; j < W_UNIT; j++)
            if (u * W_UNIT + j < p.cols)
                y.v[u * W_UNIT + j] = acc[t * W_EIGHTS + j / 8].v[j % 8 / 4][j % 4];
    }
}
