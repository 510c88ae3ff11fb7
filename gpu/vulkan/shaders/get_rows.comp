#version 460
// y[r, i] = scale * table[ids[r], i]; without ids (address 0): row r. One invocation a unit.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
#include "weight.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t table, ids, y, grid;
    uint n_rows, cols, y_stride, row_step;
    float scale;
} p;

void main()
{
    uint units = (p.cols + W_UNIT - 1) / W_UNIT;
    uint f = flat_index(), r = f / units, u = f % units;
    if (r >= p.n_rows)
        return;
    uint64_t id = r;
    if (p.ids != 0ul)
        id = U32s(p.ids).v[r];
    weight_grid = p.grid;
    WUnit w = weight_unit(p.table + id * p.row_step * weight_bytes(p.cols), u, p.cols);
    F32s y = F32s(p.y + uint64_t(r) * p.y_stride * 4ul);
    [[unroll]] for (uint e = 0; e < W_EIGHTS; e++) {
        WBlock eight = weight_eight(w, u, e, p.cols);
        [[unroll]] for (uint j = 0; j < W_BLOCK; j++) {
            uint i = u * W_UNIT + e * W_BLOCK + j;
            if (i < p.cols)
                y.v[i] = p.scale * eight.v[j / 4][j % 4];
        }
    }
}
