// Per head h, with W_h = rows [h * head_rows + row_off, + n_sub) of w:
// y[r, h, k] = sum_i W_h[i, k] x[r, h, i]. A unit is one of
// columns.cl, of one head and all rows.
INLINE void head_linear_t_tile(const uint t, const bool whole, bytes_in w, bytes_in scales,
                               bytes_in x, bytes_out y, const ocl_head_linear_t_params *p, uint h,
                               uint b0, uint r0)
{
    const __global float *xs[COLUMN_T];
    vec acc[COLUMN_T * T_VECS];
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)min(r0 + i, p->n_rows - 1) * p->x_stride +
                (ulong)h * p->x_head_stride;
    uint stored = h * p->head_rows + p->row_off;
    column_rows c = {w + p->w + stored * weight_bytes(p->cols),
                     weight_bytes(p->cols),
                     p->n_sub,
                     p->cols,
                     1,
                     false,
                     scales + p->scales,
                     stored,
                     p->scale_rows,
                     p->scale_cols,
                     p->scale_format};
    column_sums(t, whole, &c, b0, xs, acc);
    for (uint i = 0; i < t && r0 + i < p->n_rows; i++) {
        __global float *out = FLOATS_OUT(y, p->y) + (ulong)(r0 + i) * p->y_stride +
                              (ulong)h * p->y_head_stride;
#pragma unroll
        for (uint v = 0; v < T_VECS; v++) {
            uint k = b0 * W_BLOCK + v * LANES;
            if (k < p->cols)
                vec_store_n(acc[i * T_VECS + v], out + k, p->cols - k);
        }
    }
}

KERNEL head_linear_t(bytes_in w, bytes_in scales, bytes_in x, bytes_out y,
                     const ocl_head_linear_t_params p)
{
    uint tiles = (p.cols + T_PER_UNIT - 1) / T_PER_UNIT;
    for (GROUP_UNITS(u, p.units)) {
        uint h = (uint)(u / tiles), b0 = column_block((uint)(u % tiles));
        if (b0 * W_BLOCK >= p.cols)
            continue;
#define HEAD_LINEAR_T_TILE(t, whole, r0)                                                           \
    head_linear_t_tile(t, whole, w, scales, x, y, &p, h, b0, r0)
        COLUMN_TILES(columns_whole(b0, p.cols), p.n_rows, HEAD_LINEAR_T_TILE);
    }
}
