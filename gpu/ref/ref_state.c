/* Attention with a state of fixed size: conv, state_gates, attn_state and gate. The rows of a run
 * are walked in order; channels and columns of the state are independent and shared out. */
#include <math.h>
#include <string.h>

#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"

/* The run, checked: what only the device sees. */
static cf_state_run run_at(cf_span runs, uint64_t i, uint32_t n_rows, uint32_t n_slots)
{
    cf_state_run run = ((const cf_state_run *)cf_ref_at(runs))[i];
    cf_assert(run.n_rows > 0 && run.first_row < n_rows && run.n_rows <= n_rows - run.first_row);
    cf_assert(run.to < n_slots && run.to != run.from);
    cf_assert(run.from == CF_NO_STATE || run.from < n_slots);
    return run;
}

static float silu(float v)
{
    return v * cf_ref_sigmoid(v);
}

/* ---- conv ---- */

/* Input `at` of a channel, counted from the run's first row; negative: from before it. */
static float conv_input(const cf_op_conv *op, const cf_state_run *run, uint64_t channel, int64_t at)
{
    if (at >= 0)
        return ((const float *)cf_ref_at(
            op->x))[((uint64_t)run->first_row + (uint64_t)at) * op->x_stride +
                    channel / op->width * op->x_head_stride + channel % op->width];
    if (run->from == CF_NO_STATE)
        return 0;
    uint64_t past = op->n_taps - 1, row = run->from * past + (uint64_t)((int64_t)past + at);
    return ((const float *)cf_ref_at(op->state))[row * op->state_stride + channel];
}

/* Index: channel. */
static void conv_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_conv *op = arg;
    int64_t past = (int64_t)op->n_taps - 1;
    for (uint64_t i = 0; i < op->n_runs; i++) {
        cf_state_run run = run_at(op->runs, i, op->n_rows, op->n_slots);
        for (uint64_t channel = begin; channel < end; channel++) {
            float scratch[CF_REF_BLOCK];
            float *y = (float *)cf_ref_at(op->y) + run.first_row * (uint64_t)op->y_stride + channel;
            float *state = (float *)cf_ref_at(op->state) +
                           run.to * (uint64_t)past * op->state_stride + channel;
            const void *row = cf_ref_weight_row(&op->w, channel);
            for (int64_t r = 0; r < run.n_rows; r++) {
                float sum = 0;
                for (int64_t j = 0; j <= past; j++)
                    sum += *cf_ref_decode(op->w.dtype, row, (uint64_t)j, 1, scratch) *
                           conv_input(op, &run, channel, r - past + j);
                y[(uint64_t)r * op->y_stride] = op->silu ? silu(sum) : sum;
            }
            for (int64_t j = 0; j < past; j++)
                state[(uint64_t)j * op->state_stride] =
                    conv_input(op, &run, channel, run.n_rows - past + j);
        }
    }
}

void cf_ref_conv(cf_threads *pool, const cf_op_conv *op)
{
    cf_op_conv copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_heads * op->width, 16, conv_part, &copy);
}

/* ---- gates ---- */

/* log(1 + e^v), without overflow. */
static float softplus(float v)
{
    return (v > 0 ? v : 0) + log1pf(expf(-fabsf(v)));
}

void cf_ref_state_gates(cf_threads *pool, const cf_op_state_gates *op)
{
    (void)pool; /* a few values a row */
    float *decay = cf_ref_at(op->decay), *beta = cf_ref_at(op->beta);
    for (uint64_t r = 0; r < op->n_rows; r++)
        for (uint64_t h = 0; h < op->n_heads; h++) {
            uint64_t at = r * op->stride + h / op->group * op->group_stride + h % op->group;
            float a = ((const float *)cf_ref_at(op->a))[at] + cf_ref_vector_at(&op->dt_bias, h);
            *decay++ = expf(-expf(cf_ref_vector_at(&op->a_log, h)) * softplus(a));
            *beta++ = cf_ref_sigmoid(((const float *)cf_ref_at(op->b))[at]);
        }
}

/* Index: row. */
static void gate_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_gate *op = arg;
    for (uint64_t r = begin; r < end; r++)
        for (uint64_t h = 0; h < op->n_heads; h++) {
            const float *g =
                (const float *)cf_ref_at(op->g) + r * op->g_stride + h * op->g_head_stride;
            float *y = (float *)cf_ref_at(op->y) + r * op->y_stride + h * op->y_head_stride;
            for (uint32_t i = 0; i < op->width; i++)
                y[i] *= op->silu ? silu(g[i]) : cf_ref_sigmoid(g[i]);
        }
}

void cf_ref_gate(cf_threads *pool, const cf_op_gate *op)
{
    cf_op_gate copy = *op;
    cf_threads_run(pool, op->n_rows, 1, gate_part, &copy);
}

/* ---- attention ---- */

enum { COLUMNS = 64 }; /* of a state, walked together */

/* What one row does to n columns of a state and takes from them. */
static void state_row(const cf_op_attn_state *op, uint64_t r, uint64_t h, uint32_t n,
                      uint64_t first, float *s)
{
    uint64_t kh = op->k_tiled ? h % op->n_k_heads : h / (op->n_heads / op->n_k_heads);
    uint64_t key_at = r * op->stride + kh * op->k_head_stride;
    const float *q = (const float *)cf_ref_at(op->q) + key_at;
    const float *k = (const float *)cf_ref_at(op->k) + key_at;
    const float *v =
        (const float *)cf_ref_at(op->v) + r * op->stride + h * op->v_head_stride + first;
    float *y = (float *)cf_ref_at(op->y) + (r * op->n_heads + h) * op->d_v + first;
    float decay = ((const float *)cf_ref_at(op->decay))[r * op->decay_stride + h];
    float u[COLUMNS] = {0}, out[COLUMNS] = {0};
    for (uint64_t i = 0; i < op->d_k; i++)
        for (uint32_t j = 0; j < n; j++) {
            s[i * op->d_v + j] *= decay;
            u[j] += s[i * op->d_v + j] * k[i];
        }
    float beta = op->beta.buf ? ((const float *)cf_ref_at(op->beta))[r * op->n_heads + h] : 0;
    for (uint32_t j = 0; j < n; j++)
        u[j] = op->beta.buf ? beta * (v[j] - u[j]) : v[j];
    for (uint64_t i = 0; i < op->d_k; i++)
        for (uint32_t j = 0; j < n; j++) {
            s[i * op->d_v + j] += k[i] * u[j];
            out[j] += s[i * op->d_v + j] * q[i];
        }
    memcpy(y, out, n * sizeof *y);
}

/* Index: (run * n_heads + head) * blocks of columns. */
static void attn_state_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_attn_state *op = arg;
    uint64_t blocks = cf_ceil_div(op->d_v, COLUMNS), values = (uint64_t)op->d_k * op->d_v;
    for (uint64_t index = begin; index < end; index++) {
        uint64_t first = index % blocks * COLUMNS, h = index / blocks % op->n_heads;
        cf_state_run run = run_at(op->runs, index / blocks / op->n_heads, op->n_rows, op->n_slots);
        uint32_t n = (uint32_t)cf_min_u64(op->d_v - first, COLUMNS);
        float *all = cf_ref_at(op->state);
        float *to = all + ((uint64_t)run.to * op->n_heads + h) * values + first;
        uint64_t old = run.from == CF_NO_STATE ? run.to : run.from;
        const float *from = all + (old * op->n_heads + h) * values + first;
        for (uint64_t i = 0; i < op->d_k; i++)
            if (run.from == CF_NO_STATE)
                memset(to + i * op->d_v, 0, n * sizeof *to);
            else
                memcpy(to + i * op->d_v, from + i * op->d_v, n * sizeof *to);
        for (uint64_t r = run.first_row; r < (uint64_t)run.first_row + run.n_rows; r++)
            state_row(op, r, h, n, first, to);
    }
}

void cf_ref_attn_state(cf_threads *pool, const cf_op_attn_state *op)
{
    cf_op_attn_state copy = *op;
    uint64_t blocks = cf_ceil_div(op->d_v, COLUMNS);
    cf_threads_run(pool, op->n_runs * (uint64_t)op->n_heads * blocks, 1, attn_state_part, &copy);
}
