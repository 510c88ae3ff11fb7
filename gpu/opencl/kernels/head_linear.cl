// Per head h, with W_h = rows [h * head_rows + row_off, + n_sub) of w:
// y[r, h, i] = sum_k W_h[i, k] x[r, h, k]. A unit is tile_rows outputs of one head, of all rows.
INLINE void head_linear_tile(const uint t, bytes_in w, bytes_in x, bytes_out y,
                             const ocl_head_linear_params *p, uint h, uint o0, uint r0,
                             dot_sums sums)
{
    bytes_in rows[DOT_R];
    const __global float *xs[DOT_T];
    dot_acc acc[DOT_R * DOT_T];
    ulong first = (ulong)h * p->head_rows + p->row_off;
    for (uint i = 0; i < DOT_R; i++)
        rows[i] = w + p->w + (first + min(o0 + i, p->n_sub - 1)) * weight_bytes(p->cols);
    for (uint i = 0; i < t; i++)
        xs[i] = FLOATS(x, p->x) + (ulong)min(r0 + i, p->n_rows - 1) * p->x_stride +
                (ulong)h * p->x_head_stride;
#pragma unroll
    for (uint i = 0; i < DOT_R * t; i++)
        acc[i] = 0.0f;
    dot_tile(t, rows, xs, p->cols, acc);
    dot_finish(DOT_R * t, acc, sums);
    for (uint i = ITEM; i < DOT_R * t; i += WG) {
        uint o = o0 + i / t, r = r0 + i % t;
        if (o < p->n_sub && r < p->n_rows)
            FLOATS_OUT(y, p->y)
            [(ulong)r * p->y_stride + (ulong)h * p->y_head_stride + o] = DOT_SUM(sums, i);
    }
}

KERNEL head_linear(bytes_in w, bytes_in x, bytes_out y, const ocl_head_linear_params p)
{
    DOT_SUMS(sums)
    uint blocks = (p.n_sub + p.tile_rows - 1) / p.tile_rows;
    for (GROUP_UNITS(u, p.units)) {
        uint h = (uint)(u / blocks), first = (uint)(u % blocks) * p.tile_rows, r0 = 0;
        uint end = min(first + p.tile_rows, p.n_sub);
        for (; r0 + 1 < p.n_rows; r0 += DOT_T)
            for (uint o = first; o < end; o += DOT_R)
                head_linear_tile(DOT_T, w, x, y, &p, h, o, r0, sums);
        if (r0 < p.n_rows)
            for (uint o = first; o < end; o += DOT_R)
                head_linear_tile(1, w, x, y, &p, h, o, r0, sums);
    }
}
