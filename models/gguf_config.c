/* The config of a GGUF file: see gguf.h.
 *
 * Numbers are passed on as the file has them; their ranges are checked where they are used, by the
 * family. Checked here is what no family sees: the architecture, block and expert counts that
 * name tensors, arrays. float32 values become the shortest decimal that
 * reads back as them: 1e-5 was written, not 9.99999974e-06. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/gguf.h"

enum { MAX_KEY = CF_GGUF_MAX_KEY, MAX_BLOCKS = 2048 };

const char *cf_source_key(const cf_gguf_source *s, const char *key, char out[CF_GGUF_MAX_KEY])
{
    snprintf(out, MAX_KEY, "%s.%s", s->arch->name, key);
    return out;
}

/* ---- values ---- */

static int array_u32(const cf_gguf_source *s, const char *key, const cf_gguf_array *a,
                     uint32_t *out, cf_err *err)
{
    uint64_t first = 0, v;
    for (uint64_t i = 0; i < a->count; i++) {
        if (!cf_gguf_array_u64(a, i, &v) || v > UINT32_MAX)
            return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\": element %" PRIu64 " is no whole number",
                           s->path, key, i);
        if (i && v != first)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: \"%s\" is %" PRIu64 " in layer 0 and %" PRIu64 " in layer %" PRIu64
                           "; only equal layers are known",
                           s->path, key, first, v, i);
        first = v;
    }
    if (!a->count)
        return 0;
    *out = (uint32_t)first;
    return 1;
}

static bool is_array(const cf_gguf_source *s, const char *key, cf_gguf_array *a)
{
    cf_err ignored = {0};
    return cf_gguf_get_array(s->meta, key, a, &ignored) == 1;
}

int cf_source_u32(const cf_gguf_source *s, const char *key, uint32_t *out, cf_err *err)
{
    char full[MAX_KEY];
    cf_gguf_array a;
    cf_source_key(s, key, full);
    return is_array(s, full, &a) ? array_u32(s, full, &a, out, err)
                                 : cf_gguf_u32(s->meta, full, out, err);
}

int cf_source_f64(const cf_gguf_source *s, const char *key, double *out, cf_err *err)
{
    char full[MAX_KEY], text[32];
    float f;
    uint32_t u;
    cf_err ignored = {0};
    cf_source_key(s, key, full);
    if (cf_gguf_u32(s->meta, full, &u, &ignored) == 1) { /* some writers store 3 for 3.0 */
        *out = u;
        return 1;
    }
    int rc = cf_gguf_f32(s->meta, full, &f, err);
    if (rc <= 0)
        return rc;
    if (!isfinite(f))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is not a finite number", s->path, full);
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        *out = strtod(text, NULL);
        if ((float)*out == f)
            break;
    }
    return 1;
}

int64_t cf_source_tensor(const cf_gguf_source *s, uint32_t block, const char *name)
{
    char full[MAX_KEY];
    snprintf(full, sizeof full, "blk.%u.%s", block, name);
    return cf_catalogue_find(s->cat, full);
}

int cf_source_set(cf_gguf_source *s, const char *to, json_t *value, cf_err *err)
{
    const char *dot = strchr(to, '.');
    json_t *object = s->root;
    if (dot) {
        char part[MAX_KEY];
        snprintf(part, sizeof part, "%.*s", (int)(dot - to), to);
        object = json_object_get(s->root, part);
        if (!object) {
            object = json_object();
            if (json_object_set_new(s->root, part, object) < 0)
                object = NULL;
        }
        to = dot + 1;
    }
    if (!object || !value || json_object_set_new(object, to, value) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return 0;
}

static bool config_has(const cf_gguf_source *s, const char *to)
{
    const char *dot = strchr(to, '.');
    if (!dot)
        return json_object_get(s->root, to) != NULL;
    char part[MAX_KEY];
    snprintf(part, sizeof part, "%.*s", (int)(dot - to), to);
    return json_object_get(json_object_get(s->root, part), dot + 1) != NULL;
}

/* ---- the table's keys ---- */

/* The value of a row, or NULL with *rc 0 when there is none. */
static json_t *key_value(const cf_gguf_source *s, const cf_gguf_key *k, int *rc, cf_err *err)
{
    uint32_t u = 0;
    double d = 0;
    bool b = false;
    char full[MAX_KEY];
    *rc = 0;
    switch (k->kind) {
    case CF_KEY_U32:
        *rc = cf_source_u32(s, k->from, &u, err);
        if (*rc == 1 && !(k->zero_absent && u == 0))
            return json_integer(u);
        break;
    case CF_KEY_F64:
        *rc = cf_source_f64(s, k->from, &d, err);
        if (*rc == 1 && !(k->zero_absent && d == 0))
            return json_real(d);
        break;
    case CF_KEY_BOOL:
        *rc = cf_gguf_bool(s->meta, cf_source_key(s, k->from, full), &b, err);
        if (*rc == 1)
            return json_boolean(b);
        break;
    case CF_KEY_LAYERS:
        return json_integer(s->layers);
    case CF_KEY_HAS:
        return json_boolean(cf_source_tensor(s, 0, k->from) >= 0 ||
                            cf_catalogue_find(s->cat, k->from) >= 0);
    case CF_KEY_TRUE:
        return json_true();
    case CF_KEY_FALSE:
        return json_false();
    case CF_KEY_ALIAS:
        break;
    }
    if (*rc >= 0 && k->absent != 0)
        return k->kind == CF_KEY_U32 ? json_integer((json_int_t)k->absent) : json_real(k->absent);
    return NULL;
}

static int keys_read(cf_gguf_source *s, cf_err *err)
{
    for (int i = 0; i < CF_GGUF_SETS && s->arch->keys[i]; i++)
        for (const cf_gguf_key *k = s->arch->keys[i]; k->to; k++) {
            if (config_has(s, k->to))
                continue;
            int rc;
            json_t *value = key_value(s, k, &rc, err);
            if (rc < 0)
                return rc;
            if (value && (rc = cf_source_set(s, k->to, value, err)) < 0)
                return rc;
        }
    return 0;
}

/* ---- vocabulary and ends ---- */

static int vocab_read(cf_gguf_source *s, cf_err *err)
{
    uint32_t vocab = 0;
    cf_gguf_array tokens;
    int rc = cf_source_u32(s, "vocab_size", &vocab, err);
    if (rc == 0 && is_array(s, "tokenizer.ggml.tokens", &tokens)) {
        vocab = (uint32_t)(tokens.count < UINT32_MAX ? tokens.count : UINT32_MAX);
        rc = 1;
    }
    int64_t embed = cf_catalogue_find(s->cat, "token_embd.weight");
    if (rc == 0 && embed >= 0) { /* without a vocabulary: as many as there are rows */
        const cf_tensor *t = cf_catalogue_at(s->cat, (uint32_t)embed);
        vocab = (uint32_t)(t->n_dims == 2 && t->shape[0] < UINT32_MAX ? t->shape[0] : 0);
        rc = 1;
    }
    if (rc == 1)
        rc = cf_source_set(s, "vocab_size", json_integer(vocab), err);
    if (rc < 0)
        return rc;
    bool tied = cf_catalogue_find(s->cat, "output.weight") < 0;
    return cf_source_set(s, "tie_word_embeddings", json_boolean(tied), err);
}

/* 1 and the id; -1 stands for none. */
static int token_read(const cf_gguf_source *s, const char *key, uint32_t *id, cf_err *err)
{
    int32_t minus;
    cf_err ignored = {0};
    if (cf_gguf_i32(s->meta, key, &minus, &ignored) == 1 && minus == -1)
        return 0;
    int rc = cf_gguf_u32(s->meta, key, id, err);
    return rc == 1 && *id == UINT32_MAX ? 0 : rc;
}

/* An end of turn ends a text like eos does, where a model has a token of its own for it. N-grams
 * end at one id: there eos alone counts. */
static int ends_read(cf_gguf_source *s, cf_err *err)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    uint32_t id;
    int rc = token_read(s, "tokenizer.ggml.bos_token_id", &id, err);
    if (rc == 1)
        rc = cf_source_set(s, "bos_token_id", json_integer(id), err);
    if (rc < 0)
        return rc;
    json_t *list = json_array();
    rc = s->n_tables ? cf_source_u32(s, "ngram.eos_token_id", &id, err) : 0;
    bool one = rc == 1;
    if (one)
        json_array_append_new(list, json_integer(id));
    for (int i = 0; i < 3 && rc >= 0 && !one; i++) {
        rc = token_read(s, ends[i], &id, err);
        bool there = false;
        for (size_t k = 0; k < json_array_size(list); k++)
            there |= json_integer_value(json_array_get(list, k)) == id;
        if (rc == 1 && !there)
            json_array_append_new(list, json_integer(id));
        one = s->n_tables > 0;
    }
    if (rc >= 0 && json_array_size(list))
        return cf_source_set(s, "eos_token_id", list, err);
    json_decref(list);
    return rc < 0 ? rc : 0;
}

/* ---- the whole ---- */

static int arch_find(cf_gguf_source *s, cf_err *err)
{
    cf_text name;
    char clean[100], text[100], known[512] = "";
    int rc = cf_gguf_string(s->meta, "general.architecture", &name, err);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"general.architecture\" is missing", s->path);
    for (uint32_t i = 0; i < cf_gguf_arch_count; i++)
        if (cf_text_is(name, cf_gguf_archs[i].name)) {
            s->arch = &cf_gguf_archs[i];
            if (s->arch->variant && cf_source_tensor(s, 0, s->arch->variant_has) >= 0)
                s->arch = s->arch->variant;
            return 0;
        }
    for (uint32_t i = 0; i < cf_gguf_arch_count; i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", cf_gguf_archs[i].name);
    }
    snprintf(text, sizeof text, "%.*s", name.bytes < 90 ? (int)name.bytes : 90, name.at);
    return CF_FAIL(err, CF_EFORMAT, "%s: \"general.architecture\" is \"%s\"; known: %s", s->path,
                   cf_text_clean(text, clean, sizeof clean), known);
}

static int count_read(const cf_gguf_source *s, const char *key, uint32_t min, uint32_t max,
                      uint32_t *out, cf_err *err)
{
    int rc = cf_source_u32(s, key, out, err);
    if (rc == 0 && min)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is missing", s->path, s->arch->name, key);
    if (rc == 1 && (*out < min || *out > max))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is %u, must be %u to %u", s->path,
                       s->arch->name, key, *out, min, max);
    return rc < 0 ? rc : 0;
}

int cf_gguf_source_begin(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t beyond = UINT32_MAX;
    s->divisors = -1;
    CF_TRY(arch_find(s, err));
    CF_TRY(count_read(s, "block_count", 1, MAX_BLOCKS, &s->blocks, err));
    CF_TRY(count_read(s, "expert_count", 0, CF_ROUTE_MAX_EXPERTS, &s->experts, err));
    if (!s->experts)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.expert_count\" is 0 or missing; models without experts are not "
                       "known",
                       s->path, s->arch->name);
    CF_TRY(count_read(s, "mtp.num_layers", 0, MAX_BLOCKS, &beyond, err));
    CF_TRY(count_read(s, "nextn_predict_layers", 0, MAX_BLOCKS, &beyond, err));
    if (beyond == UINT32_MAX) /* of pairs, an odd block is one beyond the model */
        beyond = s->arch->paired ? s->blocks & 1 : 0;
    if (beyond >= s->blocks || (s->arch->paired && (s->blocks - beyond) % 2))
        return CF_FAIL(
            err, CF_EFORMAT,
            "%s: %u of %u blocks (\"%s.nextn_predict_layers\", \"block_count\") leave no "
            "whole layers",
            s->path, beyond, s->blocks, s->arch->name);
    s->main_blocks = s->blocks - beyond;
    s->layers = s->arch->paired ? s->main_blocks / 2 : s->main_blocks;
    s->config = json_object();
    s->root = s->config;
    if (s->arch->root) {
        s->root = json_object();
        if (json_object_set_new(s->config, s->arch->root, s->root) < 0)
            s->root = NULL;
    }
    return s->root ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
fail:
    return rc;
}

int cf_gguf_config(cf_gguf_source *s, cf_err *err)
{
    int rc;
    CF_TRY(cf_gguf_heads_check(s, err));
    CF_TRY(vocab_read(s, err));
    if (s->arch->finish)
        CF_TRY(s->arch->finish(s, err));
    CF_TRY(keys_read(s, err));
    CF_TRY(cf_gguf_rope(s, err));
    CF_TRY(ends_read(s, err));
    if (s->arch->architecture && json_object_set_new(s->config, "architectures",
                                                     json_pack("[s]", s->arch->architecture)) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return 0;
fail:
    return rc;
}
