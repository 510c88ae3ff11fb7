/* norm, glu, map, add and get_rows. */
#include <math.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"

enum { GRAIN = 4096 };

/* One head of one row. */
static void norm_head(const cf_op_norm *op, uint32_t h, const float *x, float *y)
{
    uint32_t width = op->width;
    bool layer = op->kind == CF_NORM_LAYER;
    float mean = layer ? cf_ref_sum(x, width) / (float)width : 0;
    float square = cf_ref_sum_squares(x, width, mean) / (float)width;
    float factor = op->scale / sqrtf(square + op->eps), offset = op->unit_offset ? 1 : 0;
    uint64_t w_at = op->w.cols == width ? 0 : (uint64_t)h * width;
    uint64_t bias_at = op->bias.cols == width ? 0 : (uint64_t)h * width;
    for (uint32_t k = 0; k < width; k += CF_REF_BLOCK) {
        float w_scratch[CF_REF_BLOCK], bias_scratch[CF_REF_BLOCK];
        const float *w = NULL, *bias = NULL;
        uint32_t n = width - k < CF_REF_BLOCK ? width - k : CF_REF_BLOCK;
        if (op->w.span.buf)
            w = cf_ref_vector(&op->w, w_at + k, n, w_scratch);
        if (op->bias.span.buf)
            bias = cf_ref_vector(&op->bias, bias_at + k, n, bias_scratch);
        for (uint32_t i = 0; i < n; i++) {
            float gain = w ? w[i] + offset : 1.0f;
            y[k + i] = gain * (x[k + i] - mean) * factor + (bias ? bias[i] : 0);
        }
    }
}

/* Index: row * n_heads + head. */
static void norm_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_norm *op = arg;
    const float *x = cf_ref_at(op->x);
    float *y = cf_ref_at(op->y);
    for (uint64_t index = begin; index < end; index++) {
        uint64_t r = index / op->n_heads, h = index % op->n_heads;
        norm_head(op, (uint32_t)h, x + r * op->x_stride + h * op->x_head_stride,
                  y + r * op->y_stride + h * op->y_head_stride);
    }
}

void cf_ref_norm(cf_threads *pool, const cf_op_norm *op)
{
    cf_op_norm copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_rows * op->n_heads, 4, norm_part, &copy);
}

static void glu_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_glu *op = arg;
    const float *g = cf_ref_at(op->g), *u = op->u.buf ? cf_ref_at(op->u) : NULL;
    float *y = cf_ref_at(op->y);
    for (uint64_t i = begin; i < end; i++)
        y[i] = cf_ref_act(&op->act, g[i], u ? u[i] : 1.0f);
}

void cf_ref_glu(cf_threads *pool, const cf_op_glu *op)
{
    cf_op_glu copy = *op;
    cf_threads_run(pool, op->n, GRAIN, glu_part, &copy);
}

static float map_value(const cf_op_map *op, float a, float b)
{
    switch (op->kind) {
    case CF_MAP_CLAMP: /* a NaN stays one */
        return a < op->p ? op->p : a > op->q ? op->q : a;
    case CF_MAP_SOFTCAP:
        return op->p * tanhf(a / op->p);
    case CF_MAP_MUL_SIGMOID:
        return a * cf_ref_sigmoid(b);
    case CF_MAP_MUL_ROW:
        break;
    }
    return a * b;
}

/* Index: row. */
static void map_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_map *op = arg;
    bool two = op->kind == CF_MAP_MUL_SIGMOID || op->kind == CF_MAP_MUL_ROW;
    for (uint64_t r = begin; r < end; r++) {
        const float *a = (const float *)cf_ref_at(op->a) + r * op->a_stride;
        const float *b = two ? (const float *)cf_ref_at(op->b) + r * op->b_stride : NULL;
        float *y = (float *)cf_ref_at(op->y) + r * op->y_stride;
        for (uint32_t i = 0; i < op->width; i++)
            y[i] = map_value(op, a[i], two ? b[op->b_width == 1 ? 0 : i] : 0);
    }
}

void cf_ref_map(cf_threads *pool, const cf_op_map *op)
{
    cf_op_map copy = *op;
    cf_threads_run(pool, op->n_rows, 1, map_part, &copy);
}

static void add_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_add *op = arg;
    const float *a = cf_ref_at(op->a);
    float *y = cf_ref_at(op->y);
    if (!op->b.buf) {
        for (uint64_t i = begin; i < end; i++)
            y[i] = op->alpha * a[i];
        return;
    }
    const float *b = cf_ref_at(op->b);
    for (uint64_t i = begin; i < end; i++)
        y[i] = op->alpha * a[i] + op->beta * b[i];
}

void cf_ref_add(cf_threads *pool, const cf_op_add *op)
{
    cf_op_add copy = *op;
    cf_threads_run(pool, op->n, GRAIN, add_part, &copy);
}

/* Index: row. */
static void get_rows_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_get_rows *op = arg;
    uint32_t cols = op->table.cols;
    for (uint64_t r = begin; r < end; r++) {
        uint32_t id = op->ids.buf ? ((const uint32_t *)cf_ref_at(op->ids))[r] : (uint32_t)r;
        cf_assert(id < op->table.rows);
        const void *row = cf_ref_weight_row(&op->table, id);
        float *y = (float *)cf_ref_at(op->y) + r * op->y_stride;
        for (uint32_t k = 0; k < cols; k += CF_REF_BLOCK) {
            float scratch[CF_REF_BLOCK];
            uint32_t n = cols - k < CF_REF_BLOCK ? cols - k : CF_REF_BLOCK;
            const float *w = cf_ref_decode(op->table.dtype, row, k, n, scratch);
            for (uint32_t i = 0; i < n; i++)
                y[k + i] = op->scale * w[i];
        }
    }
}

void cf_ref_get_rows(cf_threads *pool, const cf_op_get_rows *op)
{
    cf_op_get_rows copy = *op;
    cf_threads_run(pool, op->n_rows, 4, get_rows_part, &copy);
}
