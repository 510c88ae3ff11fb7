/* Reads a tokenizer.json into the parts of a tokenizer.
 *
 * The file is untrusted: every type, id and count is checked, and a fault is a sentence with the
 * path and the place in the file. What is not known is refused by name, never ignored, unless it
 * cannot change an id (truncation, padding, trim_offsets). Here: the walk over parts, the
 * pre-tokenizer, the added tokens; the rest in tokenizer_json_text.c and tokenizer_json_model.c. */
#include "runtime/tokenizer_json.h"

#include <stdio.h>

int tok_json_bad(const char *path, cf_err *err, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return CF_FAIL(err, CF_EFORMAT, "%s: %s", path, text);
}

const char *tok_json_type(const json_t *value)
{
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return value ? names[json_typeof(value)] : "missing";
}

const char *tok_json_quoted(const json_t *string, char out[TOK_QUOTE_SIZE])
{
    return tok_quote(json_string_value(string), json_string_length(string), out);
}

int tok_json_part_type(tok_reader *r, const json_t *part, const char *where, const char **type)
{
    const json_t *t = json_object_get(part, "type");
    if (!json_is_object(part))
        return TOK_BAD(r, "%s is %s, not an object", where, tok_json_type(part));
    if (!json_is_string(t))
        return TOK_BAD(r, "%s.type is %s, not a string", where, tok_json_type(t));
    *type = json_string_value(t);
    return 0;
}

int tok_json_part_unknown(tok_reader *r, const char *where, const char *type, const char *known)
{
    char text[TOK_QUOTE_SIZE];
    return TOK_BAD(r, "%s of type \"%s\" is not supported yet (supported: %s)", where,
                   tok_quote(type, strlen(type), text), known);
}

int tok_json_flag(tok_reader *r, const json_t *part, const char *where, const char *key,
                  bool missing, bool *value)
{
    const json_t *v = json_object_get(part, key);
    if (v && !json_is_boolean(v))
        return TOK_BAD(r, "%s.%s is %s, not true or false", where, key, tok_json_type(v));
    *value = v ? json_is_true(v) : missing;
    return 0;
}

int tok_json_id(tok_reader *r, const json_t *value, const char *where, int32_t *id)
{
    if (!json_is_integer(value))
        return TOK_BAD(r, "%s is %s, not an id", where, tok_json_type(value));
    json_int_t v = json_integer_value(value);
    if (v < 0 || v >= TOK_VOCAB_MAX)
        return TOK_BAD(r, "%s: the id %lld is not in 0 to %d", where, (long long)v,
                       TOK_VOCAB_MAX - 1);
    *id = (int32_t)v;
    return 0;
}

/* --- a part, or a Sequence of parts ---------------------------------------------------------- */

static int walk_open(tok_reader *r, tok_walk *w, const json_t *part, bool *opened)
{
    const char *type;
    int rc = tok_json_part_type(r, part, w->where, &type);
    *opened = false;
    if (rc < 0 || strcmp(type, "Sequence") != 0)
        return rc;
    const json_t *list = json_object_get(part, w->key);
    if (!json_is_array(list))
        return TOK_BAD(r, "%s.%s is %s, not an array", w->where, w->key, tok_json_type(list));
    if (w->depth == TOK_JSON_NESTING_MAX)
        return TOK_BAD(r, "%s: more than %d Sequences in one another", w->where,
                       TOK_JSON_NESTING_MAX);
    w->list[w->depth] = list;
    w->at[w->depth++] = 0;
    *opened = true;
    return 0;
}

int tok_walk_begin(tok_reader *r, tok_walk *w, const json_t *part, const char *where,
                   const char *key)
{
    bool opened;
    *w = (tok_walk){.key = key, .where = where};
    if (!part || json_is_null(part))
        return 0;
    int rc = walk_open(r, w, part, &opened);
    if (rc == 0 && !opened)
        w->single = part;
    return rc;
}

int tok_walk_next(tok_reader *r, tok_walk *w, const json_t **part, const char **type)
{
    int rc = 0;
    for (;;) {
        bool opened = false;
        if (w->single) {
            *part = w->single;
            w->single = NULL;
        } else if (w->depth == 0) {
            return 0;
        } else if (!(*part = json_array_get(w->list[w->depth - 1], w->at[w->depth - 1]++))) {
            w->depth--;
            continue;
        } else {
            CF_TRY(walk_open(r, w, *part, &opened));
        }
        if (opened)
            continue;
        snprintf(w->name, sizeof w->name, "%s %u", w->where, w->n++);
        CF_TRY(tok_json_part_type(r, *part, w->name, type));
        return 1;
    }
fail:
    return rc;
}

/* --- pre_tokenizer --------------------------------------------------------------------------- */

static int behavior_read(tok_reader *r, const json_t *part, const char *where,
                         tok_split_behavior *behavior)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    char text[TOK_QUOTE_SIZE];
    const json_t *v = json_object_get(part, "behavior");
    if (!json_is_string(v))
        return TOK_BAD(r, "%s.behavior is %s, not a string", where, tok_json_type(v));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(json_string_value(v), names[i]) == 0) {
            *behavior = (tok_split_behavior)i;
            return 0;
        }
    return TOK_BAD(r, "%s.behavior \"%s\" is not known", where, tok_json_quoted(v, text));
}

static int split_read(tok_reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *text = regex ? regex : literal;
    tok_split_behavior behavior;
    bool invert;
    int rc = 0;
    if (!json_is_string(text))
        return TOK_BAD(r, "%s.pattern has no string \"Regex\" or \"String\"", where);
    CF_TRY(behavior_read(r, part, where, &behavior));
    CF_TRY(tok_json_flag(r, part, where, "invert", false, &invert));
    CF_TRY(tok_pretok_add(&r->tok->pretok, regex ? TOK_REGEX_ONIG : TOK_REGEX_LITERAL,
                          json_string_value(text), json_string_length(text), behavior, invert, what,
                          r->err));
fail:
    return rc;
}

static int delimiter_read(tok_reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *text = json_object_get(part, "delimiter");
    if (!json_is_string(text) || json_string_length(text) == 0)
        return TOK_BAD(r, "%s.delimiter is not a character", where);
    return tok_pretok_add(&r->tok->pretok, TOK_REGEX_LITERAL, json_string_value(text),
                          json_string_length(text), TOK_SPLIT_REMOVED, false, what, r->err);
}

static int pattern_add(tok_reader *r, const char *pattern, tok_split_behavior behavior,
                       const char *what)
{
    return tok_pretok_add(&r->tok->pretok, TOK_REGEX_ONIG, pattern, strlen(pattern), behavior,
                          false, what, r->err);
}

static int pre_tokenizer_part(tok_reader *r, const json_t *part, const char *where,
                              const char *type, const char **last)
{
    /* What the reference calls a number (the N of a later Unicode) and punctuation (the P of an
     * earlier one, and ASCII's symbols). */
    static const char number[] = "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]";
    static const char punctuation[] =
        "[!-/:-@\\[-`{-~\\x{166D}\\x{111C9}\\p{P}&&[^\\x{61D}\\x{9FD}\\x{A76}\\x{C77}\\x{C84}"
        "\\x{1B4E}\\x{1B4F}\\x{1B7D}-\\x{1B7F}\\x{2E43}-\\x{2E4F}\\x{2E52}-\\x{2E5D}"
        "\\x{10D6E}\\x{10EAD}\\x{10F55}-\\x{10F59}\\x{10F86}-\\x{10F89}\\x{113D4}-\\x{113D8}"
        "\\x{1144B}-\\x{1144F}\\x{1145A}-\\x{1145B}\\x{1145D}\\x{11660}-\\x{1166C}\\x{116B9}"
        "\\x{1183B}\\x{11944}-\\x{11946}\\x{119E2}\\x{11A3F}-\\x{11A46}\\x{11A9A}-\\x{11A9C}"
        "\\x{11A9E}-\\x{11AA2}\\x{11B00}-\\x{11B09}\\x{11BE1}\\x{11C41}-\\x{11C45}"
        "\\x{11C70}-\\x{11C71}\\x{11EF7}-\\x{11EF8}\\x{11F43}-\\x{11F4F}\\x{11FFF}"
        "\\x{12FF1}-\\x{12FF2}\\x{16D6D}-\\x{16D6F}\\x{16E97}-\\x{16E9A}\\x{16FE2}"
        "\\x{1E5FF}\\x{1E95E}-\\x{1E95F}]]";
    char what[600];
    bool prefix_space, on;
    tok_split_behavior behavior = TOK_SPLIT_ISOLATED;
    int rc = 0;
    snprintf(what, sizeof what, "%s: %s", r->path, where);
    if (*last)
        return TOK_BAD(r, "%s of type \"%s\" comes after %s, which must be the last", where, type,
                       *last);
    if (strcmp(type, "Split") == 0)
        return split_read(r, part, where, what);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return delimiter_read(r, part, where, what);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return pattern_add(r, "\\s", TOK_SPLIT_REMOVED, what);
    if (strcmp(type, "Digits") == 0) {
        CF_TRY(tok_json_flag(r, part, where, "individual_digits", false, &on));
        return pattern_add(r, number, on ? TOK_SPLIT_ISOLATED : TOK_SPLIT_CONTIGUOUS, what);
    }
    if (strcmp(type, "Punctuation") == 0) {
        if (json_object_get(part, "behavior"))
            CF_TRY(behavior_read(r, part, where, &behavior));
        return pattern_add(r, punctuation, behavior, what);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        *last = "ByteLevel";
        r->byte_level = true;
        CF_TRY(tok_json_flag(r, part, where, "add_prefix_space", true, &prefix_space));
        CF_TRY(tok_json_flag(r, part, where, "use_regex", true, &on));
        return tok_pretok_byte_level(&r->tok->pretok, prefix_space, on, r->err);
    }
    if (strcmp(type, "Metaspace") == 0) {
        *last = "Metaspace";
        return tok_json_metaspace(r, part, where, &r->tok->pretok.meta, &r->tok->pretok.meta_split);
    }
    return tok_json_part_unknown(r, where, type,
                                 "Sequence, Split, Digits, Punctuation, WhitespaceSplit, "
                                 "CharDelimiterSplit, ByteLevel, Metaspace");
fail:
    return rc;
}

/* Replacing spaces by U+2581 and back again changes nothing: the step is left out where nothing
 * between the two sees the difference. */
static void spaces_step_drop(tok_reader *r)
{
    tok_normal *normal = &r->tok->normal;
    for (uint32_t i = r->spaces_step + 1; i < normal->n; i++)
        if (normal->steps[i].kind != TOK_STEP_PREPEND)
            return;
    if (r->tok->pretok.n_splits > 0)
        return;
    tok_regex_finish(&normal->steps[r->spaces_step].regex);
    tok_buf_finish(&normal->steps[r->spaces_step].text);
    for (uint32_t i = r->spaces_step + 1; i < normal->n; i++)
        normal->steps[i - 1] = normal->steps[i];
    normal->n--;
}

static int pre_tokenizer_read(tok_reader *r, const json_t *root)
{
    tok_walk w;
    const json_t *part;
    const char *type, *last = NULL;
    tok_pretok *pretok = &r->tok->pretok;
    int rc = tok_walk_begin(r, &w, json_object_get(root, "pre_tokenizer"), "pre_tokenizer",
                            "pretokenizers");
    while (rc == 0 && (rc = tok_walk_next(r, &w, &part, &type)) > 0)
        rc = pre_tokenizer_part(r, part, w.name, type, &last);
    if (rc < 0 || r->byte_level)
        return rc;
    if (pretok->meta == TOK_META_NONE) {
        if (!r->has_spaces)
            return TOK_BAD(r, "pre_tokenizer has no ByteLevel and no Metaspace, and no normalizer "
                              "replaces \" \" by U+2581: such vocabularies are not supported");
        pretok->meta = TOK_META_NEVER;
    }
    if (r->has_spaces)
        spaces_step_drop(r);
    return 0;
}

/* --- added_tokens ---------------------------------------------------------------------------- */

int tok_added_define(cf_tokenizer *tok, const char *text, size_t n, int32_t id, uint8_t flags,
                     tok_normal_work *normalized, cf_err *err)
{
    tok_buf out = {0};
    bool changed = false, special = flags & TOK_IS_SPECIAL;
    int rc = tok_vocab_set(&tok->vocab, id, text, n,
                           (uint8_t)(TOK_ADDED | (special ? TOK_SPECIAL : 0)), err);
    if (rc == 0 && normalized)
        rc = tok_normal_run(&tok->normal, normalized, text, n, &out, &changed, err);
    /* Normalised to nothing it is never found; to too much, it is not looked for. */
    size_t bytes = changed ? out.n : n;
    if (rc == 0 && bytes > 0 && bytes <= TOK_ADDED_BYTES_MAX)
        rc = tok_added_put(normalized ? &tok->added_normalized : &tok->added,
                           changed ? out.data : text, bytes, id, flags, err);
    tok_buf_finish(&out);
    return rc;
}

int tok_added_seal_all(cf_tokenizer *tok, cf_err *err)
{
    int rc = tok_added_seal(&tok->added, err);
    return rc < 0 ? rc : tok_added_seal(&tok->added_normalized, err);
}

static int added_token_read(tok_reader *r, const json_t *item, const char *where, int32_t id)
{
    static const struct {
        const char *key;
        uint8_t flag;
    } keys[] = {{"single_word", TOK_SINGLE_WORD}, {"lstrip", TOK_LSTRIP}, {"rstrip", TOK_RSTRIP}};
    const json_t *content = json_object_get(item, "content");
    uint8_t flags = 0;
    bool special, normalized, on;
    int rc = 0;
    if (!json_is_string(content))
        return TOK_BAD(r, "%s.content is %s, not a string", where, tok_json_type(content));
    size_t n = json_string_length(content);
    if (n > TOK_ADDED_BYTES_MAX / 4) /* NFC may lengthen a text threefold */
        return TOK_BAD(r, "%s.content has %zu bytes, the limit is %d", where, n,
                       TOK_ADDED_BYTES_MAX / 4);
    CF_TRY(tok_json_flag(r, item, where, "special", false, &special));
    CF_TRY(tok_json_flag(r, item, where, "normalized", !special, &normalized));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        CF_TRY(tok_json_flag(r, item, where, keys[i].key, false, &on));
        flags = (uint8_t)(flags | (on ? keys[i].flag : 0));
    }
    flags = (uint8_t)(flags | (special ? TOK_IS_SPECIAL : 0));
    if (n == 0)
        return 0; /* the reference ignores these */
    CF_TRY(tok_added_define(r->tok, json_string_value(content), n, id, flags,
                            normalized ? &r->normal : NULL, r->err));
fail:
    return rc;
}

static int added_tokens_read(tok_reader *r, const json_t *root)
{
    const json_t *list = json_object_get(root, "added_tokens"), *item;
    size_t i;
    int rc = 0;
    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list))
        return TOK_BAD(r, "added_tokens is %s, not an array", tok_json_type(list));
    if (json_array_size(list) > TOK_ADDED_MAX)
        return TOK_BAD(r, "added_tokens has %zu entries, the limit is %d", json_array_size(list),
                       TOK_ADDED_MAX);
    json_array_foreach((json_t *)list, i, item)
    {
        char where[40];
        int32_t id;
        snprintf(where, sizeof where, "added_tokens[%zu].id", i);
        CF_TRY(tok_json_id(r, json_object_get(item, "id"), where, &id));
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        CF_TRY(added_token_read(r, item, where, id));
    }
fail:
    return rc;
}

int tok_json_read(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err)
{
    tok_reader r = {.tok = tok, .path = path, .err = err};
    int rc = 0;
    if (!json_is_object(root))
        return tok_json_bad(path, err, "the file is %s, not an object", tok_json_type(root));
    /* The kinds first: what is not supported is said before anything else is. */
    const json_t *model = json_object_get(root, "model");
    CF_TRY(tok_json_model_check(&r, model));
    CF_TRY(tok_json_normalizer(&r, root));
    CF_TRY(pre_tokenizer_read(&r, root));
    CF_TRY(tok_json_decoder(&r, root));
    tok->each_byte = r.decode_bytes;
    CF_TRY(tok_json_model(&r, model));
    CF_TRY(added_tokens_read(&r, root));
    CF_TRY(tok_json_model_finish(&r));
    CF_TRY(tok_json_post_processor(&r, root));
fail:
    tok_buf_finish(&r.work);
    tok_normal_work_finish(&r.normal);
    free(r.scores);
    return rc;
}

/* added_tokens_decoder of tokenizer_config.json: {"163584": {"content": "[BOS]", ...}, ...}. */
static int added_decoder_read(tok_reader *r, const json_t *root)
{
    const json_t *table = json_object_get(root, "added_tokens_decoder"), *item;
    char where[TOK_QUOTE_SIZE + 40], text[TOK_QUOTE_SIZE], *end;
    const char *key;
    int rc = 0;
    if (!table || json_is_null(table))
        return 0;
    if (!json_is_object(table))
        return TOK_BAD(r, "added_tokens_decoder is %s, not an object", tok_json_type(table));
    if (json_object_size(table) > TOK_ADDED_MAX)
        return TOK_BAD(r, "added_tokens_decoder has %zu entries, the limit is %d",
                       json_object_size(table), TOK_ADDED_MAX);
    json_object_foreach((json_t *)table, key, item)
    {
        long id = strtol(key, &end, 10);
        snprintf(where, sizeof where, "added_tokens_decoder[\"%s\"]",
                 tok_quote(key, strlen(key), text));
        if (key[0] < '0' || key[0] > '9' || *end || id >= TOK_VOCAB_MAX)
            return TOK_BAD(r, "%s: the key is not an id of 0 to %d", where, TOK_VOCAB_MAX - 1);
        CF_TRY(added_token_read(r, item, where, (int32_t)id));
    }
fail:
    return rc;
}

int tok_json_read_config(cf_tokenizer *tok, const json_t *root, bool added, const char *path,
                         cf_err *err)
{
    tok_reader r = {.tok = tok, .path = path, .err = err};
    char text[TOK_QUOTE_SIZE];
    bool adds_bos;
    int rc = 0;
    if (!json_is_object(root))
        return tok_json_bad(path, err, "the file is %s, not an object", tok_json_type(root));
    if (added) {
        CF_TRY(added_decoder_read(&r, root));
        CF_TRY(tok_added_seal_all(tok, err));
    }
    const json_t *flag = json_object_get(root, "add_bos_token");
    const json_t *bos = json_object_get(root, "bos_token");
    if (json_is_object(bos))
        bos = json_object_get(bos, "content");
    if (tok->has_template || !flag || json_is_null(flag))
        goto fail;
    CF_TRY(tok_json_flag(&r, root, "the file", "add_bos_token", false, &adds_bos));
    if (!adds_bos)
        tok->n_prefix = 0;
    if (!adds_bos || !json_is_string(bos))
        goto fail;
    int32_t id = cf_tokenizer_find(tok, json_string_value(bos));
    if (id < 0)
        CF_TRY(TOK_BAD(&r, "bos_token \"%s\" is not in the vocabulary",
                       tok_json_quoted(bos, text)));
    tok->prefix[0] = id;
    tok->n_prefix = 1;
fail:
    tok_normal_work_finish(&r.normal);
    return rc;
}
