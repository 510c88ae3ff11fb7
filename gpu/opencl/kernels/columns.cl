// Weighted sums of stored rows: out[k] = sum_i row_i[k] x[i], which is a transposed matrix times x.
// A unit is T_BLOCKS blocks of columns for each item of the group; the sum over i runs upwards.
// No item needs another.
#define T_BLOCKS (OCL_T_COLUMNS(WG) / W_BLOCK)
#define T_AHEAD  8 // rows: no item reads a long run of one
#define T_VECS   (T_BLOCKS * W_VECS)
#define T_PER_UNIT (WG * T_BLOCKS * W_BLOCK)

// Blocks b0 .. b0 + T_BLOCKS - 1 of rows of `cols` columns, n rows row_bytes apart; unless `whole`,
// the row may end inside. acc[i * T_VECS + v]: vector v of the sums of x[i].
INLINE void column_sums(const uint t, const bool whole, bytes_in row, ulong row_bytes, uint n,
                        uint cols, uint b0, const __global float *const *x, vec *acc)
{
#pragma unroll
    for (uint i = 0; i < t * T_VECS; i++)
        acc[i] = 0.0f;
    for (uint k = 0; k < n; k++, row += row_bytes) {
#pragma unroll
        for (uint b = 0; b < T_BLOCKS; b++) {
            vec e[W_VECS];
            if (t == 1)
                PREFETCH(row + T_AHEAD * row_bytes + (b0 + b) * weight_bytes(W_BLOCK));
            if (whole || (b0 + b + 1) * W_BLOCK <= cols)
                weight_block(row, b0 + b, e);
            else
                weight_tail(row, b0 + b, cols, e);
#pragma unroll
            for (uint i = 0; i < t; i++)
#pragma unroll
                for (uint v = 0; v < W_VECS; v++)
                    acc[i * T_VECS + b * W_VECS + v] =
                        MULTIPLY_ADD(e[v], (vec)x[i][k], acc[i * T_VECS + b * W_VECS + v]);
        }
    }
}

// The item's first block in unit `u` of a row, and whether all of its blocks are there.
INLINE uint column_block(uint u)
{
    return (u * WG + ITEM) * T_BLOCKS;
}

INLINE bool columns_whole(uint b0, uint cols)
{
    return (b0 + T_BLOCKS) * W_BLOCK <= cols;
}

// Calls tile(t, whole, first) over all of n activation rows: DOT_T at once where all columns exist.
#define COLUMN_TILES(whole, n, tile)                                                               \
    do {                                                                                           \
        uint first = 0;                                                                            \
        if (whole) {                                                                               \
            for (; first + 1 < (n); first += DOT_T)                                                \
                tile(DOT_T, true, first);                                                          \
            if (first < (n))                                                                       \
                tile(1, true, first);                                                              \
        } else {                                                                                   \
            for (; first < (n); first++)                                                           \
                tile(1, false, first);                                                             \
        }                                                                                          \
    } while (0)
