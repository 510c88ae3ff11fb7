#version 460
// scores[r, i] = scale * sum_h w[r, h] * max(q[r, h] . k_i, 0): one invocation a cell (x) of a row
// (y), which keeps the cell's key in registers while the heads pass.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint D = 128;
#include "weight.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t q, w, k, rows, scores;
    uint n_heads, q_stride, w_stride, score_stride;
    float scale;
    uint unused;
} p;

const uint BLOCKS = (D + W_BLOCK - 1) / W_BLOCK;

void main()
{
    uint i = gl_WorkGroupID.x * WG + gl_LocalInvocationID.x;
    uint64_t r = gl_WorkGroupID.y + uint64_t(gl_WorkGroupID.z) * gl_NumWorkGroups.y;
    U32s info = U32s(p.rows + r * 16ul);
    if (i >= info.v[2])
        return;
    uint64_t cell = p.k + (uint64_t(info.v[1]) + i) * weight_bytes(D);
    WBlock key[BLOCKS];
    for (uint b = 0; b < BLOCKS; b++)
        key[b] = weight_block(cell, b, D);
    float sum = 0.0;
    for (uint h = 0; h < p.n_heads; h++) {
        uint64_t q = p.q + (r * p.q_stride + uint64_t(h) * D) * 4ul;
        float s = 0.0;
        for (uint b = 0; b < BLOCKS; b++)
            s = block_dot(key[b], float_block(q, b, D), s);
        sum = fma(F32s(p.w + (r * p.w_stride + h) * 4ul).v[0], s < 0.0 ? 0.0 : s, sum);
    }
    F32s(p.scores + (r * p.score_stride + i) * 4ul).v[0] = p.scale * sum;
}
