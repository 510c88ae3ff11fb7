#version 460
// y[r, i] = a[r, i] clamped, softly capped, or times a function of b[r, i * b_step]. y may be a.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const uint KIND = 0;
#include "common.glsl"
#include "act.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t a, b, y;
    uint n_rows, width, a_stride, b_stride, b_step, y_stride;
    float p, q;
} p;

const uint MAP_CLAMP = 0, MAP_SOFTCAP = 1, MAP_MUL_SIGMOID = 2; // cf_map_kind; else MUL_ROW

void main()
{
    uint f = flat_index(), r = f / p.width, i = f % p.width;
    if (r >= p.n_rows)
        return;
    float v = F32s(p.a + uint64_t(r) * p.a_stride * 4ul).v[i];
    if (KIND == MAP_CLAMP) // a NaN stays one
        v = v < p.p ? p.p : v > p.q ? p.q : v;
    else if (KIND == MAP_SOFTCAP)
        v = p.p * tanh_safe(v / p.p);
    else {
        float b = F32s(p.b + uint64_t(r) * p.b_stride * 4ul).v[i * p.b_step];
        v *= KIND == MAP_MUL_SIGMOID ? sigmoid(b) : b;
    }
    F32s(p.y + uint64_t(r) * p.y_stride * 4ul).v[i] = v;
}
