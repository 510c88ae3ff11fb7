#version 460
// Attention of one head (x) of one row (y) biased by distance, as an online softmax over tiles of WG
// cells: each invocation scores a cell, then each adds up its own elements of the values, in the
// order of the cells. A dispatch takes `n_span` cells from `span` on; where that is not all, the sums
// stay in y and (maximum, total) in `state` for the next (vk_bias.c).
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint D = 64;
#include "weight.glsl"
#include "vector.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t q, k, v, rows, y, buckets, state;
    Vector bias;
    uint n_heads, q_stride, n_buckets, zero, span, n_span;
    float scale;
    uint unused;
} p;

const uint BLOCKS = (D + W_BLOCK - 1) / W_BLOCK;
const uint PER = (D + WG - 1) / WG; // elements of an invocation

shared float score[WG];

void main()
{
    uint lid = gl_LocalInvocationID.x, h = gl_WorkGroupID.x;
    uint64_t r = gl_WorkGroupID.y;
    U32s info = U32s(p.rows + r * 16ul);
    if (p.span >= info.v[2])
        return;
    uint first = info.v[1], position = info.v[3], end = min(info.v[2], p.span + p.n_span);
    uint64_t cell_bytes = p.n_heads * weight_bytes(D), head_at = h * weight_bytes(D);
    uint64_t q = p.q + (r * p.q_stride + uint64_t(h) * D) * 4ul;
    F32s y = F32s(p.y + (r * p.n_heads + h) * D * 4ul);
    F32s state = F32s(p.state + (r * p.n_heads + h) * 8ul);
    float top = -3.4e38, total = 0.0, acc[PER];
    [[unroll]] for (uint i = 0; i < PER; i++)
        acc[i] = 0.0;
    if (p.span > 0) {
        top = state.v[0];
        total = state.v[1];
        [[unroll]] for (uint i = 0; i < PER; i++)
            acc[i] = y.v[min(lid + i * WG, D - 1)];
    }
    for (uint c0 = p.span; c0 < end; c0 += WG) {
        uint n = min(WG, end - c0), c = c0 + min(lid, n - 1);
        uint64_t cell = p.k + uint64_t(first + c) * cell_bytes + head_at;
        float s = 0.0;
        for (uint b = 0; b < BLOCKS; b++)
            s = block_dot(weight_block(cell, b, D), float_block(q, b, D), s);
        int at = clamp(int(c) - int(position) + int(p.zero), 0, int(p.n_buckets) - 1);
        uint bucket = U32s(p.buckets).v[at];
        barrier(); // the last tile's scores have been read
        score[lid] = p.scale * s + vector_element(p.bias, bucket * p.n_heads + h);
        barrier();
        float most = top;
        for (uint i = 0; i < n; i++)
            most = max(most, score[i]);
        float shrink = exp(top - most);
        top = most;
        total *= shrink;
        [[unroll]] for (uint i = 0; i < PER; i++)
            acc[i] *= shrink;
        for (uint i = 0; i < n; i++) {
            float share = exp(score[i] - most);
            uint64_t value = p.v + uint64_t(first + c0 + i) * cell_bytes + head_at;
            total += share;
            [[unroll]] for (uint j = 0; j < PER; j++)
                acc[j] = fma(share, weight_element(value, min(lid + j * WG, D - 1)), acc[j]);
        }
    }
    bool last = end == info.v[2];
    [[unroll]] for (uint i = 0; i < PER; i++)
        if (lid + i * WG < D)
            y.v[lid + i * WG] = last ? acc[i] / total : acc[i];
    if (!last && lid == 0) {
        state.v[0] = top;
        state.v[1] = total;
    }
}
