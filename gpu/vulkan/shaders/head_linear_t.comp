#version 460
// The same weights read the other way: y[r, h, k] = sum_i w[h * head_rows + row_off + i, k]
// x[r, h, i]. An invocation owns W_BLOCK consecutive k of one head and T rows, and walks down i.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint T = 1;
#include "weight.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t w, x, y;
    uint w_step, cols, n_rows, head_rows, row_off, n_sub;
    uint x_stride, x_head_stride, y_stride, y_head_stride;
} p;

void main()
{
    uint b = gl_WorkGroupID.x * WG + gl_LocalInvocationID.x;
    uint h = gl_WorkGroupID.y, r0 = gl_WorkGroupID.z * T;
    if (b * W_BLOCK >= p.cols)
        return;
    uint64_t first = uint64_t(h) * p.head_rows + p.row_off;
    uint64_t x[T];
    WBlock acc[T];
    [[unroll]] for (uint t = 0; t < T; t++) {
        uint64_t row = min(r0 + t, p.n_rows - 1);
        x[t] = p.x + (row * p.x_stride + uint64_t(h) * p.x_head_stride) * 4ul;
        [[unroll]] for (uint j = 0; j < W_VECS; j++)
            acc[t].v[j] = vec4(0.0);
    }
    for (uint i = 0; i < p.n_sub; i++) {
        uint64_t row = p.w + (first + i) * p.w_step * weight_bytes(p.cols);
        WBlock w = weight_block(row, b, p.cols);
        [[unroll]] for (uint t = 0; t < T; t++) {
            float xi = F32s(x[t]).v[i];
            [[unroll]] for (uint j = 0; j < W_VECS; j++)
                acc[t].v[j] = fma(w.v[j], vec4(xi), acc[t].v[j]);
        }
    }
    [[unroll]] for (uint t = 0; t < T; t++) {
        if (r0 + t >= p.n_rows)
            break;
        uint64_t at = uint64_t(r0 + t) * p.y_stride + uint64_t(h) * p.y_head_stride;
        [[unroll]] for (uint j = 0; j < W_BLOCK; j++)
            if (b * W_BLOCK + j < p.cols)
                F32s(p.y + at * 4ul).v[b * W_BLOCK + j] = acc[t].v[j / 4][j % 4];
    }
}
