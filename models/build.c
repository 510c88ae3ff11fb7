/* Binding tensors and emitting plans: see build.h. */
#include "models/build.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/slices.h"
#include "models/stored.h"

enum {
    MAX_NAME = 512,
    MAX_RECORDS = 1 << 16 /* twice those of the largest model there is; bounds what a config costs */
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

/* Formats that a weight may have without outer scales: F8_E4M3 and the pairs of 4 bits are nothing
 * alone. */
bool cf_build_can_bind(cf_format f)
{
    return cf_format_computable(f) && f != CF_F8_E4M3 && f != CF_F4_E2M1 && f != CF_I4;
}

/* A family's name for a tensor as the checkpoint has it. */
static void name_place(const cf_build *b, const char *text, char name[MAX_NAME])
{
    static const char model[] = "model.";
    size_t n = b->inner && strncmp(text, model, sizeof model - 1) == 0 ? sizeof model - 1 : 0;
    snprintf(name, MAX_NAME, "%s%.*s%s%s", b->prefix ? b->prefix : "", (int)n, text,
             n ? b->inner : "", text + n);
}

#define FORMAT_NAME(name, format)                                                                  \
    do {                                                                                           \
        char text[MAX_NAME];                                                                       \
        va_list args;                                                                              \
        va_start(args, format);                                                                    \
        vsnprintf(text, sizeof text, format, args);                                                \
        va_end(args);                                                                              \
        name_place(b, text, name);                                                                 \
    } while (0)

static int weight_add(cf_build *b, cf_wid *out, int flags, uint32_t first, uint32_t rows,
                      uint32_t total, uint32_t cols, const char *name, cf_err *err)
{
    cf_model *m = b->model;
    int rc = list_grow(&m->weights, m->n_weights, sizeof *m->weights, err);
    if (rc < 0)
        return rc;
    bool conv = flags & CF_BIND_CONV;
    uint64_t shape[3] = {total ? total : cols, conv ? 1 : cols, cols};
    uint32_t n_dims = conv ? 3 : total ? 2 : 1;
    cf_weight_def w = {.name = "", .dtype = CF_BF16, .rows = rows ? rows : 1, .cols = cols,
                       .must_be_finite = (flags & CF_BIND_FINITE) != 0};
    if (m->cat) {
        cf_stored s;
        if ((rc = cf_stored_bind(b, name, shape, n_dims, rows != total, &s, err)) < 0 ||
            (rc = cf_stored_part(b, &s, 0, first, w.rows, &w.extent, &w.scale_extent, err)) < 0)
            return rc;
        w.name = s.codes->name;
        w.dtype = s.dtype;
        w.scale = s.scale;
        if (conv && (cf_formats[w.dtype].block_values != 1 || w.scale.rows))
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s; known: F32 F16 BF16",
                           m->dir, name, cf_format_name(w.dtype));
    } else if ((rc = expected_add(b, name, flags, shape, n_dims, err)) < 0) {
        return rc;
    }
    *out = m->n_weights;
    m->weights[m->n_weights++] = w;
    return 0;
}

bool cf_bind_has(const cf_build *b, const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    return b->model->cat && cf_catalogue_find(b->model->cat, name) >= 0;
}

int cf_bind_values(cf_build *b, float *out, uint32_t n, cf_err *err, const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    uint64_t shape = n;
    cf_stored s;
    if (!b->model->cat)
        return expected_add(b, name, CF_BIND_F32, &shape, 1, err);
    int rc = cf_stored_bind(b, name, &shape, 1, false, &s, err);
    return rc < 0 ? rc : cf_stored_values(b->model->cat, s.codes, out, err);
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
        cf_stored s;
        if ((rc = cf_stored_bind(b, name, shape, 2, false, &s, err)) < 0)
            return rc;
        if (s.scales)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: tensor %s has outer scales; rows of tables are read without",
                           m->dir, s.codes->name);
        d.name = s.codes->name;
        d.dtype = s.dtype;
        d.extent = s.codes->extent;
    } else if ((rc = expected_add(b, name, 0, shape, 2, err)) < 0) {
        return rc;
    }
    m->tables[m->n_tables] = d;
    *out = &m->tables[m->n_tables++];
    return 0;
}

int cf_build_extents(cf_moe_def *d, uint32_t more, uint32_t *first, cf_err *err)
{
    uint32_t n = d->n_extents, all = n + more;
    cf_extent *grown = realloc(d->extents, (size_t)d->experts * all * sizeof *grown);
    if (!grown)
        return CF_FAIL(err, -ENOMEM, "out of memory for %u expert records", d->experts);
    d->extents = grown;
    for (uint32_t e = d->experts; e-- > 0;) {
        memmove(&grown[(size_t)e * all], &grown[(size_t)e * n], n * sizeof *grown);
        memset(&grown[(size_t)e * all + n], 0, more * sizeof *grown);
    }
    *first = n;
    d->n_extents = all;
    return 0;
}

/* One more extent for every record of a layer. */
static int extent_add(cf_moe_def *d, uint32_t *index, cf_err *err)
{
    uint32_t n = d->n_extents;
    if (n == CF_RECORD_EXTENTS)
        return CF_FAIL(err, -EINVAL, "a record of layer %u has more than %u extents", d->layer, n);
    return cf_build_extents(d, 1, index, err);
}

/* A piece as it is stored, in new extents. */
static int piece_add(cf_moe_def *d, const cf_stored *s, cf_piece_def *p, cf_err *err)
{
    *p = (cf_piece_def){.dtype = s->dtype, .rows = (uint32_t)s->rows, .cols = (uint32_t)s->cols,
                        .scale = s->scale};
    int rc = extent_add(d, &p->extent, err);
    if (rc == 0 && s->scales)
        rc = extent_add(d, &p->scale_extent, err);
    return rc;
}

/* Where rows [first, first + n) of the matrix lie is an expert's. */
static int piece_place(const cf_build *b, cf_moe_def *d, const cf_piece_def *p, const cf_stored *s,
                       uint32_t expert, uint64_t matrix, uint64_t first, uint64_t n, cf_err *err)
{
    cf_extent scales = {0}, *record = &d->extents[(size_t)expert * d->n_extents];
    if (d->slices.n)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s is whole, others of its layer's experts are in %u slices",
                       b->model->dir, s->codes->name, d->slices.n);
    int rc = cf_stored_part(b, s, matrix, first, n, &record[p->extent], &scales, err);
    if (p->scale.rows)
        record[p->scale_extent] = scales;
    return rc;
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
    cf_stored s;
    cf_piece_def *p = &d->pieces[piece];
    if (b->model->pack) { /* cf_pack_bind places it */
        *p = (cf_piece_def){.dtype = CF_BF16, .rows = rows, .cols = cols};
        return 0;
    }
    const cf_tensor *sliced = cf_slices_find(b, name);
    if (sliced)
        return cf_slices_bind(b, d, expert, p, rows, cols, sliced, err);
    int rc = cf_stored_bind(b, name, shape, 2, false, &s, err);
    if (rc == 0 && expert == 0)
        rc = piece_add(d, &s, p, err);
    if (rc < 0)
        return rc;
    if (p->dtype != s.dtype)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, expert 0 of its layer has %s",
                       b->model->dir, name, cf_format_name(s.dtype), cf_format_name(p->dtype));
    if (p->scale.rows != s.scale.rows)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has %s, unlike that of expert 0",
                       b->model->dir, name, s.scales ? "a scale" : "no scale");
    if (p->scale.format != s.scale.format)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: the scales of tensor %s have dtype %s, those of expert 0 have %s",
                       b->model->dir, name, cf_format_name(s.scale.format),
                       cf_format_name(p->scale.format));
    return piece_place(b, d, p, &s, expert, 0, 0, rows, err);
}

int cf_bind_fused(cf_build *b, uint32_t moe, const cf_fused *part, cf_piece_def *out, cf_err *err,
                  const char *name_format, ...)
{
    char name[MAX_NAME];
    FORMAT_NAME(name, name_format);
    cf_moe_def *d = &b->model->moe[moe];
    uint64_t cube[3] = {d->experts, part->rows, part->cols};
    uint64_t flat[2] = {(uint64_t)d->experts * part->rows, part->cols};
    const uint64_t *shape = part->flat ? flat : cube;
    uint32_t n_dims = part->flat ? 2 : 3;
    *out = (cf_piece_def){.dtype = CF_BF16, .rows = part->n, .cols = part->cols};
    if (!b->model->cat)
        return expected_add(b, name, 0, shape, n_dims, err);
    if (b->model->pack)
        return 0; /* cf_pack_bind places what lies in it */
    cf_stored s;
    int rc = cf_stored_bind(b, name, shape, n_dims, part->n != part->rows, &s, err);
    if (rc < 0)
        return rc;
    if (part->transposed && (cf_formats[s.dtype].block_values != 1 || s.scales))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s has dtype %s, whose blocks or scales do not follow its "
                       "columns: such matrices are read as F32, F16 or BF16",
                       b->model->dir, name, cf_format_name(s.dtype));
    rc = piece_add(d, &s, out, err);
    for (uint32_t e = 0; e < d->experts && rc == 0; e++) {
        uint64_t row = part->flat ? (uint64_t)e * part->rows : 0;
        rc = piece_place(b, d, out, &s, e, part->flat ? 0 : e, row + part->first, part->n, err);
    }
    out->rows = part->n;
    return rc;
}

bool cf_bind_in_blocks(const cf_build *b, const char *name)
{
    char full[MAX_NAME];
    name_place(b, name, full);
    return b->model->cat && cf_stored_in_blocks(b, full);
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
        size_t prefix = b->prefix ? strlen(b->prefix) : 0;
        bool inside = prefix && strncmp(t->name, b->prefix, prefix) == 0;
        if (b->bound[i] || !match(b, t->name + (inside ? prefix : 0)))
            continue;
        const cf_extent *parts;
        uint32_t n_parts = cf_tensor_extents(t, &parts);
        b->bound[i] = 1;
        m->n_skipped++;
        for (uint32_t k = 0; k < n_parts; k++)
            m->skipped_bytes += parts[k].bytes;
    }
    if (m->n_skipped > before) {
        size_t n = strlen(m->skipped_what);
        snprintf(m->skipped_what + n, sizeof m->skipped_what - n, "%s%s", n ? ", " : "", what);
    }
}

static bool is_vision(const cf_build *b, const char *name)
{
    static const char *const towers[] = {"vision_tower.", "vision_model.", "model.visual.",
                                         "mm_projector.", "multi_modal_projector."};
    (void)b;
    for (size_t i = 0; i < sizeof towers / sizeof *towers; i++)
        if (strncmp(name, towers[i], strlen(towers[i])) == 0)
            return true;
    return false;
}

static int text_build(cf_build *b, const char *prefix, const char *inner,
                      int (*build)(cf_build *b, cf_err *err), cf_err *err)
{
    const json_t *top = b->config, *text = json_object_get(top, "text_config");
    if (!json_is_object(text))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"text_config\" is not an object", b->path);
    b->config = text;
    b->prefix = prefix;
    b->inner = inner;
    int rc = cf_quant_read(b, err);
    if (rc == 0)
        rc = build(b, err);
    b->config = top;
    b->prefix = b->inner = NULL;
    if (rc == 0)
        cf_skip_tensors(b, is_vision, "vision tower");
    return rc;
}

int cf_build_wrapped(cf_build *b, int (*build)(cf_build *b, cf_err *err), cf_err *err)
{
    return text_build(b, "language_model.", NULL, build, err);
}

int cf_build_inside(cf_build *b, int (*build)(cf_build *b, cf_err *err), cf_err *err)
{
    return text_build(b, NULL, "language_model.", build, err);
}

int cf_build_moe(cf_build *b, uint32_t layer, uint32_t experts, uint32_t zero_experts,
                 uint32_t top_k, uint32_t hidden, uint32_t ffn, uint32_t *index, cf_err *err)
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
                    .top_k = top_k, .hidden = hidden, .ffn = ffn};
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

int cf_build_state(cf_build *b, uint32_t rows, uint32_t width, uint32_t *out, cf_err *err)
{
    cf_model *m = b->model;
    int rc = list_grow(&m->states, m->n_states, sizeof *m->states, err);
    if (rc < 0)
        return rc;
    *out = m->n_states;
    m->states[m->n_states++] = (cf_state_def){.rows = rows, .width = width};
    return 0;
}

int cf_build_constants(cf_build *b, const void *words, uint32_t n, uint32_t *out, cf_err *err)
{
    cf_model *m = b->model;
    *out = m->n_constants;
    for (uint32_t i = 0; i < n; i++) {
        int rc = list_grow(&m->constants, m->n_constants, sizeof *m->constants, err);
        if (rc < 0)
            return rc;
        memcpy(&m->constants[m->n_constants++], (const uint8_t *)words + 4 * (size_t)i, 4);
    }
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
