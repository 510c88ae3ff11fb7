#version 460
// y[i] = act(g[i]) * u[i]; without u (address 0): act(g[i]). y may be g.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const uint ACT = 0;
#include "common.glsl"
#include "act.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t g, u, y;
    uint n;
    float limit, alpha;
} p;

void main()
{
    uint i = flat_index();
    if (i >= p.n)
        return;
    float u = 1.0;
    if (p.u != 0ul)
        u = F32s(p.u).v[i];
    F32s(p.y).v[i] = activate(ACT, F32s(p.g).v[i], u, p.limit, p.alpha);
}
