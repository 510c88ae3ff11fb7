/* Seeded op cases: see op_cases.h. Those of the experts are in op_cases_moe.c, those of the storage
 * formats in op_cases_formats.c, of attention with a state in op_cases_state.c, of the choice of
 * cells in op_cases_index.c, the runner in op_run.c. */
#include "tests/support/op_build.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/f16.h"

/* ---- tables ---- */

struct linear_size {
    uint32_t rows, cols, x_pad, y_pad;
    float scale;
    bool accumulate;
    op_layout w, bias;
};
static const struct linear_size linear_sizes[] = {
    {1, 1, 0, 0, 1.0f, false, OP_LAY_PLAIN, OP_LAY_NONE},
    {7, 33, 3, 1, 1.0f, true, OP_LAY_PLAIN, OP_LAY_NONE},
    {33, 7, 0, 5, 0.5f, false, OP_LAY_PLAIN, OP_LAY_PLAIN},
    {72, 203, 1, 0, 2.0f, true, OP_LAY_PLAIN, OP_LAY_ODD},
    {203, 72, 4, 4, -1.0f, false, OP_LAY_PLAIN, OP_LAY_NONE},
    {130, 1000, 0, 3, 1.0f, true, OP_LAY_PLAIN, OP_LAY_PLAIN},
    {1003, 64, 8, 0, 3.0f, true, OP_LAY_PLAIN, OP_LAY_NONE},
    {16, 4099, 29, 16, 1.0f, false, OP_LAY_PLAIN, OP_LAY_NONE},
    {1, 1, 0, 0, 2.0f, false, OP_LAY_TRANSPOSED_PART, OP_LAY_EVEN},
    {7, 33, 0, 1, 1.0f, false, OP_LAY_EVEN, OP_LAY_EVEN},
    {130, 72, 3, 0, 0.5f, true, OP_LAY_ODD, OP_LAY_ODD},
    {33, 203, 1, 2, 1.0f, false, OP_LAY_LATER, OP_LAY_LATER},
    {33, 203, 1, 0, -1.0f, true, OP_LAY_TRANSPOSED, OP_LAY_TRANSPOSED},
    {72, 300, 0, 4, 1.0f, false, OP_LAY_TRANSPOSED_PART, OP_LAY_NONE},
    {203, 33, 0, 0, 3.0f, true, OP_LAY_TRANSPOSED_PART, OP_LAY_TRANSPOSED_PART},
    {19, 1027, 2, 0, 1.0f, false, OP_LAY_TRANSPOSED, OP_LAY_PLAIN},
};
enum { LINEAR_SIZES = sizeof linear_sizes / sizeof linear_sizes[0] };

/* Of a size: one row in every plain format, the other row counts in one each, by turns. A device
 * compiles a shader for each format and tile; the whole table would take minutes of that. */
enum { TURNS = CF_FORMAT_PLAIN + OP_ROW_COUNTS - 1 };

static uint32_t turn_of(int size, int turn, cf_format *t)
{
    int later = turn - CF_FORMAT_PLAIN;
    *t = (cf_format)(later < 0 ? turn : (size + turn) % CF_FORMAT_PLAIN);
    return op_row_counts[later < 0 ? 0 : later + 1];
}

static void build_linear(op_case *c, int i)
{
    const struct linear_size *s = &linear_sizes[i / TURNS];
    cf_op_linear *op = &c->op.linear;
    cf_format t;
    op->n_rows = turn_of(i / TURNS, i % TURNS, &t);
    op->x_stride = s->cols + s->x_pad;
    op->y_stride = s->rows + s->y_pad;
    op->scale = s->scale;
    op->accumulate = s->accumulate;
    op_weight_add_as(c, &op->w, t, s->rows, s->cols, s->w);
    op_vector_add(c, &op->bias, (cf_format)(i % CF_FORMAT_PLAIN), s->rows, s->bias);
    op_rows_add(c, &op->x, op->n_rows, s->cols, op->x_stride);
    if (op->accumulate)
        op_rows_add(c, &op->y, op->n_rows, s->rows, op->y_stride);
    else
        op_out_add(c, &op->y, (op->n_rows - 1) * op->y_stride + s->rows, OP_F32, OP_OUT);
    c->arrays[c->n_arrays - 1].role = OP_OUT;
    snprintf(c->name, sizeof c->name, "linear %s %ux%u%s rows %u scale %g%s bias%s",
             cf_format_name(t), s->rows, s->cols, op_layout_names[s->w], op->n_rows,
             (double)s->scale, s->accumulate ? " accumulate" : "", op_layout_names[s->bias]);
}

struct head_size {
    uint32_t n_heads, head_rows, row_off, n_sub, cols, pad;
    bool heads_outside; /* [head, row, width] instead of [row, head, width] */
};
static const struct head_size head_sizes[] = {
    {1, 1, 0, 1, 1, 0, false},       {3, 24, 4, 20, 33, 2, false}, {8, 16, 8, 7, 203, 0, true},
    {2, 203, 70, 133, 72, 5, false}, {4, 64, 0, 64, 512, 0, true},
};
enum { HEAD_SIZES = sizeof head_sizes / sizeof head_sizes[0] };

static void build_head_linear(op_case *c, int i)
{
    const struct head_size *s = &head_sizes[i / (TURNS * 2)];
    cf_op_head_linear *op = &c->op.head_linear;
    cf_format t;
    op->n_rows = turn_of(i / (TURNS * 2), i / 2 % TURNS, &t);
    op->transposed = i % 2;
    op->n_heads = s->n_heads;
    op->head_rows = s->head_rows;
    op->row_off = s->row_off;
    op->n_sub = s->n_sub;
    uint32_t xw = op->transposed ? s->n_sub : s->cols, yw = op->transposed ? s->cols : s->n_sub;
    bool out = s->heads_outside;
    op->x_head_stride = out ? op->n_rows * (xw + s->pad) : xw + s->pad;
    op->x_stride = out ? xw + s->pad : s->n_heads * (xw + s->pad) + 3;
    op->y_head_stride = out ? op->n_rows * (yw + s->pad) : yw + s->pad;
    op->y_stride = out ? yw + s->pad : s->n_heads * (yw + s->pad) + 1;
    op_weight_add(c, &op->w, t, s->n_heads * s->head_rows + 2, s->cols);
    uint64_t n = (uint64_t)(op->n_rows - 1) * op->x_stride +
                 (uint64_t)(s->n_heads - 1) * op->x_head_stride + xw;
    op_rows_add(c, &op->x, 1, n, n);
    n = (uint64_t)(op->n_rows - 1) * op->y_stride + (uint64_t)(s->n_heads - 1) * op->y_head_stride +
        yw;
    op_out_add(c, &op->y, n, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "head_linear %s heads %u, %u of %u x %u rows %u%s%s",
             cf_format_name(t), s->n_heads, s->n_sub, s->head_rows, s->cols, op->n_rows,
             op->transposed ? " transposed" : "", out ? " heads outside" : "");
}

struct norm_size {
    uint32_t width, n_heads;
    cf_norm_kind kind;
    op_layout w, bias;
    bool own, unit_offset; /* own: each head has its part of the vectors */
};
static const struct norm_size norm_sizes[] = {
    {1, 1, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, false, false},
    {7, 1, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, false, true},
    {33, 1, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, false, false},
    {203, 1, CF_NORM_RMS, OP_LAY_ODD, OP_LAY_NONE, false, true},
    {1000, 1, CF_NORM_RMS, OP_LAY_NONE, OP_LAY_NONE, false, false},
    {6144, 1, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, false, false},
    {64, 5, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, false, false},
    {33, 8, CF_NORM_RMS, OP_LAY_PLAIN, OP_LAY_NONE, true, true},
    {128, 3, CF_NORM_RMS, OP_LAY_NONE, OP_LAY_NONE, false, false},
    {7, 1, CF_NORM_LAYER, OP_LAY_PLAIN, OP_LAY_PLAIN, false, false},
    {203, 1, CF_NORM_LAYER, OP_LAY_PLAIN, OP_LAY_NONE, false, true},
    {1000, 1, CF_NORM_LAYER, OP_LAY_NONE, OP_LAY_EVEN, false, false},
    {6144, 1, CF_NORM_LAYER, OP_LAY_LATER, OP_LAY_LATER, false, false},
    {33, 4, CF_NORM_LAYER, OP_LAY_PLAIN, OP_LAY_PLAIN, true, false},
    {300, 3, CF_NORM_LAYER, OP_LAY_PLAIN, OP_LAY_PLAIN, false, true},
    {96, 2, CF_NORM_LAYER, OP_LAY_NONE, OP_LAY_NONE, false, false},
};
enum { NORM_SIZES = sizeof norm_sizes / sizeof norm_sizes[0] };

static void build_norm(op_case *c, int i)
{
    const struct norm_size *s = &norm_sizes[i / 2 / OP_ROW_COUNTS];
    cf_op_norm *op = &c->op.norm;
    bool in_place = i % 2;
    uint32_t width = s->width, heads = s->n_heads, cols = s->own ? heads * width : width;
    cf_format t = (cf_format)(i % CF_FORMAT_PLAIN), bias_t = (cf_format)(i / 2 % CF_FORMAT_PLAIN);
    op->kind = s->kind;
    op->n_rows = op_row_counts[i / 2 % OP_ROW_COUNTS];
    op->n_heads = heads;
    op->width = width;
    op->unit_offset = s->unit_offset;
    op->x_head_stride = width + (uint32_t)(i % 4);
    op->x_stride = heads * op->x_head_stride + (uint32_t)(i % 5);
    op->y_head_stride = in_place ? op->x_head_stride : width + (uint32_t)(i % 7);
    op->y_stride = in_place ? op->x_stride : heads * op->y_head_stride + (uint32_t)(i % 3);
    op->eps = 1e-5f;
    op->scale = i % 4 < 2 ? 1.0f : 2.5f;
    op_vector_add(c, &op->w, t, cols, s->w);
    op_vector_add(c, &op->bias, bias_t, cols, s->bias);
    uint64_t row = (heads - 1) * op->x_head_stride + width;
    float *x = op_rows_add(c, &op->x, op->n_rows, row, op->x_stride);
    for (uint64_t j = 0; j < (op->n_rows - 1) * (uint64_t)op->x_stride + row; j++)
        if (s->kind == CF_NORM_LAYER) /* a mean well off 0 */
            x[j] += 3.0f;
    row = (heads - 1) * op->y_head_stride + width;
    if (in_place)
        op_array_share(c, &op->x, &op->y);
    else
        op_out_add(c, &op->y, (op->n_rows - 1) * (uint64_t)op->y_stride + row, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "norm %s %s%s%s bias %s%s heads %u%s width %u rows %u%s",
             s->kind == CF_NORM_RMS ? "rms" : "layer", cf_format_name(t), op_layout_names[s->w],
             s->unit_offset ? " + 1" : "", cf_format_name(bias_t), op_layout_names[s->bias], heads,
             s->own ? " apart" : "", width, op->n_rows, in_place ? " in place" : "");
}

static const uint32_t rope_rots[] = {2, 6, 34, 64};
enum { ROPE_ROTS = sizeof rope_rots / sizeof rope_rots[0] };

static void build_rope(op_case *c, int i)
{
    cf_op_rope *op = &c->op.rope;
    op->layout = i % 2 ? CF_ROPE_HALF : CF_ROPE_INTERLEAVED;
    op->n_rows = op_row_counts[i / 2 % OP_ROW_COUNTS];
    op->n_rot = rope_rots[i / 2 / OP_ROW_COUNTS];
    op->n_heads = i % 3 ? 5 : 1;
    op->head_stride = op->n_rot + (uint32_t)(i % 4) * 3;
    op->stride = op->n_heads * op->head_stride + (uint32_t)(i % 5);
    uint32_t half = op->n_rot / 2;
    float *t = op_rows_add(c, &op->cos_sin, op->n_rows, op->n_rot, op->n_rot);
    for (uint32_t j = 0; j < op->n_rows * half; j++) {
        double angle = cf_rng_unit(&c->rng) * 6.0; /* a point of the unit circle, rationally */
        t[2 * j] = (float)((1 - angle * angle) / (1 + angle * angle));
        t[2 * j + 1] = (float)(2 * angle / (1 + angle * angle));
    }
    uint64_t n = (uint64_t)(op->n_rows - 1) * op->stride +
                 (uint64_t)(op->n_heads - 1) * op->head_stride + op->n_rot;
    float *x = (float *)(void *)op_array_add(c, &op->x, n * 4, 12, OP_OUT);
    for (uint64_t j = 0; j < n; j++)
        x[j] = op_rng_value(&c->rng);
    snprintf(c->name, sizeof c->name, "rope %s rot %u heads %u rows %u",
             i % 2 ? "half" : "interleaved", op->n_rot, op->n_heads, op->n_rows);
}

static const uint32_t store_widths[] = {1, 7, 72, 203, 576}, store_q8_widths[] = {32, 96, 576};
enum {
    STORE_WIDTHS = sizeof store_widths / sizeof store_widths[0],
    STORE_Q8_WIDTHS = sizeof store_q8_widths / sizeof store_q8_widths[0],
    STORE_CASES = STORE_WIDTHS * OP_ROW_COUNTS * 2 /* then those of CF_Q8_0 */
};

/* Blocks of every size: of zeros, with codes that are halves, with a scale that float16 holds as a
 * subnormal, as zero, not at all; values too small for any code, NaN and infinity. */
static void blocks_spread(op_case *c, const cf_op_kv_store *op, float *x)
{
    static const float sizes[] = {1,         0,         127,  1e-5f, 1e-7f, 3e-9f,     1e-20f,
                                  0x1p-100f, 0x1p-101f, 8e6f, 9e6f,  1e30f, 0x1p-149f, 1};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    for (uint32_t b = 0; b < op->n_rows * op->width / 32; b++) {
        float *v = x + b / (op->width / 32) * op->x_stride + b % (op->width / 32) * 32;
        uint32_t kind = (uint32_t)cf_rng_below(&c->rng, SIZES + 3);
        for (uint32_t j = 0; j < 32; j++)
            if (kind == SIZES) /* d is 1 */
                v[j] = j ? (float)cf_rng_below(&c->rng, 254) * 0.5f - 63.5f : -127.0f;
            else
                v[j] *= sizes[kind % SIZES] * (j % 5 ? 1.0f : 0x1p-40f);
        if (kind > SIZES)
            v[cf_rng_below(&c->rng, 32)] = kind == SIZES + 1 ? NAN : -INFINITY;
    }
}

static void build_kv_store(op_case *c, int i)
{
    cf_op_kv_store *op = &c->op.kv_store;
    bool q8 = i >= STORE_CASES;
    op->kv_dtype = q8 ? CF_Q8_0 : i % 2 ? CF_F16 : CF_F32;
    op->n_rows = op_row_counts[(q8 ? i : i / 2) % OP_ROW_COUNTS];
    op->width = q8 ? store_q8_widths[(i - STORE_CASES) / OP_ROW_COUNTS]
                   : store_widths[i / 2 / OP_ROW_COUNTS];
    op->x_stride = op->width + (uint32_t)(i % 3) * 5;
    float *x = op_rows_add(c, &op->x, op->n_rows, op->width, op->x_stride);
    if (q8)
        blocks_spread(c, op, x);
    uint32_t n_cells = op->n_rows * 3 + 1;
    /* A cache may start at any multiple of 4. */
    op_array_add(c, &op->cache, n_cells * cf_format_row_bytes(op->kv_dtype, op->width), 20, OP_OUT);
    c->arrays[c->n_arrays - 1].element = q8 ? OP_U16 : i % 2 ? OP_F16 : OP_F32;
    cf_row_info *rows = (cf_row_info *)(void *)op_array_add(
        c, &op->rows, op->n_rows * sizeof(cf_row_info), 16, OP_IN);
    for (uint32_t r = 0; r < op->n_rows; r++) /* each its own cell, not in order */
        rows[r] = (cf_row_info){(op->n_rows - 1 - r) * 3 + 1, 0, 1, r};
    snprintf(c->name, sizeof c->name, "kv_store %s width %u rows %u", cf_format_name(op->kv_dtype),
             op->width, op->n_rows);
}

struct attn_size {
    uint32_t n_heads, rank, n_rope, n_cells, n_select; /* n_select 0: all cells are seen */
};
static const struct attn_size attn_sizes[] = {
    {1, 1, 1, 1, 0},      {2, 7, 2, 33, 0},       {5, 72, 8, 203, 0},
    {3, 33, 34, 1000, 0}, {4, 512, 64, 300, 0},   {1, 7, 2, 33, 1},
    {5, 72, 8, 203, 29},  {3, 33, 34, 1000, 300}, {4, 512, 64, 300, 64},
};
static const struct attn_size attn_q8_sizes[] = {
    {1, 32, 32, 1, 0},
    {5, 96, 32, 203, 0},
    {3, 32, 64, 1000, 300},
    {4, 512, 64, 300, 0},
};
enum {
    ATTN_SIZES = sizeof attn_sizes / sizeof attn_sizes[0],
    ATTN_Q8_SIZES = sizeof attn_q8_sizes / sizeof attn_q8_sizes[0],
    ATTN_CASES = ATTN_SIZES * OP_ROW_COUNTS * 2 /* then those of CF_Q8_0 */
};

/* n of the cells of each row, or all where there are fewer, ascending; what is left of a list names
 * no cell. */
static void cells_choose(op_case *c, const cf_row_info *rows, uint32_t n)
{
    cf_op_attn_latent *op = &c->op.attn_latent;
    op->n_select = n;
    uint32_t *cells =
        (uint32_t *)(void *)op_array_add(c, &op->cells, (uint64_t)op->n_rows * n * 4, 8, OP_IN);
    for (uint32_t r = 0; r < op->n_rows; r++) {
        uint32_t want = rows[r].n_cells < n ? rows[r].n_cells : n, at = rows[r].first_cell;
        for (uint32_t i = 0; i < want; i++) {
            uint32_t spare = rows[r].first_cell + rows[r].n_cells - at - (want - i);
            at += (uint32_t)cf_rng_below(&c->rng, spare / (want - i) + 1);
            cells[r * n + i] = at++;
        }
    }
}

static void build_attn_latent(op_case *c, int i)
{
    bool q8 = i >= ATTN_CASES;
    const struct attn_size *s =
        q8 ? &attn_q8_sizes[(i - ATTN_CASES) / OP_ROW_COUNTS] : &attn_sizes[i / 2 / OP_ROW_COUNTS];
    cf_op_attn_latent *op = &c->op.attn_latent;
    op->kv_dtype = q8 ? CF_Q8_0 : i % 2 ? CF_F16 : CF_F32;
    op->n_rows = op_row_counts[(q8 ? i : i / 2) % OP_ROW_COUNTS];
    op->n_heads = s->n_heads;
    op->rank = s->rank;
    op->n_rope = s->n_rope;
    op->q_head_stride = s->n_rope + (uint32_t)(i % 3) * 7;
    op->q_stride = s->n_heads * op->q_head_stride + (uint32_t)(i % 2);
    op->scale = i % 4 < 2 ? 1.0f : 0.3f;
    op_rows_add(c, &op->q_lat, op->n_rows, s->n_heads * s->rank, s->n_heads * s->rank);
    uint64_t n = (uint64_t)(op->n_rows - 1) * op->q_stride +
                 (uint64_t)(s->n_heads - 1) * op->q_head_stride + s->n_rope;
    op_rows_add(c, &op->q_rope, 1, n, n);
    op_cache_add(c, &op->cache, op->kv_dtype, (uint64_t)s->n_cells * (s->rank + s->n_rope), 0,
                 4 * (uint64_t)(i % 4 + 1));
    cf_row_info *rows = (cf_row_info *)(void *)op_array_add(
        c, &op->rows, op->n_rows * sizeof(cf_row_info), 32, OP_IN);
    for (uint32_t r = 0; r < op->n_rows; r++) {
        uint32_t first = (uint32_t)cf_rng_below(&c->rng, s->n_cells);
        uint32_t count = 1 + (uint32_t)cf_rng_below(&c->rng, s->n_cells - first);
        rows[r] = r ? (cf_row_info){first + count - 1, first, count, r}
                    : (cf_row_info){s->n_cells - 1, 0, s->n_cells, 0};
    }
    op_out_add(c, &op->y, (uint64_t)op->n_rows * s->n_heads * s->rank, OP_F32, OP_OUT);
    if (s->n_select)
        cells_choose(c, rows, s->n_select);
    snprintf(c->name, sizeof c->name,
             "attn_latent %s heads %u rank %u rope %u cells %u of %u rows %u",
             cf_format_name(op->kv_dtype), s->n_heads, s->rank, s->n_rope, s->n_select, s->n_cells,
             op->n_rows);
}

struct gqa_size {
    uint32_t n_heads, n_kv_heads, d_k, d_v, n_cells, window, chunk;
    float cap;
    op_layout sinks;
    bool sharp;
};
static const struct gqa_size gqa_sizes[] = {
    {1, 1, 1, 1, 1, 0, 0, 0, OP_LAY_NONE, false},
    {4, 2, 64, 64, 33, 0, 0, 0, OP_LAY_NONE, false},
    {6, 2, 7, 33, 203, 5, 0, 0, OP_LAY_NONE, false},
    {5, 5, 72, 8, 300, 128, 0, 0, OP_LAY_PLAIN, false},
    {8, 1, 33, 72, 203, 0, 16, 0, OP_LAY_NONE, false},
    {3, 3, 128, 128, 1000, 0, 0, 2.0f, OP_LAY_NONE, false},
    {8, 4, 16, 16, 100, 1, 0, 0, OP_LAY_ODD, false},
    {2, 1, 192, 128, 77, 0, 1, 0.5f, OP_LAY_PLAIN, false},
    {12, 3, 40, 24, 500, 37, 64, 1.5f, OP_LAY_PLAIN, false},
    {16, 2, 256, 256, 65, 1000, 8192, 0, OP_LAY_NONE, false},
    {6, 2, 40, 24, 300, 0, 0, 1.5f, OP_LAY_NONE, true},
    {8, 4, 64, 64, 77, 9, 0, 0, OP_LAY_PLAIN, true},
};
static const struct gqa_size gqa_q8_sizes[] = {
    {1, 1, 32, 32, 1, 0, 0, 0, OP_LAY_NONE, false},
    {6, 3, 64, 96, 203, 0, 0, 0, OP_LAY_NONE, false},
    {8, 1, 96, 32, 1000, 0, 16, 1.5f, OP_LAY_PLAIN, false},
    {3, 3, 128, 128, 300, 100, 0, 0, OP_LAY_ODD, true},
};
enum {
    GQA_SIZES = sizeof gqa_sizes / sizeof gqa_sizes[0],
    GQA_Q8_SIZES = sizeof gqa_q8_sizes / sizeof gqa_q8_sizes[0],
    GQA_CASES = GQA_SIZES * OP_ROW_COUNTS * 2 /* then those of CF_Q8_0 */
};

static void build_attn(op_case *c, int i)
{
    bool q8 = i >= GQA_CASES;
    const struct gqa_size *s =
        q8 ? &gqa_q8_sizes[(i - GQA_CASES) / OP_ROW_COUNTS] : &gqa_sizes[i / 2 / OP_ROW_COUNTS];
    cf_op_attn *op = &c->op.attn;
    op->kv_dtype = q8 ? CF_Q8_0 : i % 2 ? CF_F16 : CF_F32;
    op->n_rows = op_row_counts[(q8 ? i : i / 2) % OP_ROW_COUNTS];
    op->n_heads = s->n_heads;
    op->n_kv_heads = s->n_kv_heads;
    op->d_k = s->d_k;
    op->d_v = s->d_v;
    op->window = s->window;
    op->chunk = s->chunk;
    op->cap = s->cap;
    op->scale = i % 4 < 2 ? 1.0f : 0.3f;
    op->q_stride = s->n_heads * s->d_k + (uint32_t)(i % 3) * 5;
    op_rows_add(c, &op->q, op->n_rows, s->n_heads * s->d_k, op->q_stride);
    uint64_t k_width = s->n_kv_heads * s->d_k, v_width = s->n_kv_heads * s->d_v;
    op_cache_add(c, &op->k, op->kv_dtype, s->n_cells * k_width, 2 * k_width,
                 4 * (uint64_t)(i % 4 + 1));
    op_cache_add(c, &op->v, op->kv_dtype, s->n_cells * v_width, 2 * v_width,
                 4 * (uint64_t)(i % 3 + 1));
    op_vector_add(c, &op->sinks, (cf_format)(i / 2 % CF_FORMAT_PLAIN), s->n_heads, s->sinks);
    if (s->sharp) {
        float *sharp = op_rows_add(c, &op->sharpness, op->n_rows, 1, 1);
        for (uint32_t r = 0; r < op->n_rows; r++)
            sharp[r] = 1 + (float)cf_rng_below(&c->rng, 8) * 0.0625f;
    }
    cf_row_info *rows = (cf_row_info *)(void *)op_array_add(
        c, &op->rows, op->n_rows * sizeof(cf_row_info), 32, OP_IN);
    for (uint32_t r = 0; r < op->n_rows; r++) {
        uint32_t first = r ? (uint32_t)cf_rng_below(&c->rng, s->n_cells) : 0;
        uint32_t n = r ? 1 + (uint32_t)cf_rng_below(&c->rng, s->n_cells - first) : s->n_cells;
        /* Where chunks begin differs from row to row. */
        uint32_t position = n - 1 + (uint32_t)cf_rng_below(&c->rng, r ? 100 : 1);
        rows[r] = (cf_row_info){first + n - 1, first, n, position};
    }
    op_out_add(c, &op->y, (uint64_t)op->n_rows * s->n_heads * s->d_v, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name,
             "attn %s heads %u/%u d %u %u cells %u window %u chunk %u cap %g sinks%s%s rows %u",
             cf_format_name(op->kv_dtype), s->n_heads, s->n_kv_heads, s->d_k, s->d_v, s->n_cells,
             s->window, s->chunk, (double)s->cap, op_layout_names[s->sinks],
             s->sharp ? " sharpened" : "", op->n_rows);
}

static const uint32_t flat_sizes[] = {1, 7, 33, 1000, 70001};
enum { FLAT_SIZES = sizeof flat_sizes / sizeof flat_sizes[0] };

static void build_glu(op_case *c, int i)
{
    cf_op_glu *op = &c->op.glu;
    uint32_t n = flat_sizes[i / (4 * OP_ACTS)];
    op->n = n;
    op->act.act = (cf_act)(i / 4 % OP_ACTS);
    bool clamped = op->act.act == CF_ACT_SWIGLU_CLAMPED, gated = clamped || i & 2;
    if (clamped)
        op->act = (cf_act_params){CF_ACT_SWIGLU_CLAMPED, i & 2 ? 7.0f : 0.5f, 1.702f};
    float *g = op_rows_add(c, &op->g, 1, n, n);
    for (uint64_t j = 0; j < n; j++)
        g[j] *= j % 7 ? 8.0f : 100.0f; /* exp(100) is infinite */
    if (gated)
        op_rows_add(c, &op->u, 1, n, n);
    if (i % 2)
        op_array_share(c, &op->g, &op->y);
    else
        op_out_add(c, &op->y, n, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "glu %s n %u%s%s", op_act_names[op->act.act], n,
             gated ? "" : " alone", i % 2 ? " in place" : "");
}

static const uint32_t map_widths[] = {1, 7, 203, 1000};
enum { MAP_WIDTHS = sizeof map_widths / sizeof map_widths[0], MAPS = 4 };

static void build_map(op_case *c, int i)
{
    static const char *const names[MAPS] = {"clamp", "softcap", "mul_sigmoid", "mul_row"};
    cf_op_map *op = &c->op.map;
    uint32_t width = map_widths[i / (OP_ROW_COUNTS * MAPS * 4)];
    bool in_place = i % 2, narrow = i & 2;
    op->kind = (cf_map_kind)(i / 4 % MAPS);
    op->n_rows = op_row_counts[i / (MAPS * 4) % OP_ROW_COUNTS];
    op->width = width;
    op->a_stride = width + (uint32_t)(i % 5);
    op->y_stride = in_place ? op->a_stride : width + (uint32_t)(i % 3);
    op->p = op->kind == CF_MAP_CLAMP ? -0.75f : narrow ? 0.5f : 30.0f;
    op->q = narrow ? -0.25f : 0.5f;
    float *a = op_rows_add(c, &op->a, op->n_rows, width, op->a_stride);
    if (op->kind == CF_MAP_SOFTCAP)
        a[0] = 1000.0f;
    if (op->kind >= CF_MAP_MUL_SIGMOID) {
        op->b_width = narrow || op->kind == CF_MAP_MUL_ROW ? 1 : width;
        op->b_stride = op->b_width + (uint32_t)(i % 4);
        float *b = op_rows_add(c, &op->b, op->n_rows, op->b_width, op->b_stride);
        b[0] *= 100.0f;
    }
    if (in_place)
        op_array_share(c, &op->a, &op->y);
    else
        op_out_add(c, &op->y, (op->n_rows - 1) * (uint64_t)op->y_stride + width, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "map %s width %u by %u rows %u%s", names[op->kind], width,
             op->b_width, op->n_rows, in_place ? " in place" : "");
}

static void build_add(op_case *c, int i)
{
    cf_op_add *op = &c->op.add;
    op->n = flat_sizes[i / 4];
    op->alpha = 0.75f;
    op->beta = -1.5f;
    op_rows_add(c, &op->a, 1, op->n, op->n);
    if (i & 1)
        op_rows_add(c, &op->b, 1, op->n, op->n);
    if (i & 2)
        op_array_share(c, &op->a, &op->y);
    else
        op_out_add(c, &op->y, op->n, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "add n %u%s%s", flat_sizes[i / 4], i & 1 ? "" : " no b",
             i & 2 ? " in place" : "");
}

static const uint32_t table_cols[] = {1, 7, 33, 203, 1000};
enum { TABLE_COLS = sizeof table_cols / sizeof table_cols[0] };

/* Every finite F16 pattern once, so that decoding is proven on all of them. */
static void build_all_f16(op_case *c)
{
    cf_op_get_rows *op = &c->op.get_rows;
    op_weight_add(c, &op->table, CF_F16, 64, 1024);
    uint16_t *h = (uint16_t *)(void *)c->arrays[0].data;
    for (uint32_t i = 0; i < 65536; i++)
        h[i] = (i & 0x7c00u) == 0x7c00u ? 0 : (uint16_t)i;
    op->n_rows = 64;
    op->y_stride = 1024;
    op->scale = 1.0f;
    op_out_add(c, &op->y, 65536, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "get_rows every F16 value");
}

static void build_get_rows(op_case *c, int i)
{
    cf_op_get_rows *op = &c->op.get_rows;
    if (i == TABLE_COLS * CF_FORMAT_PLAIN * OP_ROW_COUNTS) {
        build_all_f16(c);
        return;
    }
    cf_format t = (cf_format)(i % CF_FORMAT_PLAIN);
    uint32_t cols = table_cols[i / CF_FORMAT_PLAIN / OP_ROW_COUNTS];
    op->n_rows = op_row_counts[i / CF_FORMAT_PLAIN % OP_ROW_COUNTS];
    op->y_stride = cols + (uint32_t)(i % 4);
    op->scale = i % 2 ? 1.0f : 12.0f;
    op_weight_add(c, &op->table, t, 29, cols);
    bool ids = i % 5 != 0;
    if (ids) {
        uint32_t *p = (uint32_t *)(void *)op_array_add(c, &op->ids, op->n_rows * 4, 4, OP_IN);
        for (uint32_t r = 0; r < op->n_rows; r++)
            p[r] = r ? (uint32_t)cf_rng_below(&c->rng, 29) : 28;
    }
    op_out_add(c, &op->y, (op->n_rows - 1) * op->y_stride + cols, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "get_rows %s cols %u rows %u%s", cf_format_name(t), cols,
             op->n_rows, ids ? "" : " no ids");
}

/* ---- cases ---- */

struct family {
    op_kind kind;
    int count;
    const int *counted; /* where it is known elsewhere */
    void (*build)(op_case *c, int i);
};
static const struct family families[] = {
    {OP_linear, LINEAR_SIZES * TURNS, NULL, build_linear},
    {OP_head_linear, HEAD_SIZES * TURNS * 2, NULL, build_head_linear},
    {OP_norm, NORM_SIZES *OP_ROW_COUNTS * 2, NULL, build_norm},
    {OP_rope, ROPE_ROTS *OP_ROW_COUNTS * 2, NULL, build_rope},
    {OP_kv_store, STORE_CASES + STORE_Q8_WIDTHS *OP_ROW_COUNTS, NULL, build_kv_store},
    {OP_attn_latent, ATTN_CASES + ATTN_Q8_SIZES *OP_ROW_COUNTS, NULL, build_attn_latent},
    {OP_attn, GQA_CASES + GQA_Q8_SIZES *OP_ROW_COUNTS, NULL, build_attn},
    {OP_glu, FLAT_SIZES *OP_ACTS * 4, NULL, build_glu},
    {OP_map, MAP_WIDTHS *OP_ROW_COUNTS *MAPS * 4, NULL, build_map},
    {OP_add, FLAT_SIZES * 4, NULL, build_add},
    {OP_route, 0, &op_route_count, op_build_route},
    {OP_expert_glu, 0, &op_expert_count, op_build_expert_glu},
    {OP_expert_down, 0, &op_expert_count, op_build_expert_down},
    {OP_combine, 0, &op_combine_count, op_build_combine},
    {OP_get_rows, TABLE_COLS *CF_FORMAT_PLAIN *OP_ROW_COUNTS + 1, NULL, build_get_rows},
    {OP_conv, 0, &op_conv_count, op_build_conv},
    {OP_state_gates, 0, &op_state_gates_count, op_build_state_gates},
    {OP_attn_state, 0, &op_attn_state_count, op_build_attn_state},
    {OP_gate, 0, &op_gate_count, op_build_gate},
    {OP_index_score, 0, &op_index_score_count, op_build_index_score},
    {OP_index_select, 0, &op_index_select_count, op_build_index_select},
    {OP_attn_bias, 0, &op_attn_bias_count, op_build_attn_bias},
    {OP_linear, 0, &op_format_linear_count, op_build_format_linear},
    {OP_head_linear, 0, &op_format_head_count, op_build_format_head_linear},
    {OP_norm, 0, &op_format_norm_count, op_build_format_norm},
    {OP_attn, 0, &op_format_attn_count, op_build_format_attn},
    {OP_expert_glu, 0, &op_format_expert_count, op_build_format_expert_glu},
    {OP_expert_down, 0, &op_format_expert_count, op_build_format_expert_down},
    {OP_get_rows, 0, &op_format_get_rows_count, op_build_format_get_rows},
};
enum { FAMILIES = sizeof families / sizeof families[0] };
_Static_assert((int)FAMILIES >= (int)OP_KINDS, "every op has cases");

static int family_count(int f)
{
    return families[f].counted ? *families[f].counted : families[f].count;
}

int op_cases_count(void)
{
    int n = 0;
    for (int f = 0; f < FAMILIES; f++)
        n += family_count(f);
    return n;
}

op_case *op_case_create(int index)
{
    op_case *c = calloc(1, sizeof *c);
    cf_assert(c != NULL);
    int f = 0;
    for (; index >= family_count(f); f++)
        index -= family_count(f);
    /* A family's cases stay what they are when others gain some. */
    c->rng.state = ((uint64_t)f * 10007u + (uint64_t)index) * 7919u + 17u;
    c->kind = families[f].kind;
    families[f].build(c, index);
    return c;
}

void op_case_destroy(op_case **c)
{
    if (!*c)
        return;
    for (int i = 0; i < (*c)->n_arrays; i++)
        free((*c)->arrays[i].data);
    free(*c);
    *c = NULL;
}

const char *op_kind_name(op_kind kind)
{
#define NAME_OF(name) #name,
    static const char *const names[] = {CF_GPU_OPS(NAME_OF)};
#undef NAME_OF
    return names[kind];
}
