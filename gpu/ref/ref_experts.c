/* expert_glu, expert_down and combine. Threads share (expert, output) pairs; weights are decoded
 * once for up to CF_REF_ROWS of the expert's pairs. */
#include "gpu/ref/ref_math.h"
#include "gpu/ref/ref_ops.h"
#include "runtime/base/align.h"

enum { GRAIN = 8 };

/* Up to CF_REF_ROWS pairs of an expert from its `done`-th on. */
struct pair_block {
    uint64_t first; /* index into pairs */
    uint32_t n;
    const uint32_t *pair; /* row * k + rank */
};

static struct pair_block block_at(cf_span pairs, const cf_expert_work *e, uint32_t done,
                                  uint64_t n_pairs)
{
    struct pair_block b;
    b.first = (uint64_t)e->pair_begin + done;
    b.n = e->pair_count - done < CF_REF_ROWS ? e->pair_count - done : CF_REF_ROWS;
    b.pair = (const uint32_t *)cf_ref_at(pairs) + b.first;
    for (uint32_t i = 0; i < b.n; i++)
        cf_assert(b.pair[i] < n_pairs);
    return b;
}

/* Inner values [j, j + n_j) of a block of an expert's pairs. */
static void glu_block(const cf_op_expert_glu *op, const cf_expert_work *e, uint64_t j, uint32_t n_j,
                      uint32_t done)
{
    struct pair_block b = block_at(op->pairs, e, done, (uint64_t)op->n_rows * op->k);
    const float *x = cf_ref_at(op->x), *rows[CF_REF_ROWS];
    const float *weights = op->weights.buf ? cf_ref_at(op->weights) : NULL;
    float *h = cf_ref_at(op->h);
    float g[CF_REF_OUTS][CF_REF_ROWS], u[CF_REF_OUTS][CF_REF_ROWS];
    bool gated = e->up.span.buf != NULL;
    for (uint32_t i = 0; i < b.n; i++)
        rows[i] = x + (uint64_t)(b.pair[i] / op->k) * op->hidden;
    cf_ref_weight_dots(&e->gate, j, n_j, rows, b.n, op->x_q8, g);
    if (gated)
        cf_ref_weight_dots(&e->up, j, n_j, rows, b.n, op->x_q8, u);
    for (uint32_t o = 0; o < n_j; o++) {
        float g_bias = cf_ref_vector_at(&e->gate_bias, j + o);
        float u_bias = cf_ref_vector_at(&e->up_bias, j + o);
        for (uint32_t i = 0; i < b.n; i++) {
            float w = weights ? weights[b.pair[i]] : 1.0f;
            float up = gated ? w * u[o][i] + u_bias : 1.0f;
            h[(b.first + i) * op->ffn + j + o] = cf_ref_act(&op->act, w * g[o][i] + g_bias, up);
        }
    }
}

/* How many outputs from `index` on may be computed together: of one expert, before `end`. */
static uint32_t outs_at(uint64_t index, uint64_t end, uint32_t width)
{
    uint64_t n = cf_min_u64(end - index, width - index % width);
    return (uint32_t)cf_min_u64(n, CF_REF_OUTS);
}

/* Index: expert * ffn + j. */
static void glu_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_expert_glu *op = arg;
    for (uint64_t index = begin; index < end;) {
        const cf_expert_work *e = &op->experts[index / op->ffn];
        uint32_t n = outs_at(index, end, op->ffn);
        for (uint32_t done = 0; done < e->pair_count; done += CF_REF_ROWS)
            glu_block(op, e, index % op->ffn, n, done);
        index += n;
    }
}

void cf_ref_expert_glu(cf_threads *pool, const cf_op_expert_glu *op)
{
    cf_op_expert_glu copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_experts * op->ffn, GRAIN, glu_part, &copy);
}

/* Outputs [o, o + n_o) of a block of an expert's pairs. */
static void down_block(const cf_op_expert_down *op, const cf_expert_work *e, uint64_t o,
                       uint32_t n_o, uint32_t done)
{
    struct pair_block b = block_at(op->pairs, e, done, (uint64_t)op->n_rows * op->k);
    const float *h = cf_ref_at(op->h), *rows[CF_REF_ROWS];
    const float *weights = op->weights.buf ? cf_ref_at(op->weights) : NULL;
    float *out = cf_ref_at(op->out), dots[CF_REF_OUTS][CF_REF_ROWS];
    for (uint32_t i = 0; i < b.n; i++)
        rows[i] = h + (b.first + i) * op->ffn;
    cf_ref_weight_dots(&e->down, o, n_o, rows, b.n, op->x_q8, dots);
    for (uint32_t j = 0; j < n_o; j++) {
        float bias = cf_ref_vector_at(&e->down_bias, o + j);
        for (uint32_t i = 0; i < b.n; i++) {
            float w = weights ? weights[b.pair[i]] : 1.0f;
            out[(uint64_t)b.pair[i] * op->hidden + o + j] = w * (dots[j][i] + bias);
        }
    }
}

/* Index: expert * hidden + i. */
static void down_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_expert_down *op = arg;
    for (uint64_t index = begin; index < end;) {
        const cf_expert_work *e = &op->experts[index / op->hidden];
        uint32_t n = outs_at(index, end, op->hidden);
        for (uint32_t done = 0; done < e->pair_count; done += CF_REF_ROWS)
            down_block(op, e, index % op->hidden, n, done);
        index += n;
    }
}

void cf_ref_expert_down(cf_threads *pool, const cf_op_expert_down *op)
{
    cf_op_expert_down copy = *op;
    cf_threads_run(pool, (uint64_t)op->n_experts * op->hidden, GRAIN, down_part, &copy);
}

/* Index: row. */
static void combine_part(void *arg, uint64_t begin, uint64_t end)
{
    const cf_op_combine *op = arg;
    for (uint64_t r = begin; r < end; r++) {
        const uint32_t *ids = (const uint32_t *)cf_ref_at(op->ids) + r * op->k;
        const float *weights = (const float *)cf_ref_at(op->weights) + r * op->k;
        const float *x = (const float *)cf_ref_at(op->x) + r * op->hidden;
        float *y = (float *)cf_ref_at(op->y) + r * op->hidden;
        for (uint32_t i = 0; i < op->hidden; i++)
            y[i] = 0;
        for (uint32_t j = 0; j < op->k; j++) {
            const float *out = (const float *)cf_ref_at(op->out) + (r * op->k + j) * op->hidden;
            if (ids[j] < op->n_routed)
                for (uint32_t i = 0; i < op->hidden; i++)
                    y[i] += out[i];
            else
                for (uint32_t i = 0; i < op->hidden; i++)
                    y[i] += weights[j] * x[i];
        }
    }
}

void cf_ref_combine(cf_threads *pool, const cf_op_combine *op)
{
    cf_op_combine copy = *op;
    cf_threads_run(pool, op->n_rows, 1, combine_part, &copy);
}
