/* Attention, the cells that it reads and how they are chosen: gpu/ops.h in double precision. */
#include "tests/support/op_define_parts.h"

/* The float16 nearest to v >= 0, ties to even. */
static unsigned f16_nearest(double v)
{
    double unit = ldexp(1, v < ldexp(1, -14) ? -24 : ilogb(v) - 10);
    double rounded = nearbyint(v / unit) * unit; /* of ties the even one */
    if (rounded >= 65536)
        return 0x7c00;
    if (rounded < ldexp(1, -14))
        return (unsigned)ldexp(rounded, 24);
    return (unsigned)(ilogb(rounded) + 15) << 10 |
           ((unsigned)ldexp(rounded, 10 - ilogb(rounded)) & 1023);
}

/* The 17 words of a block in 8 bits. Quotients and products of floats, made in double and rounded
 * once more, are correctly rounded. */
void op_define_q8(const float x[32], unsigned word[17])
{
    double most = 0;
    bool finite = true;
    memset(word, 0, 17 * sizeof *word);
    for (int i = 0; i < 32; i++) {
        most = fmax(most, fabs((double)x[i]));
        finite = finite && isfinite(x[i]);
    }
    if (!finite)
        word[0] = 0x7e00;
    if (!finite || most < ldexp(1, -100))
        return;
    double d = (double)(float)(most / 127), inverse = (double)(float)(1 / d);
    word[0] = f16_nearest(d);
    for (int i = 0; i < 32; i++) {
        double v = (double)(float)(fabs((double)x[i]) * inverse);
        int q = (int)fmin(127, floor((double)(float)(v + 0.5)));
        word[1 + i / 2] |= ((unsigned)(x[i] < 0 ? -q : q) & 255) << i % 2 * 8;
    }
}

static void define_kv_store_q8(const op_case *c, op_expect *e)
{
    const cf_op_kv_store *op = &c->op.kv_store;
    const uint32_t *rows = def_uints(c, &op->rows);
    e->tolerance = 0;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t b = 0; b < op->width / 32; b++) {
            unsigned word[17];
            op_define_q8(def_floats(c, &op->x) + (uint64_t)r * op->x_stride + b * 32, word);
            for (uint32_t i = 0; i < 17; i++)
                def_put(e, c, &op->cache, (rows[4 * r] * (op->width / 32) + b) * 17 + i, word[i],
                        0);
        }
}

void define_kv_store(const op_case *c, op_expect *e)
{
    const cf_op_kv_store *op = &c->op.kv_store;
    const float *x = def_floats(c, &op->x);
    const uint32_t *rows = def_uints(c, &op->rows); /* cell first of four */
    if (op->kv_dtype == CF_Q8_0) {
        define_kv_store_q8(c, e);
        return;
    }
    /* Half a unit of F16's 11 bits where it is rounded to nearest, a whole one elsewhere. */
    e->tolerance = op->kv_dtype == CF_F16 ? 0x1p-10 : 0;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->width; i++) {
            double v = (double)x[(uint64_t)r * op->x_stride + i];
            def_put(e, c, &op->cache, (uint64_t)rows[4 * r] * op->width + i, v, fabs(v) + 0x1p-14);
        }
}

void define_attn_latent(const op_case *c, op_expect *e)
{
    const cf_op_attn_latent *op = &c->op.attn_latent;
    double *cache = def_decoded(c, &op->cache, op->kv_dtype), *score = NULL;
    const cf_row_info *rows = (const cf_row_info *)(const void *)def_uints(c, &op->rows);
    uint64_t width = op->rank + op->n_rope;
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++) {
            const float *ql =
                def_floats(c, &op->q_lat) + ((uint64_t)r * op->n_heads + h) * op->rank;
            const float *qr = def_floats(c, &op->q_rope) + (uint64_t)r * op->q_stride +
                              (uint64_t)h * op->q_head_stride;
            const uint32_t *list = def_uints(c, &op->cells);
            uint32_t n = rows[r].n_cells;
            if (list) {
                list += (uint64_t)r * op->n_select;
                n = n < op->n_select ? n : op->n_select;
            }
            double max = -INFINITY, total = 0, spread = 0;
            score = realloc(score, n * sizeof *score);
            if (!score)
                abort();
            for (uint32_t k = 0; k < n; k++) {
                const double *cell = cache + (list ? list[k] : rows[r].first_cell + k) * width;
                struct sum lat = def_dot(cell, ql, op->rank);
                struct sum rope = def_dot(cell + op->rank, qr, op->n_rope);
                score[k] = (double)op->scale * (lat.value + rope.value);
                spread = fmax(spread, (double)op->scale * (lat.mag + rope.mag));
                max = fmax(max, score[k]);
            }
            for (uint32_t k = 0; k < n; k++)
                total += exp(score[k] - max);
            for (uint32_t i = 0; i < op->rank; i++) {
                struct sum s = {0, 0};
                for (uint32_t k = 0; k < n; k++) {
                    uint64_t cell = list ? list[k] : rows[r].first_cell + k;
                    double v = exp(score[k] - max) / total * cache[cell * width + i];
                    s.value += v;
                    s.mag += fabs(v);
                }
                /* A score is off by roundings of its own terms, and p by as much, relatively. */
                def_put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->rank + i, s.value,
                        s.mag * (1 + 0.25 * spread));
            }
        }
    free(score);
    free(cache);
}

/* One head of one row over its visible cells. keys, values: of the first cell of the cache. */
static void define_attn_head(const op_case *c, op_expect *e, const double *keys,
                             const double *values, const struct matrix *sinks, uint32_t r,
                             uint32_t h)
{
    const cf_op_attn *op = &c->op.attn;
    const cf_row_info *row = (const cf_row_info *)(const void *)def_uints(c, &op->rows) + r;
    const float *q = def_floats(c, &op->q) + (uint64_t)r * op->q_stride + (uint64_t)h * op->d_k;
    const float *sharp = def_floats(c, &op->sharpness);
    double sharpness = sharp ? (double)sharp[r] : 1;
    uint32_t kv = h / (op->n_heads / op->n_kv_heads);
    double *score = malloc(row->n_cells * sizeof *score);
    if (!score)
        abort();
    double max = def_vector_at(sinks, h, -INFINITY), total = 0, spread = (double)op->cap;
    for (uint32_t k = 0; k < row->n_cells; k++) {
        int64_t p = (int64_t)row->position - row->n_cells + 1 + k;
        bool hidden = (op->window && row->position - p >= op->window) ||
                      (op->chunk && p / op->chunk != row->position / op->chunk);
        uint64_t cell = (uint64_t)(row->first_cell + k) * op->n_kv_heads + kv;
        struct sum s = def_dot(keys + cell * op->d_k, q, op->d_k);
        score[k] = (double)op->scale * s.value;
        if (op->cap > 0)
            score[k] = (double)op->cap * tanh(score[k] / (double)op->cap);
        score[k] *= sharpness;
        spread = fmax(spread, (double)op->scale * s.mag * fmax(sharpness, 1));
        score[k] = hidden ? -INFINITY : score[k];
        max = fmax(max, score[k]);
    }
    for (uint32_t k = 0; k < row->n_cells; k++)
        total += exp(score[k] - max);
    total += exp(def_vector_at(sinks, h, -INFINITY) - max);
    for (uint32_t i = 0; i < op->d_v; i++) {
        struct sum s = {0, 0};
        for (uint32_t k = 0; k < row->n_cells; k++) {
            uint64_t cell = (uint64_t)(row->first_cell + k) * op->n_kv_heads + kv;
            double v = exp(score[k] - max) / total * values[cell * op->d_v + i];
            s.value += v;
            s.mag += fabs(v);
        }
        def_put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->d_v + i, s.value,
                s.mag * (1 + 0.25 * spread));
    }
    free(score);
}

void define_attn(const op_case *c, op_expect *e)
{
    const cf_op_attn *op = &c->op.attn;
    double *keys = def_decoded(c, &op->k, op->kv_dtype),
           *values = def_decoded(c, &op->v, op->kv_dtype);
    struct matrix sinks = def_matrix(c, &op->sinks);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_attn_head(c, e, keys, values, &sinks, r, h);
    free(keys);
    free(values);
    free(sinks.values);
}

void define_index_score(const op_case *c, op_expect *e)
{
    const cf_op_index_score *op = &c->op.index_score;
    double *k = def_decoded(c, &op->k, op->kv_dtype);
    const cf_row_info *rows = (const cf_row_info *)(const void *)def_uints(c, &op->rows);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint64_t i = 0; i < rows[r].n_cells; i++) {
            double sum = 0, mag = 0;
            for (uint64_t h = 0; h < op->n_heads; h++) {
                const float *q = def_floats(c, &op->q) + r * (uint64_t)op->q_stride + h * op->d;
                double w = (double)def_floats(c, &op->w)[r * (uint64_t)op->w_stride + h];
                struct sum s = def_dot(k + (rows[r].first_cell + i) * op->d, q, op->d);
                sum += w * fmax(s.value, 0);
                mag += fabs(w) * s.mag;
            }
            double scale = (double)op->scale;
            def_put(e, c, &op->scores, r * (uint64_t)op->score_stride + i, scale * sum,
                    scale * mag);
        }
    free(k);
}

/* A cell is chosen when fewer than k others go before it. */
void define_index_select(const op_case *c, op_expect *e)
{
    const cf_op_index_select *op = &c->op.index_select;
    const cf_row_info *rows = (const cf_row_info *)(const void *)def_uints(c, &op->rows);
    e->tolerance = 0;
    for (uint32_t r = 0; r < op->n_rows; r++) {
        const float *s = def_floats(c, &op->scores) + r * (uint64_t)op->score_stride;
        uint32_t n = 0;
        for (uint32_t i = 0; i < rows[r].n_cells; i++) {
            uint32_t better = 0;
            double mine = isnan(s[i]) ? -INFINITY : (double)s[i];
            for (uint32_t j = 0; j < rows[r].n_cells && better < op->k; j++) {
                double other = isnan(s[j]) ? -INFINITY : (double)s[j];
                better += other > mine || (other == mine && j < i);
            }
            if (better < op->k)
                def_put(e, c, &op->cells, (uint64_t)r * op->k + n++, rows[r].first_cell + i, 0);
        }
    }
}

static void define_bias_head(const op_case *c, op_expect *e, const double *k, const double *v,
                             const struct matrix *bias, uint32_t r, uint32_t h)
{
    const cf_op_attn_bias *op = &c->op.attn_bias;
    const cf_row_info *row = (const cf_row_info *)(const void *)def_uints(c, &op->rows) + r;
    const float *q = def_floats(c, &op->q) + (uint64_t)r * op->q_stride + (uint64_t)h * op->d;
    double *score = malloc(row->n_cells * sizeof *score), max = -INFINITY, total = 0, spread = 0;
    if (!score)
        abort();
    for (int64_t p = 0; p < row->n_cells; p++) {
        int64_t at = p - (int64_t)row->position + op->zero, last = (int64_t)op->n_buckets - 1;
        uint32_t bucket = def_uints(c, &op->buckets)[at < 0 ? 0 : at > last ? last : at];
        uint64_t cell = (row->first_cell + (uint64_t)p) * op->n_heads + h;
        struct sum s = def_dot(k + cell * op->d, q, op->d);
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
        def_put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->d + i, s.value,
                s.mag * (1 + 0.25 * spread));
    }
    free(score);
}

void define_attn_bias(const op_case *c, op_expect *e)
{
    const cf_op_attn_bias *op = &c->op.attn_bias;
    double *k = def_decoded(c, &op->k, op->kv_dtype), *v = def_decoded(c, &op->v, op->kv_dtype);
    struct matrix bias = def_matrix(c, &op->bias);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_bias_head(c, e, k, v, &bias, r, h);
    free(k);
    free(v);
    free(bias.values);
}
