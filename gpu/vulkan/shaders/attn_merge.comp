#version 460
// The parts of a row's spans, added in their order: an invocation makes one value of one head.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const uint D_V = 128;
#include "attn.glsl"

void main()
{
    uint heads = p.n_heads / p.n_kv_heads * p.kv_count;
    uint f = gl_WorkGroupID.x * WG + gl_LocalInvocationID.x, h = f / D_V, i = f % D_V;
    uint64_t r = gl_WorkGroupID.y;
    uint n_spans = (visible_cells(r).y + p.span - 1) / p.span;
    if (h >= heads || n_spans <= 1)
        return;
    float top = attn_part(r, h, 0, D_V).v[0], total = 0.0, sum = 0.0;
    for (uint s = 1; s < n_spans; s++)
        top = max(top, attn_part(r, h, s, D_V).v[0]);
    for (uint s = 0; s < n_spans; s++) {
        F32s part = attn_part(r, h, s, D_V);
        float share = exp(part.v[0] - top);
        total = fma(part.v[1], share, total);
        sum = fma(part.v[2 + i], share, sum);
    }
    uint head = p.kv_first * (p.n_heads / p.n_kv_heads) + h;
    F32s(p.y + (r * p.n_heads + head) * D_V * 4ul).v[i] = sum / total;
}
