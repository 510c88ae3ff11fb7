/* Attention biased by distance: attn_bias, as an online softmax over the cells. */
#include <math.h>
#include <string.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"

/* What is added to a score of head h for a cell `distance` behind (before: negative) the row. */
static float bias_at(const cf_op_attn_bias *op, int64_t distance, uint64_t h)
{
    float scratch[CF_REF_BLOCK];
    int64_t at = distance + op->zero;
    at = at < 0 ? 0 : at >= op->n_buckets ? op->n_buckets - 1 : at;
    uint32_t bucket = ((const uint32_t *)cf_ref_at(op->buckets))[at];
    cf_assert(bucket < op->bias.rows);
    return *cf_ref_decode(op->bias.dtype, cf_ref_weight_row(&op->bias, bucket), h, 1, scratch);
}

/* Index: row * n_heads + head. */
static void attn_bias_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_attn_bias *op = arg;
    uint64_t head_bytes = cf_format_row_bytes(op->kv_dtype, op->d);
    uint64_t cell_bytes = op->n_heads * head_bytes;
    uint64_t n_cells = cf_min_u64(op->k.bytes, op->v.bytes) / cell_bytes;
    for (uint64_t index = begin; index < end; index++) {
        uint64_t r = index / op->n_heads, h = index % op->n_heads;
        cf_row_info row = ((const cf_row_info *)cf_ref_at(op->rows))[r];
        cf_assert(row.n_cells > 0 && row.first_cell + (uint64_t)row.n_cells <= n_cells);
        const float *q = (const float *)cf_ref_at(op->q) + r * op->q_stride + h * op->d;
        float *y = (float *)cf_ref_at(op->y) + index * op->d;
        cf_ref_softmax softmax = {-INFINITY, 0};
        memset(y, 0, op->d * sizeof *y);
        for (uint64_t p = 0; p < row.n_cells; p++) {
            uint64_t at = (row.first_cell + p) * cell_bytes + h * head_bytes;
            float score;
            cf_ref_dots(op->kv_dtype, (const uint8_t *)cf_ref_at(op->k) + at, op->d, &q, 1, &score);
            score = op->scale * score + bias_at(op, (int64_t)p - (int64_t)row.position, h);
            cf_ref_softmax_add(&softmax, score, op->kv_dtype,
                               (const uint8_t *)cf_ref_at(op->v) + at, op->d, y);
        }
        cf_ref_softmax_end(&softmax, op->d, y);
    }
}

void cf_ref_attn_bias(cf_threads *pool, const cf_op_attn_bias *op)
{
    cf_op_attn_bias copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_rows * op->n_heads, 1, attn_bias_part, &copy);
}
