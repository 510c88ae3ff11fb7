/* Opening a pack (storage/pack.h): the family builds its plan from the config as it does for a
 * directory; experts then get the places that the pack has for them.
 *
 * A pack stores every expert as plain matrices, however its source fused or transposed them, so
 * what a family has to say about their places does not matter: build.c asks for none, and
 * cf_pack_bind fills them in afterwards. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/build.h"
#include "models/gguf.h"
#include "models/open_pack.h"
#include "runtime/base/json.h"

/* Piece p of the pack as the model has it: matrices, then biases. */
static cf_piece_def *piece_of(cf_moe_def *d, uint32_t p)
{
    return p < CF_EXPERT_PIECES ? &d->pieces[p] : &d->biases[p - CF_EXPERT_PIECES];
}

/* Whether experts have piece p: the family gave it a width. */
static bool piece_wanted(cf_moe_def *d, uint32_t p)
{
    return piece_of(d, p)->cols > 0;
}

/* Formats that it may have. */
static bool piece_can_be(uint32_t p, cf_format f)
{
    return p < CF_EXPERT_PIECES ? cf_build_can_bind(f) : f == CF_F32;
}

/* Matrices are [rows, cols], biases one row. */
static void piece_shape(const cf_moe_def *d, uint32_t p, uint32_t *rows, uint32_t *cols)
{
    bool down = p % CF_EXPERT_PIECES == CF_DOWN;
    *rows = p >= CF_EXPERT_PIECES ? 1 : down ? d->hidden : d->ffn;
    *cols = (p >= CF_EXPERT_PIECES) == down ? d->hidden : d->ffn;
}

static const cf_tensor *tensor_take(cf_build *b, const char *name, cf_err *err)
{
    int64_t at = cf_catalogue_find(b->model->cat, name);
    if (at < 0) {
        CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is missing", b->model->dir, name);
        return NULL;
    }
    b->bound[at] = 1;
    return cf_catalogue_at(b->model->cat, (uint32_t)at);
}

static int piece_bind(cf_build *b, cf_moe_def *d, uint32_t expert, uint32_t p, uint32_t extent,
                      cf_err *err)
{
    char name[CF_GGUF_NAME_MAX + 1], have[128];
    uint32_t rows, cols;
    piece_shape(d, p, &rows, &cols);
    cf_pack_piece_name(name, sizeof name, d->layer, p, expert);
    const cf_tensor *t = tensor_take(b, name, err);
    if (!t)
        return CF_EFORMAT;
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != cols)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has shape %s, the config implies [%u, %u]",
                       b->model->dir, name, cf_tensor_shape_text(t, have, sizeof have), rows, cols);
    cf_piece_def *piece = piece_of(d, p);
    if (expert == 0)
        *piece = (cf_piece_def){.dtype = t->format, .rows = rows, .cols = cols, .extent = extent};
    if (!piece_can_be(p, t->format) || t->format != piece->dtype)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s has dtype %s, expert 0 of its layer has %s",
                       b->model->dir, name, cf_format_name(t->format),
                       cf_format_name(piece->dtype));
    d->extents[(size_t)expert * d->n_extents + extent] = t->extent;
    return 0;
}

static int plain_bind(cf_build *b, cf_moe_def *d, uint32_t expert, cf_err *err)
{
    int rc = 0;
    for (uint32_t p = 0, extent = 0; p < CF_PACK_PIECES && rc == 0; p++)
        if (piece_wanted(d, p))
            rc = piece_bind(b, d, expert, p, extent++, err);
    return rc;
}

/* What the records of a layer are once unpacked. */
static int unpacked_describe(const cf_build *b, cf_moe_def *d, const cf_pack_layer *l, cf_err *err)
{
    if (l->layer != d->layer || l->experts != d->experts)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: %u records of layer %u where the config implies %u of layer %u",
                       b->model->dir, l->experts, l->layer, d->experts, d->layer);
    d->unpacked_bytes = l->bytes;
    d->n_unpacked = 0;
    for (uint32_t p = 0; p < CF_PACK_PIECES; p++) {
        uint32_t rows, cols;
        cf_format f = l->pieces[p].format;
        piece_shape(d, p, &rows, &cols);
        if (!piece_wanted(d, p) && !l->pieces[p].rows)
            continue;
        if (l->pieces[p].rows != rows || l->pieces[p].cols != cols || !piece_can_be(p, f) ||
            !piece_wanted(d, p))
            return CF_FAIL(
                err, CF_EFORMAT,
                "%s: piece %u of layer %u is [%u, %u] of %s, the config implies [%u, %u]",
                b->model->dir, p, d->layer, l->pieces[p].rows, l->pieces[p].cols, cf_format_name(f),
                rows, cols);
        *piece_of(d, p) =
            (cf_piece_def){.dtype = f, .rows = rows, .cols = cols, .extent = d->n_unpacked};
        d->unpacked[d->n_unpacked++] = (cf_piece){.read_off = l->pieces[p].off,
                                                  .off = l->pieces[p].off,
                                                  .bytes = rows * cf_format_row_bytes(f, cols)};
    }
    return 0;
}

static int packed_bind(cf_build *b, cf_moe_def *d, uint32_t expert, cf_err *err)
{
    char name[CF_GGUF_NAME_MAX + 1];
    cf_pack_record_name(name, sizeof name, d->layer, expert);
    const cf_tensor *t = tensor_take(b, name, err);
    if (!t)
        return CF_EFORMAT;
    if (t->format != CF_I8 || t->n_dims != 1 || t->extent.bytes == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is no compressed record", b->model->dir,
                       name);
    d->extents[expert] = t->extent;
    return 0;
}

/* The rotations as the source had them. */
static int ropes_restore(cf_model *m, cf_err *err)
{
    cf_gguf_array n_rot = {0}, layout = {0}, freq = {0};
    uint64_t at = 0, u = 0;
    int rc = cf_gguf_get_array(m->pack->meta, "catflap.rope.n_rot", &n_rot, err);
    if (rc <= 0 ||
        (rc = cf_gguf_get_array(m->pack->meta, "catflap.rope.layout", &layout, err)) < 0 ||
        (rc = cf_gguf_get_array(m->pack->meta, "catflap.rope.inv_freq", &freq, err)) < 0)
        return rc;
    bool good = n_rot.count == m->n_ropes && layout.count == m->n_ropes;
    for (uint32_t i = 0; i < m->n_ropes && good; i++) {
        cf_rope_def *r = &m->ropes[i];
        good = cf_gguf_array_u64(&n_rot, i, &u) && u == r->n_rot &&
               cf_gguf_array_u64(&layout, i, &u) && (u == CF_ROPE_INTERLEAVED || u == CF_ROPE_HALF);
        r->layout = (cf_rope_layout)u;
        for (uint32_t k = 0; k < r->n_rot / 2 && good; k++)
            good = cf_gguf_array_f32(&freq, at++, &r->inv_freq[k]) && isfinite(r->inv_freq[k]);
    }
    if (!good || at != freq.count)
        return CF_FAIL(err, CF_EFORMAT, "%s: catflap.rope does not fit the config's %u rotations",
                       m->dir, m->n_ropes);
    return 0;
}

int cf_pack_bind(cf_build *b, cf_err *err)
{
    cf_model *m = b->model;
    int rc = 0;
    if (m->pack->layers && m->pack->n_layers != m->n_moe)
        return CF_FAIL(err, CF_EFORMAT, "%s: records of %u layers, the config implies %u", m->dir,
                       m->pack->n_layers, m->n_moe);
    for (uint32_t i = 0; i < m->n_moe; i++) {
        cf_moe_def *d = &m->moe[i];
        d->n_extents = m->pack->layers ? 1 : 0;
        for (uint32_t p = 0; p < CF_PACK_PIECES && !m->pack->layers; p++)
            d->n_extents += piece_wanted(d, p);
        free(d->extents);
        d->extents = calloc((size_t)d->experts * d->n_extents, sizeof *d->extents);
        if (!d->extents)
            return CF_FAIL(err, -ENOMEM, "out of memory for %u expert records", d->experts);
        if (m->pack->layers && (rc = unpacked_describe(b, d, &m->pack->layers[i], err)) < 0)
            return rc;
        for (uint32_t e = 0; e < d->experts && rc == 0; e++)
            rc = m->pack->layers ? packed_bind(b, d, e, err) : plain_bind(b, d, e, err);
        if (rc < 0)
            return rc;
    }
    return ropes_restore(m, err);
}

static int config_read(cf_model *m, json_t **config, cf_err *err)
{
    cf_text text;
    char where[PATH_MAX];
    int rc = cf_gguf_string(m->pack->meta, "catflap.config", &text, err);
    if (rc == 0)
        rc = CF_FAIL(err, CF_EFORMAT, "%s: the key catflap.config is missing", m->dir);
    if (rc < 0)
        return rc;
    snprintf(where, sizeof where, "%.*s: catflap.config", PATH_MAX - 32, m->dir);
    *config = cf_json_parse(where, text.at, text.bytes, JSON_REJECT_DUPLICATES,
                            CF_CONFIG_VALUES_MAX, err);
    if (!*config)
        return CF_EFORMAT;
    if (!json_is_object(*config))
        return CF_FAIL(err, CF_EFORMAT, "%s: catflap.config is not an object", m->dir);
    return 0;
}

/* The name of what was packed, where the file has one. */
static void name_restore(cf_model *m)
{
    cf_text name;
    char text[sizeof m->spec.name];
    if (cf_gguf_string(m->pack->meta, "general.name", &name, NULL) != 1 || name.bytes == 0)
        return;
    snprintf(text, sizeof text, "%.*s", (int)(name.bytes < sizeof text ? name.bytes : sizeof text),
             name.at);
    cf_text_clean(text, m->spec.name, sizeof m->spec.name);
}

int cf_pack_model_make(cf_model *m, cf_catalogue **cat, const char *path, cf_err *err)
{
    int rc = 0;
    json_t *config = NULL;
    m->dir = strdup(path); /* until it is bound: sentences name it */
    m->file = strdup(path);
    if (!m->dir || !m->file)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for a model"));
    rc = cf_pack_open(&m->pack, &m->gguf, cat, err);
    m->cat = *cat;
    *cat = NULL;
    if (rc < 0)
        goto fail;
    m->gguf = m->pack->meta;
    CF_TRY(config_read(m, &config, err));
    cf_spec_names(&m->spec, path, config);
    name_restore(m);
    CF_TRY(cf_model_bind(m, config, path, err));
    CF_TRY(cf_gguf_folder_set(m, err));
fail:
    json_decref(config);
    return rc;
}
