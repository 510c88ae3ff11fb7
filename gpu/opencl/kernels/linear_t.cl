// y[r, o] = scale * sum_k w[o, k] x[r, k]  (+ bias[o])  (+ y[r, o]) of a transposed w: a stored row
// holds one column of it. A unit is one of columns.cl.
INLINE void linear_t_tile(const uint t, const bool whole, bytes_in w, bytes_in bias, bytes_in x,
                          bytes_out y, const ocl_linear_t_params *p, uint b0, uint r0)
{
    const __global float *xs[COLUMN_T];
    vec acc[COLUMN_T * T_VECS];
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)min(r0 + i, p->n_rows - 1) * p->x_stride;
    column_rows c = {w + p->w, weight_bytes(p->stride), p->cols, p->rows, p->step, p->x_q8 != 0};
    column_sums(t, whole, &c, b0, xs, acc);
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
