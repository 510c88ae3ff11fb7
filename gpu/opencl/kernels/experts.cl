// The matrices' work of routed experts. A unit is tile_rows outputs of one expert of the table, of
// all its pairs; transposed (_t), one of columns.cl. All experts of a launch lie in the same
// buffers.

// h[q, j] from the products of row j of gate (and, in mode BOTH, of up: half of a tile's rows) with
// x = row pairs[q] / k.
#define GLU_R (DOT_R / 2)

INLINE ocl_vector glu_gate_bias(const ocl_expert_glu_params *p, ocl_glu_expert e)
{
    ocl_vector v = {e.gate_bias, p->gate_bias_format, p->gate_bias_step};
    return v;
}

INLINE ocl_vector glu_up_bias(const ocl_expert_glu_params *p, ocl_glu_expert e)
{
    ocl_vector v = {e.up_bias, p->up_bias_format, p->up_bias_step};
    return v;
}

INLINE void expert_glu_tile(const uint t, bytes_in gate, bytes_in up, bytes_in gate_bias,
                            bytes_in up_bias, bytes_in x, bytes_in pairs, bytes_in weights,
                            bytes_out h, const ocl_expert_glu_params *p, ocl_glu_expert e, uint j0,
                            uint t0, dot_sums sums)
{
    bytes_in rows[DOT_R];
    const __global float *xs[DOT_T];
    dot_acc acc[DOT_R * DOT_T];
    bool both = p->mode == OCL_GLU_BOTH;
    uint outputs = both ? GLU_R : DOT_R;
    for (uint i = 0; i < DOT_R; i++) {
        ulong row = min(j0 + i % outputs, p->ffn - 1);
        rows[i] = i < outputs ? gate + e.gate + row * p->gate_step * weight_bytes(p->hidden)
                              : up + e.up + row * p->up_step * weight_bytes(p->hidden);
    }
    for (uint i = 0; i < t; i++) {
        uint pair = UINTS(pairs, p->pairs)[e.pair_begin + min(t0 + i, e.pair_count - 1)];
        xs[i] = FLOATS(x, p->x) + (ulong)(pair / p->k) * p->hidden;
    }
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
    dot_tile(t, rows, xs, p->hidden, acc);
    dot_finish(DOT_R * t, acc, sums);
    for (uint i = ITEM; i < outputs * t; i += WG) {
        uint j = j0 + i / t, q = t0 + i % t;
        if (j >= p->ffn || q >= e.pair_count)
            continue;
        uint pair = UINTS(pairs, p->pairs)[e.pair_begin + q];
        __global float *out = FLOATS_OUT(h, p->h) + (ulong)(e.pair_begin + q) * p->ffn + j;
        float weight = p->has_weights ? FLOATS(weights, p->weights)[pair] : 1.0f, v = 1.0f;
        float g = weight * DOT_SUM(sums, i) + vector_or_zero(gate_bias, glu_gate_bias(p, e), j);
        if (both)
            v = weight * DOT_SUM(sums, GLU_R * t + i) +
                vector_or_zero(up_bias, glu_up_bias(p, e), j);
        else if (p->mode == OCL_GLU_SECOND)
            v = *out;
        *out = p->mode == OCL_GLU_FIRST ? g : activate(p->act, g, v, p->limit, p->alpha);
    }
}

KERNEL expert_glu(bytes_in gate, bytes_in up, bytes_in gate_bias, bytes_in up_bias, bytes_in x,
                  bytes_in pairs, bytes_in weights, bytes_out h, const ocl_expert_glu_params p)
{
    DOT_SUMS(sums)
    uint blocks = (p.ffn + p.tile_rows - 1) / p.tile_rows;
    uint step = p.mode == OCL_GLU_BOTH ? GLU_R : DOT_R;
    for (GROUP_UNITS(u, p.units)) {
        ocl_glu_expert e = p.experts[u / blocks];
        uint first = (uint)(u % blocks) * p.tile_rows, end = min(first + p.tile_rows, p.ffn);
        uint t0 = 0;
        for (; t0 + 1 < e.pair_count; t0 += DOT_T)
            for (uint j = first; j < end; j += step)
                expert_glu_tile(DOT_T, gate, up, gate_bias, up_bias, x, pairs, weights, h, &p, e, j,
                                t0, sums);
        if (t0 < e.pair_count)
            for (uint j = first; j < end; j += step)
                expert_glu_tile(1, gate, up, gate_bias, up_bias, x, pairs, weights, h, &p, e, j, t0,
                                sums);
    }
}

// Of a transposed gate; never in mode BOTH.
INLINE void expert_glu_t_tile(const uint t, const bool whole, bytes_in gate, bytes_in gate_bias,
                              bytes_in x, bytes_in pairs, bytes_in weights, bytes_out h,
                              const ocl_expert_glu_params *p, ocl_glu_expert e, uint b0, uint t0)
{
    const __global float *xs[DOT_T];
    vec acc[DOT_T * T_VECS];
    const __global uint *pair = UINTS(pairs, p->pairs) + e.pair_begin;
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)(pair[min(t0 + i, e.pair_count - 1)] / p->k) * p->hidden;
    column_sums(t, whole, gate + e.gate, weight_bytes(p->gate_step), p->hidden, p->ffn, b0, xs,
                acc);
    for (uint i = 0; i < t && t0 + i < e.pair_count; i++) {
        __global float *out = FLOATS_OUT(h, p->h) + (ulong)(e.pair_begin + t0 + i) * p->ffn;
        float weight = p->has_weights ? FLOATS(weights, p->weights)[pair[t0 + i]] : 1.0f;
        for (uint v = 0; v < T_VECS; v++) {
            uint j = b0 * W_BLOCK + v * LANES;
            if (j >= p->ffn)
                break;
            vec g = weight * acc[i * T_VECS + v], u = 1.0f;
            if (p->gate_bias_format != OCL_NO_VECTOR)
                g += vector_vec(gate_bias, glu_gate_bias(p, e), j, p->ffn);
            if (p->mode == OCL_GLU_SECOND)
                u = vec_load_n(out + j, p->ffn - j);
            if (p->mode != OCL_GLU_FIRST)
                g = activate_vec(p->act, g, u, p->limit, p->alpha);
            vec_store_n(g, out + j, p->ffn - j);
        }
    }
}

KERNEL expert_glu_t(bytes_in gate, bytes_in up, bytes_in gate_bias, bytes_in up_bias, bytes_in x,
                    bytes_in pairs, bytes_in weights, bytes_out h, const ocl_expert_glu_t_params p)
{
    uint tiles = (p.ffn + T_PER_UNIT - 1) / T_PER_UNIT;
    for (GROUP_UNITS(u, p.units)) {
        ocl_glu_expert e = p.experts[u / tiles];
        uint b0 = column_block((uint)(u % tiles));
        if (b0 * W_BLOCK >= p.ffn)
            continue;
#define GLU_T_TILE(t, whole, t0)                                                                   \
    expert_glu_t_tile(t, whole, gate, gate_bias, x, pairs, weights, h, &p, e, b0, t0)
        COLUMN_TILES(columns_whole(b0, p.ffn), e.pair_count, GLU_T_TILE);
    }
}

// out[pairs[q], i] = weights[pairs[q]] * (down[i] . h[q] + bias[i]).
INLINE ocl_vector down_bias(const ocl_expert_down_params *p, ocl_down_expert e)
{
    ocl_vector v = {e.bias, p->bias_format, p->bias_step};
    return v;
}

INLINE void expert_down_tile(const uint t, bytes_in down, bytes_in bias, bytes_in h, bytes_in pairs,
                             bytes_in weights, bytes_out y, const ocl_expert_down_params *p,
                             ocl_down_expert e, uint o0, uint t0, dot_sums sums)
{
    bytes_in rows[DOT_R];
    const __global float *xs[DOT_T];
    dot_acc acc[DOT_R * DOT_T];
    for (uint i = 0; i < DOT_R; i++)
        rows[i] = down + e.down +
                  (ulong)min(o0 + i, p->hidden - 1) * p->down_step * weight_bytes(p->ffn);
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(h, p->h) + (ulong)(e.pair_begin + min(t0 + i, e.pair_count - 1)) * p->ffn;
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
    dot_tile(t, rows, xs, p->ffn, acc);
    dot_finish(DOT_R * t, acc, sums);
    for (uint i = ITEM; i < DOT_R * t; i += WG) {
        uint o = o0 + i / t, q = t0 + i % t;
        if (o >= p->hidden || q >= e.pair_count)
            continue;
        uint pair = UINTS(pairs, p->pairs)[e.pair_begin + q];
        float weight = p->has_weights ? FLOATS(weights, p->weights)[pair] : 1.0f;
        FLOATS_OUT(y, p->y)
        [(ulong)pair * p->hidden + o] =
            weight * (DOT_SUM(sums, i) + vector_or_zero(bias, down_bias(p, e), o));
    }
}

KERNEL expert_down(bytes_in down, bytes_in bias, bytes_in h, bytes_in pairs, bytes_in weights,
                   bytes_out y, const ocl_expert_down_params p)
{
    DOT_SUMS(sums)
    uint blocks = (p.hidden + p.tile_rows - 1) / p.tile_rows;
    for (GROUP_UNITS(u, p.units)) {
        ocl_down_expert e = p.experts[u / blocks];
        uint first = (uint)(u % blocks) * p.tile_rows, end = min(first + p.tile_rows, p.hidden);
        uint t0 = 0;
        for (; t0 + 1 < e.pair_count; t0 += DOT_T)
            for (uint o = first; o < end; o += DOT_R)
                expert_down_tile(DOT_T, down, bias, h, pairs, weights, y, &p, e, o, t0, sums);
        if (t0 < e.pair_count)
            for (uint o = first; o < end; o += DOT_R)
                expert_down_tile(1, down, bias, h, pairs, weights, y, &p, e, o, t0, sums);
    }
}

INLINE void expert_down_t_tile(const uint t, const bool whole, bytes_in down, bytes_in bias,
                               bytes_in h, bytes_in pairs, bytes_in weights, bytes_out y,
                               const ocl_expert_down_params *p, ocl_down_expert e, uint b0, uint t0)
{
    const __global float *xs[DOT_T];
    vec acc[DOT_T * T_VECS];
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(h, p->h) + (ulong)(e.pair_begin + min(t0 + i, e.pair_count - 1)) * p->ffn;
    column_sums(t, whole, down + e.down, weight_bytes(p->down_step), p->ffn, p->hidden, b0, xs,
                acc);
    for (uint i = 0; i < t && t0 + i < e.pair_count; i++) {
        uint pair = UINTS(pairs, p->pairs)[e.pair_begin + t0 + i];
        __global float *out = FLOATS_OUT(y, p->y) + (ulong)pair * p->hidden;
        float weight = p->has_weights ? FLOATS(weights, p->weights)[pair] : 1.0f;
        for (uint v = 0; v < T_VECS; v++) {
            uint o = b0 * W_BLOCK + v * LANES;
            if (o >= p->hidden)
                break;
            vec sum = acc[i * T_VECS + v];
            if (p->bias_format != OCL_NO_VECTOR)
                sum += vector_vec(bias, down_bias(p, e), o, p->hidden);
            vec_store_n(weight * sum, out + o, p->hidden - o);
        }
    }
}

KERNEL expert_down_t(bytes_in down, bytes_in bias, bytes_in h, bytes_in pairs, bytes_in weights,
                     bytes_out y, const ocl_expert_down_t_params p)
{
    uint tiles = (p.hidden + T_PER_UNIT - 1) / T_PER_UNIT;
    for (GROUP_UNITS(u, p.units)) {
        ocl_down_expert e = p.experts[u / tiles];
        uint b0 = column_block((uint)(u % tiles));
        if (b0 * W_BLOCK >= p.hidden)
            continue;
#define DOWN_T_TILE(t, whole, t0)                                                                  \
    expert_down_t_tile(t, whole, down, bias, h, pairs, weights, y, &p, e, b0, t0)
        COLUMN_TILES(columns_whole(b0, p.hidden), e.pair_count, DOWN_T_TILE);
    }
}
