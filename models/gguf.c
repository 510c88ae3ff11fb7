/* Opening a GGUF model: see gguf.h. */
#include "models/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/open_pack.h"
#include "models/stored.h"

enum { MAX_WORD = 256 };

/* ---- sentences ---- */

/* Reads `text` as a printed `to`: its numbers. Returns the bytes taken, 0 when it is not one. */
static size_t name_scan(const char *text, const char *to, uint32_t numbers[2])
{
    const char *p = text;
    for (int n = 0; *to; to++) {
        if (to[0] == '%' && to[1] == 'u' && n < 2) {
            char *end;
            if (*p < '0' || *p > '9')
                return 0;
            numbers[n++] = (uint32_t)strtoul(p, &end, 10);
            p = end;
            to++;
        } else if (*p++ != *to) {
            return 0;
        }
    }
    return (size_t)(p - text);
}

/* The file's name of a tensor that has a published one, with whatever follows it. */
static bool tensor_word(const cf_gguf_source *s, const char *word, char out[2 * MAX_WORD])
{
    for (int i = 0; i < CF_GGUF_SETS && s->arch->names[i]; i++)
        for (const cf_gguf_name *n = s->arch->names[i]; n->from; n++) {
            uint32_t numbers[2] = {0, 0};
            size_t taken = n->to ? name_scan(word, n->to, numbers) : 0;
            const char *rest = word + taken;
            bool full = n->kind == CF_NAME_FULL || n->kind == CF_NAME_ROW ||
                        n->kind == CF_NAME_TABLES || n->kind == CF_NAME_TABLE;
            if (!taken || (full ? *rest != 0 : *rest != '.'))
                continue;
            if (strcmp(rest, CF_GGUF_SCALE) == 0)
                rest = ".scale";
            bool experts = n->kind == CF_NAME_EXPERTS, block = strncmp(n->from, "blk.", 4) == 0;
            uint32_t at = numbers[0];
            if (s->arch->paired)
                at = 2 * at + (experts ? 0 : numbers[1]);
            char expert[32] = "", table[16] = "";
            if (experts)
                snprintf(expert, sizeof expert, " (expert %u)", numbers[1]);
            if (n->kind == CF_NAME_TABLE)
                snprintf(table, sizeof table, "%u", numbers[0]);
            if (block)
                snprintf(out, 2 * MAX_WORD, "blk.%u.%s%s%s", at, n->from + 4, full ? "" : rest,
                         expert);
            else
                snprintf(out, 2 * MAX_WORD, "%s%s%s", n->from, table, full ? "" : rest);
            return true;
        }
    return false;
}

/* The file's key of a quoted published one. */
static bool key_word(const cf_gguf_source *s, const char *word, char out[2 * MAX_WORD])
{
    for (int i = 0; i < CF_GGUF_SETS && s->arch->keys[i]; i++)
        for (const cf_gguf_key *k = s->arch->keys[i]; k->to; k++) {
            const char *dot = strrchr(k->to, '.'), *name = dot ? dot + 1 : k->to;
            size_t n = strlen(name);
            if (k->from && word[0] == '"' && strncmp(word + 1, name, n) == 0 &&
                word[n + 1] == '"') {
                snprintf(out, 2 * MAX_WORD, "\"%s.%s%s", s->arch->name, k->from, word + n + 1);
                return true;
            }
        }
    return false;
}

void cf_gguf_err_translate(const cf_gguf_source *s, cf_err *err)
{
    if (!err || !err->code || !s->arch)
        return;
    char text[sizeof err->msg + 2 * MAX_WORD] = "";
    const char *p = err->msg;
    while (*p) {
        char word[MAX_WORD], other[2 * MAX_WORD];
        size_t n = strcspn(p, " "), have = strlen(text);
        snprintf(word, sizeof word, "%.*s", (int)(n < MAX_WORD - 1 ? n : MAX_WORD - 1), p);
        bool found = tensor_word(s, word, other) || key_word(s, word, other);
        snprintf(text + have, sizeof text - have, "%s%.*s%s", found ? other : "",
                 found ? 0 : (int)n, p, p[n] ? " " : "");
        p += n + (p[n] != 0);
        if (strlen(text) >= sizeof err->msg)
            break;
    }
    snprintf(err->msg, sizeof err->msg, "%.*s", (int)sizeof err->msg - 1, text);
}

/* ---- what is left to do once the model is bound ---- */

/* The rotary frequencies, divided by the file's numbers. */
static int divisors_apply(const cf_gguf_source *s, cf_model *m, cf_err *err)
{
    float divisors[CF_MAX_ROT / 2];
    const cf_tensor *t = cf_catalogue_at(s->cat, (uint32_t)s->divisors);
    uint64_t n = t->n_dims == 1 ? t->shape[0] : 0;
    for (uint32_t i = 0; i < m->n_ropes; i++)
        if (t->format != CF_F32 || n != m->ropes[i].n_rot / 2)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: tensor %s has %" PRIu64 " values in %s, expected %u in F32",
                           s->path, t->name, n, cf_format_name(t->format), m->ropes[i].n_rot / 2);
    if (n > CF_MAX_ROT / 2)
        return 0;
    int rc = cf_stored_values(s->cat, t, divisors, err);
    for (uint64_t i = 0; i < n && rc == 0; i++) {
        if (!(divisors[i] > 0))
            return CF_FAIL(err, CF_EFORMAT, "%s: tensor %s: element %" PRIu64 " is %g", s->path,
                           t->name, i, (double)divisors[i]);
        for (uint32_t r = 0; r < m->n_ropes; r++)
            m->ropes[r].inv_freq[i] /= divisors[i];
    }
    return rc;
}

static int differences_apply(const cf_gguf_source *s, cf_model *m, cf_err *err)
{
    for (uint32_t i = 0; i < m->n_ropes && s->arch->adjacent; i++)
        m->ropes[i].layout = CF_ROPE_INTERLEAVED;
    m->n_skipped += s->n_beyond + s->n_copies + s->n_inputs;
    m->skipped_bytes += s->skipped_bytes;
    const char *what[3] = {s->n_beyond ? "multi-token-prediction blocks" : NULL,
                           s->n_copies ? "copies of k_b and v_b" : NULL,
                           s->n_inputs ? "scales of integer activations" : NULL};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(m->skipped_what);
        if (what[i])
            snprintf(m->skipped_what + n, sizeof m->skipped_what - n, "%s%s", n ? ", " : "",
                     what[i]);
    }
    return s->divisors < 0 ? 0 : divisors_apply(s, m, err);
}

/* ---- the whole ---- */

/* The model is called as the file is, without what says that it is one, or a part of several. Until
 * it is bound, dir is the file too: sentences name it. */
static int model_names(cf_model *m, const char *path, const cf_gguf_source *s, cf_err *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    unsigned part, parts;
    int end = 0;
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".gguf") == 0)
        n -= 5;
    if (n > 15 && sscanf(name + n - 15, "-%5u-of-%5u%n", &part, &parts, &end) == 2 && end == 15)
        n -= 15;
    m->dir = strdup(path);
    m->file = strdup(path);
    snprintf(m->spec.name, sizeof m->spec.name, "%.*s", (int)(n < 63 ? n : 63), name);
    snprintf(m->spec.architecture, sizeof m->spec.architecture, "%s, GGUF", s->arch->name);
    return m->dir && m->file ? 0 : CF_FAIL(err, -ENOMEM, "out of memory for a model");
}

int cf_gguf_folder_set(cf_model *m, cf_err *err)
{
    const char *slash = strrchr(m->file, '/');
    size_t n = !slash ? 0 : slash == m->file ? 1 : (size_t)(slash - m->file);
    char *dir = n ? strndup(m->file, n) : strdup(".");
    if (!dir)
        return CF_FAIL(err, -ENOMEM, "out of memory for a model");
    free(m->dir);
    m->dir = dir;
    return 0;
}

int cf_gguf_model_make(cf_model *m, const cf_catalogue *cat, const char *path, cf_err *err)
{
    int rc;
    cf_gguf_source s = {.path = path, .meta = m->gguf, .cat = cat};
    CF_TRY(cf_gguf_source_begin(&s, err));
    CF_TRY(model_names(m, path, &s, err));
    CF_TRY(cf_gguf_config(&s, err));
    if (!cf_family_find(s.config, path, err)) {
        rc = CF_EFORMAT;
        goto fail;
    }
    CF_TRY(cf_gguf_view(&s, &m->cat, err));
    CF_TRY(cf_model_bind(m, s.config, path, err));
    CF_TRY(differences_apply(&s, m, err));
    CF_TRY(cf_gguf_folder_set(m, err));
    json_decref(s.config);
    return 0;
fail:
    cf_gguf_err_translate(&s, err);
    json_decref(s.config);
    return rc;
}

int cf_gguf_model_open(cf_model **out, const char *path, cf_err *err)
{
    cf_catalogue *cat = NULL;
    cf_model *m = calloc(1, sizeof *m);
    if (!m)
        return CF_FAIL(err, -ENOMEM, "out of memory for a model");
    int rc = cf_gguf_open(path, &cat, &m->gguf, err);
    if (rc == 0)
        rc = cf_pack_is(m->gguf) ? cf_pack_model_make(m, &cat, path, err)
                                 : cf_gguf_model_make(m, cat, path, err);
    cf_catalogue_close(&cat);
    if (rc < 0)
        cf_model_free(&m);
    else
        *out = m;
    return rc;
}
