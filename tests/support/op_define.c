/* See op_define.h, and op_define_parts.h for what the definitions share. */
#include "tests/support/op_define.h"

#include <stdio.h>

#include "tests/support/op_define_parts.h"

/* ---- expectations ---- */

static uint64_t element_size(const op_array *a)
{
    return a->element >= OP_F16 ? 2 : 4;
}

static uint64_t array_count(const op_array *a)
{
    return a->bytes / element_size(a);
}

static void expect_alloc(op_expect *e, const op_case *c)
{
    *e = (op_expect){.tolerance = TOLERANCE_SUM};
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

void op_expect_finish(op_expect *e)
{
    for (int i = 0; i < OP_MAX_ARRAYS; i++) {
        free(e->want[i]);
        free(e->mag[i]);
        free(e->set[i]);
    }
}

void def_put(op_expect *e, const op_case *c, const cf_span *field, uint64_t at, double want,
             double mag)
{
    int i = (int)(op_case_array(c, field) - c->arrays);
    e->want[i][at] = want;
    e->mag[i][at] = mag;
    e->set[i][at] = true;
}

/* ---- inputs ---- */

const float *def_floats(const op_case *c, const cf_span *field)
{
    const op_array *a = op_case_array(c, field);
    return a ? (const float *)(const void *)a->data : NULL;
}

const uint32_t *def_uints(const op_case *c, const cf_span *field)
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

double *def_decoded(const op_case *c, const cf_span *field, cf_format t)
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

struct sum def_dot(const double *w, const float *x, uint64_t n)
{
    struct sum s = {0, 0};
    for (uint64_t i = 0; i < n; i++) {
        s.value += w[i] * (double)x[i];
        s.mag += fabs(w[i] * (double)x[i]);
    }
    return s;
}

struct matrix def_matrix(const op_case *c, const cf_weight *w)
{
    if (!op_case_array(c, &w->span))
        return (struct matrix){w, NULL};
    struct matrix m = {w, def_decoded(c, &w->span, w->dtype)};
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

float *def_activations(const float *x, uint32_t n, bool q8)
{
    float *v = malloc(n * sizeof *v);
    if (!v)
        abort();
    for (uint32_t i = 0; i < n; i++) {
        uint32_t begin = i / CF_Q8_GROUP * CF_Q8_GROUP, end = begin + CF_Q8_GROUP;
        float most = 0;
        for (uint32_t j = begin; j < end && j < n; j++)
            most = fmaxf(most, fabsf(x[j]));
        float d = most < 0x1p-100f ? 0 : most / 127;
        v[i] = !q8 ? x[i] : d > 0 ? d * roundf(x[i] * (1 / d)) : 0;
    }
    return v;
}

struct sum def_matrix_dot(const struct matrix *m, uint64_t o, const float *x)
{
    struct sum s = {0, 0};
    for (uint32_t k = 0; k < m->w->cols; k++) {
        double v = m->values[op_weight_index(m->w, o, k)] * (double)x[k];
        s.value += v;
        s.mag += fabs(v);
    }
    return s;
}

double def_vector_at(const struct matrix *m, uint64_t i, double none)
{
    return m->values ? m->values[op_weight_index(m->w, 0, i)] : none;
}

/* ---- the definitions ---- */

static void (*const definitions[])(const op_case *, op_expect *) = {
#define DEFINITION_OF(name) define_##name,
    CF_GPU_OPS(DEFINITION_OF)
#undef DEFINITION_OF
};

void op_expect_init(op_expect *e, const op_case *c)
{
    expect_alloc(e, c);
    definitions[c->kind](c, e);
}

/* ---- comparisons ---- */

static double element_value(const op_array *a, const uint8_t *data, uint64_t i)
{
    if (a->element == OP_U32)
        return ((const uint32_t *)(const void *)data)[i];
    if (a->element == OP_U16)
        return ((const uint16_t *)(const void *)data)[i];
    return stored_value(a->element == OP_F16 ? CF_F16 : CF_F32, data, i);
}

bool op_expect_holds(const op_case *c, const op_expect *e, const op_result *got,
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

bool op_results_equal(const op_case *c, const op_result *a, const op_result *b)
{
    for (int i = 0; i < c->n_arrays; i++)
        if (a->data[i] && memcmp(a->data[i], b->data[i], c->arrays[i].bytes))
            return false;
    return true;
}
