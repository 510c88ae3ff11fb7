#version 460
// y = y * sigmoid(g), or y * silu(g), in place. One invocation an element.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool SILU = false;
#include "state.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t g, y;
    uint n_items, n_heads, width, g_stride, g_head_stride, y_stride, y_head_stride;
    uint unused;
} p;

void main()
{
    uint n = flat_index(), i = n % p.width, h = n / p.width % p.n_heads;
    if (n >= p.n_items)
        return;
    uint64_t r = n / p.width / p.n_heads;
    float g = F32s(p.g + (r * p.g_stride + uint64_t(h) * p.g_head_stride + i) * 4ul).v[0];
    F32s y = F32s(p.y + (r * p.y_stride + uint64_t(h) * p.y_head_stride + i) * 4ul);
    y.v[0] *= SILU ? silu(g) : sigmoid(g);
}
