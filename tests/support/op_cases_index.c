/* Op cases of the choice of cells, and of attention by distance: see op_cases.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/op_build.h"

/* Rows that see the last `n` cells of a cache each, the first row all of them. */
static cf_row_info *rows_add(op_case *c, cf_span *field, uint32_t n_rows, uint32_t n_cells)
{
    cf_row_info *rows =
        (cf_row_info *)(void *)op_array_add(c, field, n_rows * sizeof *rows, 32, OP_IN);
    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t first = r ? (uint32_t)cf_rng_below(&c->rng, n_cells) : 0;
        uint32_t n = r ? 1 + (uint32_t)cf_rng_below(&c->rng, n_cells - first) : n_cells;
        rows[r] = (cf_row_info){first + n - 1, first, n, n - 1};
    }
    return rows;
}

struct score_size {
    uint32_t n_heads, d, n_cells;
};
static const struct score_size score_sizes[] = {
    {1, 1, 1}, {3, 7, 33}, {8, 16, 203}, {64, 128, 130}, {5, 72, 1000}, {9, 33, 77},
};
static const struct score_size score_q8_sizes[] = {{3, 32, 1}, {8, 128, 203}, {5, 96, 1000}};
enum {
    SCORE_SIZES = sizeof score_sizes / sizeof score_sizes[0],
    SCORE_Q8_SIZES = sizeof score_q8_sizes / sizeof score_q8_sizes[0],
    SCORE_CASES = SCORE_SIZES * OP_ROW_COUNTS * 2 /* then those of CF_Q8_0 */
};

void op_build_index_score(op_case *c, int i)
{
    bool q8 = i >= SCORE_CASES;
    const struct score_size *s = q8 ? &score_q8_sizes[(i - SCORE_CASES) / OP_ROW_COUNTS]
                                    : &score_sizes[i / 2 / OP_ROW_COUNTS];
    cf_op_index_score *op = &c->op.index_score;
    op->kv_dtype = q8 ? CF_Q8_0 : i % 2 ? CF_F16 : CF_F32;
    op->n_rows = op_row_counts[(q8 ? i : i / 2) % OP_ROW_COUNTS];
    op->n_heads = s->n_heads;
    op->d = s->d;
    op->max_cells = s->n_cells + (uint32_t)i % 3;
    op->q_stride = s->n_heads * s->d + (uint32_t)i % 5;
    op->w_stride = s->n_heads + (uint32_t)i % 2;
    op->score_stride = op->max_cells + (uint32_t)i % 4;
    op->scale = 0.3f;
    op_rows_add(c, &op->q, op->n_rows, s->n_heads * s->d, op->q_stride);
    op_rows_add(c, &op->w, op->n_rows, s->n_heads, op->w_stride);
    op_cache_add(c, &op->k, op->kv_dtype, (uint64_t)s->n_cells * s->d, 0,
                 4 * (uint64_t)(i % 4 + 1));
    rows_add(c, &op->rows, op->n_rows, s->n_cells);
    op_out_add(c, &op->scores, (op->n_rows - 1) * (uint64_t)op->score_stride + op->max_cells,
               OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "index_score %s heads %u of %u cells %u rows %u",
             cf_format_name(op->kv_dtype), s->n_heads, s->d, s->n_cells, op->n_rows);
}

struct select_size {
    uint32_t n_cells, k;
};
static const struct select_size select_sizes[] = {
    {1, 1}, {33, 64}, {203, 7}, {257, 256}, {1000, 1}, {1000, 333}, {5003, 2048},
};
enum { SELECT_SIZES = sizeof select_sizes / sizeof select_sizes[0], SELECT_KINDS = 3 };

/* Random scores; many equal ones; equal ones with zeros of both signs, NaN and infinities. */
void op_build_index_select(op_case *c, int i)
{
    static const char *const names[SELECT_KINDS] = {"random", "ties", "extremes"};
    static const float extremes[] = {0.0f, -0.0f, 1.0f, INFINITY, -INFINITY, NAN, -1e-40f, 2.0f};
    const struct select_size *s = &select_sizes[i / SELECT_KINDS / OP_ROW_COUNTS];
    int kind = i % SELECT_KINDS;
    cf_op_index_select *op = &c->op.index_select;
    op->n_rows = op_row_counts[i / SELECT_KINDS % OP_ROW_COUNTS];
    op->k = s->k;
    op->max_cells = s->n_cells;
    op->score_stride = s->n_cells + (uint32_t)i % 4;
    float *scores = op_rows_add(c, &op->scores, op->n_rows, s->n_cells, op->score_stride);
    for (uint64_t j = 0; kind && j < (op->n_rows - 1) * (uint64_t)op->score_stride + s->n_cells;
         j++)
        scores[j] =
            kind == 1 ? (float)cf_rng_below(&c->rng, 5) - 2 : extremes[cf_rng_below(&c->rng, 8)];
    rows_add(c, &op->rows, op->n_rows, s->n_cells);
    op_out_add(c, &op->cells, (uint64_t)op->n_rows * s->k, OP_U32, OP_OUT);
    snprintf(c->name, sizeof c->name, "index_select %s %u of %u rows %u", names[kind], s->k,
             s->n_cells, op->n_rows);
}

struct bias_size {
    uint32_t n_heads, d, n_cells, n_buckets, n_rows_of_bias;
};
static const struct bias_size bias_sizes[] = {
    {1, 1, 1, 1, 1},        {3, 7, 33, 9, 4},  {4, 10, 203, 49, 12},
    {2, 64, 1000, 257, 32}, {5, 33, 77, 3, 5}, {1, 128, 12001, 20, 7},
};
static const struct bias_size bias_q8_sizes[] = {{1, 32, 1, 1, 1}, {3, 96, 203, 49, 12}};
enum {
    BIAS_SIZES = sizeof bias_sizes / sizeof bias_sizes[0],
    BIAS_Q8_SIZES = sizeof bias_q8_sizes / sizeof bias_q8_sizes[0],
    BIAS_CASES = BIAS_SIZES * OP_ROW_COUNTS * 2 /* then those of CF_Q8_0 */
};

void op_build_attn_bias(op_case *c, int i)
{
    bool q8 = i >= BIAS_CASES;
    const struct bias_size *s =
        q8 ? &bias_q8_sizes[(i - BIAS_CASES) / OP_ROW_COUNTS] : &bias_sizes[i / 2 / OP_ROW_COUNTS];
    cf_op_attn_bias *op = &c->op.attn_bias;
    uint32_t width = s->n_heads * s->d;
    op->kv_dtype = q8 ? CF_Q8_0 : i % 2 ? CF_F16 : CF_F32;
    op->n_rows = s->n_cells > 10000 ? 2 : op_row_counts[(q8 ? i : i / 2) % OP_ROW_COUNTS];
    op->n_heads = s->n_heads;
    op->d = s->d;
    op->n_buckets = s->n_buckets;
    op->zero = s->n_buckets * 2 / 3;
    op->scale = i % 4 < 2 ? 1.0f : 0.3f;
    op->q_stride = width + (uint32_t)i % 3;
    op_weight_add(c, &op->bias, (cf_format)(i % CF_FORMAT_PLAIN), s->n_rows_of_bias, s->n_heads);
    uint32_t *buckets =
        (uint32_t *)(void *)op_array_add(c, &op->buckets, s->n_buckets * 4ull, 12, OP_IN);
    for (uint32_t j = 0; j < s->n_buckets; j++)
        buckets[j] = (uint32_t)cf_rng_below(&c->rng, s->n_rows_of_bias);
    op_rows_add(c, &op->q, op->n_rows, width, op->q_stride);
    op_cache_add(c, &op->k, op->kv_dtype, (uint64_t)s->n_cells * width, 0,
                 4 * (uint64_t)(i % 4 + 1));
    op_cache_add(c, &op->v, op->kv_dtype, (uint64_t)s->n_cells * width, 0,
                 4 * (uint64_t)(i % 3 + 1));
    cf_row_info *rows = rows_add(c, &op->rows, op->n_rows, s->n_cells);
    for (uint32_t r = 0; r < op->n_rows; r++) /* anywhere among its cells, or behind them */
        rows[r].position = (uint32_t)cf_rng_below(&c->rng, rows[r].n_cells + 3);
    op_out_add(c, &op->y, (uint64_t)op->n_rows * width, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "attn_bias %s heads %u of %u cells %u buckets %u rows %u",
             cf_format_name(op->kv_dtype), s->n_heads, s->d, s->n_cells, s->n_buckets, op->n_rows);
}

const int op_attn_bias_count = BIAS_CASES + BIAS_Q8_SIZES * OP_ROW_COUNTS;
const int op_index_score_count = SCORE_CASES + SCORE_Q8_SIZES * OP_ROW_COUNTS;
const int op_index_select_count = SELECT_SIZES * OP_ROW_COUNTS * SELECT_KINDS;
