/* Binding tensors and emitting plans: see build.h. */
#include "models/build.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_NAME = 512,
    MAX_RECORDS = 1 << 17 /* several times the largest model there is; bounds what a config costs */
};

/* Grows `*list` to hold n + 1 elements, doubling at powers of two. */
static int list_grow(void *list, uint64_t n, size_t element_bytes, cf_err *err)
{
    if (n && (n & (n - 1)))
        return 0;
    void **p = list;
    void *grown = realloc(*p, (n ? 2 * n : 1) * element_bytes);
    if (!grown)
        return CF_FAIL(err, -ENOMEM, "out of memory for %llu model entries", (unsigned long long)n);
    *p = grown;
    return 0;
}

/* Lists a tensor once, however many parts of it are bound. */
static int expected_add(cf_build *b, const char *name, int flags, const uint64_t *shape,
                        uint32_t n_dims, cf_err *err)
{
    if (b->n_expected && strcmp(b->expected[b->n_expected - 1].name, name) == 0)
        return 0;
    int rc = list_grow(&b->expected, b->n_expected, sizeof *b->expected, err);
    if (rc < 0)
        return rc;
    char *copy = strdup(name);
    if (!copy)
        return CF_FAIL(err, -ENOMEM, "out of memory for a tensor name");
    cf_expected *e = &b->expected[b->n_expected++];
    *e = (cf_expected){.name = copy,
                       .n_dims = n_dims,
                       .f32 = (flags & CF_BIND_F32) != 0,
                       .norm = (flags & CF_BIND_NORM) != 0,
                       .bias = (flags & CF_BIND_BIAS) != 0};
    memcpy(e->shape, shape, n_dims * sizeof *shape);
    return 0;
}

/* Formats that a weight may have. F8_E4M3 and the pairs of 4 bits come with scales in a tensor of
 * their own, which no plan applies. */
static bool format_bindable(cf_format f)
{
    return cf_format_computable(f) && f != CF_F8_E4M3 && f != CF_F4_E2M1 && f != CF_I4;
}

static void shape_text(char *out, size_t size, const uint64_t *shape, uint32_t n)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (uint32_t i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%llu", i ? ", " : "",
                               (unsigned long long)shape[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}

/* Finds a tensor, checks dtype and shape, marks it bound. `again`: parts of it may be bound before. */
static int tensor_bind(cf_build *b, const char *name, const uint64_t *shape, uint32_t n_dims,
                       bool again, const cf_tensor **out, cf_format *dtype, cf_err *err)
{
    int64_t at = cf_catalogue_find(b->model->cat, name);
    if (at < 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is missing", b->model->dir, name);
    const cf_tensor *t = cf_catalogue_at(b->model->cat, (uint32_t)at);
    if (b->bound[at] && !again)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has two roles", b->model->dir, name);
    if (!format_bindable(t->format))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s; known: F32 F16 BF16 and GGUF's block formats",
                       b->model->dir, name, cf_format_name(t->format));
    if (t->n_dims != n_dims || memcmp(t->shape, shape, n_dims * sizeof *shape) != 0) {
        char have[128], want[128];
        shape_text(want, sizeof want, shape, n_dims);
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has shape %s, the config implies %s",
                       b->model->dir, name, cf_tensor_shape_text(t, have, sizeof have), want);
    }
    b->bound[at] = 1;
    *out = t;
    *dtype = t->format;
    return 0;
}

#define FORMAT_NAME(name, format)                                                                  \
    do {                                                                                           \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        vsnprintf(name, sizeof name, format, args);                                                \
        va_end(args);                                                                              \
    } while (0)

static int weight_add(cf_build *b, cf_wid *out, int flags, uint32_t first, uint32_t rows,
                      uint32_t total, uint32_t cols, const char *name, cf_err *err)
{
    cf_model *m = b->model;
    int rc = list_grow(&m->weights, m->n_weights, sizeof *m->weights, err);
    if (rc < 0)
        return rc;
    uint64_t shape[2] = {total ? total : cols, cols};
    uint32_t n_dims = total ? 2 : 1;
    cf_weight_def w = {.name = "", .dtype = CF_BF16, .rows = rows ? rows : 1, .cols = cols,
                       .must_be_finite = (flags & CF_BIND_FINITE) != 0};
    if (m->cat) {
        const cf_tensor *t;
        bool part = rows != total;
        if ((rc = tensor_bind(b, name, shape, n_dims, part, &t, &w.dtype, err)) < 0)
            return rc;
        uint64_t row_bytes = cf_format_row_bytes(w.dtype, cols);
        w.name = t->name;
        w.extent = (cf_extent){t->extent.file, t->extent.off + first * row_bytes,
                               w.rows * row_bytes};
    } else if ((rc = expected_add(b, name, flags, shape, n_dims, err)) < 0) {
        return rc;
    }
    *out = m->n_weights;
    m->weights[m->n_weights++] = w;
    return 0;
}

int cf_bind_weight(cf_build *b, cf_wid *out, int flags, uint32_t rows, uint32_t cols, cf_err *err,
                   const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    return weight_add(b, out, flags, 0, rows, rows, cols, name, err);
}

int cf_bind_rows(cf_build *b, cf_wid *out, int flags, uint32_t first, uint32_t rows, uint32_t total,
                 uint32_t cols, cf_err *err, const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    return weight_add(b, out, flags, first, rows, total, cols, name, err);
}

int cf_bind_table(cf_build *b, cf_table_def **out, uint64_t rows, uint32_t cols, cf_err *err,
                  const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    cf_model *m = b->model;
    int rc = list_grow(&m->tables, m->n_tables, sizeof *m->tables, err);
    if (rc < 0)
        return rc;
    uint64_t shape[2] = {rows, cols};
    cf_table_def d = {.name = "", .dtype = CF_BF16, .rows = rows, .cols = cols, .stop = -1};
    if (m->cat) {
        const cf_tensor *t;
        if ((rc = tensor_bind(b, name, shape, 2, false, &t, &d.dtype, err)) < 0)
            return rc;
        d.name = t->name;
        d.extent = t->extent;
    } else if ((rc = expected_add(b, name, 0, shape, 2, err)) < 0) {
        return rc;
    }
    m->tables[m->n_tables] = d;
    *out = &m->tables[m->n_tables++];
    return 0;
}

int cf_bind_piece(cf_build *b, uint32_t moe, uint32_t expert, uint32_t piece, uint32_t rows,
                  uint32_t cols, cf_err *err, const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    cf_moe_def *d = &b->model->moe[moe];
    uint64_t shape[2] = {rows, cols};
    if (!b->model->cat)
        return expected_add(b, name, 0, shape, 2, err);
    const cf_tensor *t;
    cf_format dtype;
    int rc = tensor_bind(b, name, shape, 2, false, &t, &dtype, err);
    if (rc < 0)
        return rc;
    cf_piece_def *p = &d->pieces[piece];
    if (expert == 0)
        *p = (cf_piece_def){.dtype = dtype, .rows = rows, .cols = cols, .extent = piece};
    if (p->dtype != dtype)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, expert 0 of its layer has %s",
                       b->model->dir, name, cf_format_name(dtype), cf_format_name(p->dtype));
    d->extents[(uint64_t)expert * d->n_extents + piece] = t->extent;
    return 0;
}

int cf_bind_fused(cf_build *b, uint32_t moe, uint32_t extent, const cf_fused *part,
                  cf_format *dtype, cf_err *err, const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    cf_moe_def *d = &b->model->moe[moe];
    uint64_t cube[3] = {d->experts, part->rows, part->cols};
    uint64_t flat[2] = {(uint64_t)d->experts * part->rows, part->cols};
    const uint64_t *shape = part->flat ? flat : cube;
    uint32_t n_dims = part->flat ? 2 : 3;
    *dtype = CF_BF16;
    if (!b->model->cat)
        return expected_add(b, name, 0, shape, n_dims, err);
    const cf_tensor *t;
    int rc = tensor_bind(b, name, shape, n_dims, part->n != part->rows, &t, dtype, err);
    if (rc < 0)
        return rc;
    if (part->transposed && cf_formats[*dtype].block_values != 1)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s, whose blocks do not follow its columns: such "
                       "matrices are read as F32, F16 or BF16",
                       b->model->dir, name, cf_format_name(*dtype));
    uint64_t row_bytes = cf_format_row_bytes(*dtype, part->cols);
    for (uint32_t e = 0; e < d->experts; e++)
        d->extents[(uint64_t)e * d->n_extents + extent] =
            (cf_extent){t->extent.file,
                        t->extent.off + ((uint64_t)e * part->rows + part->first) * row_bytes,
                        part->n * row_bytes};
    return 0;
}

void cf_skip_tensors(cf_build *b, bool (*match)(const cf_build *b, const char *name),
                     const char *what)
{
    cf_model *m = b->model;
    if (!m->cat)
        return;
    uint32_t before = m->n_skipped;
    for (uint32_t i = 0; i < cf_catalogue_count(m->cat); i++) {
        const cf_tensor *t = cf_catalogue_at(m->cat, i);
        if (b->bound[i] || !match(b, t->name))
            continue;
        b->bound[i] = 1;
        m->n_skipped++;
        m->skipped_bytes += t->extent.bytes;
    }
    if (m->n_skipped > before) {
        size_t n = strlen(m->skipped_what);
        snprintf(m->skipped_what + n, sizeof m->skipped_what - n, "%s%s", n ? ", " : "", what);
    }
}

int cf_build_moe(cf_build *b, uint32_t layer, uint32_t experts, uint32_t zero_experts,
                 uint32_t top_k, uint32_t hidden, uint32_t ffn, uint32_t n_extents, uint32_t *index,
                 cf_err *err)
{
    cf_model *m = b->model;
    uint64_t records = experts;
    for (uint32_t i = 0; i < m->n_moe; i++)
        records += m->moe[i].experts;
    if (records > MAX_RECORDS)
        return CF_FAIL(err, CF_ELIMIT,
                       "%s: %llu expert records up to layer %u, at most %d are allowed", b->path,
                       (unsigned long long)records, layer, (int)MAX_RECORDS);
    int rc = list_grow(&m->moe, m->n_moe, sizeof *m->moe, err);
    if (rc < 0)
        return rc;
    cf_moe_def d = {.layer = layer, .experts = experts, .zero_experts = zero_experts,
                    .top_k = top_k, .hidden = hidden, .ffn = ffn, .n_extents = n_extents};
    d.extents = calloc((size_t)experts * n_extents, sizeof *d.extents);
    if (!d.extents)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u expert records", experts);
    *index = m->n_moe;
    m->moe[m->n_moe++] = d;
    return 0;
}

int cf_build_buf(cf_build *b, const char *name, uint32_t width, cf_bufid *out, cf_err *err)
{
    cf_model *m = b->model;
    int rc = list_grow(&m->bufs, m->n_bufs, sizeof *m->bufs, err);
    if (rc < 0)
        return rc;
    m->bufs[m->n_bufs] = (cf_buf_def){.name = name, .width = width};
    *out = (cf_bufid)m->n_bufs++;
    return 0;
}

static void step_defaults(cf_step *s)
{
    switch (s->kind) {
    case CF_STEP_EMBED:
        s->u.embed.resident = CF_NO_WEIGHT;
        s->u.embed.scale = 1;
        break;
    case CF_STEP_LINEAR:
        s->u.linear.scale = 1;
        break;
    case CF_STEP_NORM:
        s->u.norm.bias = CF_NO_WEIGHT;
        break;
    case CF_STEP_ROUTE:
        s->u.route.bias = s->u.route.logit_bias = CF_NO_WEIGHT;
        break;
    case CF_STEP_ADD:
        s->u.add.scale = 1;
        break;
    case CF_STEP_HEAD:
        s->u.head.bias = CF_NO_WEIGHT;
        s->u.head.scale = 1;
        break;
    default:
        break;
    }
}

int cf_build_step(cf_build *b, cf_step_kind kind, uint32_t layer, cf_bufid src, cf_bufid dst,
                  cf_step **out, cf_err *err)
{
    cf_model *m = b->model;
    int rc = list_grow(&m->steps, m->n_steps, sizeof *m->steps, err);
    if (rc < 0)
        return rc;
    m->steps[m->n_steps] = (cf_step){.kind = kind, .layer = layer, .src = src, .dst = dst};
    *out = &m->steps[m->n_steps++];
    step_defaults(*out);
    return 0;
}
