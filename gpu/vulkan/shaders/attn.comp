#version 460
// Attention of HG heads that share a key head, for one row, over one span of its visible cells: an
// online softmax over tiles of WG * CT cells. In a tile each invocation scores CT cells for all the
// heads; then SLICES invocations share each block of the values, each adding every SLICES-th cell
// up in order. The slices are added in order at the end. See attn.glsl for the spans.
#extension GL_GOOGLE_include_directive : require
layout(constant_id = 1) const bool ALIGNED = false;
layout(constant_id = 2) const uint D_K = 128;
layout(constant_id = 3) const uint D_V = 128;
layout(constant_id = 4) const uint HG = 1;
layout(constant_id = 5) const uint CT = 1;
#include "weight.glsl"
#include "act.glsl"
#include "attn.glsl"

const uint K_BLOCKS = (D_K + W_BLOCK - 1) / W_BLOCK;
const uint V_BLOCKS = (D_V + W_BLOCK - 1) / W_BLOCK;
const uint LANES = V_BLOCKS < WG ? V_BLOCKS : WG;
const uint SLICES = WG / LANES;
const uint PER = (V_BLOCKS + LANES - 1) / LANES; // blocks of an invocation; 1 with slices
const uint TILE = WG * CT;

#include "attn_softmax.glsl"

shared vec4 slice_acc[WG * W_VECS];
shared float slice_total[WG];

// The cells lid, lid + WG, ... of the tile; those from n on are scored as cell n - 1, unused.
void score_cells(uint64_t tile, uint n, uint64_t cell_bytes, uint64_t q[HG], float sharpness)
{
    float s[HG * CT];
    uint64_t cell[CT];
    [[unroll]] for (uint i = 0; i < HG * CT; i++)
        s[i] = 0.0;
    [[unroll]] for (uint c = 0; c < CT; c++)
        cell[c] = tile + min(gl_LocalInvocationID.x + c * WG, n - 1) * cell_bytes;
    for (uint b = 0; b < K_BLOCKS; b++) {
        WBlock w[CT];
        [[unroll]] for (uint c = 0; c < CT; c++)
            w[c] = weight_block(cell[c], b, D_K);
        [[unroll]] for (uint h = 0; h < HG; h++) {
            WBlock x = float_block(q[h], b, D_K);
            [[unroll]] for (uint c = 0; c < CT; c++)
                s[h * CT + c] = block_dot(w[c], x, s[h * CT + c]);
        }
    }
    [[unroll]] for (uint i = 0; i < HG * CT; i++) {
        float v = p.scale * s[i];
        if (p.cap > 0.0)
            v = p.cap * tanh_safe(v / p.cap);
        v *= sharpness;
        score[i / CT * TILE + i % CT * WG + gl_LocalInvocationID.x] = v;
    }
}

void add_values(uint64_t tile, uint n, uint64_t cell_bytes)
{
    uint lane = gl_LocalInvocationID.x % LANES, slice = gl_LocalInvocationID.x / LANES;
    for (uint i = slice; i < n && slice < SLICES; i += SLICES) {
        [[unroll]] for (uint h = 0; h < HG; h++)
            total[h] += prob[h * TILE + i];
        [[unroll]] for (uint k = 0; k < PER; k++) {
            WBlock w = weight_block(tile + i * cell_bytes, min(lane + k * LANES, V_BLOCKS - 1), D_V);
            [[unroll]] for (uint h = 0; h < HG; h++)
                [[unroll]] for (uint j = 0; j < W_VECS; j++)
                    acc[h * PER + k].v[j] =
                        fma(w.v[j], vec4(prob[h * TILE + i]), acc[h * PER + k].v[j]);
        }
    }
}

// All slices of a head into those of slice 0.
void add_slices(uint h)
{
    uint lid = gl_LocalInvocationID.x;
    barrier();
    slice_total[lid] = total[h];
    [[unroll]] for (uint j = 0; j < W_VECS; j++)
        slice_acc[lid * W_VECS + j] = acc[h * PER].v[j];
    barrier();
    for (uint s = 1; s < SLICES && lid < LANES; s++) {
        total[h] += slice_total[lid + s * LANES];
        [[unroll]] for (uint j = 0; j < W_VECS; j++)
            acc[h * PER].v[j] += slice_acc[(lid + s * LANES) * W_VECS + j];
    }
}

void main()
{
    uint lid = gl_LocalInvocationID.x, span = gl_WorkGroupID.z;
    uint per_kv = p.n_heads / p.n_kv_heads, groups = (per_kv + HG - 1) / HG;
    uint kv = gl_WorkGroupID.x / groups, h0 = gl_WorkGroupID.x % groups * HG;
    uint64_t r = gl_WorkGroupID.y, k_bytes = weight_bytes(D_K), v_bytes = weight_bytes(D_V);
    uvec2 cells = visible_cells(r);
    if (span * p.span >= cells.y)
        return;
    uint head0 = (p.kv_first + kv) * per_kv, n = min(cells.y - span * p.span, p.span);
    uint64_t first = (cells.x + span * p.span) * uint64_t(p.n_kv_heads) + p.kv_first + kv;
    float sharpness = p.sharpness != 0ul ? F32s(p.sharpness).v[uint(r)] : 1.0;
    uint64_t q[HG];
    [[unroll]] for (uint h = 0; h < HG; h++) {
        uint head = head0 + min(h0 + h, per_kv - 1);
        bool sink = p.sinks.at != 0ul && span == 0; // a score without a value
        q[h] = p.q + (r * p.q_stride + uint64_t(head) * D_K) * 4ul;
        top[h] = sink ? vector_element(p.sinks, head) : -3.4e38;
        total[h] = sink && lid < LANES ? 1.0 : 0.0;
        [[unroll]] for (uint i = 0; i < PER * W_VECS; i++)
            acc[h * PER + i / W_VECS].v[i % W_VECS] = vec4(0.0);
    }
    for (uint c = 0; c < n; c += TILE) {
        uint n_tile = min(n - c, TILE);
        uint64_t at = first + uint64_t(c) * p.n_kv_heads;
        score_cells(p.k + at * k_bytes, n_tile, p.n_kv_heads * k_bytes, q, sharpness);
        barrier();
        weigh_cells(n_tile);
        barrier();
        // No barrier after this: the next tile writes score (last read before the one above), and
        // prob only after its own first barrier.
        add_values(p.v + at * v_bytes, n_tile, p.n_kv_heads * v_bytes);
    }
    bool whole = cells.y <= p.span;
    [[unroll]] for (uint h = 0; h < HG; h++) {
        if (SLICES > 1)
            add_slices(h);
        if (h0 + h >= per_kv || lid >= LANES)
            continue;
        F32s part = attn_part(r, kv * per_kv + h0 + h, span, D_V);
        F32s y = F32s(p.y + (r * p.n_heads + head0 + h0 + h) * D_V * 4ul);
        [[unroll]] for (uint i = 0; i < PER * W_BLOCK; i++) {
            uint at = (lid + i / W_BLOCK * LANES) * W_BLOCK + i % W_BLOCK;
            float sum = acc[h * PER + i / W_BLOCK].v[i % W_BLOCK / 4][i % 4];
            if (at < D_V && whole)
                y.v[at] = sum / total[h];
            else if (at < D_V)
                part.v[2 + at] = sum;
        }
        if (!whole && lid == 0) {
            part.v[0] = top[h];
            part.v[1] = total[h];
        }
    }
}
