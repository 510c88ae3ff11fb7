/* The ops over a state as test_ops.c defines them, in double precision: part of that file, of whose
 * helpers they are made. */
#ifndef CF_TESTS_OP_DEFINE_STATE_H
#define CF_TESTS_OP_DEFINE_STATE_H

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
        return (double)floats(
            c, &op->x)[(run->first_row + at) * op->x_stride + h * op->x_head_stride + i];
    if (run->from == CF_NO_STATE)
        return 0;
    return (double)floats(
        c, &op->state)[(run->from * past + past + at) * op->state_stride + h * op->width + i];
}

static void define_conv_channel(const op_case *c, struct expect *e, const struct matrix *w,
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
        put(e, c, &op->y, (uint64_t)(run->first_row + r) * op->y_stride + channel,
            op->silu ? sum * define_sigmoid(sum) : sum, 1.2 * mag);
    }
    for (int64_t j = 0; j < past; j++)
        put(e, c, &op->state, (uint64_t)(run->to * past + j) * op->state_stride + channel,
            conv_input(c, run, h, i, run->n_rows - past + j), 0);
}

static void define_conv(const op_case *c, struct expect *e)
{
    const cf_op_conv *op = &c->op.conv;
    struct matrix w = matrix_of(c, &op->w);
    const cf_state_run *runs = (const cf_state_run *)(const void *)uints(c, &op->runs);
    for (uint32_t n = 0; n < op->n_runs; n++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->width; i++)
                define_conv_channel(c, e, &w, &runs[n], h, i);
    free(w.values);
}

static void define_state_gates(const op_case *c, struct expect *e)
{
    const cf_op_state_gates *op = &c->op.state_gates;
    struct matrix a_log = matrix_of(c, &op->a_log), dt = matrix_of(c, &op->dt_bias);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++) {
            uint32_t from = r * op->stride + h / op->group * op->group_stride + h % op->group;
            uint64_t to = (uint64_t)r * op->n_heads + h;
            double a = (double)floats(c, &op->a)[from] + vector_at(&dt, h, 0);
            double rate = exp(vector_at(&a_log, h, 0)) * (fmax(a, 0) + log1p(exp(-fabs(a))));
            put(e, c, &op->decay, to, exp(-rate), exp(-rate) * (1 + rate) + 1e-30);
            double beta = define_sigmoid((double)floats(c, &op->b)[from]);
            put(e, c, &op->beta, to, beta, beta + 1e-30);
        }
    free(a_log.values);
    free(dt.values);
}

/* One head of a run: its state and, beside it, the magnitude of what went into each element. */
static void define_state_head(const op_case *c, struct expect *e, const cf_state_run *run,
                              uint32_t h)
{
    const cf_op_attn_state *op = &c->op.attn_state;
    uint64_t n = (uint64_t)op->d_k * op->d_v, kh = h / (op->n_heads / op->n_k_heads);
    double *s = calloc(2 * n, sizeof *s), *mag = s + n;
    if (!s)
        abort();
    for (uint64_t i = 0; i < n && run->from != CF_NO_STATE; i++) {
        s[i] = (double)floats(c, &op->state)[((uint64_t)run->from * op->n_heads + h) * n + i];
        mag[i] = fabs(s[i]);
    }
    for (uint64_t r = run->first_row; r < run->first_row + run->n_rows; r++) {
        const float *q = floats(c, &op->q) + r * op->stride + kh * op->k_head_stride;
        const float *k = floats(c, &op->k) + r * op->stride + kh * op->k_head_stride;
        const float *v = floats(c, &op->v) + r * op->stride + (uint64_t)h * op->v_head_stride;
        const float *beta = floats(c, &op->beta);
        double decay = (double)floats(c, &op->decay)[r * op->decay_stride + h];
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
            put(e, c, &op->y, (r * op->n_heads + h) * op->d_v + j, y.value, y.mag);
        }
    }
    for (uint64_t i = 0; i < n; i++)
        put(e, c, &op->state, ((uint64_t)run->to * op->n_heads + h) * n + i, s[i], mag[i]);
    free(s);
}

static void define_attn_state(const op_case *c, struct expect *e)
{
    const cf_op_attn_state *op = &c->op.attn_state;
    const cf_state_run *runs = (const cf_state_run *)(const void *)uints(c, &op->runs);
    for (uint32_t n = 0; n < op->n_runs; n++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_state_head(c, e, &runs[n], h);
}

static void define_gate(const op_case *c, struct expect *e)
{
    const cf_op_gate *op = &c->op.gate;
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->width; i++) {
                double g = (double)floats(c, &op->g)[r * op->g_stride + h * op->g_head_stride + i];
                uint64_t at = (uint64_t)r * op->y_stride + (uint64_t)h * op->y_head_stride + i;
                double f = define_sigmoid(g) * (op->silu ? g : 1);
                double v = (double)floats(c, &op->y)[at] * f;
                put(e, c, &op->y, at, v, fabs(v) + 1e-25);
            }
}

static void define_index_score(const op_case *c, struct expect *e)
{
    const cf_op_index_score *op = &c->op.index_score;
    double *k = decoded(c, &op->k, op->kv_dtype);
    const cf_row_info *rows = (const cf_row_info *)(const void *)uints(c, &op->rows);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint64_t i = 0; i < rows[r].n_cells; i++) {
            double sum = 0, mag = 0;
            for (uint64_t h = 0; h < op->n_heads; h++) {
                const float *q = floats(c, &op->q) + r * (uint64_t)op->q_stride + h * op->d;
                double w = (double)floats(c, &op->w)[r * (uint64_t)op->w_stride + h];
                struct sum s = dot(k + (rows[r].first_cell + i) * op->d, q, op->d);
                sum += w * fmax(s.value, 0);
                mag += fabs(w) * s.mag;
            }
            double scale = (double)op->scale;
            put(e, c, &op->scores, r * (uint64_t)op->score_stride + i, scale * sum, scale * mag);
        }
    free(k);
}

/* A cell is chosen when fewer than k others go before it. */
static void define_index_select(const op_case *c, struct expect *e)
{
    const cf_op_index_select *op = &c->op.index_select;
    const cf_row_info *rows = (const cf_row_info *)(const void *)uints(c, &op->rows);
    e->tolerance = 0;
    for (uint32_t r = 0; r < op->n_rows; r++) {
        const float *s = floats(c, &op->scores) + r * (uint64_t)op->score_stride;
        uint32_t n = 0;
        for (uint32_t i = 0; i < rows[r].n_cells; i++) {
            uint32_t better = 0;
            double mine = isnan(s[i]) ? -INFINITY : (double)s[i];
            for (uint32_t j = 0; j < rows[r].n_cells && better < op->k; j++) {
                double other = isnan(s[j]) ? -INFINITY : (double)s[j];
                better += other > mine || (other == mine && j < i);
            }
            if (better < op->k)
                put(e, c, &op->cells, (uint64_t)r * op->k + n++, rows[r].first_cell + i, 0);
        }
    }
}

static void define_bias_head(const op_case *c, struct expect *e, const double *k, const double *v,
                             const struct matrix *bias, uint32_t r, uint32_t h)
{
    const cf_op_attn_bias *op = &c->op.attn_bias;
    const cf_row_info *row = (const cf_row_info *)(const void *)uints(c, &op->rows) + r;
    const float *q = floats(c, &op->q) + (uint64_t)r * op->q_stride + (uint64_t)h * op->d;
    double *score = malloc(row->n_cells * sizeof *score), max = -INFINITY, total = 0, spread = 0;
    if (!score)
        abort();
    for (int64_t p = 0; p < row->n_cells; p++) {
        int64_t at = p - (int64_t)row->position + op->zero, last = (int64_t)op->n_buckets - 1;
        uint32_t bucket = uints(c, &op->buckets)[at < 0 ? 0 : at > last ? last : at];
        uint64_t cell = (row->first_cell + (uint64_t)p) * op->n_heads + h;
        struct sum s = dot(k + cell * op->d, q, op->d);
        double add = bias->values[op_weight_index(bias->w, bucket, h)];
        score[p] = (double)op->scale * s.value + add;
        spread = fmax(spread, (double)op->scale * s.mag + fabs(add));
        max = fmax(max, score[p]);
    }
    for (uint32_t p = 0; p < row->n_cells; p++)
        total += exp(score[p] - max);
    for (uint32_t i = 0; i < op->d; i++) {
        struct sum s = {0, 0};
        for (uint32_t p = 0; p < row->n_cells; p++) {
            uint64_t cell = (row->first_cell + (uint64_t)p) * op->n_heads + h;
            double part = exp(score[p] - max) / total * v[cell * op->d + i];
            s.value += part;
            s.mag += fabs(part);
        }
        put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->d + i, s.value,
            s.mag * (1 + 0.25 * spread));
    }
    free(score);
}

static void define_attn_bias(const op_case *c, struct expect *e)
{
    const cf_op_attn_bias *op = &c->op.attn_bias;
    double *k = decoded(c, &op->k, op->kv_dtype), *v = decoded(c, &op->v, op->kv_dtype);
    struct matrix bias = matrix_of(c, &op->bias);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_bias_head(c, e, k, v, &bias, r, h);
    free(k);
    free(v);
    free(bias.values);
}

#endif
