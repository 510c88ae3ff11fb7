#version 460
// Attention over a latent cache, as an online softmax over tiles of WG * CT cells. A work-group
// takes one row and HG heads: in a tile each invocation scores CT cells for all the heads, then
// each takes its blocks of the latent and adds the tile's weighted cells up, in the order of the
// cells. Nothing is kept that grows with the context.
//
// A dispatch takes `n_span` cells of each row from `span` on; where that is not all of them, the
// sums stay in y and (maximum, total) in `state` for the next dispatch (vk_attention.c says why).
// SPREAD: all spans are work-groups (z) of one dispatch; a row of several leaves a part of each in
// `state`, as attn.glsl has it, for attn_merge. With SELECT the cells of a row are those that a list
// names.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint RANK = 512;
layout(constant_id = 3) const uint N_ROPE = 64;
layout(constant_id = 4) const uint HG = 1;
layout(constant_id = 5) const uint CT = 1;
layout(constant_id = 6) const bool SELECT = false;
layout(constant_id = 7) const bool SPREAD = false;
#include "weight.glsl"

layout(push_constant, std430) uniform Params {
    uint64_t q_lat, q_rope, cache, rows, y, state, cells;
    uint n_heads, q_stride, q_head_stride, span, n_span;
    float scale;
    uint n_select, n_spans;
} p;

const uint LAT_BLOCKS = (RANK + W_BLOCK - 1) / W_BLOCK;
const uint ROPE_BLOCKS = (N_ROPE + W_BLOCK - 1) / W_BLOCK;
const uint PER = (LAT_BLOCKS + WG - 1) / WG; // blocks of an invocation

const uint TILE = WG * CT;

shared float score[HG * TILE];
shared float prob[HG * TILE];

uint64_t first_at; // the address of the row's first cell of this dispatch, or of its list

// The address of its i-th.
uint64_t cell_at(uint i)
{
    uint64_t cell_bytes = weight_bytes(RANK + N_ROPE);
    if (SELECT)
        return p.cache + U32s(first_at).v[i] * cell_bytes;
    return first_at + i * cell_bytes;
}

// The cells lid, lid + WG, ... from c0 on; those beyond n are scored as the n-th, unused.
void score_cells(uint c0, uint n, uint64_t q_lat[HG], uint64_t q_rope[HG])
{
    float s[HG * CT];
    uint64_t cell[CT];
    [[unroll]] for (uint i = 0; i < HG * CT; i++)
        s[i] = 0.0;
    [[unroll]] for (uint c = 0; c < CT; c++)
        cell[c] = cell_at(c0 + min(gl_LocalInvocationID.x + c * WG, n - 1));
    for (uint b = 0; b < LAT_BLOCKS + ROPE_BLOCKS; b++) {
        bool lat = b < LAT_BLOCKS;
        uint at = lat ? b : b - LAT_BLOCKS, width = lat ? RANK : N_ROPE;
        WBlock w[CT];
        [[unroll]] for (uint c = 0; c < CT; c++)
            w[c] = weight_block(cell[c] + (lat ? 0ul : weight_bytes(RANK)), at, width);
        [[unroll]] for (uint h = 0; h < HG; h++) {
            WBlock q = float_block(lat ? q_lat[h] : q_rope[h], at, width);
            [[unroll]] for (uint c = 0; c < CT; c++)
                s[h * CT + c] = block_dot(w[c], q, s[h * CT + c]);
        }
    }
    [[unroll]] for (uint i = 0; i < HG * CT; i++)
        score[i / CT * TILE + i % CT * WG + gl_LocalInvocationID.x] = p.scale * s[i];
}

void main()
{
    uint lid = gl_LocalInvocationID.x;
    uint h0 = gl_WorkGroupID.x * HG;
    uint64_t r = gl_WorkGroupID.y;
    U32s info = U32s(p.rows + r * 16ul);
    uint n_row = SELECT ? min(p.n_select, info.v[2]) : info.v[2];
    uint begin = SPREAD ? gl_WorkGroupID.z * p.n_span : p.span;
    if (begin >= n_row)
        return;
    if (SELECT)
        first_at = p.cells + (r * p.n_select + begin) * 4ul;
    else
        first_at = p.cache + (uint64_t(info.v[1]) + begin) * weight_bytes(RANK + N_ROPE);
    uint n_left = n_row - begin, n_cells = min(n_left, p.n_span);

    uint64_t q_lat[HG], q_rope[HG];
    float top[HG], total[HG];
    WBlock acc[HG * PER];
    [[unroll]] for (uint h = 0; h < HG; h++) {
        uint64_t head = min(h0 + h, p.n_heads - 1);
        q_lat[h] = p.q_lat + (r * p.n_heads + head) * RANK * 4ul;
        q_rope[h] = p.q_rope + (r * p.q_stride + head * p.q_head_stride) * 4ul;
        top[h] = -3.4e38;
        total[h] = 0.0;
        [[unroll]] for (uint i = 0; i < PER * W_VECS; i++)
            acc[h * PER + i / W_VECS].v[i % W_VECS] = vec4(0.0);
        if (!SPREAD && p.span > 0) {
            top[h] = F32s(p.state).v[2 * (uint(r) * p.n_heads + uint(head))];
            total[h] = F32s(p.state).v[2 * (uint(r) * p.n_heads + uint(head)) + 1];
            F32s y = F32s(p.y + (r * p.n_heads + head) * RANK * 4ul);
            [[unroll]] for (uint k = 0; k < PER * W_BLOCK; k++) {
                uint i = (lid + k / W_BLOCK * WG) * W_BLOCK + k % W_BLOCK;
                acc[h * PER + k / W_BLOCK].v[k % W_BLOCK / 4][k % 4] = y.v[min(i, RANK - 1)];
            }
        }
    }
    for (uint c0 = 0; c0 < n_cells; c0 += TILE) {
        uint n = min(TILE, n_cells - c0);
        score_cells(c0, n, q_lat, q_rope);
        barrier();
        float m[HG];
        [[unroll]] for (uint h = 0; h < HG; h++)
            m[h] = top[h];
        for (uint i = 0; i < n; i++)
            [[unroll]] for (uint h = 0; h < HG; h++)
                m[h] = max(m[h], score[h * TILE + i]);
        for (uint i = lid; i < n; i += WG)
            [[unroll]] for (uint h = 0; h < HG; h++)
                prob[h * TILE + i] = exp(score[h * TILE + i] - m[h]);
        [[unroll]] for (uint h = 0; h < HG; h++) {
            float shrink = exp(top[h] - m[h]);
            top[h] = m[h];
            total[h] *= shrink;
            [[unroll]] for (uint i = 0; i < PER * W_VECS; i++)
                acc[h * PER + i / W_VECS].v[i % W_VECS] *= shrink;
        }
        barrier();
        for (uint i = 0; i < n; i++) {
            uint64_t cell = cell_at(c0 + i);
            [[unroll]] for (uint h = 0; h < HG; h++)
                total[h] += prob[h * TILE + i];
            [[unroll]] for (uint k = 0; k < PER; k++) {
                uint b = lid + k * WG;
                if (b >= LAT_BLOCKS)
                    break;
                WBlock w = weight_block(cell, b, RANK);
                [[unroll]] for (uint h = 0; h < HG; h++)
                    [[unroll]] for (uint j = 0; j < W_VECS; j++)
                        acc[h * PER + k].v[j] =
                            fma(w.v[j], vec4(prob[h * TILE + i]), acc[h * PER + k].v[j]);
            }
        }
        // No barrier: the next tile writes score (last read before the barrier above), and prob
        // only after its own first barrier.
    }
    bool part = SPREAD && n_row > p.n_span, last = n_cells == n_left && !part;
    [[unroll]] for (uint h = 0; h < HG; h++) {
        if (h0 + h >= p.n_heads)
            break;
        uint64_t head = r * p.n_heads + h0 + h;
        F32s y = F32s(p.y + head * RANK * 4ul), state = F32s(p.state + head * 8ul);
        if (part) { // state: its maximum and total, y: its sums
            state = F32s(p.state + (head * p.n_spans + gl_WorkGroupID.z) * (RANK + 2) * 4ul);
            y = F32s(uint64_t(state) + 8ul);
        }
        [[unroll]] for (uint k = 0; k < PER * W_BLOCK; k++) {
            uint i = (lid + k / W_BLOCK * WG) * W_BLOCK + k % W_BLOCK;
            float v = acc[h * PER + k / W_BLOCK].v[k % W_BLOCK / 4][k % 4];
            if (i < RANK)
                y.v[i] = last ? v / total[h] : v;
        }
        if (!last && lid == 0) {
            state.v[0] = top[h];
            state.v[1] = total[h];
        }
    }
}
