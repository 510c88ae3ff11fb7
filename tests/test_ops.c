/* Catches: an op that computes something else than gpu/ops.h says, on any device, any odd size,
 * stride or format; one that writes a byte it must not; results that depend on threads, on a
 * repetition or on the other rows of a batch.
 *
 * ref is held to definitions written here in double precision, independently of its code; every
 * other device that cf_gpu_list reports is held to the same and to ref's results. */
#include "gpu/formats.h"
#include "gpu/opencl/ocl.h"
#include "gpu/vulkan/vk.h"
#include "runtime/quantise.h"
#include "tests/check.h"
#include "tests/support/op_cases.h"

/* Of the sum of |terms|: float32 sums of up to some thousand terms, in any order; and results
 * behind an exp. */
#define TOLERANCE_SUM 4e-6
#define TOLERANCE_EXP 1e-5

/* ---- expectations ---- */

/* What each element of each output should be; `set` false: it must keep its bits. */
struct expect {
    double *want[OP_MAX_ARRAYS], *mag[OP_MAX_ARRAYS];
    bool *set[OP_MAX_ARRAYS];
    double tolerance;
    bool ambiguous; /* a case whose ids depend on rounding: a mistake in op_cases.c */
};

static uint64_t element_size(const op_array *a)
{
    return a->element >= OP_F16 ? 2 : 4;
}

static uint64_t array_count(const op_array *a)
{
    return a->bytes / element_size(a);
}

static void expect_init(struct expect *e, const op_case *c)
{
    *e = (struct expect){.tolerance = TOLERANCE_SUM};
    for (int i = 0; i < c->n_arrays; i++) {
        uint64_t n = array_count(&c->arrays[i]);
        if (c->arrays[i].role == OP_IN)
            continue;
        e->want[i] = calloc(n, sizeof *e->want[i]);
        e->mag[i] = calloc(n, sizeof *e->mag[i]);
        e->set[i] = calloc(n, sizeof *e->set[i]);
        if (!e->want[i] || !e->mag[i] || !e->set[i])
            abort();
    }
}

static void expect_finish(struct expect *e)
{
    for (int i = 0; i < OP_MAX_ARRAYS; i++) {
        free(e->want[i]);
        free(e->mag[i]);
        free(e->set[i]);
    }
}

static void put(struct expect *e, const op_case *c, const cf_span *field, uint64_t at, double want,
                double mag)
{
    int i = (int)(op_case_array(c, field) - c->arrays);
    e->want[i][at] = want;
    e->mag[i][at] = mag;
    e->set[i][at] = true;
}

/* ---- inputs ---- */

static const float *floats(const op_case *c, const cf_span *field)
{
    const op_array *a = op_case_array(c, field);
    return a ? (const float *)(const void *)a->data : NULL;
}

static const uint32_t *uints(const op_case *c, const cf_span *field)
{
    const op_array *a = op_case_array(c, field);
    return a ? (const uint32_t *)(const void *)a->data : NULL;
}

static double f16_value(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double v = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -v : v;
}

static double bf16_value(uint16_t h)
{
    int exponent = h >> 7 & 255, fraction = h & 127;
    double v = exponent ? ldexp(128 + fraction, exponent - 134) : ldexp(fraction, -133);
    return h & 0x8000 ? -v : v;
}

static double stored_value(cf_format t, const void *data, uint64_t i)
{
    if (t == CF_F32)
        return (double)((const float *)data)[i];
    uint16_t h = ((const uint16_t *)data)[i];
    return t == CF_F16 ? f16_value(h) : bf16_value(h);
}

/* All values of a stored array; the caller frees. What blocks hold is gpu/formats.h, which
 * test_quants holds to their definitions. */
static double *decoded(const op_case *c, const cf_span *field, cf_format t)
{
    const op_array *a = op_case_array(c, field);
    uint64_t n = a->bytes / cf_formats[t].block_bytes * cf_formats[t].block_values;
    double *v = malloc(n * sizeof *v);
    if (!v)
        abort();
    for (uint64_t i = 0; i < n; i++) {
        float block[CF_FORMAT_MAX_BLOCK];
        uint64_t size = cf_formats[t].block_values;
        if (t <= CF_BF16) {
            v[i] = stored_value(t, a->data, i);
            continue;
        }
        cf_ref_format_decode_blocks(t, a->data, i / size, 1, block);
        for (uint64_t j = 0; j < size; j++)
            v[i + j] = (double)block[j];
        i += size - 1;
    }
    return v;
}

/* One value of a matrix of outer scales. */
static double outer_scale(const op_case *c, const cf_weight *w, uint64_t i)
{
    const uint8_t *data = op_case_array(c, &w->scales)->data;
    return w->scale_format == CF_F8_E8M0 ? ldexp(1, data[i] - 127)
                                         : stored_value(w->scale_format, data, i);
}

struct sum {
    double value, mag;
};

static struct sum dot(const double *w, const float *x, uint64_t n)
{
    struct sum s = {0, 0};
    for (uint64_t i = 0; i < n; i++) {
        s.value += w[i] * (double)x[i];
        s.mag += fabs(w[i] * (double)x[i]);
    }
    return s;
}

/* The values of a weight's array (NULL where there is none), outer scales applied, and those of one
 * output. */
struct matrix {
    const cf_weight *w;
    double *values;
};

static struct matrix matrix_of(const op_case *c, const cf_weight *w)
{
    if (!op_case_array(c, &w->span))
        return (struct matrix){w, NULL};
    struct matrix m = {w, decoded(c, &w->span, w->dtype)};
    for (uint32_t o = 0; w->scale_rows && o < w->rows; o++) {
        uint64_t per_row = (w->cols + w->scale_cols - 1) / w->scale_cols;
        uint64_t stored = w->row_first + (uint64_t)o * (w->row_step ? w->row_step : 1);
        for (uint32_t k = 0; k < w->cols; k++) {
            double *v = &m.values[op_weight_index(w, o, k)];
            uint64_t at = stored / w->scale_rows * per_row + k / w->scale_cols;
            *v = (double)(float)(*v * outer_scale(c, w, at));
        }
    }
    return m;
}

/* n activations as they are, or rounded to 8 bits; the caller frees. */
static float *activations(const float *x, uint32_t n, bool q8)
{
    float *v = malloc(n * sizeof *v);
    if (!v)
        abort();
    for (uint32_t i = 0; i < n; i++) {
        uint32_t begin = i / CF_Q8_GROUP * CF_Q8_GROUP, end = begin + CF_Q8_GROUP;
        float most = 0;
        for (uint32_t j = begin; j < end && j < n; j++)
            most = fmaxf(most, fabsf(x[j]));
        float d = most / 127;
        v[i] = !q8 ? x[i] : d > 0 ? d * roundf(x[i] * (1 / d)) : 0;
    }
    return v;
}

static struct sum matrix_dot(const struct matrix *m, uint64_t o, const float *x)
{
    struct sum s = {0, 0};
    for (uint32_t k = 0; k < m->w->cols; k++) {
        double v = m->values[op_weight_index(m->w, o, k)] * (double)x[k];
        s.value += v;
        s.mag += fabs(v);
    }
    return s;
}

/* Element i of a vector, or what stands for it. */
static double vector_at(const struct matrix *m, uint64_t i, double none)
{
    return m->values ? m->values[op_weight_index(m->w, 0, i)] : none;
}

/* ---- definitions ---- */

static void define_linear(const op_case *c, struct expect *e)
{
    const cf_op_linear *op = &c->op.linear;
    struct matrix w = matrix_of(c, &op->w), bias = matrix_of(c, &op->bias);
    const float *x = floats(c, &op->x), *y = floats(c, &op->y);
    for (uint32_t r = 0; r < op->n_rows; r++) {
        float *row = activations(x + (uint64_t)r * op->x_stride, op->w.cols, op->x_q8);
        for (uint32_t o = 0; o < op->w.rows; o++) {
            struct sum s = matrix_dot(&w, o, row);
            uint64_t at = (uint64_t)r * op->y_stride + o;
            double old = op->accumulate ? (double)y[at] : 0.0, scale = (double)op->scale;
            double add = vector_at(&bias, o, 0);
            put(e, c, &op->y, at, scale * s.value + add + old,
                fabs(scale) * s.mag + fabs(add) + fabs(old));
        }
        free(row);
    }
    free(w.values);
    free(bias.values);
}

static void define_head_linear(const op_case *c, struct expect *e)
{
    const cf_op_head_linear *op = &c->op.head_linear;
    double *w = matrix_of(c, &op->w).values;
    const float *x = floats(c, &op->x);
    uint32_t n_out = op->transposed ? op->w.cols : op->n_sub;
    uint32_t n_in = op->transposed ? op->n_sub : op->w.cols;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t o = 0; o < n_out; o++) {
                struct sum s = {0, 0};
                for (uint32_t k = 0; k < n_in; k++) {
                    uint32_t row = h * op->head_rows + op->row_off + (op->transposed ? k : o);
                    double v = w[(uint64_t)row * op->w.cols + (op->transposed ? o : k)] *
                               (double)x[r * op->x_stride + h * op->x_head_stride + k];
                    s.value += v;
                    s.mag += fabs(v);
                }
                put(e, c, &op->y, r * op->y_stride + h * op->y_head_stride + o, s.value, s.mag);
            }
    free(w);
}

/* One head of one row, from x[x_at] to y[y_at]; v_at: its part of the vectors. */
static void define_norm_head(const op_case *c, struct expect *e, const struct matrix *w,
                             const struct matrix *bias, uint64_t v_at, uint64_t x_at, uint64_t y_at)
{
    const cf_op_norm *op = &c->op.norm;
    const float *x = floats(c, &op->x) + x_at;
    double mean = 0, squares = 0, largest = 0;
    for (uint32_t i = 0; i < op->width; i++) {
        mean += (double)x[i] / op->width;
        largest = fmax(largest, fabs((double)x[i]));
    }
    if (op->kind == CF_NORM_RMS)
        mean = 0;
    for (uint32_t i = 0; i < op->width; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    double factor = (double)op->scale / sqrt(squares / op->width + (double)op->eps);
    for (uint32_t i = 0; i < op->width; i++) {
        double offset = op->unit_offset && w->values ? 1 : 0;
        double gain = vector_at(w, v_at + i, 1) + offset, add = vector_at(bias, v_at + i, 0);
        double v = gain * ((double)x[i] - mean) * factor;
        /* The mean is off by a rounding of the largest x. */
        double room = op->kind == CF_NORM_LAYER ? fabs(gain) * factor * 0.25 * largest : 0;
        put(e, c, &op->y, y_at + i, v + add, fabs(v) + fabs(add) + room);
    }
}

static void define_norm(const op_case *c, struct expect *e)
{
    const cf_op_norm *op = &c->op.norm;
    struct matrix w = matrix_of(c, &op->w), bias = matrix_of(c, &op->bias);
    bool apart = fmax(op->w.cols, op->bias.cols) > op->width;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_norm_head(c, e, &w, &bias, apart ? (uint64_t)h * op->width : 0,
                             (uint64_t)r * op->x_stride + (uint64_t)h * op->x_head_stride,
                             (uint64_t)r * op->y_stride + (uint64_t)h * op->y_head_stride);
    free(w.values);
    free(bias.values);
}

static void define_rope(const op_case *c, struct expect *e)
{
    const cf_op_rope *op = &c->op.rope;
    const float *x = floats(c, &op->x), *t = floats(c, &op->cos_sin);
    bool half = op->layout == CF_ROPE_HALF;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            for (uint32_t i = 0; i < op->n_rot / 2; i++) {
                uint64_t at = (uint64_t)r * op->stride + (uint64_t)h * op->head_stride;
                uint64_t ia = at + (half ? i : 2 * i),
                         ib = at + (half ? i + op->n_rot / 2 : 2 * i + 1);
                double co = (double)t[r * op->n_rot + 2 * i];
                double si = (double)t[r * op->n_rot + 2 * i + 1];
                double a = (double)x[ia], b = (double)x[ib];
                put(e, c, &op->x, ia, a * co - b * si, fabs(a * co) + fabs(b * si));
                put(e, c, &op->x, ib, b * co + a * si, fabs(b * co) + fabs(a * si));
            }
}

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
static void define_q8(const float x[32], unsigned word[17])
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

static void define_kv_store_q8(const op_case *c, struct expect *e)
{
    const cf_op_kv_store *op = &c->op.kv_store;
    const uint32_t *rows = uints(c, &op->rows);
    e->tolerance = 0;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t b = 0; b < op->width / 32; b++) {
            unsigned word[17];
            define_q8(floats(c, &op->x) + (uint64_t)r * op->x_stride + b * 32, word);
            for (uint32_t i = 0; i < 17; i++)
                put(e, c, &op->cache, (rows[4 * r] * (op->width / 32) + b) * 17 + i, word[i], 0);
        }
}

static void define_kv_store(const op_case *c, struct expect *e)
{
    const cf_op_kv_store *op = &c->op.kv_store;
    const float *x = floats(c, &op->x);
    const uint32_t *rows = uints(c, &op->rows); /* cell first of four */
    if (op->kv_dtype == CF_Q8_0) {
        define_kv_store_q8(c, e);
        return;
    }
    /* Half a unit of F16's 11 bits where it is rounded to nearest, a whole one elsewhere. */
    e->tolerance = op->kv_dtype == CF_F16 ? 0x1p-10 : 0;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->width; i++) {
            double v = (double)x[(uint64_t)r * op->x_stride + i];
            put(e, c, &op->cache, (uint64_t)rows[4 * r] * op->width + i, v, fabs(v) + 0x1p-14);
        }
}

static void define_attn_latent(const op_case *c, struct expect *e)
{
    const cf_op_attn_latent *op = &c->op.attn_latent;
    double *cache = decoded(c, &op->cache, op->kv_dtype), *score = NULL;
    const cf_row_info *rows = (const cf_row_info *)(const void *)uints(c, &op->rows);
    uint64_t width = op->rank + op->n_rope;
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++) {
            const float *ql = floats(c, &op->q_lat) + ((uint64_t)r * op->n_heads + h) * op->rank;
            const float *qr = floats(c, &op->q_rope) + (uint64_t)r * op->q_stride +
                              (uint64_t)h * op->q_head_stride;
            const uint32_t *list = uints(c, &op->cells);
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
                struct sum lat = dot(cell, ql, op->rank);
                struct sum rope = dot(cell + op->rank, qr, op->n_rope);
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
                put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->rank + i, s.value,
                    s.mag * (1 + 0.25 * spread));
            }
        }
    free(score);
    free(cache);
}

/* One head of one row over its visible cells. keys, values: of the first cell of the cache. */
static void define_attn_head(const op_case *c, struct expect *e, const double *keys,
                             const double *values, const struct matrix *sinks, uint32_t r,
                             uint32_t h)
{
    const cf_op_attn *op = &c->op.attn;
    const cf_row_info *row = (const cf_row_info *)(const void *)uints(c, &op->rows) + r;
    const float *q = floats(c, &op->q) + (uint64_t)r * op->q_stride + (uint64_t)h * op->d_k;
    const float *sharp = floats(c, &op->sharpness);
    double sharpness = sharp ? (double)sharp[r] : 1;
    uint32_t kv = h / (op->n_heads / op->n_kv_heads);
    double *score = malloc(row->n_cells * sizeof *score);
    if (!score)
        abort();
    double max = vector_at(sinks, h, -INFINITY), total = 0, spread = (double)op->cap;
    for (uint32_t k = 0; k < row->n_cells; k++) {
        int64_t p = (int64_t)row->position - row->n_cells + 1 + k;
        bool hidden = (op->window && row->position - p >= op->window) ||
                      (op->chunk && p / op->chunk != row->position / op->chunk);
        uint64_t cell = (uint64_t)(row->first_cell + k) * op->n_kv_heads + kv;
        struct sum s = dot(keys + cell * op->d_k, q, op->d_k);
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
    total += exp(vector_at(sinks, h, -INFINITY) - max);
    for (uint32_t i = 0; i < op->d_v; i++) {
        struct sum s = {0, 0};
        for (uint32_t k = 0; k < row->n_cells; k++) {
            uint64_t cell = (uint64_t)(row->first_cell + k) * op->n_kv_heads + kv;
            double v = exp(score[k] - max) / total * values[cell * op->d_v + i];
            s.value += v;
            s.mag += fabs(v);
        }
        put(e, c, &op->y, ((uint64_t)r * op->n_heads + h) * op->d_v + i, s.value,
            s.mag * (1 + 0.25 * spread));
    }
    free(score);
}

static void define_attn(const op_case *c, struct expect *e)
{
    const cf_op_attn *op = &c->op.attn;
    double *keys = decoded(c, &op->k, op->kv_dtype), *values = decoded(c, &op->v, op->kv_dtype);
    struct matrix sinks = matrix_of(c, &op->sinks);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t h = 0; h < op->n_heads; h++)
            define_attn_head(c, e, keys, values, &sinks, r, h);
    free(keys);
    free(values);
    free(sinks.values);
}

/* act(g) * u of sums that are off by roundings of their terms. No activation is steeper than 1.2;
 * far left of 0 a device may flush to it. */
static struct sum activated(const cf_act_params *p, struct sum g, struct sum u)
{
    double a = g.value, room = 0, limit = (double)p->limit;
    switch (p->act) {
    case CF_ACT_SILU:
        a = a / (1 + exp(-a));
        break;
    case CF_ACT_GELU_TANH: /* 1 + tanh(..) cancels left of 0 */
        room = 0.1 * fabs(a);
        a = 0.5 * a * (1 + tanh(sqrt(2 / acos(-1)) * (a + 0.044715 * a * a * a)));
        break;
    case CF_ACT_RELU:
        a = fmax(a, 0);
        break;
    case CF_ACT_SWIGLU_CLAMPED:
        a = fmin(a, limit);
        a = a / (1 + exp(-(double)p->alpha * a));
        u.value = fmax(-limit, fmin(limit, u.value)) + 1;
        u.mag += 1;
    }
    struct sum s = {a * u.value, 0};
    s.mag = (room + 1.2 * g.mag) * fabs(u.value) + fabs(a) * u.mag + 1e-25;
    return s;
}

static void define_glu(const op_case *c, struct expect *e)
{
    const cf_op_glu *op = &c->op.glu;
    const float *g = floats(c, &op->g), *u = floats(c, &op->u);
    e->tolerance = TOLERANCE_EXP;
    for (uint64_t i = 0; i < op->n; i++) {
        double vg = (double)g[i], vu = u ? (double)u[i] : 1;
        struct sum s = activated(&op->act, (struct sum){vg, 0}, (struct sum){vu, fabs(vu)});
        put(e, c, &op->y, i, s.value, s.mag);
    }
}

static void define_map(const op_case *c, struct expect *e)
{
    const cf_op_map *op = &c->op.map;
    const float *as = floats(c, &op->a), *bs = floats(c, &op->b);
    double p = (double)op->p, q = (double)op->q;
    e->tolerance = op->kind == CF_MAP_CLAMP ? 0 : TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->width; i++) {
            double a = (double)as[(uint64_t)r * op->a_stride + i], room = 0, v = 0;
            uint64_t b_at = (uint64_t)r * op->b_stride + (op->b_width == 1 ? 0 : i);
            double b = bs ? (double)bs[b_at] : 0;
            switch (op->kind) {
            case CF_MAP_CLAMP:
                v = fmin(fmax(a, p), q);
                break;
            case CF_MAP_SOFTCAP: /* a small tanh may be made of exps near 1 */
                v = p * tanh(a / p);
                room = 0.1 * p;
                break;
            case CF_MAP_MUL_SIGMOID:
                v = a / (1 + exp(-b));
                room = 1e-25;
                break;
            case CF_MAP_MUL_ROW:
                v = a * b;
            }
            put(e, c, &op->y, (uint64_t)r * op->y_stride + i, v, fabs(v) + room);
        }
}

static void define_add(const op_case *c, struct expect *e)
{
    const cf_op_add *op = &c->op.add;
    const float *a = floats(c, &op->a), *b = floats(c, &op->b);
    for (uint64_t i = 0; i < op->n; i++) {
        double va = (double)op->alpha * (double)a[i], vb = b ? (double)op->beta * (double)b[i] : 0;
        put(e, c, &op->y, i, va + vb, fabs(va) + fabs(vb));
    }
}

/* p and the key of one row. */
static void define_scores(const cf_op_route *op, const float *logits, const float *bias, double *p,
                          double *key)
{
    double total = 0;
    for (uint32_t i = 0; i < op->n; i++) {
        double v = (double)logits[i];
        p[i] = isnan(v) ? 0 : op->score == CF_SCORE_SIGMOID ? 1 / (1 + exp(-v)) : exp(v);
        total += p[i];
    }
    for (uint32_t i = 0; i < op->n; i++) {
        if (op->score == CF_SCORE_SOFTMAX && total > 0)
            p[i] /= total;
        key[i] = isnan(logits[i]) ? -INFINITY : p[i] + (bias ? (double)bias[i] : 0);
    }
}

/* i is chosen when fewer than k are ahead of it; a difference that rounding may undo is a mistake.
 */
static uint32_t ahead_of(const double *key, uint32_t n, uint32_t i, bool *ambiguous)
{
    uint32_t ahead = 0;
    for (uint32_t j = 0; j < n; j++) {
        ahead += key[j] > key[i] || (j < i && key[j] >= key[i]);
        *ambiguous |= key[j] != key[i] && fabs(key[j] - key[i]) < 1e-6 * fabs(key[i]);
    }
    return ahead;
}

/* Leaves the experts of the best groups, in order, and their keys; returns how many. */
static uint32_t define_groups(const cf_op_route *op, double *key, uint32_t *id, bool *ambiguous)
{
    uint32_t groups = op->n_groups > 1 ? op->n_groups : 1, size = op->n / groups, left = 0;
    double score[CF_ROUTE_MAX_GROUPS];
    for (uint32_t g = 0; g < groups; g++) {
        const double *k = key + g * size;
        score[g] = -INFINITY;
        for (uint32_t i = 0; i < size; i++)
            if (op->group_score == CF_GROUP_MAX)
                score[g] = fmax(score[g], k[i]);
            else
                for (uint32_t j = 0; j < i; j++)
                    score[g] = fmax(score[g], k[i] + k[j]);
    }
    for (uint32_t g = 0; g < groups; g++)
        if (groups == 1 || ahead_of(score, groups, g, ambiguous) < op->top_groups)
            for (uint32_t i = g * size; i < (g + 1) * size; i++) {
                id[left] = i;
                key[left++] = key[i];
            }
    return left;
}

/* Sparsemixer: p of those that are chosen, and the keys by which they are. */
static void define_mix(const cf_op_route *op, const float *logits, double *p, double *key,
                       bool *ambiguous)
{
    for (uint32_t i = 0; i < op->n; i++)
        key[i] = isnan(logits[i]) ? -INFINITY : (double)logits[i];
    for (uint32_t i = 0; i < op->n; i++) {
        double sum = 0, m = key[i];
        for (uint32_t j = 0; j < op->n && m > -INFINITY; j++) {
            bool left = key[j] < m || (j >= i && key[j] <= m);
            double far = m - key[j] - 2 * (double)op->jitter * fmax(fabs(key[j]), m);
            *ambiguous |= left && key[j] < m && fabs(far) < 1e-6;
            sum += left && far <= 0 ? exp(key[j] - m) : 0;
        }
        p[i] = sum > 0 ? 1 / sum : 0;
    }
}

static void define_route(const op_case *c, struct expect *e)
{
    const cf_op_route *op = &c->op.route;
    const float *bias = floats(c, &op->bias);
    static double p[CF_ROUTE_MAX_EXPERTS], key[CF_ROUTE_MAX_EXPERTS];
    static uint32_t id[CF_ROUTE_MAX_EXPERTS];
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t r = 0; r < op->n_rows; r++) {
        const float *logits = floats(c, &op->logits) + (uint64_t)r * op->n;
        if (op->score == CF_SCORE_SPARSEMIXER)
            define_mix(op, logits, p, key, &e->ambiguous);
        else
            define_scores(op, logits, bias, p, key);
        uint32_t rank[CF_ROUTE_MAX_K], chosen = 0, left = define_groups(op, key, id, &e->ambiguous);
        double total = 0;
        for (uint32_t i = 0; i < left; i++)
            if (ahead_of(key, left, i, &e->ambiguous) < op->k) {
                rank[chosen++] = id[i];
                total += p[id[i]];
            }
        for (uint32_t j = 0; j < op->k; j++) {
            uint64_t at = (uint64_t)r * op->k + j;
            double v = p[rank[j]] * (double)op->scale;
            if (op->renormalise)
                v = total > 0 ? v / total : 0;
            put(e, c, &op->ids, at, rank[j], 0);
            put(e, c, &op->host_ids, at, rank[j], 0);
            put(e, c, &op->weights, at, v, fabs(v));
            put(e, c, &op->host_weights, at, v, fabs(v));
        }
    }
}

/* weight * sum + bias */
static struct sum weighed(struct sum s, double weight, double bias)
{
    return (struct sum){weight * s.value + bias, fabs(weight) * s.mag + fabs(bias)};
}

static void define_expert_glu(const op_case *c, struct expect *e)
{
    const cf_op_expert_glu *op = &c->op.expert_glu;
    const uint32_t *pairs = uints(c, &op->pairs);
    const float *weights = floats(c, &op->weights);
    e->tolerance = TOLERANCE_EXP;
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *w = &c->experts[i];
        struct matrix gate = matrix_of(c, &w->gate), gate_bias = matrix_of(c, &w->gate_bias);
        struct matrix up = matrix_of(c, &w->up), up_bias = matrix_of(c, &w->up_bias);
        for (uint32_t p = w->pair_begin; p < w->pair_begin + w->pair_count; p++) {
            float *x = activations(floats(c, &op->x) + (uint64_t)(pairs[p] / op->k) * op->hidden,
                                   op->hidden, op->x_q8);
            for (uint32_t j = 0; j < op->ffn; j++) {
                double weight = weights ? (double)weights[pairs[p]] : 1;
                struct sum u = {1, 1}, g = weighed(matrix_dot(&gate, j, x), weight,
                                                   vector_at(&gate_bias, j, 0));
                if (up.values)
                    u = weighed(matrix_dot(&up, j, x), weight, vector_at(&up_bias, j, 0));
                struct sum s = activated(&op->act, g, u);
                put(e, c, &op->h, (uint64_t)p * op->ffn + j, s.value, s.mag);
            }
            free(x);
        }
        free(gate.values);
        free(gate_bias.values);
        free(up.values);
        free(up_bias.values);
    }
}

static void define_expert_down(const op_case *c, struct expect *e)
{
    const cf_op_expert_down *op = &c->op.expert_down;
    const uint32_t *pairs = uints(c, &op->pairs);
    const float *weights = floats(c, &op->weights), *h = floats(c, &op->h);
    for (uint32_t i = 0; i < op->n_experts; i++) {
        const cf_expert_work *w = &c->experts[i];
        struct matrix down = matrix_of(c, &w->down), bias = matrix_of(c, &w->down_bias);
        for (uint32_t p = w->pair_begin; p < w->pair_begin + w->pair_count; p++) {
            float *x = activations(h + (uint64_t)p * op->ffn, op->ffn, op->x_q8);
            for (uint32_t o = 0; o < op->hidden; o++) {
                struct sum s = weighed(matrix_dot(&down, o, x), 1, vector_at(&bias, o, 0));
                double weight = weights ? (double)weights[pairs[p]] : 1;
                s = weighed(s, weight, 0);
                put(e, c, &op->out, (uint64_t)pairs[p] * op->hidden + o, s.value, s.mag);
            }
            free(x);
        }
        free(down.values);
        free(bias.values);
    }
}

static void define_combine(const op_case *c, struct expect *e)
{
    const cf_op_combine *op = &c->op.combine;
    const uint32_t *ids = uints(c, &op->ids);
    const float *out = floats(c, &op->out), *weights = floats(c, &op->weights);
    const float *x = floats(c, &op->x);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->hidden; i++) {
            struct sum s = {0, 0};
            for (uint32_t j = 0; j < op->k; j++) {
                uint64_t pair = (uint64_t)r * op->k + j;
                double v = ids[pair] < op->n_routed
                               ? (double)out[pair * op->hidden + i]
                               : (double)weights[pair] * (double)x[(uint64_t)r * op->hidden + i];
                s.value += v;
                s.mag += fabs(v);
            }
            put(e, c, &op->y, (uint64_t)r * op->hidden + i, s.value, s.mag);
        }
}

static void define_get_rows(const op_case *c, struct expect *e)
{
    const cf_op_get_rows *op = &c->op.get_rows;
    double *table = decoded(c, &op->table.span, op->table.dtype);
    const uint32_t *ids = uints(c, &op->ids);
    for (uint32_t r = 0; r < op->n_rows; r++)
        for (uint32_t i = 0; i < op->table.cols; i++) {
            double v = (double)op->scale * table[(uint64_t)(ids ? ids[r] : r) * op->table.cols + i];
            put(e, c, &op->y, (uint64_t)r * op->y_stride + i, v, fabs(v));
        }
    free(table);
}

#include "tests/op_define_state.h"

static void (*const definitions[])(const op_case *, struct expect *) = {
#define DEFINITION_OF(name) define_##name,
    CF_GPU_OPS(DEFINITION_OF)
#undef DEFINITION_OF
};

/* ---- comparisons ---- */

static double element_value(const op_array *a, const uint8_t *data, uint64_t i)
{
    if (a->element == OP_U32)
        return ((const uint32_t *)(const void *)data)[i];
    if (a->element == OP_U16)
        return ((const uint16_t *)(const void *)data)[i];
    return stored_value(a->element == OP_F16 ? CF_F16 : CF_F32, data, i);
}

/* The first element that is off, in words; returns whether all are right. `ref`: results that
 * these are compared with as well, or NULL. */
static bool result_right(const op_case *c, const struct expect *e, const op_result *got,
                         const op_result *ref)
{
    for (int k = 0; k < c->n_arrays; k++) {
        const op_array *a = &c->arrays[k];
        if (a->role == OP_IN)
            continue;
        uint64_t size = element_size(a);
        for (uint64_t i = 0; i < array_count(a); i++) {
            if (!e->set[k][i]) {
                if (!memcmp(got->data[k] + i * size, a->data + i * size, size))
                    continue;
                printf("    %s: array %d, element %llu is written\n", c->name, k,
                       (unsigned long long)i);
                return false;
            }
            double v = element_value(a, got->data[k], i), want = e->want[k][i];
            double room = e->tolerance * e->mag[k][i] + 0x1p-140;
            double other = ref ? element_value(a, ref->data[k], i) : want;
            if (fabs(v - want) <= room && fabs(v - other) <= room)
                continue;
            printf("    %s: array %d, element %llu is %.9g, expected %.9g (ref %.9g) +- %.2g\n",
                   c->name, k, (unsigned long long)i, v, want, other, room);
            return false;
        }
    }
    return true;
}

static bool results_equal(const op_case *c, const op_result *a, const op_result *b)
{
    for (int i = 0; i < c->n_arrays; i++)
        if (a->data[i] && memcmp(a->data[i], b->data[i], c->arrays[i].bytes))
            return false;
    return true;
}

/* ---- devices ---- */

static cf_gpu *gpu, *judge; /* the device under test, and ref with one thread */
static int hazards;
static int unequal_repeats, unequal_splits, lacking; /* cases in formats that it lacks */

static void hazard_count(void *user, const char *sentence)
{
    (void)user;
    printf("    %s\n", sentence);
    hazards++;
}

static cf_gpu *device_open(const char *name, int threads)
{
    cf_err err = {0};
    cf_gpu *g = NULL;
    cf_gpu_options options = {.threads = threads, .check = true};
    if (cf_gpu_open(&g, name, &options, &err) < 0) {
        printf("    %s\n", err.msg);
        return NULL;
    }
    cf_gpu_on_hazard(g, hazard_count, NULL);
    return g;
}

static void case_check(const op_case *c, bool is_ref)
{
    cf_err err = {0};
    struct expect e;
    op_result got, again, split, ref;
    uint32_t rows = op_case_rows(c);
    expect_init(&e, c);
    definitions[c->kind](c, &e);
    CHECK(!e.ambiguous);
    CHECK_INT(op_case_run(c, judge, 0, &ref, &err), 0);
    CHECK_INT(op_case_run(c, gpu, 0, &got, &err), 0);
    CHECK_INT(op_case_run(c, gpu, 0, &again, &err), 0);
    CHECK_INT(rows > 1 ? op_case_run(c, gpu, rows / 2, &split, &err) : 0, 0);
    CHECK_STR(err.msg, "");
    if (!err.code) {
        CHECK(got.guards_intact);
        CHECK(result_right(c, &e, &got, is_ref ? NULL : &ref));
        bool same = results_equal(c, &got, &again);
        bool same_split = rows < 2 || results_equal(c, &got, &split);
        unequal_repeats += !same;
        unequal_splits += !same_split;
        if (is_ref) {
            CHECK(same);
            CHECK(same_split);
            CHECK(results_equal(c, &got, &ref)); /* one thread or three */
        }
        if (rows > 1)
            CHECK(split.guards_intact);
    }
    if (check_case_failed)
        printf("    in %s\n", c->name);
    op_result_free(&ref);
    op_result_free(&got);
    op_result_free(&again);
    if (rows > 1)
        op_result_free(&split);
    expect_finish(&e);
}

/* The same weight, one row after the other. */
static void weight_flatten(op_case *c, cf_weight *w)
{
    op_array *a = (op_array *)op_case_array(c, &w->span);
    uint64_t size = cf_format_row_bytes(w->dtype, 1), n = (uint64_t)w->rows * w->cols;
    uint8_t *flat = malloc(n * size);
    if (!flat)
        abort();
    for (uint64_t i = 0; i < n; i++)
        memcpy(flat + i * size, a->data + op_weight_index(w, i / w->cols, i % w->cols) * size,
               size);
    free(a->data);
    a->data = flat;
    a->bytes = n * size;
    *w = (cf_weight){.dtype = w->dtype, .rows = w->rows, .cols = w->cols};
}

/* A promise of ref: how a weight is stored does not change a bit of the result. */
static void ref_ignores_layouts(void)
{
    cf_err err = {0};
    int changed = 0;
    REQUIRE(judge);
    for (int i = 0; i < op_cases_count() && !check_case_failed; i++) {
        op_case *c = op_case_create(i);
        cf_weight *w = c->kind == OP_linear ? &c->op.linear.w : &c->experts[0].down;
        bool of_kind =
            c->kind == OP_linear || (c->kind == OP_expert_down && c->op.expert_down.n_experts == 1);
        of_kind = of_kind && w->dtype <= CF_BF16 && !w->scale_rows;
        if (of_kind && (w->transposed || w->row_first || w->row_step)) {
            op_result stored, flat;
            CHECK_INT(op_case_run(c, judge, 0, &stored, &err), 0);
            weight_flatten(c, w);
            CHECK_INT(op_case_run(c, judge, 0, &flat, &err), 0);
            CHECK(results_equal(c, &stored, &flat));
            op_result_free(&stored);
            op_result_free(&flat);
            changed++;
        }
        op_case_destroy(&c);
    }
    CHECK(changed > 50);
    CHECK_STR(err.msg, "");
}

/* A cell in 8 bits is what a file of Q8_0 would hold. */
static void cells_are_as_in_files(void)
{
    int same = 0;
    for (int i = 0; i < op_cases_count(); i++) {
        op_case *c = op_case_create(i);
        const cf_op_kv_store *op = &c->op.kv_store;
        for (uint32_t b = 0;
             c->kind == OP_kv_store && op->kv_dtype == CF_Q8_0 && b < op->n_rows * op->width / 32;
             b++) {
            uint32_t per_row = op->width / 32;
            const float *x = floats(c, &op->x) + b / per_row * op->x_stride + b % per_row * 32;
            unsigned word[17];
            uint8_t stored[34];
            float most = 0;
            define_q8(x, word);
            for (int j = 0; j < 32; j++)
                most = fmaxf(most, fabsf(x[j]));
            if ((most > 0 && most < 0x1p-100f) || cf_quantise_row(CF_Q8_0, x, 32, stored) >= 0)
                continue;
            for (int j = 0; j < 17; j++)
                CHECK_INT(stored[2 * j] | stored[2 * j + 1] << 8, word[j]);
            same++;
        }
        op_case_destroy(&c);
    }
    CHECK(same > 100);
}

/* What a GPU computes in another shape than a CPU device does: products, of few rows and of many, and
 * attention over spans. Formats of one value, of blocks and of outer scales stand for all. */
static bool kind_of_gpus(op_kind k)
{
    return k == OP_linear || k == OP_head_linear || k == OP_expert_glu || k == OP_expert_down ||
           k == OP_attn_latent || k == OP_attn || k == OP_attn_bias || k == OP_norm;
}

static bool case_of_gpus(const op_case *c)
{
    uint32_t rows = op_case_rows(c);
    switch (c->kind) {
    case OP_linear:
        return rows >= 9 || (rows == 2 && c->op.linear.w.dtype <= CF_F16);
    case OP_head_linear:
    case OP_norm:
        return rows == 17;
    case OP_expert_glu:
        return c->op.expert_glu.n_rows == 17;
    case OP_expert_down:
        return c->op.expert_down.n_rows == 17;
    default:
        return rows == 5;
    }
}

/* A guise has the kernels of another shape; formats that are decoded alike are one in it. */
static bool case_of_guises(const op_case *c)
{
    switch (op_case_format(c)) {
    case CF_F32:
    case CF_F16:
    case CF_BF16:
    case CF_Q8_0:
    case CF_Q4_K:
    case CF_IQ3_S:
    case CF_F8_E4M3:
        return true;
    default:
        return false;
    }
}

static void op_check(op_kind kind, bool is_ref)
{
    REQUIRE(gpu && judge);
    hazards = 0;
    int cases = 0;
    for (int i = 0; i < op_cases_count() && !check_case_failed; i++) {
        op_case *c = op_case_create(i);
        if ((vk_test_as_gpu && !case_of_gpus(c)) ||
            (ocl_test_guise != OCL_AS_IT_IS && !case_of_guises(c))) {
            /* the CPU's shapes tell as much */
        } else if (c->kind == kind && !op_case_supported(c, gpu)) {
            lacking++;
        } else if (c->kind == kind) {
            case_check(c, is_ref);
            cases++;
        }
        op_case_destroy(&c);
    }
    CHECK(cases > 0);
    CHECK_INT(hazards, 0);
    CHECK_INT(cf_gpu_validation_errors(gpu), 0);
}

/* Ops named on the command line; none: all. */
static bool wanted[OP_KINDS], any_wanted;

static bool op_wanted(op_kind k)
{
    return wanted[k] || !any_wanted;
}

static void device_check(const cf_gpu_info *info, const char *as)
{
    char device[32], line[96];
    bool is_ref = !strcmp(info->backend, "ref");
    snprintf(device, sizeof device, "%s:%d", info->backend, info->index);
    printf("  %s%s: %s\n", device, as, info->name);
    unequal_repeats = unequal_splits = lacking = 0;
    gpu = device_open(device, 3);
    for (int k = 0; k < OP_KINDS; k++) {
        if (!op_wanted((op_kind)k) || (vk_test_as_gpu && !kind_of_gpus((op_kind)k)))
            continue;
        snprintf(line, sizeof line, "%s%s_%s", device, as, op_kind_name((op_kind)k));
        RUN_NAMED(line, op_check((op_kind)k, is_ref));
    }
    printf("  %s%s: %d cases differ in bits when repeated, %d when their rows are split\n", device,
           as, unequal_repeats, unequal_splits);
    if (lacking)
        printf("  %s%s: %d cases are in formats that the device lacks\n", device, as, lacking);
    cf_gpu_close(&gpu);
}

/* The other shape of the OpenCL kernels, and the other models of memory, where no such GPU is. */
static void guises_check(const cf_gpu_info *info)
{
    if (!strcmp(info->backend, "vulkan") && info->cpu) {
        vk_test_as_gpu = true;
        device_check(info, " as GPU");
        vk_test_as_gpu = false;
    }
    if (strcmp(info->backend, "opencl") || !info->cpu)
        return;
    ocl_test_guise = OCL_AS_INTEGRATED_GPU;
    device_check(info, " as integrated GPU");
    ocl_test_guise = OCL_AS_DISCRETE_GPU;
    device_check(info, " as discrete GPU");
    ocl_test_guise = OCL_AS_IT_IS;
}

/* ---- the seam ---- */

static void opening_names_what_is_known(void)
{
    cf_gpu *g = NULL;
    cf_err err = {0};
    CHECK(cf_gpu_open(&g, "cuda", NULL, &err) < 0);
    CHECK_HAS(err.msg, "'cuda'");
    CHECK_HAS(err.msg, "auto");
    CHECK_HAS(err.msg, "ref");
    static const char *const bad[] = {"ref:1",           "ref:x", "ref:", "ref:-1",
                                      "ref:99999999999", "re",    "",     ":0"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err = (cf_err){0};
        CHECK(cf_gpu_open(&g, bad[i], NULL, &err) < 0);
        CHECK(err.msg[0] != '\0');
        CHECK(g == NULL);
    }
    err = (cf_err){0};
    CHECK_INT(cf_gpu_open(&g, "auto", NULL, &err), 0);
    cf_gpu_close(&g);
    CHECK(g == NULL);
    cf_gpu_close(&g);
    cf_gpu_info infos[16];
    char why[256];
    int n = cf_gpu_list(infos, 16, why, sizeof why);
    CHECK(n >= 1 && !strcmp(infos[n - 1].backend, "ref"));
}

static void buffers_are_charged_and_bounded(void)
{
    cf_err err = {0};
    cf_ledger *ledger = NULL;
    cf_gpu *g = NULL;
    cf_gpu_buf *a = NULL, *b = NULL;
    CHECK_INT(cf_ledger_create(&ledger, 100000, 0, &err), 0);
    cf_gpu_options options = {.threads = 1, .ledger = ledger};
    REQUIRE(cf_gpu_open(&g, "ref", &options, &err) == 0);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_UPLOAD, 60000, "first", &a, &err), 0);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 60000);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_DEVICE, 60000, "second", &b, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "second");
    CHECK(b == NULL);
    err = (cf_err){0};
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_DEVICE, UINT64_MAX / 2, "huge", &b, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "huge");
    err = (cf_err){0};
    static _Alignas(4096) uint8_t page[8192];
    CHECK(cf_gpu_buf_import(g, page + 512, 4096, "pages", &b, &err) < 0);
    CHECK_HAS(err.msg, "pages");
    CHECK(cf_gpu_buf_import(g, page, 1000, "pages", &b, &err) < 0);
    err = (cf_err){0};
    CHECK_INT(cf_gpu_buf_import(g, page, 8192, "pages", &b, &err), 0);
    CHECK(b->host == page);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 60000);
    cf_gpu_buf_destroy(&b);
    cf_gpu_buf_destroy(&a);
    cf_gpu_buf_destroy(&a);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE), 0);
    cf_gpu_close(&g);
    options.no_import = true;
    REQUIRE(cf_gpu_open(&g, "ref", &options, &err) == 0);
    CHECK(!cf_gpu_get_info(g)->imports);
    CHECK_INT(cf_gpu_buf_import(g, page, 8192, "pages", &b, &err), CF_EDEVICE);
    cf_gpu_close(&g);
    cf_ledger_destroy(&ledger);
}

/* What the host writes between recording and submit is what the work sees. */
static void work_sees_writes_until_submit(void)
{
    cf_err err = {0};
    cf_gpu_buf *up = NULL, *down = NULL;
    uint64_t value = 0;
    cf_gpu *g = device_open("auto", 2);
    REQUIRE(g);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_UPLOAD, 16, "up", &up, &err), 0);
    CHECK_INT(cf_gpu_buf_create(g, CF_BUF_READBACK, 16, "down", &down, &err), 0);
    memset(cf_gpu_host_write(cf_span_of(up)), 1, 16);
    cf_gpu_copy(g, CF_STREAM_TRANSFER, cf_span_of(down), cf_span_of(up));
    memset(cf_gpu_host_write(cf_span_of(up)), 2, 16);
    CHECK_INT(cf_gpu_submit(g, CF_STREAM_TRANSFER, NULL, 0, &value, &err), 0);
    CHECK_INT(cf_gpu_wait(g, (cf_gpu_point){CF_STREAM_TRANSFER, value}, &err), 0);
    CHECK(cf_gpu_reached(g, (cf_gpu_point){CF_STREAM_TRANSFER, value}));
    CHECK_INT(((const uint8_t *)cf_gpu_host_read(cf_span_of(down)))[15], 2);
    CHECK_INT(cf_gpu_submit(g, CF_STREAM_COMPUTE, NULL, 0, &value, &err), 0); /* empty */
    CHECK(value > 0);
    cf_gpu_buf_destroy(&up);
    cf_gpu_buf_destroy(&down);
    cf_gpu_close(&g);
}

static bool op_name(const char *name)
{
    for (int k = 0; k < OP_KINDS; k++)
        if (!strcmp(name, op_kind_name((op_kind)k)))
            return true;
    return false;
}

static void ops_want(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        for (int k = 0; k < OP_KINDS; k++)
            if (!strcmp(argv[i], op_kind_name((op_kind)k)))
                wanted[k] = any_wanted = true;
}

/* Arguments: the devices to look at ("vulkan:0" or "vulkan"), and the ops ("attn"); none: all. */
static bool device_wanted(const cf_gpu_info *info, int argc, char **argv)
{
    char device[32];
    bool any = false;
    snprintf(device, sizeof device, "%.15s:%d", info->backend, info->index);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], device) || !strcmp(argv[i], info->backend))
            return true;
        any = any || !op_name(argv[i]);
    }
    return !any;
}

int main(int argc, char **argv)
{
    cf_gpu_info infos[16];
    int n = cf_gpu_list(infos, 16, NULL, 0);
    ops_want(argc, argv);
    RUN(opening_names_what_is_known);
    RUN(buffers_are_charged_and_bounded);
    RUN(work_sees_writes_until_submit);
    judge = device_open("ref", 1);
    RUN(ref_ignores_layouts);
    RUN(cells_are_as_in_files);
    for (int i = n; i-- > 0;) { /* ref first */
        if (!device_wanted(&infos[i], argc, argv))
            continue;
        device_check(&infos[i], "");
        guises_check(&infos[i]);
    }
    cf_gpu_close(&judge);
    return check_done();
}
