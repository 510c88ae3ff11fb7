/* The parts of a tokenizer.json around the model: normalizer, Metaspace, decoder, post-processor.
 */
#include "runtime/tokenizer_json.h"

#include <stdio.h>

#include "runtime/tokenizer_base64.h"

/* --- normalizer ------------------------------------------------------------------------------ */

/* "pattern" of a part: {"Regex": ...} or {"String": ...}. */
static const json_t *pattern_of(const json_t *part, bool *is_regex)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    *is_regex = regex != NULL;
    return regex ? regex : json_object_get(pattern, "String");
}

static bool is_text(const json_t *value, const char *text)
{
    return json_is_string(value) && json_string_length(value) == strlen(text) &&
           memcmp(json_string_value(value), text, strlen(text)) == 0;
}

static int replace_read(tok_reader *r, const json_t *part, const char *where, const char *what)
{
    bool is_regex;
    const json_t *pattern = pattern_of(part, &is_regex);
    const json_t *content = json_object_get(part, "content");
    if (!json_is_string(pattern))
        return TOK_BAD(r, "%s.pattern has no string \"Regex\" or \"String\"", where);
    if (!json_is_string(content))
        return TOK_BAD(r, "%s.content is %s, not a string", where, tok_json_type(content));
    tok_step *step = tok_normal_add(&r->tok->normal, TOK_STEP_REPLACE, what, r->err);
    if (!step)
        return CF_ELIMIT;
    if (!is_regex && is_text(pattern, " ") && is_text(content, TOK_META)) {
        r->has_spaces = true;
        r->spaces_step = r->tok->normal.n - 1;
    }
    int rc =
        tok_buf_add(&step->text, json_string_value(content), json_string_length(content), r->err);
    if (rc < 0)
        return rc;
    return tok_regex_compile(&step->regex, is_regex ? TOK_REGEX_ONIG : TOK_REGEX_LITERAL,
                             json_string_value(pattern), json_string_length(pattern), what, r->err);
}

static int prepend_read(tok_reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *text = json_object_get(part, "prepend");
    if (!json_is_string(text))
        return TOK_BAD(r, "%s.prepend is %s, not a string", where, tok_json_type(text));
    tok_step *step = tok_normal_add(&r->tok->normal, TOK_STEP_PREPEND, what, r->err);
    if (!step)
        return CF_ELIMIT;
    return tok_buf_add(&step->text, json_string_value(text), json_string_length(text), r->err);
}

static int precompiled_read(tok_reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *text = json_object_get(part, "precompiled_charsmap");
    tok_buf table = {0};
    size_t bad;
    int rc = 0;
    if (!json_is_string(text))
        return TOK_BAD(r, "%s.precompiled_charsmap is %s, not a string", where,
                       tok_json_type(text));
    if (r->tok->normal.map.units)
        return TOK_BAD(r, "%s: a second normalizer of type \"Precompiled\"", where);
    if (json_string_length(text) == 0)
        return 0;
    CF_TRY(
        tok_base64_decode(json_string_value(text), json_string_length(text), &table, &bad, r->err));
    if (rc > 0) {
        rc = TOK_BAD(r, "%s.precompiled_charsmap is not base64 at byte %zu", where, bad);
        goto fail;
    }
    CF_TRY(tok_charsmap_parse(&r->tok->normal.map, (const uint8_t *)table.data, table.n, what,
                              r->err));
    if (!tok_normal_add(&r->tok->normal, TOK_STEP_CLUSTERS, what, r->err))
        rc = CF_ELIMIT;
fail:
    tok_buf_finish(&table);
    return rc;
}

static int normalizer_part(tok_reader *r, const json_t *part, const char *where, const char *type)
{
    char what[600];
    tok_step *step;
    int rc = 0;
    snprintf(what, sizeof what, "%s: %s", r->path, where);
    if (strcmp(type, "NFC") == 0)
        return tok_normal_add(&r->tok->normal, TOK_STEP_NFC, what, r->err) ? 0 : CF_ELIMIT;
    if (strcmp(type, "Prepend") == 0)
        return prepend_read(r, part, where, what);
    if (strcmp(type, "Replace") == 0)
        return replace_read(r, part, where, what);
    if (strcmp(type, "Precompiled") == 0)
        return precompiled_read(r, part, where, what);
    if (strcmp(type, "Strip") != 0)
        return tok_json_part_unknown(r, where, type, "NFC, Prepend, Replace, Strip, Precompiled");
    step = tok_normal_add(&r->tok->normal, TOK_STEP_STRIP, what, r->err);
    if (!step)
        return CF_ELIMIT;
    CF_TRY(tok_json_flag(r, part, where, "strip_left", true, &step->left));
    CF_TRY(tok_json_flag(r, part, where, "strip_right", true, &step->right));
fail:
    return rc;
}

int tok_json_normalizer(tok_reader *r, const json_t *root)
{
    tok_walk w;
    const json_t *part;
    const char *type;
    int rc =
        tok_walk_begin(r, &w, json_object_get(root, "normalizer"), "normalizer", "normalizers");
    while (rc == 0 && (rc = tok_walk_next(r, &w, &part, &type)) > 0)
        rc = normalizer_part(r, part, w.name, type);
    return rc;
}

/* --- Metaspace ------------------------------------------------------------------------------- */

int tok_json_metaspace(tok_reader *r, const json_t *part, const char *where,
                       tok_meta_scheme *scheme, bool *split)
{
    static const char *const names[] = {"never", "first", "always"};
    const json_t *replacement = json_object_get(part, "replacement");
    const json_t *name = json_object_get(part, "prepend_scheme");
    char text[TOK_QUOTE_SIZE];
    bool prefix;
    int rc = 0;
    if (replacement && !is_text(replacement, TOK_META))
        return TOK_BAD(r, "%s.replacement is not U+2581: no other is supported", where);
    CF_TRY(tok_json_flag(r, part, where, "split", true, split));
    CF_TRY(tok_json_flag(r, part, where, "add_prefix_space", true, &prefix));
    *scheme = prefix ? TOK_META_ALWAYS : TOK_META_NEVER;
    if (!name || json_is_null(name))
        return 0;
    if (!json_is_string(name))
        return TOK_BAD(r, "%s.prepend_scheme is %s, not a string", where, tok_json_type(name));
    for (int i = 0; i < 3; i++)
        if (is_text(name, names[i])) {
            *scheme = (tok_meta_scheme)(TOK_META_NEVER + i);
            return 0;
        }
    rc = TOK_BAD(r, "%s.prepend_scheme \"%s\" is not known (known: never, first, always)", where,
                 tok_json_quoted(name, text));
fail:
    return rc;
}

/* --- decoder --------------------------------------------------------------------------------- */

static bool is_count(const json_t *value, json_int_t n)
{
    return json_is_integer(value) && json_integer_value(value) == n;
}

static int decoder_part(tok_reader *r, const json_t *part, const char *where, const char *type)
{
    tok_meta_scheme scheme;
    bool is_regex, split;
    int rc;
    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "Fuse") == 0)
        return 0;
    if (strcmp(type, "ByteFallback") == 0) {
        r->decode_bytes = true;
        return 0;
    }
    if (strcmp(type, "Replace") == 0) {
        const json_t *pattern = pattern_of(part, &is_regex);
        if (is_regex || !is_text(pattern, TOK_META) ||
            !is_text(json_object_get(part, "content"), " "))
            return TOK_BAD(r, "%s replaces something else than U+2581 by a space", where);
        return 0;
    }
    if (strcmp(type, "Strip") == 0) {
        if (!is_text(json_object_get(part, "content"), " ") ||
            !is_count(json_object_get(part, "start"), 1) ||
            !is_count(json_object_get(part, "stop"), 0))
            return TOK_BAD(r, "%s strips something else than one space in front", where);
        r->tok->lead = TOK_LEAD_ONE;
        return 0;
    }
    if (strcmp(type, "Metaspace") != 0)
        return tok_json_part_unknown(r, where, type,
                                     "ByteLevel, Fuse, ByteFallback, Replace, Strip, Metaspace");
    rc = tok_json_metaspace(r, part, where, &scheme, &split);
    if (rc == 0 && scheme != TOK_META_NEVER)
        r->tok->lead = TOK_LEAD_ALL;
    return rc;
}

int tok_json_decoder(tok_reader *r, const json_t *root)
{
    tok_walk w;
    const json_t *part;
    const char *type;
    int rc = tok_walk_begin(r, &w, json_object_get(root, "decoder"), "decoder", "decoders");
    while (rc == 0 && (rc = tok_walk_next(r, &w, &part, &type)) > 0)
        rc = decoder_part(r, part, w.name, type);
    return rc;
}

/* --- post_processor -------------------------------------------------------------------------- */

static int prefix_add(tok_reader *r, const json_t *id_value, const char *where)
{
    cf_tokenizer *t = r->tok;
    int32_t id = -1;
    int rc = tok_json_id(r, id_value, where, &id);
    if (rc < 0)
        return rc;
    if (id >= t->vocab.n)
        return TOK_BAD(r, "%s: the id %d is outside the vocabulary of %d", where, id, t->vocab.n);
    if (t->n_prefix == TOK_PREFIX_MAX)
        return TOK_BAD(r, "%s: more than %d tokens before the text", where, TOK_PREFIX_MAX);
    t->prefix[t->n_prefix++] = id;
    return 0;
}

/* "single" of a template: the special tokens before the text. What stands behind it (an end of
 * sequence) is not put: a prompt goes on. */
static int template_read(tok_reader *r, const json_t *part, const char *where)
{
    const json_t *single = json_object_get(part, "single"), *item, *value;
    const json_t *specials = json_object_get(part, "special_tokens");
    size_t i, k;
    char text[TOK_QUOTE_SIZE];
    int rc = 0;
    if (!json_is_array(single))
        return TOK_BAD(r, "%s.single is %s, not an array", where, tok_json_type(single));
    json_array_foreach((json_t *)single, i, item)
    {
        if (json_object_get(item, "Sequence"))
            return 0;
        const json_t *name = json_object_get(json_object_get(item, "SpecialToken"), "id");
        if (!json_is_string(name))
            return TOK_BAD(r, "%s.single[%zu] is neither a SpecialToken nor a Sequence", where, i);
        const json_t *ids =
            json_object_get(json_object_get(specials, json_string_value(name)), "ids");
        if (!json_is_array(ids))
            return TOK_BAD(r, "%s.special_tokens has no ids for \"%s\"", where,
                           tok_json_quoted(name, text));
        json_array_foreach((json_t *)ids, k, value) CF_TRY(prefix_add(r, value, where));
    }
    return TOK_BAD(r, "%s.single has no Sequence", where);
fail:
    return rc;
}

int tok_json_post_processor(tok_reader *r, const json_t *root)
{
    tok_walk w;
    const json_t *part;
    const char *type;
    int rc = tok_walk_begin(r, &w, json_object_get(root, "post_processor"), "post_processor",
                            "processors");
    while (rc == 0 && (rc = tok_walk_next(r, &w, &part, &type)) > 0) {
        rc = 0;
        if (strcmp(type, "ByteLevel") == 0)
            continue;
        bool is_template = strcmp(type, "TemplateProcessing") == 0;
        if (!is_template && strcmp(type, "RobertaProcessing") != 0 &&
            strcmp(type, "BertProcessing") != 0)
            return tok_json_part_unknown(
                r, w.name, type,
                "Sequence, ByteLevel, TemplateProcessing, RobertaProcessing, "
                "BertProcessing");
        if (r->tok->has_template)
            return TOK_BAD(r, "%s: a second post-processor that adds tokens", w.name);
        r->tok->has_template = true;
        rc = is_template ? template_read(r, part, w.name)
                         : prefix_add(r, json_array_get(json_object_get(part, "cls"), 1), w.name);
    }
    return rc;
}
