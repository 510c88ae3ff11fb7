/* linear and head_linear: threads share the outputs; weights are decoded once for up to CF_REF_ROWS
 * rows of x. */
#include <string.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"

enum { GRAIN = 8, COLUMNS = 64, MAX_COLUMNS = CF_FORMAT_MAX_BLOCK };

/* Columns that one index of the transposed product takes: no block is decoded twice. */
static uint32_t columns_of(cf_format t)
{
    return cf_formats[t].block_values > COLUMNS ? cf_formats[t].block_values : COLUMNS;
}

static uint32_t block_rows(uint32_t begin, uint32_t end)
{
    return end - begin < CF_REF_ROWS ? end - begin : CF_REF_ROWS;
}

/* Outputs [o, o + n_o) of rows [r, r + n). */
static void linear_block(const cf_op_linear *op, uint64_t o, uint32_t n_o, uint32_t r, uint32_t n)
{
    const float *x = cf_ref_at(op->x), *rows[CF_REF_ROWS];
    float *y = cf_ref_at(op->y), dots[CF_REF_OUTS][CF_REF_ROWS];
    for (uint32_t i = 0; i < n; i++)
        rows[i] = x + (uint64_t)(r + i) * op->x_stride;
    cf_ref_weight_dots(&op->w, o, n_o, rows, n, op->x_q8, dots);
    for (uint32_t j = 0; j < n_o; j++) {
        float bias = cf_ref_vector_at(&op->bias, o + j);
        for (uint32_t i = 0; i < n; i++) {
            float *out = y + (uint64_t)(r + i) * op->y_stride + o + j;
            *out = op->scale * dots[j][i] + bias + (op->accumulate ? *out : 0.0f);
        }
    }
}

/* Index: output. */
static void linear_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_linear *op = arg;
    for (uint64_t o = begin; o < end; o += CF_REF_OUTS)
        for (uint32_t r = 0; r < op->n_rows; r += CF_REF_ROWS)
            linear_block(op, o, end - o < CF_REF_OUTS ? (uint32_t)(end - o) : CF_REF_OUTS, r,
                         block_rows(r, op->n_rows));
}

void cf_ref_linear(cf_threads *pool, const cf_op_linear *op)
{
    cf_op_linear copy = *op;
    cf_threads_run(pool, op->w.rows, GRAIN, linear_part, &copy);
}

/* Index: head * n_sub + i. */
static void head_linear_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_head_linear *op = arg;
    const float *x = cf_ref_at(op->x);
    float *y = cf_ref_at(op->y);
    for (uint64_t index = begin; index < end; index++) {
        uint64_t h = index / op->n_sub, i = index % op->n_sub;
        uint64_t o = h * op->head_rows + op->row_off + i;
        for (uint32_t r = 0; r < op->n_rows; r += CF_REF_ROWS) {
            uint32_t n = block_rows(r, op->n_rows);
            const float *rows[CF_REF_ROWS];
            float dots[CF_REF_OUTS][CF_REF_ROWS];
            for (uint32_t b = 0; b < n; b++)
                rows[b] = x + (uint64_t)(r + b) * op->x_stride + h * op->x_head_stride;
            cf_ref_weight_dots(&op->w, o, 1, rows, n, false, dots);
            for (uint32_t b = 0; b < n; b++)
                y[(uint64_t)(r + b) * op->y_stride + h * op->y_head_stride + i] = dots[0][b];
        }
    }
}

/* y[k] += a * w[o, c + k], k < n. */
static void row_add(const cf_weight *w, uint64_t o, uint32_t c, uint32_t n, float a, float *y)
{
    float row[CF_REF_BLOCK];
    if (!w->scale_rows) {
        cf_ref_axpy(w->dtype, cf_ref_weight_row(w, o), c, n, a, y);
        return;
    }
    cf_ref_weight_decode(w, o, c, n, row);
    cf_ref_axpy(CF_F32, row, 0, n, a, y);
}

/* Index: head * column blocks + block. The sum over i runs upwards, for every column alike. */
static void head_transposed_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_head_linear *op = arg;
    const float *x = cf_ref_at(op->x);
    float *y = cf_ref_at(op->y);
    uint32_t cols = op->w.cols, columns = columns_of(op->w.dtype);
    uint32_t blocks = (cols + columns - 1) / columns;
    for (uint64_t index = begin; index < end; index++) {
        uint64_t h = index / blocks;
        uint32_t c = (uint32_t)(index % blocks) * columns;
        uint32_t width = cols - c < columns ? cols - c : columns;
        for (uint32_t r = 0; r < op->n_rows; r++) {
            float sum[MAX_COLUMNS];
            memset(sum, 0, width * sizeof *sum);
            const float *xr = x + (uint64_t)r * op->x_stride + h * op->x_head_stride;
            for (uint32_t i = 0; i < op->n_sub; i++)
                row_add(&op->w, h * op->head_rows + op->row_off + i, c, width, xr[i], sum);
            float *yr = y + (uint64_t)r * op->y_stride + h * op->y_head_stride + c;
            for (uint32_t k = 0; k < width; k++)
                yr[k] = sum[k];
        }
    }
}

void cf_ref_head_linear(cf_threads *pool, const cf_op_head_linear *op)
{
    cf_op_head_linear copy = *op;
    uint32_t columns = columns_of(op->w.dtype);
    uint64_t blocks = ((uint64_t)op->w.cols + columns - 1) / columns;
    if (op->transposed)
        cf_threads_run(pool, op->n_heads * blocks, 1, head_transposed_part, &copy);
    else
        cf_threads_run(pool, (uint64_t)op->n_heads * op->n_sub, GRAIN, head_linear_part, &copy);
}
