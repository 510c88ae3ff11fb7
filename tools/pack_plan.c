/* What goes into a pack: see pack_plan.h. */
#include "tools/pack_plan.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/build.h"
#include "runtime/base/align.h"
#include "runtime/model_file.h"
#include "runtime/quantise.h"
#include "tools/pack_source.h"

enum { MAX_SIDE_FILE_BYTES = 64 << 20 };

const char cf_pack_types[] = "keep q8_0 q6_k q5_k q4_k q4_0 iq4_nl mxfp4 bf16 f16";

bool cf_pack_type_parse(const char *text, cf_pack_type *out)
{
    static const struct {
        const char *name;
        cf_pack_type type;
    } list[] = {{"keep", {.keep = true}},          {"q8_0", {.format = CF_Q8_0}},
                {"q6_k", {.format = CF_Q6_K}},     {"q5_k", {.format = CF_Q5_K}},
                {"q4_k", {.format = CF_Q4_K}},     {"q4_0", {.format = CF_Q4_0}},
                {"iq4_nl", {.format = CF_IQ4_NL}}, {"mxfp4", {.format = CF_MXFP4}},
                {"bf16", {.format = CF_BF16}},     {"f16", {.format = CF_F16}}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (strcmp(list[i].name, text) == 0) {
            *out = list[i].type;
            return true;
        }
    return false;
}

/* ---- formats ---- */

/* For rows that are no multiple of 256 a format of as many bits with blocks of 32, for those that
 * are no multiple of 32 F16. */
static cf_format format_fitting(cf_format f, uint64_t cols)
{
    if (cols % cf_formats[f].block_values == 0)
        return f;
    cf_format small = f == CF_Q6_K ? CF_Q8_0 : f == CF_Q5_K ? CF_Q5_1 : f == CF_Q4_K ? CF_Q5_0 : f;
    return cols % cf_formats[small].block_values == 0 ? small : CF_F16;
}

/* n matrices, each as `from` says. */
static cf_format format_choose(cf_pack_plan *p, cf_pack_type type, const cf_piece_def *from,
                               uint64_t n, const char *name)
{
    uint64_t cols = from->cols;
    if (type.keep && !from->scale.rows)
        return from->dtype;
    if (type.keep && cf_pack_repacks(from, CF_MXFP4))
        return CF_MXFP4;
    if (type.keep) {
        p->n_scaled += n;
        return CF_F32;
    }
    cf_format f = format_fitting(type.format, cols);
    if (f != type.format && p->n_fallbacks++ == 0)
        snprintf(p->fallback, sizeof p->fallback, "%s has rows of %llu values: %s", name,
                 (unsigned long long)cols, cf_format_name(f));
    return f;
}

/* ---- tensors ---- */

/* How a tensor is used: 0 not at all. */
enum { USE_MATRIX = 1, USE_F32 = 2, USE_TABLE = 4 };

typedef struct usage {
    int how;
    const cf_weight_def *weight; /* one of those that lie in it; NULL: a table */
} usage;

static int use_mark(const cf_model *m, usage *use, const char *name, int how,
                    const cf_weight_def *weight, cf_err *err)
{
    int64_t at = cf_catalogue_find(m->cat, name);
    if (at < 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: %s is no tensor of its own and cannot be packed",
                       cf_model_path(m), name);
    use[at].how |= how;
    use[at].weight = weight;
    return 0;
}

static int weight_mark(const cf_model *m, usage *use, cf_wid w, int how, cf_err *err)
{
    return w == CF_NO_WEIGHT ? 0 : use_mark(m, use, m->weights[w].name, how, &m->weights[w], err);
}

static int uses_find(const cf_model *m, usage *use, cf_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        const cf_weight_def *w = &m->weights[i];
        CF_TRY(
            weight_mark(m, use, i, w->rows == 1 || w->must_be_finite ? USE_F32 : USE_MATRIX, err));
    }
    for (uint32_t i = 0; i < m->n_tables; i++)
        CF_TRY(use_mark(m, use, m->tables[i].name, USE_TABLE, NULL, err));
    for (const cf_step *s = m->steps; s < m->steps + m->n_steps; s++) {
        if (s->kind != CF_STEP_ROUTE)
            continue;
        CF_TRY(weight_mark(m, use, s->u.route.classifier, USE_F32, err));
        CF_TRY(weight_mark(m, use, s->u.route.bias, USE_F32, err));
        CF_TRY(weight_mark(m, use, s->u.route.logit_bias, USE_F32, err));
    }
fail:
    return rc;
}

/* The tensor that a part of a file belongs to. */
static const cf_tensor *tensor_around(const cf_catalogue *cat, const cf_extent *part)
{
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        if (t->extent.file == part->file && t->extent.off <= part->off &&
            part->off + part->bytes <= t->extent.off + t->extent.bytes)
            return t;
    }
    return NULL;
}

/* A matrix in two tensors: its codes go by another name and shape than it has. */
static int scaled_describe(const cf_model *m, const cf_weight_def *w, cf_pack_tensor *out,
                           cf_err *err)
{
    static const char *const ends[] = {"_packed", "_blocks"};
    out->scales = tensor_around(m->cat, &w->scale_extent);
    if (!out->scales)
        return CF_FAIL(err, CF_EFORMAT, "%s: the scales of %s are no tensor of their own",
                       cf_model_path(m), w->name);
    out->def.dtype = w->dtype;
    out->def.scale = w->scale;
    out->def.cols = w->cols;
    out->n_dims = 2;
    out->shape[0] = out->from->extent.bytes / cf_format_row_bytes(w->dtype, w->cols);
    out->shape[1] = w->cols;
    size_t n = strlen(out->name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t k = strlen(ends[i]);
        if (n > k && strcmp(out->name + n - k, ends[i]) == 0)
            out->name[n - k] = 0;
    }
    return 0;
}

uint64_t cf_pack_tensor_source_bytes(const cf_pack_tensor *t)
{
    return t->from->extent.bytes + (t->scales ? t->scales->extent.bytes : 0);
}

static int tensor_plan(cf_pack_plan *p, const cf_tensor *t, const usage *use, cf_err *err)
{
    cf_pack_tensor *out = &p->tensors[p->n_tensors++];
    *out = (cf_pack_tensor){.from = t, .rows = 1, .n_dims = t->n_dims, .name = strdup(t->name)};
    if (!out->name)
        return CF_FAIL(err, -ENOMEM, "out of memory for a tensor's name");
    memcpy(out->shape, t->shape, sizeof out->shape);
    out->def = (cf_piece_def){.dtype = t->format, .cols = (uint32_t)t->shape[t->n_dims - 1]};
    if (use->weight && use->weight->scale.rows) {
        int rc = scaled_describe(p->model, use->weight, out, err);
        if (rc < 0)
            return rc;
    }
    out->cols = out->def.cols;
    for (uint32_t i = 0; i + 1 < out->n_dims; i++)
        out->rows *= out->shape[i];
    out->table = (use->how & USE_TABLE) != 0;
    out->format = out->n_dims == 1 || (use->how & USE_F32)
                      ? CF_F32
                      : format_choose(p, p->options.resident, &out->def, 1, out->name);
    out->bytes = out->rows * cf_format_row_bytes(out->format, out->cols);
    p->source_bytes += cf_pack_tensor_source_bytes(out);
    p->out_bytes += cf_align_up(out->bytes, CF_PACK_ALIGN);
    p->n_sums += cf_ceil_div(out->bytes, CF_SUM_PAGE);
    return 0;
}

static int tensors_plan(cf_pack_plan *p, cf_err *err)
{
    const cf_model *m = p->model;
    uint32_t n = cf_catalogue_count(m->cat);
    usage *use = calloc(n + 1u, sizeof *use);
    p->tensors = calloc(n + 1u, sizeof *p->tensors);
    int rc = use && p->tensors ? uses_find(m, use, err)
                               : CF_FAIL(err, -ENOMEM, "out of memory for %u tensors", n);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if (use[i].how)
            rc = tensor_plan(p, cf_catalogue_at(m->cat, i), &use[i], err);
    free(use);
    return rc;
}

/* ---- records ---- */

const cf_piece_def *cf_pack_piece(const cf_moe_def *moe, uint32_t p)
{
    const cf_piece_def *d =
        p < CF_EXPERT_PIECES ? &moe->pieces[p] : &moe->biases[p - CF_EXPERT_PIECES];
    return d->cols ? d : NULL;
}

/* Matrices in the type that was asked for, biases in F32. */
static int records_plan(cf_pack_plan *p, const cf_moe_def *moe, cf_pack_records *out, cf_err *err)
{
    static const char *const names[CF_EXPERT_PIECES] = {"gate", "up", "down"};
    uint64_t align = p->options.zstd ? CF_PACK_PIECE_ALIGN : CF_PACK_ALIGN;
    uint32_t n = 0;
    *out = (cf_pack_records){.moe = moe};
    for (uint32_t i = 0; i < CF_PACK_PIECES; i++) {
        const cf_piece_def *d = cf_pack_piece(moe, i);
        char name[64];
        if (!d)
            continue;
        snprintf(name, sizeof name, "the %s of layer %u's experts", names[i % CF_EXPERT_PIECES],
                 moe->layer);
        out->formats[i] = i >= CF_EXPERT_PIECES
                              ? CF_F32
                              : format_choose(p, p->options.experts, d, moe->experts, name);
        out->offs[i] = out->image_bytes;
        out->bytes[i] = d->rows * cf_format_row_bytes(out->formats[i], d->cols);
        out->image_bytes = cf_align_up(out->image_bytes + out->bytes[i], align);
        n++;
    }
    if (!p->record_tensors)
        p->record_tensors = n;
    if (n != p->record_tensors)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: an expert of layer %u has %u matrices and biases, those before it have "
                       "%u: a pack holds one kind of record",
                       p->model->dir, moe->layer, n, p->record_tensors);
    p->n_records += moe->experts;
    p->source_bytes += cf_moe_stored_bytes(moe);
    p->out_bytes += moe->experts * cf_align_up(out->image_bytes, CF_PACK_ALIGN);
    return 0;
}

int cf_pack_plan_make(cf_pack_plan *p, cf_model *model, const cf_pack_options *options, cf_err *err)
{
    int rc = 0;
    *p = (cf_pack_plan){.model = model, .options = *options};
    p->layers = calloc(model->n_moe + 1, sizeof *p->layers);
    if (!p->layers)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for %u layers", model->n_moe));
    for (uint32_t i = 0; i < model->n_moe; i++)
        CF_TRY(records_plan(p, &model->moe[i], &p->layers[i], err));
    CF_TRY(tensors_plan(p, err));
    p->first_page_sum = p->n_records;
    p->n_sums += p->n_records;
    p->out_bytes += p->n_sums * sizeof(uint64_t);
    return 0;
fail:
    cf_pack_plan_finish(p);
    return rc;
}

void cf_pack_plan_finish(cf_pack_plan *p)
{
    for (uint32_t i = 0; i < p->n_tensors; i++)
        free(p->tensors[i].name);
    free(p->tensors);
    free(p->layers);
    *p = (cf_pack_plan){0};
}

/* ---- declaring it ---- */

static int file_declare(const cf_model *m, const char *name, cf_gguf_writer *w, cf_err *err)
{
    char key[300], *text;
    size_t bytes;
    int rc = cf_model_file_read(m->dir, m->gguf, name, MAX_SIDE_FILE_BYTES, &text, &bytes, err);
    if (rc < 0)
        return rc;
    snprintf(key, sizeof key, CF_PACK_FILE_KEY "%s", name);
    if (rc == 0)
        cf_gguf_put_string(w, key, text, bytes);
    free(text);
    return 0;
}

/* Keys that begin so, as the source has them. */
static void entries_declare(const cf_gguf *meta, const char *prefix, cf_gguf_writer *w)
{
    size_t n = strlen(prefix);
    for (uint32_t i = 0; meta && i < cf_gguf_count(meta); i++) {
        cf_gguf_entry e = cf_gguf_at(meta, i);
        if (e.key.bytes >= n && memcmp(e.key.at, prefix, n) == 0)
            cf_gguf_put_entry(w, &e);
    }
}

/* The one rank file under a name of its own; of several none is the model's. */
static bool ranks_find(const char *dir, char name[256])
{
    static const char end[] = ".tiktoken";
    uint32_t n = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));) {
        size_t bytes = strlen(e->d_name);
        if (bytes < sizeof end || strcmp(e->d_name + bytes - (sizeof end - 1), end) != 0)
            continue;
        snprintf(name, 256, "%s", e->d_name);
        n++;
    }
    if (d)
        closedir(d);
    return n == 1;
}

/* Files that a model is used with; what is not there is left out. */
static int files_declare(const cf_pack_plan *p, cf_gguf_writer *w, cf_err *err)
{
    static const char *const names[] = {"tokenizer.json",         "tokenizer.model",
                                        "tiktoken.model",         "tokenizer.tok.json",
                                        "tokenizer_config.json",
                                        "chat_template.jinja",    "generation_config.json",
                                        "special_tokens_map.json"};
    const cf_model *m = p->model;
    char ranks[256];
    int rc = 0;
    if (m->pack) {
        entries_declare(m->gguf, CF_PACK_FILE_KEY, w);
        return 0;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0] && rc == 0; i++)
        rc = file_declare(m, names[i], w, err);
    if (rc == 0 && ranks_find(m->dir, ranks))
        rc = file_declare(m, ranks, w, err);
    return rc;
}

/* The name in the pack: the source's, unless GGUF readers would not take it. */
static void name_short(const cf_pack_tensor *t, uint32_t index, char *buf, size_t size)
{
    if (strlen(t->name) <= CF_GGUF_NAME_MAX)
        snprintf(buf, size, "%s", t->name);
    else
        snprintf(buf, size, "catflap.tensor.%u", index);
}

static int names_declare(const cf_pack_plan *p, cf_gguf_writer *w, cf_err *err)
{
    uint32_t n = 0;
    const char **list = calloc(2 * (size_t)p->n_tensors + 1, sizeof *list);
    char(*names)[CF_GGUF_NAME_MAX + 1] = calloc(p->n_tensors + 1u, sizeof *names);
    if (!list || !names) {
        free(list);
        free(names);
        return CF_FAIL(err, -ENOMEM, "out of memory for %u names", p->n_tensors);
    }
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        name_short(&p->tensors[i], i, names[i], sizeof names[i]);
        if (strcmp(names[i], p->tensors[i].name) == 0)
            continue;
        list[n++] = names[i];
        list[n++] = p->tensors[i].name;
    }
    if (n)
        cf_gguf_put_strings(w, "catflap.names", list, n);
    free(list);
    free(names);
    return 0;
}

/* What compressed records are once unpacked. */
static int records_declare(const cf_pack_plan *p, cf_gguf_writer *w, cf_err *err)
{
    uint32_t n = p->model->n_moe, pieces = n * CF_PACK_PIECES;
    uint32_t *u = calloc(2 * n + 3 * pieces + 1u, sizeof *u);
    uint64_t *v = calloc(n + pieces + 1u, sizeof *v);
    if (!u || !v) {
        free(u);
        free(v);
        return CF_FAIL(err, -ENOMEM, "out of memory for %u layers", n);
    }
    uint32_t *types = u + 2 * (size_t)n, *rows = types + pieces, *cols = rows + pieces;
    uint64_t *offs = v + n;
    for (uint32_t i = 0; i < n; i++) {
        const cf_pack_records *r = &p->layers[i];
        u[i] = r->moe->layer;
        u[n + i] = r->moe->experts;
        v[i] = r->image_bytes;
        for (uint32_t k = 0; k < CF_PACK_PIECES; k++) {
            const cf_piece_def *d = cf_pack_piece(r->moe, k);
            uint32_t at = i * CF_PACK_PIECES + k;
            if (!d)
                continue;
            types[at] = (uint32_t)cf_formats[r->formats[k]].gguf;
            rows[at] = d->rows;
            cols[at] = d->cols;
            offs[at] = r->offs[k];
        }
    }
    cf_gguf_put_array(w, "catflap.records.layer", CF_GGUF_U32, u, n);
    cf_gguf_put_array(w, "catflap.records.experts", CF_GGUF_U32, u + n, n);
    cf_gguf_put_array(w, "catflap.records.bytes", CF_GGUF_U64, v, n);
    cf_gguf_put_array(w, "catflap.records.type", CF_GGUF_U32, types, pieces);
    cf_gguf_put_array(w, "catflap.records.rows", CF_GGUF_U32, rows, pieces);
    cf_gguf_put_array(w, "catflap.records.cols", CF_GGUF_U32, cols, pieces);
    cf_gguf_put_array(w, "catflap.records.off", CF_GGUF_U64, offs, pieces);
    free(u);
    free(v);
    return 0;
}

static void expert_declare(const cf_pack_plan *p, const cf_pack_records *r, uint32_t expert,
                           cf_gguf_writer *w)
{
    char name[CF_GGUF_NAME_MAX + 1];
    uint64_t shape[2] = {0};
    if (p->options.zstd) {
        cf_pack_record_name(name, sizeof name, r->moe->layer, expert);
        cf_gguf_put_tensor(w, name, CF_I8, 1, shape);
        return;
    }
    for (uint32_t k = 0; k < CF_PACK_PIECES; k++) {
        const cf_piece_def *d = cf_pack_piece(r->moe, k);
        if (!d)
            continue;
        shape[0] = d->rows;
        shape[1] = d->cols;
        cf_pack_piece_name(name, sizeof name, r->moe->layer, k, expert);
        cf_gguf_put_tensor(w, name, r->formats[k], 2, shape);
    }
}

/* Rotations need not be what the config says: some files have divisors, or another layout. */
static int ropes_declare(const cf_model *m, cf_gguf_writer *w, cf_err *err)
{
    uint64_t n = 0, at = 0;
    for (uint32_t i = 0; i < m->n_ropes; i++)
        n += m->ropes[i].n_rot / 2;
    uint32_t *u = calloc(2 * (size_t)m->n_ropes + 1, sizeof *u);
    float *freq = calloc(n + 1, sizeof *freq);
    if (!u || !freq) {
        free(u);
        free(freq);
        return CF_FAIL(err, -ENOMEM, "out of memory for %u rotations", m->n_ropes);
    }
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        const cf_rope_def *r = &m->ropes[i];
        u[i] = r->n_rot;
        u[m->n_ropes + i] = (uint32_t)r->layout;
        memcpy(freq + at, r->inv_freq, r->n_rot / 2 * sizeof *freq);
        at += r->n_rot / 2;
    }
    if (m->n_ropes) {
        cf_gguf_put_array(w, "catflap.rope.n_rot", CF_GGUF_U32, u, m->n_ropes);
        cf_gguf_put_array(w, "catflap.rope.layout", CF_GGUF_U32, u + m->n_ropes, m->n_ropes);
        cf_gguf_put_array(w, "catflap.rope.inv_freq", CF_GGUF_F32, freq, n);
    }
    free(u);
    free(freq);
    return 0;
}

int cf_pack_declare(const cf_pack_plan *p, cf_gguf_writer *w, cf_err *err)
{
    const cf_spec *spec = &p->model->spec;
    char name[CF_GGUF_NAME_MAX + 1];
    int rc = 0;
    cf_gguf_put_string(w, "general.architecture", "catflap", 7);
    cf_gguf_put_string(w, "general.name", spec->name, strlen(spec->name));
    cf_gguf_put_u32(w, "general.quantization_version", 2);
    cf_gguf_put_u32(w, "catflap.pack.version", CF_PACK_VERSION);
    cf_gguf_put_u64(w, "catflap.pack.header_bytes", 0);
    cf_gguf_put_u64(w, "catflap.pack.header_xxh3", 0);
    cf_gguf_put_u64(w, "catflap.pack.sums_xxh3", 0);
    cf_gguf_put_u64(w, "catflap.pack.first_record", p->n_tensors);
    cf_gguf_put_u32(w, "catflap.pack.record_tensors",
                    p->options.zstd || !p->record_tensors ? 1 : p->record_tensors);
    cf_gguf_put_string(w, "catflap.config", p->model->config, strlen(p->model->config));
    CF_TRY(files_declare(p, w, err));
    /* A vocabulary in the source's own metadata comes along. */
    entries_declare(p->model->gguf, "tokenizer.", w);
    CF_TRY(ropes_declare(p->model, w, err));
    CF_TRY(names_declare(p, w, err));
    if (p->options.zstd && p->model->n_moe)
        CF_TRY(records_declare(p, w, err));
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        const cf_pack_tensor *t = &p->tensors[i];
        name_short(t, i, name, sizeof name);
        cf_gguf_put_tensor(w, name, t->format, t->n_dims, t->shape);
    }
    for (uint32_t i = 0; i < p->model->n_moe; i++)
        for (uint32_t e = 0; e < p->layers[i].moe->experts; e++)
            expert_declare(p, &p->layers[i], e, w);
    cf_gguf_put_tensor(w, CF_PACK_SUMS, CF_I64, 1, &p->n_sums);
fail:
    return rc;
}
