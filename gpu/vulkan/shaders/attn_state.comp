#version 460
// Linear attention with a state [D_K, d_v] per head: one invocation owns a column of one head's
// state (x: blocks of columns, y: heads, z: runs) and walks the rows in order, the column in
// registers; nobody else reads or writes it.
//
// A dispatch takes `n_span` rows of each run from `span` on; a later one goes on from what the
// earlier left in the run's `to` (vk_state.c says why).
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const uint D_K = 128;
layout(constant_id = 2) const bool DELTA = false;
#include "state.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t q, k, v, decay, beta, y, state, runs;
    uint n_heads, per_k_head, d_v, stride, k_head_stride, v_head_stride, decay_stride;
    uint span, n_span;
    uint n_k_heads;
} p;

void main()
{
    uint j = gl_WorkGroupID.x * WG + gl_LocalInvocationID.x, h = gl_WorkGroupID.y;
    Run run = run_at(p.runs, gl_WorkGroupID.z);
    if (j >= p.d_v || p.span >= run.n_rows)
        return;
    uint64_t head_bytes = uint64_t(D_K) * p.d_v * 4ul;
    F32s to = F32s(p.state + (uint64_t(run.to) * p.n_heads + h) * head_bytes);
    uint old = p.span == 0 ? run.from : run.to;
    F32s from = F32s(p.state + (uint64_t(old) * p.n_heads + h) * head_bytes);
    float s[D_K];
    if (old == NO_STATE)
        for (uint i = 0; i < D_K; i++)
            s[i] = 0.0;
    else
        for (uint i = 0; i < D_K; i++)
            s[i] = from.v[i * p.d_v + j];
    uint64_t key_at = uint64_t(h / p.per_k_head % p.n_k_heads) * p.k_head_stride;
    uint end = min(run.n_rows, p.span + p.n_span);
    for (uint n = p.span; n < end; n++) {
        uint64_t r = run.first_row + n;
        F32s q = F32s(p.q + (r * p.stride + key_at) * 4ul);
        F32s k = F32s(p.k + (r * p.stride + key_at) * 4ul);
        float decay = F32s(p.decay + (r * p.decay_stride + h) * 4ul).v[0];
        float u = F32s(p.v + (r * p.stride + uint64_t(h) * p.v_head_stride + j) * 4ul).v[0];
        float sum = 0.0;
        for (uint i = 0; i < D_K; i++) {
            s[i] *= decay;
            if (DELTA)
                sum = fma(s[i], k.v[i], sum);
        }
        if (DELTA)
            u = F32s(p.beta + (r * p.n_heads + h) * 4ul).v[0] * (u - sum);
        sum = 0.0;
        for (uint i = 0; i < D_K; i++) {
            s[i] = fma(k.v[i], u, s[i]);
            sum = fma(s[i], q.v[i], sum);
        }
        F32s(p.y + ((r * p.n_heads + h) * p.d_v + j) * 4ul).v[0] = sum;
    }
    for (uint i = 0; i < D_K; i++)
        to.v[i * p.d_v + j] = s[i];
}
