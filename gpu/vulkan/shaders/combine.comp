#version 460
// y[r, i] = sum over rank, ascending: the expert's own row of `outs`, or weight * x[r, i] for an
// identity expert (id >= n_routed). One order of addition, whatever arrived when.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t outs, ids, weights, x, y;
    uint n_rows, k, hidden, n_routed;
} p;

void main()
{
    uint f = flat_index(), r = f / p.hidden, i = f % p.hidden;
    if (r >= p.n_rows)
        return;
    uint64_t at = uint64_t(r) * p.hidden + i;
    float x = F32s(p.x + at * 4ul).v[0], sum = 0.0;
    for (uint rank = 0; rank < p.k; rank++) {
        uint pair = r * p.k + rank;
        if (U32s(p.ids).v[pair] < p.n_routed)
            sum += F32s(p.outs + uint64_t(pair) * p.hidden * 4ul).v[i];
        else
            sum += F32s(p.weights).v[pair] * x;
    }
    F32s(p.y + at * 4ul).v[0] = sum;
}
