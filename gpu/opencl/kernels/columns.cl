// Weighted sums of stored rows: out[k] = sum_i row_i[k] x[i], which is a transposed matrix times x.
// A unit is T_BLOCKS blocks of columns for each item of the group; the sum over i runs upwards.
// No item needs another.
#define T_BLOCKS (OCL_T_COLUMNS(WG) / W_BLOCK)
#define COLUMN_T 4u
#define T_AHEAD  8 // rows: no item reads a long run of one
#define T_VECS   (T_BLOCKS * W_VECS)
#define T_PER_UNIT (WG * T_BLOCKS * W_BLOCK)

// What sums of rows are made of: the stored rows, and whether activations are rounded (ops.h). The
// columns of a row lie `step` elements apart.
typedef struct column_rows {
    bytes_in first;
    ulong row_bytes;
    uint n, cols, step;
    bool x_q8;
    bytes_in scales; // outer ones, where scale_rows > 0; stored: the first row of all stored ones
    uint stored, scale_rows, scale_cols, scale_format;
} column_rows;

INLINE void column_block_load(const column_rows *c, const bool whole, bytes_in row, uint b, vec *e)
{
    if (c->step != 1) {
        for (uint v = 0; v < W_VECS; v++) {
            float w[LANES];
            for (uint i = 0; i < LANES; i++) {
                uint k = b * W_BLOCK + v * LANES + i;
                w[i] = k < c->cols ? weight_element(row, (ulong)k * c->step) : 0.0f;
            }
            e[v] = VEC_LOAD(w);
        }
    } else if (whole || (b + 1) * W_BLOCK <= c->cols) {
        weight_block(row, b, e);
    } else {
        weight_tail(row, b, c->cols, e);
    }
}

// Outer scales of block b of row k.
INLINE void column_scale(const column_rows *c, uint k, uint b, vec *e)
{
    ulong per_row = (c->cols + c->scale_cols - 1) / c->scale_cols;
    ulong first = (c->stored + k) / c->scale_rows * per_row;
    for (uint v = 0; v < W_VECS; v++) {
        uint at = b * W_BLOCK + v * LANES;
        if (at < c->cols)
            e[v] *= outer_scale(c->scales, c->scale_format, first + at / c->scale_cols);
    }
}

// 32 activations from k on, as they are or rounded.
INLINE void column_x(const column_rows *c, const __global float *x, uint k, float *to)
{
    float16 lo = load_16(x + k, c->n - k);
    float16 hi = c->n - k > 16 ? load_16(x + k + 16, c->n - k - 16) : (float16)0.0f;
    if (c->x_q8)
        q8_round(&lo, &hi);
    vstore16(lo, 0, to);
    vstore16(hi, 1, to);
}

// Blocks b0 .. b0 + T_BLOCKS - 1 of the rows; unless `whole`, the row may end inside.
// acc[i * T_VECS + v]: vector v of the sums of x[i].
INLINE void column_sums(const uint t, const bool whole, const column_rows *c, uint b0,
                        const __global float *const *x, vec *acc)
{
    bytes_in row = c->first;
    float xs[COLUMN_T * 32];
#pragma unroll
    for (uint i = 0; i < t * T_VECS; i++)
        acc[i] = 0.0f;
    for (uint k = 0; k < c->n; k++, row += c->row_bytes) {
        if (k % 32 == 0)
            for (uint i = 0; i < t; i++)
                column_x(c, x[i], k, xs + 32 * i);
#pragma unroll
        for (uint b = 0; b < T_BLOCKS; b++) {
            vec e[W_VECS];
            if (t == 1)
                PREFETCH(row + T_AHEAD * c->row_bytes + weight_bytes((b0 + b) * W_BLOCK));
            column_block_load(c, whole, row, b0 + b, e);
            if (c->scale_rows)
                column_scale(c, k, b0 + b, e);
#pragma unroll
            for (uint i = 0; i < t; i++)
#pragma unroll
                for (uint v = 0; v < W_VECS; v++)
                    acc[i * T_VECS + b * W_VECS + v] = MULTIPLY_ADD(
                        e[v], (vec)xs[32 * i + k % 32], acc[i * T_VECS + b * W_VECS + v]);
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

// Calls tile(t, whole, first) over all of n activation rows: COLUMN_T at once where all columns
// exist.
#define COLUMN_TILES(whole, n, tile)                                                               \
    do {                                                                                           \
        uint first = 0;                                                                            \
        if (whole) {                                                                               \
            for (; first + 1 < (n); first += COLUMN_T)                                             \
                tile(COLUMN_T, true, first);                                                       \
            if (first < (n))                                                                       \
                tile(1, true, first);                                                              \
        } else {                                                                                   \
            for (; first < (n); first++)                                                           \
                tile(1, false, first);                                                             \
        }                                                                                          \
    } while (0)
