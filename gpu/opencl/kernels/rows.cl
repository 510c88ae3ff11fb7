// Rows of a table. A unit is a row.

// y[r] = scale * table[ids[r]], or row r of the table without ids.
KERNEL get_rows(bytes_in table, bytes_in ids, bytes_out y, const ocl_get_rows_params p)
{
    uint blocks = (p.cols + W_BLOCK - 1) / W_BLOCK;
    for (GROUP_UNITS(u, p.units)) {
        ulong id = p.has_ids ? UINTS(ids, p.ids)[u] : u;
        bytes_in row = table + p.table + id * weight_bytes(p.cols);
        __global float *out = FLOATS_OUT(y, p.y) + u * p.y_stride;
        for (uint b = ITEM; b < blocks; b += WG) {
            vec e[W_VECS];
            if ((b + 1) * W_BLOCK <= p.cols)
                weight_block(row, b, e);
            else
                weight_tail(row, b, p.cols, e);
            for (uint v = 0; v < W_VECS; v++) {
                uint k = b * W_BLOCK + v * LANES;
                if (k < p.cols)
                    vec_store_n(e[v] * p.scale, out + k, p.cols - k);
            }
        }
    }
}
