/* Ops over a state that rows leave behind: gpu/ops.h in double precision. */
#include "tests/support/op_define_parts.h"

static double define_sigmoid(double v)
{
    return 1 / (1 + exp(-v));
}

/* Input `at` of a channel counted from the run's first row, or what the state holds of it. */
static double conv_input(const op_case *c, const cf_state_run *run, uint32_t h, uint32_t i,
                         int64_t at)
{
    const cf_op_conv *op = &c->op.conv;
    int64_t past = (int64_t)op->n_taps - 1;
    if (at >= 0)
        return (double)def_floats(
            c, &op->x)[(run->first_row + at) * op->x_stride + h * op->x_head_stride + i];
    if (run->from == CF_NO_STATE)
        return 0;
    return (double)def_floats(
        c, &op->state)[(run->from * past + past + at) * op->state_stride + h * op->width + i];
}

static void define_conv_channel(const op_case *c, op_expect *e, const struct matrix *w,
                                const cf_state_run *run, uint32_t h, uint32_t i)
{
    const cf_op_conv *op = &c->op.conv;
    uint32_t channel = h * op->width + i;
    int64_t past = (int64_t)op->n_taps - 1;
    for (int64_t r = 0; r < run->n_rows; r++) {
        double sum = 0, mag = 0;
        for (int64_t j = 0; j <= past; j++) {
            double v = w->values[op_weight_index(w->w, channel, (uint64_t)j)] *
                       conv_input(c, run, h, i, r - past + j);
            sum += v;
            mag += fabs(v);
        }
        def_put(e, c, &op->y, (uint64_t)(run->first_row + r) * op->y_stride + channel,
                op->silu ? sum * define_sigmoid(sum) : sum, 1.2 * mag);
    }
    for (int64_t j = 0; j < past; j++)
        def_put(e, c, &op->state, (uint64_t)(run->to * past + j) * op->state_stride + channel,
                conv_input(c, run, h, i, run->n_rows - past + j), 0);
}

void define_conv(const op_case *c, op_expect *e)
{
    const cf_op_conv *op = &c->op.conv;
    struct matrix w = def_matrix(c, &op->w);
    const cf_state_run *runs = (const cf_state_run *)(const void *)def_uints(c, &op->runs);
    for (uint32_t n = 0; n < op->n_runs; n++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->width; i++)
                define_conv_channel(c, e, &w, &runs[n], h, i);
    free(w.values);
}

void define_state_gates(const op_case *c, op_expect *e)
{
    const cf_op_state_gates *op = &c->op.state_gates;
    struct matrix a_log = def_matrix(c, &op->a_log), dt = def_matrix(c, &op->dt_bias);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++) {
            uint32_t from = r * op->stride + h / op->group * op->group_stride + h % op->group;
            uint64_t to = (uint64_t)r * op->n_heads + h;
            double a = (double)def_floats(c, &op->a)[from] + def_vector_at(&dt, h, 0);
            double rate = exp(def_vector_at(&a_log, h, 0)) * (fmax(a, 0) + log1p(exp(-fabs(a))));
            def_put(e, c, &op->decay, to, exp(-rate), exp(-rate) * (1 + rate) + 1e-30);
            double beta = define_sigmoid((double)def_floats(c, &op->b)[from]);
            def_put(e, c, &op->beta, to, beta, beta + 1e-30);
        }
    free(a_log.values);
    free(dt.values);
}

/* One head of a run: its state and, beside it, the magnitude of what went into each element. */
static void define_state_head(const op_case *c, op_expect *e, const cf_state_run *run, uint32_t h)
{
    const cf_op_attn_state *op = &c->op.attn_state;
    uint64_t n = (uint64_t)op->d_k * op->d_v, per = op->n_heads / op->n_k_heads;
    uint64_t kh = op->k_tiled ? h % op->n_k_heads : h / per;
    double *s = calloc(2 * n, sizeof *s), *mag = s + n;
    if (!s)
        abort();
    for (uint64_t i = 0; i < n && run->from != CF_NO_STATE; i++) {
        s[i] = (double)def_floats(c, &op->state)[((uint64_t)run->from * op->n_heads + h) * n + i];
        mag[i] = fabs(s[i]);
    }
    for (uint64_t r = run->first_row; r < run->first_row + run->n_rows; r++) {
        const float *q = def_floats(c, &op->q) + r * op->stride + kh * op->k_head_stride;
        const float *k = def_floats(c, &op->k) + r * op->stride + kh * op->k_head_stride;
        const float *v = def_floats(c, &op->v) + r * op->stride + (uint64_t)h * op->v_head_stride;
        const float *beta = def_floats(c, &op->beta);
        double decay = (double)def_floats(c, &op->decay)[r * op->decay_stride + h];
        for (uint64_t j = 0; j < op->d_v; j++) {
            struct sum u = {0, 0}, y = {0, 0};
            for (uint64_t i = 0; i < op->d_k; i++) {
                s[i * op->d_v + j] *= decay;
                mag[i * op->d_v + j] *= decay;
                u.value += s[i * op->d_v + j] * (double)k[i];
                u.mag += mag[i * op->d_v + j] * fabs((double)k[i]);
            }
            double b = beta ? (double)beta[r * op->n_heads + h] : 1;
            u.value = b * ((double)v[j] - (beta ? u.value : 0));
            u.mag = b * (fabs((double)v[j]) + (beta ? u.mag : 0));
            for (uint64_t i = 0; i < op->d_k; i++) {
                s[i * op->d_v + j] += (double)k[i] * u.value;
                mag[i * op->d_v + j] += fabs((double)k[i]) * u.mag;
                y.value += s[i * op->d_v + j] * (double)q[i];
                y.mag += mag[i * op->d_v + j] * fabs((double)q[i]);
            }
            def_put(e, c, &op->y, (r * op->n_heads + h) * op->d_v + j, y.value, y.mag);
        }
    }
    for (uint64_t i = 0; i < n; i++)
        def_put(e, c, &op->state, ((uint64_t)run->to * op->n_heads + h) * n + i, s[i], mag[i]);
    free(s);
}

void define_attn_state(const op_case *c, op_expect *e)
{
    const cf_op_attn_state *op = &c->op.attn_state;
    const cf_state_run *runs = (const cf_state_run *)(const void *)def_uints(c, &op->runs);
    for (uint32_t n = 0; n < op->n_runs; n++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_state_head(c, e, &runs[n], h);
}

void define_gate(const op_case *c, op_expect *e)
{
    const cf_op_gate *op = &c->op.gate;
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->width; i++) {
                double g =
                    (double)def_floats(c, &op->g)[r * op->g_stride + h * op->g_head_stride + i];
                uint64_t at = (uint64_t)r * op->y_stride + (uint64_t)h * op->y_head_stride + i;
                double f = define_sigmoid(g) * (op->silu ? g : 1);
                double v = (double)def_floats(c, &op->y)[at] * f;
                def_put(e, c, &op->y, at, v, fabs(v) + 1e-25);
            }
}
