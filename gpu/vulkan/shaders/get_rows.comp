#version 460
// y[r, i] = scale * table[ids[r], i]; without ids (address 0): row r. One invocation a block.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
#include "weight.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t table, ids, y;
    uint n_rows, cols, y_stride, row_step;
    float scale;
} p;

void main()
{
    uint blocks = (p.cols + W_BLOCK - 1) / W_BLOCK;
    uint f = flat_index(), r = f / blocks, b = f % blocks;
    if (r >= p.n_rows)
        return;
    uint64_t id = r;
    if (p.ids != 0ul)
        id = U32s(p.ids).v[r];
    WBlock w = weight_block(p.table + id * p.row_step * weight_bytes(p.cols), b, p.cols);
    F32s y = F32s(p.y + uint64_t(r) * p.y_stride * 4ul);
    [[unroll]] for (uint j = 0; j < W_BLOCK; j++) {
        uint i = b * W_BLOCK + j;
        if (ALIGNED || i < p.cols)
            y.v[i] = p.scale * w.v[j / 4][j % 4];
    }
}
