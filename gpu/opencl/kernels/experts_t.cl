// The matrices' work of routed experts where they are transposed: a unit is one of columns.cl, of
// one expert of the table and all its pairs. All experts of a launch lie in the same buffers. Plain
// matrices go through product.cl.

INLINE ocl_vector glu_bias(const ocl_expert_glu_t_params *p, ocl_column_expert e)
{
    ocl_vector v = {e.bias, p->bias_format, p->bias_step};
    return v;
}

// Never with the products of up beside it.
INLINE void expert_glu_t_tile(const uint t, const bool whole, bytes_in gate, bytes_in gate_bias,
                              bytes_in x, bytes_in pairs, bytes_in weights, bytes_out h,
                              const ocl_expert_glu_t_params *p, ocl_column_expert e, uint b0,
                              uint t0)
{
    const __global float *xs[COLUMN_T];
    vec acc[COLUMN_T * T_VECS];
    const __global uint *pair = UINTS(pairs, p->pairs) + e.pair_begin;
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)(pair[min(t0 + i, e.pair_count - 1)] / p->k) * p->hidden;
    column_rows c = {gate + e.w, weight_bytes(p->stride), p->hidden, p->ffn, p->step,
                     p->x_q8 != 0};
    column_sums(t, whole, &c, b0, xs, acc);
    for (uint i = 0; i < t && t0 + i < e.pair_count; i++) {
        __global float *out = FLOATS_OUT(h, p->h) + (ulong)(e.pair_begin + t0 + i) * p->ffn;
        float weight = p->has_weights ? FLOATS(weights, p->weights)[pair[t0 + i]] : 1.0f;
        for (uint v = 0; v < T_VECS; v++) {
            uint j = b0 * W_BLOCK + v * LANES;
            if (j >= p->ffn)
                break;
            vec g = weight * acc[i * T_VECS + v], u = 1.0f;
            if (p->bias_format != OCL_NO_VECTOR)
                g += vector_vec(gate_bias, glu_bias(p, e), j, p->ffn);
            if (p->mode == OCL_GLU_SECOND)
                u = vec_load_n(out + j, p->ffn - j);
            if (p->mode != OCL_GLU_FIRST)
                g = activate_vec(p->act, g, u, p->limit, p->alpha);
            vec_store_n(g, out + j, p->ffn - j);
        }
    }
}

KERNEL expert_glu_t(bytes_in gate, bytes_in gate_bias, bytes_in x,
                    bytes_in pairs, bytes_in weights, bytes_out h, const ocl_expert_glu_t_params p)
{
    uint tiles = (p.ffn + T_PER_UNIT - 1) / T_PER_UNIT;
    for (GROUP_UNITS(u, p.units)) {
        ocl_column_expert e = p.experts[u / tiles];
        uint b0 = column_block((uint)(u % tiles));
        if (b0 * W_BLOCK >= p.ffn)
            continue;
#define GLU_T_TILE(t, whole, t0)                                                                   \
    expert_glu_t_tile(t, whole, gate, gate_bias, x, pairs, weights, h, &p, e, b0, t0)
        COLUMN_TILES(columns_whole(b0, p.ffn), e.pair_count, GLU_T_TILE);
    }
}

// out[pairs[q], i] = weights[pairs[q]] * (down[i] . h[q] + bias[i]).
INLINE ocl_vector down_bias(const ocl_expert_down_t_params *p, ocl_column_expert e)
{
    ocl_vector v = {e.bias, p->bias_format, p->bias_step};
    return v;
}

INLINE void expert_down_t_tile(const uint t, const bool whole, bytes_in down, bytes_in bias,
                               bytes_in h, bytes_in pairs, bytes_in weights, bytes_out y,
                               const ocl_expert_down_t_params *p, ocl_column_expert e, uint b0,
                              uint t0)
{
    const __global float *xs[COLUMN_T];
    vec acc[COLUMN_T * T_VECS];
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(h, p->h) + (ulong)(e.pair_begin + min(t0 + i, e.pair_count - 1)) * p->ffn;
    column_rows c = {down + e.w, weight_bytes(p->stride), p->ffn, p->hidden, p->step,
                     p->x_q8 != 0};
    column_sums(t, whole, &c, b0, xs, acc);
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
        ocl_column_expert e = p.experts[u / tiles];
        uint b0 = column_block((uint)(u % tiles));
        if (b0 * W_BLOCK >= p.hidden)
            continue;
#define DOWN_T_TILE(t, whole, t0)                                                                  \
    expert_down_t_tile(t, whole, down, bias, h, pairs, weights, y, &p, e, b0, t0)
        COLUMN_TILES(columns_whole(b0, p.hidden), e.pair_count, DOWN_T_TILE);
    }
}
