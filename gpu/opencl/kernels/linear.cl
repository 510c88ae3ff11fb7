// y[r, o] = scale * sum_k w[o, k] x[r, k]  (+ bias[o])  (+ y[r, o]). A unit is tile_rows outputs (a
// multiple of DOT_R that stays in a core's cache) of all rows.
INLINE void linear_tile(const uint t, bytes_in w, bytes_in bias, bytes_in x, bytes_out y,
                        const ocl_linear_params *p, uint o0, uint r0, dot_sums sums)
{
    bytes_in rows[DOT_R];
    const __global float *xs[DOT_T];
    dot_acc acc[DOT_R * DOT_T];
    for (uint i = 0; i < DOT_R; i++)
        rows[i] = w + p->w + (ulong)min(o0 + i, p->rows - 1) * p->w_step * weight_bytes(p->cols);
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)min(r0 + i, p->n_rows - 1) * p->x_stride;
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
    dot_tile(t, rows, xs, p->cols, acc);
    dot_finish(DOT_R * t, acc, sums);
    for (uint i = ITEM; i < DOT_R * t; i += WG) {
        uint o = o0 + i / t, r = r0 + i % t;
        if (o >= p->rows || r >= p->n_rows)
            continue;
        __global float *out = FLOATS_OUT(y, p->y) + (ulong)r * p->y_stride + o;
        float v = p->scale * DOT_SUM(sums, i) + vector_or_zero(bias, p->bias, o);
        *out = p->accumulate ? v + *out : v;
    }
}

KERNEL linear(bytes_in w, bytes_in bias, bytes_in x, bytes_out y, const ocl_linear_params p)
{
    DOT_SUMS(sums)
    for (GROUP_UNITS(u, p.units)) {
        uint first = (uint)u * p.tile_rows, end = min(first + p.tile_rows, p.rows), r0 = 0;
        for (; r0 + 1 < p.n_rows; r0 += DOT_T)
            for (uint o = first; o < end; o += DOT_R)
                linear_tile(DOT_T, w, bias, x, y, &p, o, r0, sums);
        if (r0 < p.n_rows)
            for (uint o = first; o < end; o += DOT_R)
                linear_tile(1, w, bias, x, y, &p, o, r0, sums);
    }
}

// The same of a transposed w: a stored row holds one column of it. A unit is one of columns.cl.
INLINE void linear_t_tile(const uint t, const bool whole, bytes_in w, bytes_in bias, bytes_in x,
                          bytes_out y, const ocl_linear_params *p, uint b0, uint r0)
{
    const __global float *xs[DOT_T];
    vec acc[DOT_T * T_VECS];
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)min(r0 + i, p->n_rows - 1) * p->x_stride;
    column_sums(t, whole, w + p->w, weight_bytes(p->w_step), p->cols, p->rows, b0, xs, acc);
    for (uint i = 0; i < t && r0 + i < p->n_rows; i++) {
        __global float *out = FLOATS_OUT(y, p->y) + (ulong)(r0 + i) * p->y_stride;
        for (uint v = 0; v < T_VECS; v++) {
            uint o = b0 * W_BLOCK + v * LANES;
            if (o >= p->rows)
                break;
            vec sum = p->scale * acc[i * T_VECS + v];
            if (vector_is(p->bias))
                sum += vector_vec(bias, p->bias, o, p->rows);
            if (p->accumulate)
                sum += vec_load_n(out + o, p->rows - o);
            vec_store_n(sum, out + o, p->rows - o);
        }
    }
}

KERNEL linear_t(bytes_in w, bytes_in bias, bytes_in x, bytes_out y, const ocl_linear_t_params p)
{
    for (GROUP_UNITS(u, p.units)) {
        uint b0 = column_block((uint)u);
        if (b0 * W_BLOCK >= p.rows)
            continue;
#define LINEAR_T_TILE(t, whole, r0) linear_t_tile(t, whole, w, bias, x, y, &p, b0, r0)
        COLUMN_TILES(columns_whole(b0, p.rows), p.n_rows, LINEAR_T_TILE);
    }
}
