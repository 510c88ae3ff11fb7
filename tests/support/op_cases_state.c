/* Op cases of attention with a state: see op_cases.h. Slots that no run takes over, and what lies
 * beside a slice of channels, stay as they are. */
#include <stdio.h>

#include "tests/support/op_build.h"

/* Splits n_rows into up to three runs; the first begins anew. Slot i of the old states belongs to
 * run i, it leaves slot n_slots - 1 - i. */
static uint32_t runs_add(op_case *c, cf_span *field, uint32_t n_rows, uint32_t n_slots)
{
    cf_state_run runs[3];
    uint32_t n = 0, at = 0;
    while (at < n_rows) {
        uint32_t left = n_rows - at, rows = n == 2 ? left : (left + 1) / 2;
        runs[n] = (cf_state_run){at, rows, n ? n : CF_NO_STATE, n_slots - 1 - n};
        at += rows;
        n++;
    }
    cf_state_run *data =
        (cf_state_run *)(void *)op_array_add(c, field, n * sizeof *runs, 16, OP_IN);
    for (uint32_t i = 0; i < n; i++)
        data[i] = runs[i];
    return n;
}

/* A state of `slots` times `rows` of `width`, the first half of the slots filled. */
static void state_add(op_case *c, cf_span *field, uint32_t slots, uint64_t rows, uint64_t width,
                      uint64_t stride)
{
    uint64_t n = (slots * rows - 1) * stride + width;
    float *s = (float *)(void *)op_array_add(c, field, n * 4, 20, OP_OUT);
    for (uint64_t r = 0; r < slots / 2 * rows; r++)
        for (uint64_t i = 0; i < width; i++)
            s[r * stride + i] = op_rng_value(&c->rng);
}

struct conv_size {
    uint32_t n_heads, width, n_taps, head_pad, row_pad;
};
static const struct conv_size conv_sizes[] = {
    {1, 1, 2, 0, 0}, {3, 7, 4, 5, 1}, {1, 203, 4, 0, 3}, {5, 33, 3, 1, 0}, {2, 64, 9, 64, 8},
};
enum { CONV_SIZES = sizeof conv_sizes / sizeof conv_sizes[0] };

void op_build_conv(op_case *c, int i)
{
    const struct conv_size *s = &conv_sizes[i / CF_FORMAT_PLAIN / OP_ROW_COUNTS];
    cf_op_conv *op = &c->op.conv;
    uint32_t channels = s->n_heads * s->width;
    op->n_rows = op_row_counts[i / CF_FORMAT_PLAIN % OP_ROW_COUNTS];
    op->n_heads = s->n_heads;
    op->width = s->width;
    op->n_taps = s->n_taps;
    op->silu = i % 2;
    op->n_slots = 6;
    op->x_head_stride = s->width + s->head_pad;
    op->x_stride = s->n_heads * op->x_head_stride + s->row_pad;
    op->y_stride = channels + s->row_pad;
    op->state_stride = channels + s->head_pad;
    op_weight_add_as(c, &op->w, (cf_format)(i % CF_FORMAT_PLAIN), channels, s->n_taps,
                     i % 4 < 2 ? OP_LAY_PLAIN : OP_LAY_LATER);
    uint64_t x_width = (uint64_t)(s->n_heads - 1) * op->x_head_stride + s->width;
    op_rows_add(c, &op->x, op->n_rows, x_width, op->x_stride);
    op->n_runs = runs_add(c, &op->runs, op->n_rows, op->n_slots);
    state_add(c, &op->state, op->n_slots, s->n_taps - 1, channels, op->state_stride);
    op_out_add(c, &op->y, (op->n_rows - 1) * (uint64_t)op->y_stride + channels, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "conv %s heads %u width %u taps %u rows %u%s",
             cf_format_name((cf_format)(i % CF_FORMAT_PLAIN)), s->n_heads, s->width, s->n_taps,
             op->n_rows, op->silu ? " silu" : "");
}

static const uint32_t gate_heads[][2] = {{1, 1}, {4, 2}, {33, 33}, {72, 8}}; /* all, of a group */
enum { GATE_HEADS = sizeof gate_heads / sizeof gate_heads[0] };

void op_build_state_gates(op_case *c, int i)
{
    cf_op_state_gates *op = &c->op.state_gates;
    op->n_rows = op_row_counts[i % OP_ROW_COUNTS];
    op->n_heads = gate_heads[i / OP_ROW_COUNTS][0];
    op->group = gate_heads[i / OP_ROW_COUNTS][1];
    op->group_stride = op->group + (uint32_t)i % 3;
    op->stride = op->n_heads / op->group * op->group_stride + (uint32_t)i % 2;
    uint64_t width = (op->n_heads / op->group - 1) * (uint64_t)op->group_stride + op->group;
    op_vector_add(c, &op->a_log, (cf_format)(i % CF_FORMAT_PLAIN), op->n_heads,
                  i % 2 ? OP_LAY_ODD : OP_LAY_PLAIN);
    op_vector_add(c, &op->dt_bias, (cf_format)((i + 1) % CF_FORMAT_PLAIN), op->n_heads,
                  OP_LAY_PLAIN);
    float *a = op_rows_add(c, &op->a, op->n_rows, width, op->stride);
    float *b = op_rows_add(c, &op->b, op->n_rows, width, op->stride);
    a[0] *= 40; /* where exp overflows or its sum with 1 loses it */
    b[0] *= 100;
    op_out_add(c, &op->decay, (uint64_t)op->n_rows * op->n_heads, OP_F32, OP_OUT);
    op_out_add(c, &op->beta, (uint64_t)op->n_rows * op->n_heads, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "state_gates heads %u by %u rows %u", op->n_heads, op->group,
             op->n_rows);
}

struct state_size {
    uint32_t n_heads, n_k_heads, d_k, d_v;
};
static const struct state_size state_sizes[] = {
    {1, 1, 1, 1}, {4, 2, 12, 10}, {3, 3, 33, 7}, {6, 2, 64, 72}, {2, 1, 128, 128}, {5, 5, 7, 203},
};
enum { STATE_SIZES = sizeof state_sizes / sizeof state_sizes[0], STATE_ROWS = 5 };
static const uint32_t state_rows[STATE_ROWS] = {1, 2, 5, 17, 300};

void op_build_attn_state(op_case *c, int i)
{
    const struct state_size *s = &state_sizes[i / 4 / STATE_ROWS];
    cf_op_attn_state *op = &c->op.attn_state;
    bool delta = i & 1, fixed = i & 2;
    op->n_rows = state_rows[i / 4 % STATE_ROWS];
    op->n_heads = s->n_heads;
    op->n_k_heads = s->n_k_heads;
    op->d_k = s->d_k;
    op->d_v = s->d_v;
    op->n_slots = 6;
    op->k_tiled = i / 4 % 2;
    op->k_head_stride = s->d_k + (uint32_t)i % 3;
    op->v_head_stride = s->d_v + (uint32_t)i % 5;
    uint32_t k_width = (s->n_k_heads - 1) * op->k_head_stride + s->d_k;
    uint32_t v_width = (s->n_heads - 1) * op->v_head_stride + s->d_v;
    op->stride = (k_width > v_width ? k_width : v_width) + (uint32_t)i % 2;
    op->decay_stride = fixed ? 0 : s->n_heads;
    float *q = op_rows_add(c, &op->q, op->n_rows, k_width, op->stride);
    float *k = op_rows_add(c, &op->k, op->n_rows, k_width, op->stride);
    for (uint64_t j = 0; j < (op->n_rows - 1) * (uint64_t)op->stride + k_width; j++) {
        q[j] /= (float)s->d_k; /* of a length below 1, like what is normed */
        k[j] /= (float)s->d_k;
    }
    op_rows_add(c, &op->v, op->n_rows, v_width, op->stride);
    uint64_t n = (fixed ? 1 : (uint64_t)op->n_rows) * s->n_heads;
    float *decay = op_rows_add(c, &op->decay, 1, n, n);
    for (uint64_t j = 0; j < n; j++)
        decay[j] = 0.5f + 0.5f * decay[j];
    if (delta) {
        n = (uint64_t)op->n_rows * s->n_heads;
        float *beta = op_rows_add(c, &op->beta, 1, n, n);
        for (uint64_t j = 0; j < n; j++)
            beta[j] = 0.5f + 0.5f * beta[j];
    }
    op->n_runs = runs_add(c, &op->runs, op->n_rows, op->n_slots);
    uint64_t values = (uint64_t)s->n_heads * s->d_k * s->d_v;
    state_add(c, &op->state, op->n_slots, 1, values, values);
    op_out_add(c, &op->y, (uint64_t)op->n_rows * s->n_heads * s->d_v, OP_F32, OP_OUT);
    snprintf(c->name, sizeof c->name, "attn_state%s%s%s heads %u/%u d %u %u rows %u",
             delta ? " delta" : "", fixed ? " fixed decay" : "", op->k_tiled ? " tiled" : "",
             s->n_heads, s->n_k_heads, s->d_k, s->d_v, op->n_rows);
}

static const uint32_t gate_widths[] = {1, 7, 203, 1000};
enum { GATE_WIDTHS = sizeof gate_widths / sizeof gate_widths[0] };

void op_build_gate(op_case *c, int i)
{
    cf_op_gate *op = &c->op.gate;
    op->silu = i % 2;
    op->n_rows = op_row_counts[i / 2 % OP_ROW_COUNTS];
    op->width = gate_widths[i / 2 / OP_ROW_COUNTS];
    op->n_heads = i % 3 ? 3 : 1;
    op->g_head_stride = 2 * op->width + (uint32_t)i % 2;
    op->g_stride = op->n_heads * op->g_head_stride;
    op->y_head_stride = op->width + (uint32_t)i % 5;
    op->y_stride = op->n_heads * op->y_head_stride + (uint32_t)i % 3;
    uint64_t width = (uint64_t)(op->n_heads - 1) * op->g_head_stride + op->width;
    float *g = op_rows_add(c, &op->g, op->n_rows, width, op->g_stride);
    g[0] *= 100;
    width = (op->n_rows - 1) * (uint64_t)op->y_stride +
            (uint64_t)(op->n_heads - 1) * op->y_head_stride + op->width;
    float *y = (float *)(void *)op_array_add(c, &op->y, width * 4, 12, OP_OUT);
    for (uint64_t j = 0; j < width; j++)
        y[j] = op_rng_value(&c->rng);
    snprintf(c->name, sizeof c->name, "gate %s heads %u width %u rows %u",
             op->silu ? "silu" : "sigmoid", op->n_heads, op->width, op->n_rows);
}

const int op_conv_count = CONV_SIZES * CF_FORMAT_PLAIN * OP_ROW_COUNTS;
const int op_state_gates_count = GATE_HEADS * OP_ROW_COUNTS;
const int op_attn_state_count = STATE_SIZES * 4 * STATE_ROWS;
const int op_gate_count = GATE_WIDTHS * 2 * OP_ROW_COUNTS;
