#version 460
// y[i] = alpha * a[i] + beta * b[i]; without b (address 0): alpha * a[i]. y may be a.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t a, b, y;
    uint n;
    float alpha, beta;
} p;

void main()
{
    uint i = flat_index();
    if (i >= p.n)
        return;
    float v = p.alpha * F32s(p.a).v[i];
    if (p.b != 0ul)
        v += p.beta * F32s(p.b).v[i];
    F32s(p.y).v[i] = v;
}
