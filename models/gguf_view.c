/* The catalogue of aliases over a GGUF file's tensors: see gguf.h.
 *
 * An alias is a name, a shape and a part of a tensor's bytes. Every tensor of the file becomes
 * aliases, or is counted as left out (blocks beyond the model), or ends in a sentence. The aliases
 * of one tensor never overlap, but that gate and up share the scales of a tensor that is both; what
 * they hold is bounded by it. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/gguf.h"
#include "storage/catalogue_build.h"

enum { MAX_TEXT = 256, MAX_ALIASES = 1 << 20 };

/* A name taken apart: "blk.3.ffn_gate.5.weight" is block 3, stem "blk.ffn_gate", number 5. */
typedef struct stored_name {
    char stem[MAX_TEXT], suffix[16];
    bool in_block, numbered;
    uint32_t block, number;
} stored_name;

typedef struct view {
    cf_gguf_source *s;
    cf_catalogue *out;
    const cf_tensor *t; /* being mapped */
    stored_name name;
    cf_err *err;
} view;

/* Digits at *at, advanced past them and a dot behind. False when there is no number. */
static bool number_take(const char **at, uint32_t *out)
{
    uint32_t v = 0;
    const char *p = *at;
    while (isdigit((unsigned char)*p) && v < 100000000)
        v = v * 10 + (uint32_t)(*p++ - '0');
    if (p == *at || *p != '.')
        return false;
    *at = p + 1;
    *out = v;
    return true;
}

/* A dot that a number and the suffix follow is left at the stem's end only for the n-gram tables'
 * rows; of experts the fused tensor's name is what remains. */
static bool name_split(const char *full, stored_name *n)
{
    *n = (stored_name){0};
    const char *rest = full, *dot = strrchr(full, '.');
    if (!dot || strlen(full) >= MAX_TEXT - 8)
        return false;
    snprintf(n->suffix, sizeof n->suffix, "%.*s", (int)sizeof n->suffix - 1, dot);
    if (strncmp(full, "blk.", 4) == 0) {
        rest += 4;
        n->in_block = true;
        if (!number_take(&rest, &n->block))
            return false;
        if (rest > dot) { /* no suffix */
            n->suffix[0] = 0;
            dot = full + strlen(full);
        }
    }
    const char *end = dot, *p = dot;
    while (p > rest && isdigit((unsigned char)p[-1]))
        p--;
    if (p < dot && p > rest && p[-1] == '.' && number_take(&p, &n->number)) {
        n->numbered = true;
        end = dot;
        while (end[-1] != '.')
            end--;
        end--;
    }
    snprintf(n->stem, sizeof n->stem, "%s%.*s%s", n->in_block ? "blk." : "", (int)(end - rest),
             rest, n->numbered ? n->in_block ? "_exps" : "." : "");
    return true;
}

static const cf_gguf_name *name_find(const cf_gguf_arch *arch, const char *stem)
{
    for (int i = 0; i < CF_GGUF_SETS && arch->names[i]; i++)
        for (const cf_gguf_name *n = arch->names[i]; n->from; n++)
            if (strcmp(n->from, stem) == 0)
                return n;
    return NULL;
}

/* `to` with its %u replaced by numbers. False: no room. */
static bool name_print(char *out, size_t size, const char *to, const uint32_t numbers[2])
{
    size_t at = 0;
    for (int n = 0; *to && at + 12 < size; to++) {
        if (to[0] == '%' && to[1] == 'u' && n < 2) {
            at += (size_t)snprintf(out + at, size - at, "%u", numbers[n++]);
            to++;
        } else {
            out[at++] = *to;
        }
    }
    out[at] = 0;
    return !*to;
}

/* ---- aliases ---- */

/* Bytes [first, first + bytes) of the tensor under a name. The shape is checked against them. */
static int alias_add(const view *v, const char *name, uint32_t n_dims, const uint64_t *shape,
                     uint64_t first)
{
    const cf_tensor *t = v->t;
    cf_tensor a = {.name = name, .format = t->format, .n_dims = n_dims, .extent = t->extent};
    memcpy(a.shape, shape, n_dims * sizeof *shape);
    if (!cf_tensor_bytes(&a, &a.extent.bytes) || first > t->extent.bytes ||
        a.extent.bytes > t->extent.bytes - first)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s is too small for its parts", v->s->path,
                       t->name);
    if (cf_catalogue_count(v->out) >= MAX_ALIASES)
        return CF_FAIL(v->err, CF_ELIMIT, "%s: more than %d matrices", v->s->path,
                       (int)MAX_ALIASES);
    a.extent.off += first;
    if (cf_catalogue_find(v->out, name) >= 0)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s has the role of another one", v->s->path,
                       t->name);
    return cf_catalogue_add(v->out, &a, v->err);
}

static int shape_refuse(const view *v, const char *wanted)
{
    char text[128];
    return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s has shape %s, expected %s", v->s->path,
                   v->t->name, cf_tensor_shape_text(v->t, text, sizeof text), wanted);
}

/* The numbers that a name has: layer and sub-layer, or layer and whatever `second` is. */
static void numbers_of(const view *v, uint32_t out[2])
{
    bool paired = v->s->arch->paired;
    out[0] = paired ? v->name.block / 2 : v->name.block;
    out[1] = paired ? v->name.block % 2 : 0;
    if (!v->name.in_block)
        out[0] = v->name.number;
}

static int alias_print(const view *v, const char *to, const uint32_t numbers[2], bool suffix,
                       char out[MAX_TEXT])
{
    if (!name_print(out, MAX_TEXT, to, numbers) || strlen(out) + sizeof v->name.suffix >= MAX_TEXT)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s: its name is too long", v->s->path,
                       v->t->name);
    if (suffix)
        memcpy(out + strlen(out), v->name.suffix, strlen(v->name.suffix) + 1);
    return 0;
}

static int map_whole(const view *v, const cf_gguf_name *rule)
{
    char name[MAX_TEXT];
    uint32_t numbers[2];
    const cf_tensor *t = v->t;
    numbers_of(v, numbers);
    int rc = alias_print(v, rule->to, numbers,
                         rule->kind != CF_NAME_FULL && rule->kind != CF_NAME_ROW &&
                             rule->kind != CF_NAME_TABLE,
                         name);
    if (rc < 0)
        return rc;
    if (rule->kind == CF_NAME_ROW) {
        /* Converters keep the row, tools that rewrite their files drop dimensions of 1. */
        if (t->n_dims != 1 && (t->n_dims != 2 || t->shape[0] != 1))
            return shape_refuse(v, "one row");
        return alias_add(v, name, 2, (const uint64_t[2]){1, t->shape[t->n_dims - 1]}, 0);
    }
    if (rule->kind == CF_NAME_HEADS) {
        uint64_t rows;
        if (t->n_dims != 3 || __builtin_mul_overflow(t->shape[0], t->shape[1], &rows))
            return shape_refuse(v, "heads, rows and columns");
        return alias_add(v, name, 2, (const uint64_t[2]){rows, t->shape[2]}, 0);
    }
    if (rule->kind == CF_NAME_TAPS) {
        if (t->n_dims != 2)
            return shape_refuse(v, "channels and taps");
        return alias_add(v, name, 3, (const uint64_t[3]){t->shape[0], 1, t->shape[1]}, 0);
    }
    return alias_add(v, name, t->n_dims, t->shape, 0);
}

/* One expert's rows of a fused tensor: `part` of `parts`. */
static int expert_add(const view *v, const cf_gguf_name *rule, uint32_t expert, uint32_t part,
                      uint32_t parts)
{
    char name[MAX_TEXT];
    const cf_tensor *t = v->t;
    bool alone = v->name.numbered;
    const uint64_t *shape = alone ? t->shape : t->shape + 1;
    uint32_t n_dims = alone ? t->n_dims : t->n_dims - 1, numbers[2];
    uint64_t cut[CF_MAX_DIMS];
    memcpy(cut, shape, n_dims * sizeof *cut);
    cut[0] /= parts;
    numbers_of(v, numbers);
    numbers[1] = expert;
    int rc = alias_print(v, rule->to, numbers, true, name);
    if (rc < 0)
        return rc;
    uint64_t each = alone ? t->extent.bytes : t->extent.bytes / t->shape[0];
    return alias_add(v, name, n_dims, cut, alone ? 0 : expert * each + each / parts * part);
}

/* The biases of all experts stay together, [experts, n], under the name without the expert. */
static int map_biases(const view *v, const cf_gguf_name *rule)
{
    char to[MAX_TEXT], name[MAX_TEXT];
    uint32_t numbers[2];
    snprintf(to, sizeof to, "%s", rule->to);
    char *mark = strstr(to, "%u.");
    mark = mark ? strstr(mark + 2, "%u.") : NULL;
    if (mark)
        memmove(mark, mark + 3, strlen(mark + 3) + 1);
    numbers_of(v, numbers);
    int rc = alias_print(v, to, numbers, true, name);
    return rc < 0 ? rc
                  : alias_add(v, name, 2, (const uint64_t[2]){v->s->experts, v->t->shape[1]}, 0);
}

/* What is of experts, or of one: are there any? */
static int experts_check(const view *v)
{
    const cf_gguf_source *s = v->s;
    if (s->arch->paired && v->name.block % 2)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s: odd blocks have no experts", s->path,
                       v->t->name);
    if (v->name.numbered && v->name.number >= s->experts)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s: \"%s.expert_count\" is %u", s->path,
                       v->t->name, s->arch->name, s->experts);
    return 0;
}

static int map_experts(const view *v, const cf_gguf_name *rule)
{
    char wanted[96];
    const cf_tensor *t = v->t;
    uint32_t experts = v->s->experts, bias = strcmp(v->name.suffix, ".bias") == 0;
    int rc = experts_check(v);
    if (rc < 0)
        return rc;
    if (v->name.numbered)
        return expert_add(v, rule, v->name.number, 0, 1);
    bool spare = v->s->arch->spare_expert && t->shape[0] == experts + 1ull;
    if (t->n_dims != 3 - bias || (t->shape[0] != experts && !spare)) {
        snprintf(wanted, sizeof wanted, "%u experts with %s each", experts,
                 bias ? "a vector" : "a matrix");
        return shape_refuse(v, wanted);
    }
    if (bias)
        return map_biases(v, rule);
    for (uint32_t e = 0; e < experts && rc == 0; e++)
        rc = expert_add(v, rule, e, 0, 1);
    return rc;
}

static const char *const halves[2] = {"blk.ffn_gate_exps", "blk.ffn_up_exps"};

/* The rows of gate, then those of up, in one tensor. */
static int map_gate_up(const view *v)
{
    const cf_tensor *t = v->t;
    uint32_t experts = v->s->experts, bias = strcmp(v->name.suffix, ".bias") == 0;
    const cf_gguf_name *rules[2] = {name_find(v->s->arch, halves[0]),
                                    name_find(v->s->arch, halves[1])};
    bool spare = v->s->arch->spare_expert && t->shape[0] == experts + 1ull;
    int rc = experts_check(v);
    if (rc < 0)
        return rc;
    if (t->n_dims != 3 - bias || (t->shape[0] != experts && !spare) || t->shape[1] % 2)
        return shape_refuse(v, "experts with an even number of rows each");
    for (uint32_t i = 0; i < 2 * experts && rc == 0; i++)
        rc = expert_add(v, rules[i % 2], i / 2, i % 2, 2);
    return rc;
}

static bool is_experts(const cf_gguf_name *rule)
{
    return rule->kind == CF_NAME_EXPERTS || rule->kind == CF_NAME_GATE_UP;
}

/* A matrix, or several, by whose published name a scale goes. */
static bool is_scaled(const cf_gguf_name *rule)
{
    return is_experts(rule) || rule->kind == CF_NAME_WHOLE || rule->kind == CF_NAME_HEADS;
}

/* The scale of a whole matrix in a tensor of its own (NVFP4 has one), or of each expert's. */
static int map_scale(const view *v, const cf_gguf_name *rule)
{
    const cf_tensor *t = v->t;
    char name[MAX_TEXT], wanted[64];
    uint32_t numbers[2];
    bool both = rule->kind == CF_NAME_GATE_UP, alone = v->name.numbered || !is_experts(rule);
    uint64_t n = alone ? 1 : v->s->experts;
    bool spare = !alone && v->s->arch->spare_expert && t->shape[0] == n + 1;
    int rc = is_experts(rule) ? experts_check(v) : 0;
    if (rc < 0)
        return rc;
    if (t->n_dims != 1 || (t->shape[0] != n && !spare)) {
        snprintf(wanted, sizeof wanted, "[%" PRIu64 "]", n);
        return shape_refuse(v, wanted);
    }
    if (t->format != CF_F32)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s has dtype %s, must be F32", v->s->path,
                       t->name, cf_format_name(t->format));
    numbers_of(v, numbers);
    for (uint64_t i = 0; i < n << both; i++) {
        const cf_gguf_name *to = both ? name_find(v->s->arch, halves[i & 1]) : rule;
        if (is_experts(rule))
            numbers[1] = v->name.numbered ? v->name.number : (uint32_t)(i >> both);
        rc = alias_print(v, to->to, numbers, false, name);
        if (rc == 0 && strlen(name) + sizeof CF_GGUF_SCALE >= MAX_TEXT)
            rc = CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s: its name is too long", v->s->path,
                         t->name);
        if (rc < 0)
            return rc;
        memcpy(name + strlen(name), CF_GGUF_SCALE, sizeof CF_GGUF_SCALE);
        rc = alias_add(v, name, 1, (const uint64_t[1]){1}, (i >> both) * sizeof(float));
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* n-gram tables one below the other, each in a stripe as high as the last of them, which is the
 * highest: table t begins at stripe t; what its own rows leave of the stripe is padding. */
static int map_tables(const view *v, const cf_gguf_name *rule)
{
    char name[MAX_TEXT];
    const cf_tensor *t = v->t;
    uint32_t n = v->s->n_tables;
    if (t->n_dims != 2 || !n || t->shape[0] % n || t->shape[0] / n < 2ull * n)
        return shape_refuse(v, "a stripe of rows for each n-gram table");
    uint64_t stripe = t->shape[0] / n, each = t->extent.bytes / n;
    for (uint32_t i = 0; i < n; i++) {
        int rc = alias_print(v, rule->to, (const uint32_t[2]){i, 0}, false, name);
        if (rc == 0) /* a table has two rows more than the one before */
            rc = alias_add(v, name, 2,
                           (const uint64_t[2]){stripe - 2ull * (n - 1 - i), t->shape[1]}, i * each);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- the whole ---- */

static int tensor_map(const view *v)
{
    cf_gguf_source *s = v->s;
    const cf_tensor *t = v->t;
    if (v->name.in_block && v->name.block >= s->main_blocks) {
        if (v->name.block >= s->blocks)
            return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s: \"%s.block_count\" is %u", s->path,
                           t->name, s->arch->name, s->blocks);
        s->n_beyond++;
        s->skipped_bytes += t->extent.bytes;
        return 0;
    }
    const cf_gguf_name *rule = name_find(s->arch, v->name.stem);
    bool scale = strcmp(v->name.suffix, ".scale") == 0,
         input = strcmp(v->name.suffix, ".input_scale") == 0;
    bool known = strcmp(v->name.suffix, ".weight") == 0 || strcmp(v->name.suffix, ".bias") == 0 ||
                 (rule && rule->kind == CF_NAME_FULL && !v->name.suffix[0]) ||
                 (rule && is_scaled(rule) && (scale || input));
    if (rule && v->name.numbered && rule->kind != CF_NAME_EXPERTS && rule->kind != CF_NAME_TABLE)
        rule = NULL;
    if (!rule || !known || t->n_dims < 1)
        return CF_FAIL(v->err, CF_EFORMAT, "%s: tensor %s is unknown to architecture \"%s\"",
                       s->path, t->name, s->arch->name);
    if (input) { /* for products of integers: activations stay as they are */
        s->n_inputs++;
        s->skipped_bytes += t->extent.bytes;
        return 0;
    }
    if (scale)
        return map_scale(v, rule);
    switch (rule->kind) {
    case CF_NAME_EXPERTS:
        return map_experts(v, rule);
    case CF_NAME_GATE_UP:
        return map_gate_up(v);
    case CF_NAME_TABLES:
        return map_tables(v, rule);
    case CF_NAME_DIVISORS:
        s->divisors = cf_catalogue_find(s->cat, t->name);
        return 0;
    case CF_NAME_READ:
        return 0;
    default:
        return map_whole(v, rule);
    }
}

/* Some files have k_b and v_b, and kv_b beside them, which is both. */
static bool is_copy(const cf_gguf_source *s, const stored_name *n)
{
    return strcmp(n->stem, "blk.attn_kv_b") == 0 && n->block < s->main_blocks &&
           cf_source_tensor(s, n->block, "attn_k_b.weight") >= 0;
}

int cf_gguf_view(cf_gguf_source *s, cf_catalogue **out, cf_err *err)
{
    int rc = 0;
    view v = {.s = s, .err = err};
    CF_TRY(cf_catalogue_create(&v.out, err));
    for (uint32_t i = 0; i < cf_catalogue_file_count(s->cat); i++)
        CF_TRY(cf_catalogue_add_file(v.out, cf_catalogue_path(s->cat, i),
                                     cf_catalogue_file_bytes(s->cat, i), err));
    for (uint32_t i = 0; i < cf_catalogue_count(s->cat); i++) {
        v.t = cf_catalogue_at(s->cat, i);
        if (!name_split(v.t->name, &v.name)) {
            char clean[128];
            rc = CF_FAIL(err, CF_EFORMAT, "%s: tensor %s is unknown to architecture \"%s\"",
                         s->path, cf_text_clean(v.t->name, clean, sizeof clean), s->arch->name);
            goto fail;
        }
        if (is_copy(s, &v.name)) {
            s->n_copies++;
            s->skipped_bytes += v.t->extent.bytes;
            continue;
        }
        CF_TRY(tensor_map(&v));
    }
    cf_catalogue_trim(v.out);
    *out = v.out;
    return 0;
fail:
    cf_catalogue_close(&v.out);
    return rc;
}
