/* Cases of the storage formats: every computable one in every op that takes weights, at odd sizes;
 * outer scales, and activations in 8 bits. They come after the cases of F32, F16 and BF16.
 *
 * A device that lacks a format leaves its cases out (op_case_supported). What the codes mean is
 * gpu/formats.h; blocks are random bytes with scales of a sensible size. */
#include <stdio.h>
#include <string.h>

#include "runtime/base/f16.h"
#include "tests/support/op_build.h"

/* ---- stored values ---- */

enum { NO_HALF = 0xff, HALVES = 2 };

/* Where a block has float16 scales, and how large they are to be for values of about 1. */
static const struct half_place {
    cf_format t;
    uint8_t at[HALVES];
    float size;
} half_places[] = {
    {CF_Q4_0, {0, NO_HALF}, 0.1f},     {CF_Q4_1, {0, 2}, 0.1f},
    {CF_Q5_0, {0, NO_HALF}, 0.05f},    {CF_Q5_1, {0, 2}, 0.05f},
    {CF_Q8_0, {0, NO_HALF}, 0.01f},    {CF_Q2_K, {80, 82}, 0.03f},
    {CF_Q3_K, {108, NO_HALF}, 0.01f},  {CF_Q4_K, {0, 2}, 0.002f},
    {CF_Q5_K, {0, 2}, 0.001f},         {CF_Q6_K, {208, NO_HALF}, 0.0005f},
    {CF_IQ1_S, {0, NO_HALF}, 0.1f},    {CF_IQ2_XXS, {0, NO_HALF}, 0.01f},
    {CF_IQ2_XS, {0, NO_HALF}, 0.01f},  {CF_IQ2_S, {0, NO_HALF}, 0.01f},
    {CF_IQ3_XXS, {0, NO_HALF}, 0.01f}, {CF_IQ3_S, {0, NO_HALF}, 0.01f},
    {CF_IQ4_NL, {0, NO_HALF}, 0.01f},  {CF_IQ4_XS, {0, NO_HALF}, 0.0005f},
};

/* Negative ones and subnormal ones occur. */
static uint16_t random_half(cf_rng *rng, float size)
{
    float v = size * op_rng_value(rng);
    return cf_f32_to_f16(cf_rng_below(rng, 13) ? v : v * 0x1p-14f);
}

static void half_put(uint8_t *at, uint16_t h)
{
    at[0] = (uint8_t)h;
    at[1] = (uint8_t)(h >> 8);
}

/* Random bytes of one block become finite values. */
static void block_settle(cf_rng *rng, cf_format t, uint8_t *b)
{
    for (size_t i = 0; i < sizeof half_places / sizeof *half_places; i++)
        for (int j = 0; half_places[i].t == t && j < HALVES; j++)
            if (half_places[i].at[j] != NO_HALF)
                half_put(b + half_places[i].at[j], random_half(rng, half_places[i].size));
    if (t == CF_IQ1_M) { /* four bits of the scale on top of each of the last four words */
        uint16_t d = random_half(rng, 0.1f);
        for (int i = 0; i < 4; i++)
            b[49 + 2 * i] = (uint8_t)((b[49 + 2 * i] & 15) | (d >> 4 * i & 15) << 4);
    }
    if (t == CF_MXFP4)
        b[0] = (uint8_t)(120 + b[0] % 10);
    for (int i = 0; t == CF_NVFP4 && i < 4; i++) /* 0x7f is 0 */
        b[i] = (b[i] & 0x70) == 0x70 ? 0x7f : b[i] & 0x3f;
    if (t == CF_F8_E4M3 && (b[0] & 0x60) == 0x60) /* less than 32, and no NaN */
        b[0] &= 0x5f;
}

void op_blocks_fill(cf_rng *rng, cf_format t, uint8_t *out, uint64_t n)
{
    const cf_format_info *f = &cf_formats[t];
    uint64_t bytes = cf_format_row_bytes(t, n);
    for (uint64_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)cf_rng_below(rng, 256);
    for (uint64_t at = 0; at < bytes; at += f->block_bytes)
        block_settle(rng, t, out + at);
}

void op_scales_add(op_case *c, cf_weight *w, cf_format t, uint32_t rows, uint32_t cols)
{
    uint32_t step = w->row_step ? w->row_step : 1;
    uint64_t last = (w->row_first + (w->rows - 1) * step) / rows;
    uint64_t n = (last + 1) * ((w->cols + cols - 1) / cols);
    w->scale_format = t;
    w->scale_rows = rows;
    w->scale_cols = cols;
    uint8_t *data = op_array_add(c, &w->scales, n * cf_format_value_bytes(t),
                                 16 * cf_rng_below(&c->rng, 5), OP_IN);
    for (uint64_t i = 0; i < n; i++) {
        float v = op_rng_value(&c->rng);
        if (t == CF_F8_E8M0)
            data[i] = (uint8_t)(120 + cf_rng_below(&c->rng, 12));
        else if (t == CF_F32)
            ((float *)(void *)data)[i] = v;
        else
            ((uint16_t *)(void *)data)[i] = t == CF_F16 ? cf_f32_to_f16(v) : cf_f32_to_bf16(v);
    }
}

/* ---- sizes ---- */

/* At least n, a whole number of blocks, and not of larger ones where n is not. */
static uint32_t blocks_of(cf_format t, uint32_t n)
{
    uint32_t size = cf_formats[t].block_values;
    return (n + size - 1) / size * size;
}

/* Activations at a multiple of 16 where `aligned`, else at an odd multiple of 4. */
static void activations_add(op_case *c, cf_span *field, uint32_t n_rows, uint32_t width,
                            uint32_t stride, bool aligned)
{
    op_rows_add(c, field, n_rows, width, stride);
    if (aligned)
        c->arrays[c->n_arrays - 1].lead = 16 * (1 + cf_rng_below(&c->rng, 4));
}

/* ---- linear ---- */

#define NO_SCALES CF_FORMAT_COUNT

struct format_size {
    uint32_t rows, cols, n_rows;
    op_layout lay;
    bool aligned, q8;
    cf_format scales;
    uint32_t scale_rows, scale_cols;
};

/* Of each format. */
static const struct format_size linear_sizes[] = {
    {1, 1, 1, OP_LAY_PLAIN, false, false, NO_SCALES, 0, 0},
    {33, 700, 1, OP_LAY_EVEN, true, false, NO_SCALES, 0, 0},
    {70, 1027, 2, OP_LAY_LATER, true, false, NO_SCALES, 0, 0},
    {19, 290, 3, OP_LAY_ODD, false, true, NO_SCALES, 0, 0},
};
enum { LINEAR_SIZES = sizeof linear_sizes / sizeof *linear_sizes };

/* Of the formats named. */
static const struct {
    cf_format t;
    struct format_size s;
} more_sizes[] = {
    {CF_F8_E4M3, {203, 300, 1, OP_LAY_PLAIN, false, false, CF_F32, 128, 128}},
    {CF_F8_E4M3, {130, 512, 2, OP_LAY_PLAIN, true, false, CF_BF16, 128, 128}},
    {CF_F8_E4M3, {37, 257, 17, OP_LAY_LATER, false, true, CF_F16, 16, 64}},
    {CF_F8_E4M3, {33, 203, 2, OP_LAY_TRANSPOSED, false, false, NO_SCALES, 0, 0}},
    {CF_F8_E4M3, {72, 64, 5, OP_LAY_TRANSPOSED_PART, true, false, NO_SCALES, 0, 0}},
    {CF_F8_E4M3, {19, 130, 1, OP_LAY_TRANSPOSED_ODD, true, true, NO_SCALES, 0, 0}},
    {CF_F4_E2M1, {72, 320, 1, OP_LAY_PLAIN, true, false, CF_F8_E8M0, 1, 32}},
    {CF_F4_E2M1, {33, 330, 5, OP_LAY_ODD, false, false, CF_F8_E8M0, 1, 32}},
    {CF_F4_E2M1, {9, 98, 3, OP_LAY_PLAIN, false, true, CF_F32, 4, 64}},
    {CF_I4, {72, 320, 1, OP_LAY_PLAIN, true, true, CF_BF16, 1, 32}},
    {CF_I4, {21, 234, 8, OP_LAY_EVEN, false, false, CF_F16, 2, 128}},
    {CF_NVFP4, {17, 448, 4, OP_LAY_PLAIN, true, false, CF_F32, 1000, 4096}},
    {CF_Q8_0, {17, 448, 4, OP_LAY_PLAIN, true, true, CF_F32, 3, 96}},
    {CF_Q8_0, {70, 300, 17, OP_LAY_LATER, true, false, NO_SCALES, 0, 0}},
    {CF_Q6_K, {33, 512, 9, OP_LAY_PLAIN, false, false, NO_SCALES, 0, 0}},
    {CF_IQ2_S, {21, 256, 5, OP_LAY_ODD, true, false, NO_SCALES, 0, 0}},
    {CF_MXFP4, {17, 290, 17, OP_LAY_PLAIN, true, true, NO_SCALES, 0, 0}},
    {CF_Q2_K, {21, 512, 17, OP_LAY_ODD, true, true, NO_SCALES, 0, 0}},
    {CF_Q4_K, {70, 512, 18, OP_LAY_PLAIN, false, true, NO_SCALES, 0, 0}},
    {CF_Q6_K, {9, 768, 17, OP_LAY_PLAIN, true, true, CF_F32, 4, 64}},
    {CF_I4, {33, 330, 19, OP_LAY_LATER, false, true, CF_F16, 2, 96}},
    {CF_BF16, {65, 203, 2, OP_LAY_LATER, false, false, CF_F32, 128, 128}},
    {CF_F16, {16, 256, 9, OP_LAY_PLAIN, true, true, CF_F8_E8M0, 5, 32}},
    {CF_F32, {7, 33, 3, OP_LAY_ODD, false, true, CF_BF16, 2, 32}},
    {CF_F32, {33, 203, 1, OP_LAY_PLAIN, false, true, NO_SCALES, 0, 0}},
    {CF_BF16, {33, 1000, 8, OP_LAY_PLAIN, true, true, NO_SCALES, 0, 0}},
    {CF_F16, {40, 203, 6, OP_LAY_TRANSPOSED_PART, false, true, NO_SCALES, 0, 0}},
    {CF_F32, {48, 72, 3, OP_LAY_TRANSPOSED, true, true, NO_SCALES, 0, 0}},
    {CF_F32, {33, 300, 2, OP_LAY_TRANSPOSED_ODD, false, false, NO_SCALES, 0, 0}},
    {CF_F16, {64, 40, 1, OP_LAY_TRANSPOSED_ODD, true, false, NO_SCALES, 0, 0}},
    {CF_BF16, {9, 203, 7, OP_LAY_TRANSPOSED_ODD, false, false, NO_SCALES, 0, 0}},
};
enum { MORE_SIZES = sizeof more_sizes / sizeof *more_sizes };

/* Formats that cases of their own are for. */
enum { FORMATS = CF_FORMAT_COMPUTABLE - CF_FORMAT_PLAIN };
const int op_format_linear_count = FORMATS * LINEAR_SIZES + MORE_SIZES;

void op_build_format_linear(op_case *c, int i)
{
    bool more = i >= FORMATS * LINEAR_SIZES;
    const struct format_size *s =
        more ? &more_sizes[i - FORMATS * LINEAR_SIZES].s : &linear_sizes[i % LINEAR_SIZES];
    cf_format t = more ? more_sizes[i - FORMATS * LINEAR_SIZES].t
                       : (cf_format)(CF_FORMAT_PLAIN + i / LINEAR_SIZES);
    cf_op_linear *op = &c->op.linear;
    uint32_t cols = blocks_of(t, s->cols);
    op->n_rows = s->n_rows;
    op->x_stride = s->aligned ? (cols + 3) / 4 * 4 : cols + 3;
    op->y_stride = s->rows + (uint32_t)i % 3;
    op->scale = i % 2 ? 1.0f : -0.75f;
    op->accumulate = i % 3 == 0;
    op->x_q8 = s->q8;
    op_weight_add_as(c, &op->w, t, s->rows, cols, s->lay);
    if (s->scales != NO_SCALES)
        op_scales_add(c, &op->w, s->scales, s->scale_rows, s->scale_cols);
    /* A bias in the format of the weight where its blocks allow. */
    bool fits = s->rows % cf_formats[t].block_values == 0;
    op_vector_add(c, &op->bias, fits ? t : CF_F16, s->rows, i % 2 ? OP_LAY_PLAIN : OP_LAY_NONE);
    activations_add(c, &op->x, op->n_rows, cols, op->x_stride, s->aligned);
    if (op->accumulate)
        op_rows_add(c, &op->y, op->n_rows, s->rows, op->y_stride);
    else
        op_out_add(c, &op->y, (op->n_rows - 1) * op->y_stride + s->rows, OP_F32, OP_OUT);
    c->arrays[c->n_arrays - 1].role = OP_OUT;
    snprintf(c->name, sizeof c->name, "linear %s %ux%u%s rows %u%s%s scales %s %ux%u",
             cf_format_name(t), s->rows, cols, op_layout_names[s->lay], op->n_rows,
             s->aligned ? " aligned" : "", s->q8 ? " q8" : "",
             s->scales == NO_SCALES ? "none" : cf_format_name(s->scales), s->scale_rows,
             s->scale_cols);
}

/* ---- head_linear ---- */

/* With outer scales: first stored row and columns of their blocks anywhere in a head. */
static const struct {
    cf_format t, scales;
    uint32_t scale_rows, scale_cols;
} head_scales[] = {
    {CF_F8_E4M3, CF_F32, 128, 128}, {CF_F8_E4M3, CF_BF16, 5, 96}, {CF_F4_E2M1, CF_F8_E8M0, 1, 32},
    {CF_BF16, CF_F16, 16, 64},      {CF_F32, CF_F32, 3, 32},      {CF_I4, CF_BF16, 1, 128},
};
enum { HEAD_SCALES = sizeof head_scales / sizeof *head_scales };
const int op_format_head_count = (FORMATS + 2 * HEAD_SCALES) * 2;

void op_build_format_head_linear(op_case *c, int i)
{
    cf_op_head_linear *op = &c->op.head_linear;
    int scaled = i / 2 - FORMATS;
    cf_format t = scaled < 0 ? (cf_format)(CF_FORMAT_PLAIN + i / 2) : head_scales[scaled / 2].t;
    uint32_t cols = blocks_of(t, 300), in, out;
    op->transposed = i % 2;
    op->n_rows = i % 4 < 2 ? 1 : 3;
    op->n_heads = 3;
    op->head_rows = 14;
    op->row_off = 2;
    op->n_sub = 11;
    in = op->transposed ? op->n_sub : cols;
    out = op->transposed ? cols : op->n_sub;
    op->x_head_stride = in + 1;
    op->x_stride = op->n_heads * op->x_head_stride;
    op->y_head_stride = out;
    op->y_stride = op->n_heads * op->y_head_stride + 2;
    op_weight_add(c, &op->w, t, op->n_heads * op->head_rows + 1, cols);
    if (scaled >= 0)
        op_scales_add(c, &op->w, head_scales[scaled / 2].scales, head_scales[scaled / 2].scale_rows,
                      head_scales[scaled / 2].scale_cols);
    uint32_t n = (op->n_rows - 1) * op->x_stride + (op->n_heads - 1) * op->x_head_stride + in;
    op_rows_add(c, &op->x, 1, n, n);
    n = (op->n_rows - 1) * op->y_stride + (op->n_heads - 1) * op->y_head_stride + out;
    op_out_add(c, &op->y, n, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "head_linear %s %u of %u x %u rows %u%s scales %u x %u",
             cf_format_name(t), op->n_sub, op->head_rows, cols, op->n_rows,
             op->transposed ? " transposed" : "", op->w.scale_rows, op->w.scale_cols);
}

/* ---- vectors ---- */

const int op_format_norm_count = FORMATS;

void op_build_format_norm(op_case *c, int i)
{
    cf_op_norm *op = &c->op.norm;
    cf_format t = (cf_format)(CF_FORMAT_PLAIN + i);
    uint32_t width = blocks_of(t, 290);
    op->kind = CF_NORM_LAYER;
    op->n_rows = 2;
    op->n_heads = 2;
    op->width = width;
    op->x_head_stride = op->y_head_stride = width;
    op->x_stride = op->y_stride = 2 * width + 1;
    op->eps = 1e-5f;
    op->scale = 1.0f;
    op->unit_offset = i % 2;
    /* One for both heads, or a part for each. */
    op_vector_add(c, &op->w, t, width * (i % 3 ? 1 : 2), OP_LAY_PLAIN);
    op_vector_add(c, &op->bias, t, width * (i % 3 ? 1 : 2), OP_LAY_PLAIN);
    op_rows_add(c, &op->x, 2, 2 * width, op->x_stride);
    op_out_add(c, &op->y, op->y_stride + 2 * width, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "norm %s width %u%s", cf_format_name(t), width,
             i % 3 ? "" : " apart");
}

const int op_format_attn_count = FORMATS;

/* As many heads as a block has sinks. */
void op_build_format_attn(op_case *c, int i)
{
    enum { CELLS = 5, WIDTH = 8 };
    cf_op_attn *op = &c->op.attn;
    cf_format t = (cf_format)(CF_FORMAT_PLAIN + i);
    op->kv_dtype = CF_F32;
    op->n_rows = 1;
    op->n_heads = blocks_of(t, 6);
    op->n_kv_heads = op->n_heads / 2;
    op->d_k = op->d_v = WIDTH;
    op->scale = 0.5f;
    op->q_stride = op->n_heads * WIDTH;
    op_rows_add(c, &op->q, 1, op->q_stride, op->q_stride);
    op_rows_add(c, &op->k, CELLS, op->n_kv_heads * WIDTH, op->n_kv_heads * WIDTH);
    op_rows_add(c, &op->v, CELLS, op->n_kv_heads * WIDTH, op->n_kv_heads * WIDTH);
    op_vector_add(c, &op->sinks, t, op->n_heads, OP_LAY_PLAIN);
    cf_row_info *rows =
        (cf_row_info *)(void *)op_array_add(c, &op->rows, sizeof(cf_row_info), 32, OP_IN);
    rows[0] = (cf_row_info){CELLS - 1, 0, CELLS, CELLS - 1};
    op_out_add(c, &op->y, (uint64_t)op->n_heads * WIDTH, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "attn heads %u sinks %s", op->n_heads, cf_format_name(t));
}

/* ---- experts ---- */

/* Every format, gate and up alike (interleaved for every other), down in another one; with outer
 * scales and 8 bits by turns. */
const int op_format_expert_count = FORMATS * 2;

static cf_format expert_format(int i, int of)
{
    return (cf_format)(CF_FORMAT_PLAIN + (i / 2 + of) % FORMATS);
}

static void expert_scales_add(op_case *c, cf_weight *w, int i)
{
    static const cf_format formats[] = {CF_F32, CF_F8_E8M0, CF_F16, CF_BF16};
    /* Not to the large blocks, which have scales of their own. */
    if (i % 2 && cf_formats[w->dtype].block_values < CF_FORMAT_MAX_BLOCK)
        op_scales_add(c, w, formats[i / 2 % 4], i % 3 ? 1 : 16, i % 5 ? 32 : 128);
}

void op_build_format_expert_glu(op_case *c, int i)
{
    cf_op_expert_glu *op = &c->op.expert_glu;
    cf_format t = expert_format(i, 0), up = i % 6 == 1 ? expert_format(i, 1) : t;
    bool pair = i % 4 == 3 && up == t;
    op->n_rows = i % 2 ? 1 : 3;
    op->k = 2;
    op->hidden = blocks_of(up, blocks_of(t, 270));
    op->hidden = blocks_of(t, op->hidden);
    bool biased = i % 4 == 0; /* in blocks, too */
    op->ffn = biased ? blocks_of(t, 19) : 19;
    op->act = (cf_act_params){CF_ACT_SILU, 0, 0};
    op->x_q8 = i % 4 == 1 || i % 4 == 2;
    uint32_t n_pairs = op->n_rows * op->k;
    op_rows_add(c, &op->x, op->n_rows, op->hidden, op->hidden);
    uint32_t *pairs = (uint32_t *)(void *)op_array_add(c, &op->pairs, n_pairs * 4, 4, OP_IN);
    op->n_experts = op_pairs_deal(c, n_pairs, 3, pairs);
    for (uint32_t e = 0; e < op->n_experts; e++) {
        cf_expert_work *w = &c->experts[e];
        op_weight_add_as(c, &w->gate, t, op->ffn, op->hidden, pair ? OP_LAY_EVEN : OP_LAY_PLAIN);
        op_weight_add_as(c, &w->up, up, op->ffn, op->hidden, pair ? OP_LAY_ODD : OP_LAY_PLAIN);
        expert_scales_add(c, &w->gate, i);
        expert_scales_add(c, &w->up, i);
        op_vector_add(c, &w->gate_bias, t, op->ffn, biased ? OP_LAY_PLAIN : OP_LAY_NONE);
        op_vector_add(c, &w->up_bias, t, op->ffn, biased ? OP_LAY_PLAIN : OP_LAY_NONE);
    }
    op_out_add(c, &op->h, (uint64_t)n_pairs * op->ffn, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "expert_glu %s and %s%s experts %u %u->%u rows %u%s%s",
             cf_format_name(t), cf_format_name(up), pair ? " interleaved" : "", op->n_experts,
             op->hidden, op->ffn, op->n_rows, op->x_q8 ? " q8" : "", i % 2 ? " scales" : "");
}

void op_build_format_expert_down(op_case *c, int i)
{
    cf_op_expert_down *op = &c->op.expert_down;
    cf_format t = expert_format(i, 0);
    op->n_rows = i % 2 ? 1 : 3;
    op->k = 2;
    bool biased = i % 4 == 0;
    op->hidden = biased ? blocks_of(t, 33) : 33;
    op->ffn = blocks_of(t, 270);
    op->x_q8 = i % 4 == 1 || i % 4 == 2;
    uint32_t n_pairs = op->n_rows * op->k;
    op_rows_add(c, &op->h, n_pairs, op->ffn, op->ffn);
    op_rows_add(c, &op->weights, 1, n_pairs, n_pairs);
    uint32_t *pairs = (uint32_t *)(void *)op_array_add(c, &op->pairs, n_pairs * 4, 4, OP_IN);
    op->n_experts = op_pairs_deal(c, n_pairs, 3, pairs);
    for (uint32_t e = 0; e < op->n_experts; e++) {
        op_weight_add(c, &c->experts[e].down, t, op->hidden, op->ffn);
        expert_scales_add(c, &c->experts[e].down, i);
        op_vector_add(c, &c->experts[e].down_bias, t, op->hidden,
                      biased ? OP_LAY_PLAIN : OP_LAY_NONE);
    }
    op_out_add(c, &op->out, (uint64_t)n_pairs * op->hidden, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "expert_down %s experts %u %u->%u rows %u%s%s",
             cf_format_name(t), op->n_experts, op->ffn, op->hidden, op->n_rows,
             op->x_q8 ? " q8" : "", i % 2 ? " scales" : "");
}

/* ---- get_rows ---- */

const int op_format_get_rows_count = FORMATS * 2;

void op_build_format_get_rows(op_case *c, int i)
{
    enum { TABLE = 29 };
    cf_op_get_rows *op = &c->op.get_rows;
    cf_format t = (cf_format)(CF_FORMAT_PLAIN + i / 2);
    uint32_t cols = blocks_of(t, i % 2 ? 290 : 1);
    op->n_rows = 5;
    op->y_stride = cols + (uint32_t)(i % 3);
    op->scale = i % 2 ? 1.0f : 0.3f;
    op_weight_add(c, &op->table, t, TABLE, cols);
    uint32_t *ids = (uint32_t *)(void *)op_array_add(c, &op->ids, op->n_rows * 4, 4, OP_IN);
    for (uint32_t r = 0; r < op->n_rows; r++)
        ids[r] = r ? (uint32_t)cf_rng_below(&c->rng, TABLE) : TABLE - 1;
    op_out_add(c, &op->y, (op->n_rows - 1) * op->y_stride + cols, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "get_rows %s cols %u", cf_format_name(t), cols);
}

/* ---- what a device must have ---- */

static bool has(const cf_gpu *gpu, const op_case *c, const cf_weight *w)
{
    return !op_case_array(c, &w->span) || cf_gpu_supports(gpu, w->dtype);
}

static bool has_cache(const cf_gpu *gpu, cf_format t)
{
    return t != CF_Q8_0 || cf_gpu_get_info(gpu)->kv_q8;
}

cf_format op_case_format(const op_case *c)
{
    switch (c->kind) {
    case OP_linear:
        return c->op.linear.w.dtype;
    case OP_head_linear:
        return c->op.head_linear.w.dtype;
    case OP_get_rows:
        return c->op.get_rows.table.dtype;
    case OP_expert_glu:
        return c->experts[0].gate.dtype;
    case OP_expert_down:
        return c->experts[0].down.dtype;
    default:
        return CF_F32;
    }
}

bool op_case_supported(const op_case *c, const cf_gpu *gpu)
{
    switch (c->kind) {
    case OP_linear:
        return has(gpu, c, &c->op.linear.w) && has(gpu, c, &c->op.linear.bias);
    case OP_head_linear:
        return has(gpu, c, &c->op.head_linear.w);
    case OP_norm:
        return has(gpu, c, &c->op.norm.w) && has(gpu, c, &c->op.norm.bias);
    case OP_attn:
        return has(gpu, c, &c->op.attn.sinks) && has_cache(gpu, c->op.attn.kv_dtype);
    case OP_kv_store:
        return has_cache(gpu, c->op.kv_store.kv_dtype);
    case OP_attn_latent:
        return has_cache(gpu, c->op.attn_latent.kv_dtype);
    case OP_attn_bias:
        return has_cache(gpu, c->op.attn_bias.kv_dtype);
    case OP_index_score:
        return has_cache(gpu, c->op.index_score.kv_dtype);
    case OP_get_rows:
        return has(gpu, c, &c->op.get_rows.table);
    case OP_expert_glu:
    case OP_expert_down:
        for (int e = 0; e < OP_MAX_EXPERTS; e++) {
            const cf_expert_work *w = &c->experts[e];
            if (!has(gpu, c, &w->gate) || !has(gpu, c, &w->up) || !has(gpu, c, &w->down))
                return false;
        }
        return true;
    default:
        return true;
    }
}
