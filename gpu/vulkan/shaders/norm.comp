#version 460
// y[r, h, i] = g[i] * (x - mean) / sqrt(mean (x - mean)^2 + eps) * scale + bias[i], the mean being 0
// unless LAYER: one head of one row per work-group. y may be x: all of a head is read for the sums
// before any of it is written, and each element only by the invocation that read it.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool LAYER = false;
#include "reduce.glsl"
#include "vector.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t x, y;
    Vector w, bias;
    uint n_rows, n_heads, width, x_stride, x_head_stride, y_stride, y_head_stride;
    uint w_head_step, bias_head_step; // 0, or width: a part for each head
    float eps, scale, offset;
} p;

void main()
{
    uint g = group_index(), r = g / p.n_heads, h = g % p.n_heads;
    if (r >= p.n_rows)
        return;
    uint64_t x_at = uint64_t(r) * p.x_stride + uint64_t(h) * p.x_head_stride;
    uint64_t y_at = uint64_t(r) * p.y_stride + uint64_t(h) * p.y_head_stride;
    F32s x = F32s(p.x + x_at * 4ul), y = F32s(p.y + y_at * 4ul);
    float mean = 0.0, sum = 0.0;
    if (LAYER) {
        for (uint i = gl_LocalInvocationID.x; i < p.width; i += WG)
            sum += x.v[i];
        mean = group_sum(sum) / float(p.width);
        sum = 0.0;
    }
    for (uint i = gl_LocalInvocationID.x; i < p.width; i += WG)
        sum = fma(x.v[i] - mean, x.v[i] - mean, sum);
    float root = sqrt(group_sum(sum) / float(p.width) + p.eps);
    for (uint i = gl_LocalInvocationID.x; i < p.width; i += WG) {
        float gain = 1.0;
        if (p.w.at != 0ul)
            gain = p.offset + vector_element(p.w, h * p.w_head_step + i);
        float v = gain * ((x.v[i] - mean) / root) * p.scale;
        if (LAYER)
            v += vector_or_zero(p.bias, h * p.bias_head_step + i);
        y.v[i] = v;
    }
}
