#version 460
// decay = exp(-exp(a_log) * softplus(a + dt_bias)), beta = sigmoid(b). One invocation for a head of
// a row.
#extension GL_GOOGLE_include_directive : require
#include "state.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t a, b, decay, beta;
    Vector a_log, dt_bias;
    uint n_items, n_heads, stride, group, group_stride;
    uint unused;
} p;

void main()
{
    uint i = flat_index(), h = i % p.n_heads;
    if (i >= p.n_items)
        return;
    uint64_t at = uint64_t(i / p.n_heads) * p.stride + uint64_t(h / p.group) * p.group_stride +
                  h % p.group;
    float v = F32s(p.a + at * 4ul).v[0] + vector_element(p.dt_bias, h);
    float small = exp(-abs(v)); // log(1 + small), exact where adding 1 would lose it
    float tail = small < 1e-3 ? small * (1.0 - 0.5 * small) : log(1.0 + small);
    float soft = max(v, 0.0) + tail;
    F32s(p.decay + uint64_t(i) * 4ul).v[0] = exp(-exp(vector_element(p.a_log, h)) * soft);
    F32s(p.beta + uint64_t(i) * 4ul).v[0] = sigmoid(F32s(p.b + at * 4ul).v[0]);
}
