/* Which cells a row looks at: index_score and index_select. */
#include <string.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"

static cf_row_info row_at(cf_span rows, uint64_t r, uint32_t max_cells)
{
    cf_row_info row = ((const cf_row_info *)cf_ref_at(rows))[r];
    cf_assert(row.n_cells > 0 && row.n_cells <= max_cells);
    return row;
}

/* Index: row. */
static void score_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_index_score *op = arg;
    uint64_t cell_bytes = cf_format_row_bytes(op->kv_dtype, op->d);
    for (uint64_t r = begin; r < end; r++) {
        cf_row_info row = row_at(op->rows, r, op->max_cells);
        cf_assert((row.first_cell + (uint64_t)row.n_cells) * cell_bytes <= op->k.bytes);
        const float *q = (const float *)cf_ref_at(op->q) + r * op->q_stride;
        const float *w = (const float *)cf_ref_at(op->w) + r * op->w_stride;
        float *scores = (float *)cf_ref_at(op->scores) + r * op->score_stride;
        for (uint64_t i = 0; i < row.n_cells; i++) {
            const uint8_t *cell =
                (const uint8_t *)cf_ref_at(op->k) + (row.first_cell + i) * cell_bytes;
            float sum = 0;
            for (uint32_t h = 0; h < op->n_heads; h++) {
                const float *head = q + (uint64_t)h * op->d;
                float dot;
                cf_ref_dots(op->kv_dtype, cell, op->d, &head, 1, &dot);
                sum += w[h] * (dot < 0 ? 0 : dot);
            }
            scores[i] = op->scale * sum;
        }
    }
}

void cf_ref_index_score(cf_threads *pool, const cf_op_index_score *op)
{
    cf_op_index_score copy = *op;
    cf_threads_run(pool, op->n_rows, 1, score_part, &copy);
}

/* An integer of the same order; NaN as -infinity, -0 as 0. */
static uint32_t order_key(float v)
{
    uint32_t u;
    if (v == 0)
        v = 0;
    memcpy(&u, &v, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        u = 0xff800000u;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The k-th largest key of n; *ties: how many that equal it are among the k largest. Byte by byte:
 * each pass counts the keys that begin like it. */
static uint32_t kth_key(const float *scores, uint32_t n, uint32_t k, uint32_t *ties)
{
    uint32_t prefix = 0, mask = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t counts[256] = {0}, byte = 255;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t key = order_key(scores[i]);
            if ((key & mask) == prefix)
                counts[key >> shift & 255]++;
        }
        for (; counts[byte] < left; byte--)
            left -= counts[byte];
        prefix |= byte << shift;
        mask |= 255u << shift;
    }
    *ties = left;
    return prefix;
}

/* Index: row. */
static void select_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_index_select *op = arg;
    for (uint64_t r = begin; r < end; r++) {
        cf_row_info row = row_at(op->rows, r, op->max_cells);
        const float *scores = (const float *)cf_ref_at(op->scores) + r * op->score_stride;
        uint32_t *cells = (uint32_t *)cf_ref_at(op->cells) + r * op->k;
        uint32_t ties = 0, least = 0, n = 0;
        if (row.n_cells > op->k)
            least = kth_key(scores, row.n_cells, op->k, &ties);
        for (uint32_t i = 0; i < row.n_cells; i++) {
            uint32_t key = order_key(scores[i]);
            if (row.n_cells <= op->k || key > least || (key == least && ties > 0))
                cells[n++] = row.first_cell + i;
            ties -= key == least && ties > 0;
        }
    }
}

void cf_ref_index_select(cf_threads *pool, const cf_op_index_select *op)
{
    cf_op_index_select copy = *op;
    cf_threads_run(pool, op->n_rows, 1, select_part, &copy);
}
