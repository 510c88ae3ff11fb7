#version 460
// Rotates pairs in place: (2i, 2i + 1), or (i, i + n_rot / 2) with HALVES. One invocation a pair.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool HALVES = false;
#include "common.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t x, cos_sin;
    uint n_rows, n_heads, n_pairs, stride, head_stride;
} p;

void main()
{
    uint i = flat_index();
    if (i >= p.n_rows * p.n_heads * p.n_pairs)
        return;
    uint pair = i % p.n_pairs, h = i / p.n_pairs % p.n_heads, r = i / p.n_pairs / p.n_heads;
    F32s cs = F32s(p.cos_sin + (uint64_t(r) * p.n_pairs + pair) * 8ul);
    F32s x = F32s(p.x + (uint64_t(r) * p.stride + uint64_t(h) * p.head_stride) * 4ul);
    uint ia = HALVES ? pair : 2 * pair;
    uint ib = HALVES ? pair + p.n_pairs : 2 * pair + 1;
    float a = x.v[ia], b = x.v[ib], c = cs.v[0], s = cs.v[1];
    x.v[ia] = a * c - b * s;
    x.v[ib] = b * c + a * s;
}
