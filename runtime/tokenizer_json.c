/* Reads a tokenizer.json into the parts of a tokenizer.
 *
 * The file is untrusted: every type, id and count is checked, and a fault is a sentence with the
 * path and the place in the file. Known: byte-level BPE with NFC or no normaliser; what is not
 * known is refused by name, never ignored, unless it cannot change an id (truncation, padding,
 * trim_offsets). */
#include "runtime/tokenizer_parts.h"

#include <stdio.h>

enum { NESTING_MAX = 4 };

typedef struct reader {
    cf_tokenizer *tok;
    const char *path;
    cf_err *err;
    tok_buf work;
} reader;

#define BAD(r, ...) bad((r)->path, (r)->err, __VA_ARGS__)

__attribute__((format(printf, 3, 4))) static int bad(const char *path, cf_err *err,
                                                     const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return CF_FAIL(err, CF_EFORMAT, "%s: %s", path, text);
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return value ? names[json_typeof(value)] : "missing";
}

/* A string, quoted for a sentence. */
static const char *quoted(const json_t *string, char out[TOK_QUOTE_SIZE])
{
    return tok_quote(json_string_value(string), json_string_length(string), out);
}

/* The "type" of a part: its string in `type`, or a failure. */
static int part_type(reader *r, const json_t *part, const char *where, const char **type)
{
    const json_t *t = json_object_get(part, "type");
    if (!json_is_object(part))
        return BAD(r, "%s is %s, not an object", where, type_name(part));
    if (!json_is_string(t))
        return BAD(r, "%s.type is %s, not a string", where, type_name(t));
    *type = json_string_value(t);
    return 0;
}

static int part_unknown(reader *r, const char *where, const char *type, const char *known)
{
    char text[TOK_QUOTE_SIZE];
    return BAD(r, "%s of type \"%s\" is not supported yet (supported: %s)", where,
               tok_quote(type, strlen(type), text), known);
}

/* An optional boolean. */
static int flag_read(reader *r, const json_t *part, const char *where, const char *key,
                     bool missing, bool *value)
{
    const json_t *v = json_object_get(part, key);
    if (v && !json_is_boolean(v))
        return BAD(r, "%s.%s is %s, not true or false", where, key, type_name(v));
    *value = v ? json_is_true(v) : missing;
    return 0;
}

static int id_read(reader *r, const json_t *value, const char *where, int32_t *id)
{
    if (!json_is_integer(value))
        return BAD(r, "%s is %s, not an id", where, type_name(value));
    json_int_t v = json_integer_value(value);
    if (v < 0 || v >= TOK_VOCAB_MAX)
        return BAD(r, "%s: the id %lld is not in 0 to %d", where, (long long)v, TOK_VOCAB_MAX - 1);
    *id = (int32_t)v;
    return 0;
}

/* --- a part, or a Sequence of parts ---------------------------------------------------------- */

/* Walks the parts of `part` in order, Sequences opened (their list is under `key`). */
typedef struct walk {
    const char *key, *where;
    const json_t *single; /* not a Sequence: given out once */
    const json_t *list[NESTING_MAX];
    size_t at[NESTING_MAX];
    uint32_t depth;
    uint32_t n; /* parts given out */
    char name[64];
} walk;

static int walk_open(reader *r, walk *w, const json_t *part, bool *opened)
{
    const char *type;
    int rc = part_type(r, part, w->where, &type);
    *opened = false;
    if (rc < 0 || strcmp(type, "Sequence") != 0)
        return rc;
    const json_t *list = json_object_get(part, w->key);
    if (!json_is_array(list))
        return BAD(r, "%s.%s is %s, not an array", w->where, w->key, type_name(list));
    if (w->depth == NESTING_MAX)
        return BAD(r, "%s: more than %d Sequences in one another", w->where, NESTING_MAX);
    w->list[w->depth] = list;
    w->at[w->depth++] = 0;
    *opened = true;
    return 0;
}

static int walk_begin(reader *r, walk *w, const json_t *part, const char *where, const char *key)
{
    bool opened;
    *w = (walk){.key = key, .where = where};
    if (!part || json_is_null(part))
        return 0;
    int rc = walk_open(r, w, part, &opened);
    if (rc == 0 && !opened)
        w->single = part;
    return rc;
}

/* 1 with the next part and its name for sentences (in w->name), 0 at the end. */
static int walk_next(reader *r, walk *w, const json_t **part, const char **type)
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
        CF_TRY(part_type(r, *part, w->name, type));
        return 1;
    }
fail:
    return rc;
}

/* --- normalizer ------------------------------------------------------------------------------ */

static int normalizer_read(reader *r, const json_t *root)
{
    walk w;
    const json_t *part;
    const char *type;
    int rc = walk_begin(r, &w, json_object_get(root, "normalizer"), "normalizer", "normalizers");
    while (rc == 0 && (rc = walk_next(r, &w, &part, &type)) > 0) {
        rc = 0;
        if (strcmp(type, "NFC") == 0)
            r->tok->normal.nfc = true;
        else
            rc = part_unknown(r, w.name, type, "NFC");
    }
    return rc;
}

/* --- pre_tokenizer --------------------------------------------------------------------------- */

static int behavior_read(reader *r, const json_t *part, const char *where,
                         tok_split_behavior *behavior)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    char text[TOK_QUOTE_SIZE];
    const json_t *v = json_object_get(part, "behavior");
    if (!json_is_string(v))
        return BAD(r, "%s.behavior is %s, not a string", where, type_name(v));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(json_string_value(v), names[i]) == 0) {
            *behavior = (tok_split_behavior)i;
            return 0;
        }
    return BAD(r, "%s.behavior \"%s\" is not known", where, quoted(v, text));
}

static int split_read(reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *text = regex ? regex : literal;
    tok_split_behavior behavior;
    bool invert;
    int rc = 0;
    if (!json_is_string(text))
        return BAD(r, "%s.pattern has no string \"Regex\" or \"String\"", where);
    CF_TRY(behavior_read(r, part, where, &behavior));
    CF_TRY(flag_read(r, part, where, "invert", false, &invert));
    CF_TRY(tok_pretok_add(&r->tok->pretok, regex ? TOK_REGEX_ONIG : TOK_REGEX_LITERAL,
                          json_string_value(text), json_string_length(text), behavior, invert, what,
                          r->err));
fail:
    return rc;
}

static int delimiter_read(reader *r, const json_t *part, const char *where, const char *what)
{
    const json_t *text = json_object_get(part, "delimiter");
    if (!json_is_string(text) || json_string_length(text) == 0)
        return BAD(r, "%s.delimiter is not a character", where);
    return tok_pretok_add(&r->tok->pretok, TOK_REGEX_LITERAL, json_string_value(text),
                          json_string_length(text), TOK_SPLIT_REMOVED, false, what, r->err);
}

static int pattern_add(reader *r, const char *pattern, tok_split_behavior behavior,
                       const char *what)
{
    return tok_pretok_add(&r->tok->pretok, TOK_REGEX_ONIG, pattern, strlen(pattern), behavior,
                          false, what, r->err);
}

static int pre_tokenizer_part(reader *r, const json_t *part, const char *where, const char *type,
                              bool *byte_level)
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
    if (*byte_level)
        return BAD(r, "%s of type \"%s\" comes after ByteLevel, which must be the last", where,
                   type);
    if (strcmp(type, "Split") == 0)
        return split_read(r, part, where, what);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return delimiter_read(r, part, where, what);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return pattern_add(r, "\\s", TOK_SPLIT_REMOVED, what);
    if (strcmp(type, "Digits") == 0) {
        CF_TRY(flag_read(r, part, where, "individual_digits", false, &on));
        return pattern_add(r, number, on ? TOK_SPLIT_ISOLATED : TOK_SPLIT_CONTIGUOUS, what);
    }
    if (strcmp(type, "Punctuation") == 0) {
        if (json_object_get(part, "behavior"))
            CF_TRY(behavior_read(r, part, where, &behavior));
        return pattern_add(r, punctuation, behavior, what);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        *byte_level = true;
        CF_TRY(flag_read(r, part, where, "add_prefix_space", true, &prefix_space));
        CF_TRY(flag_read(r, part, where, "use_regex", true, &on));
        return tok_pretok_byte_level(&r->tok->pretok, prefix_space, on, r->err);
    }
    return part_unknown(r, where, type,
                        "Sequence, Split, Digits, Punctuation, WhitespaceSplit, "
                        "CharDelimiterSplit, ByteLevel");
fail:
    return rc;
}

static int pre_tokenizer_read(reader *r, const json_t *root)
{
    walk w;
    const json_t *part;
    const char *type;
    bool byte_level = false;
    int rc =
        walk_begin(r, &w, json_object_get(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers");
    while (rc == 0 && (rc = walk_next(r, &w, &part, &type)) > 0)
        rc = pre_tokenizer_part(r, part, w.name, type, &byte_level);
    if (rc == 0 && !byte_level)
        return BAD(r, "pre_tokenizer has no ByteLevel: only byte-level vocabularies are supported "
                      "yet");
    return rc;
}

/* --- decoder --------------------------------------------------------------------------------- */

static int decoder_read(reader *r, const json_t *root)
{
    walk w;
    const json_t *part;
    const char *type;
    int rc = walk_begin(r, &w, json_object_get(root, "decoder"), "decoder", "decoders");
    while (rc == 0 && (rc = walk_next(r, &w, &part, &type)) > 0)
        rc = strcmp(type, "ByteLevel") == 0 || strcmp(type, "Fuse") == 0
                 ? 0
                 : part_unknown(r, w.name, type, "ByteLevel, Fuse");
    return rc;
}

/* --- model ----------------------------------------------------------------------------------- */

static int vocab_read(reader *r, const json_t *model)
{
    const json_t *vocab = json_object_get(model, "vocab"), *value;
    const char *key;
    char text[TOK_QUOTE_SIZE], where[TOK_QUOTE_SIZE + 16];
    tok_vocab *v = &r->tok->vocab;
    int rc = 0;
    if (!json_is_object(vocab))
        return BAD(r, "model.vocab is %s, not an object", type_name(vocab));
    if (json_object_size(vocab) > TOK_VOCAB_MAX)
        return BAD(r, "model.vocab has %zu entries, the limit is %d", json_object_size(vocab),
                   TOK_VOCAB_MAX);
    json_object_foreach((json_t *)vocab, key, value)
    {
        size_t n = strlen(key), n_bytes;
        int32_t id;
        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= TOK_VOCAB_MAX) {
            snprintf(where, sizeof where, "model.vocab[\"%s\"]", tok_quote(key, n, text));
            return id_read(r, value, where, &id);
        }
        id = (int32_t)json_integer_value(value);
        if (id < v->n && (v->tokens[id].flags & TOK_USED))
            return BAD(r, "model.vocab: \"%s\" has the id %d, which another token has",
                       tok_quote(key, n, text), id);
        r->work.n = 0;
        CF_TRY(tok_buf_reserve(&r->work, n + 1, r->err));
        if (tok_byte_level_decode(key, n, r->work.data, &n_bytes))
            CF_TRY(tok_vocab_set(v, id, r->work.data, n_bytes, 0, r->err));
        else
            CF_TRY(tok_vocab_set(v, id, key, n, TOK_RAW, r->err));
    }
    CF_TRY(tok_vocab_index(v, r->err));
fail:
    return rc;
}

/* One side of a merge, as bytes behind those in r->work. */
static int side_add(reader *r, const char *text, size_t n)
{
    size_t n_bytes;
    int rc = tok_buf_reserve(&r->work, n + 1, r->err);
    if (rc < 0)
        return rc;
    if (!tok_byte_level_decode(text, n, r->work.data + r->work.n, &n_bytes))
        return tok_buf_add(&r->work, text, n, r->err);
    r->work.n += n_bytes;
    return 0;
}

static int merge_find(reader *r, size_t at, const char *bytes, size_t n, int32_t *id)
{
    char text[TOK_QUOTE_SIZE];
    *id = tok_vocab_find(&r->tok->vocab, bytes, n);
    if (*id < 0)
        return BAD(r, "model.merges[%zu]: \"%s\" is not in the vocabulary", at,
                   tok_quote(bytes, n, text));
    return 0;
}

/* A merge is "left right", or in newer files ["left", "right"]. */
static int merge_read(reader *r, const json_t *item, size_t at)
{
    const char *left, *right;
    size_t n_left, n_right;
    int32_t id_left, id_right, id;
    int rc = 0;
    if (json_is_string(item)) {
        left = json_string_value(item);
        size_t n = json_string_length(item);
        const char *space = memchr(left, ' ', n);
        if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - left)))
            return BAD(r, "model.merges[%zu] is not two tokens with a space between", at);
        n_left = (size_t)(space - left);
        right = space + 1;
        n_right = n - n_left - 1;
    } else {
        const json_t *a = json_array_get(item, 0), *b = json_array_get(item, 1);
        if (json_array_size(item) != 2 || !json_is_string(a) || !json_is_string(b))
            return BAD(r, "model.merges[%zu] is not a pair of strings", at);
        left = json_string_value(a);
        n_left = json_string_length(a);
        right = json_string_value(b);
        n_right = json_string_length(b);
    }
    r->work.n = 0;
    CF_TRY(side_add(r, left, n_left));
    n_left = r->work.n;
    CF_TRY(side_add(r, right, n_right));
    CF_TRY(merge_find(r, at, r->work.data, n_left, &id_left));
    CF_TRY(merge_find(r, at, r->work.data + n_left, r->work.n - n_left, &id_right));
    CF_TRY(merge_find(r, at, r->work.data, r->work.n, &id));
    tok_bpe_add(&r->tok->bpe, id_left, id_right, (uint32_t)at, id);
fail:
    return rc;
}

static int merges_read(reader *r, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges"), *item;
    size_t i;
    int rc = 0;
    if (!json_is_array(merges))
        return BAD(r, "model.merges is %s, not an array", type_name(merges));
    if (json_array_size(merges) > TOK_MERGES_MAX)
        return BAD(r, "model.merges has %zu entries, the limit is %d", json_array_size(merges),
                   TOK_MERGES_MAX);
    CF_TRY(tok_bpe_init(&r->tok->bpe, &r->tok->vocab, json_array_size(merges), r->err));
    json_array_foreach((json_t *)merges, i, item)
    {
        const char *line = json_string_value(item);
        if (line && strncmp(line, "#version", 8) == 0)
            continue;
        CF_TRY(merge_read(r, item, i));
    }
fail:
    return rc;
}

/* Fields that would change ids in ways that are not built. */
static int model_fields_check(reader *r, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    char text[TOK_QUOTE_SIZE];
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0.0))
        return BAD(r, "model.dropout is set: ids would be random");
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(model, affixes[i]);
        if (v && !json_is_null(v) && !json_is_string(v))
            return BAD(r, "model.%s is %s, not a string", affixes[i], type_name(v));
        if (json_string_length(v) > 0)
            return BAD(r, "model.%s \"%s\" is not supported", affixes[i], quoted(v, text));
    }
    return 0;
}

static int model_check(reader *r, const json_t *model)
{
    const char *type = "BPE"; /* the older layout has no type */
    int rc = 0;
    if (!json_is_object(model))
        return BAD(r, "model is %s, not an object", type_name(model));
    if (json_object_get(model, "type"))
        CF_TRY(part_type(r, model, "model", &type));
    else if (json_is_array(json_object_get(model, "vocab")))
        type = "Unigram";
    if (strcmp(type, "BPE") != 0)
        return part_unknown(r, "model", type, "BPE");
    CF_TRY(model_fields_check(r, model));
fail:
    return rc;
}

static int model_read(reader *r, const json_t *model)
{
    tok_bpe *bpe = &r->tok->bpe;
    char text[TOK_QUOTE_SIZE];
    int rc = 0;
    CF_TRY(vocab_read(r, model));
    CF_TRY(merges_read(r, model));
    CF_TRY(flag_read(r, model, "model", "ignore_merges", false, &bpe->ignore_merges));
    CF_TRY(flag_read(r, model, "model", "fuse_unk", false, &bpe->fuse_unk));
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk)) {
        bpe->unk_id =
            tok_vocab_find(&r->tok->vocab, json_string_value(unk), json_string_length(unk));
        if (bpe->unk_id < 0)
            return BAD(r, "model.unk_token \"%s\" is not in the vocabulary", quoted(unk, text));
    } else if (unk && !json_is_null(unk)) {
        return BAD(r, "model.unk_token is %s, not a string", type_name(unk));
    }
fail:
    return rc;
}

/* --- added_tokens ---------------------------------------------------------------------------- */

static int added_put(reader *r, const char *text, size_t n, int32_t id, uint8_t flags,
                     bool normalized)
{
    tok_normal_work work = {0};
    bool changed = false;
    int rc = 0;
    r->work.n = 0;
    if (normalized)
        CF_TRY(tok_normal_run(&r->tok->normal, &work, text, n, &r->work, &changed, r->err));
    CF_TRY(tok_added_put(normalized ? &r->tok->added_normalized : &r->tok->added,
                         changed ? r->work.data : text, changed ? r->work.n : n, id, flags,
                         r->err));
fail:
    tok_normal_work_finish(&work);
    return rc;
}

static int added_token_read(reader *r, const json_t *item, size_t at)
{
    static const struct {
        const char *key;
        uint8_t flag;
    } keys[] = {{"single_word", TOK_SINGLE_WORD}, {"lstrip", TOK_LSTRIP}, {"rstrip", TOK_RSTRIP}};
    const json_t *content = json_object_get(item, "content");
    char where[40];
    int32_t id;
    uint8_t flags = 0;
    bool special, normalized, on;
    int rc = 0;
    snprintf(where, sizeof where, "added_tokens[%zu]", at);
    if (!json_is_string(content))
        return BAD(r, "%s.content is %s, not a string", where, type_name(content));
    size_t n = json_string_length(content);
    if (n > TOK_ADDED_BYTES_MAX / 4) /* NFC may lengthen a text threefold */
        return BAD(r, "%s.content has %zu bytes, the limit is %d", where, n,
                   TOK_ADDED_BYTES_MAX / 4);
    CF_TRY(flag_read(r, item, where, "special", false, &special));
    CF_TRY(flag_read(r, item, where, "normalized", !special, &normalized));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        CF_TRY(flag_read(r, item, where, keys[i].key, false, &on));
        flags = (uint8_t)(flags | (on ? keys[i].flag : 0));
    }
    flags = (uint8_t)(flags | (special ? TOK_IS_SPECIAL : 0));
    snprintf(where, sizeof where, "added_tokens[%zu].id", at);
    CF_TRY(id_read(r, json_object_get(item, "id"), where, &id));
    if (n == 0)
        return 0; /* the reference ignores these */
    CF_TRY(tok_vocab_set(&r->tok->vocab, id, json_string_value(content), n,
                         (uint8_t)(TOK_ADDED | (special ? TOK_SPECIAL : 0)), r->err));
    CF_TRY(added_put(r, json_string_value(content), n, id, flags, normalized));
fail:
    return rc;
}

static int added_tokens_read(reader *r, const json_t *root)
{
    const json_t *list = json_object_get(root, "added_tokens"), *item;
    size_t i;
    int rc = 0;
    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list))
        return BAD(r, "added_tokens is %s, not an array", type_name(list));
    if (json_array_size(list) > TOK_ADDED_MAX)
        return BAD(r, "added_tokens has %zu entries, the limit is %d", json_array_size(list),
                   TOK_ADDED_MAX);
    json_array_foreach((json_t *)list, i, item) CF_TRY(added_token_read(r, item, i));
fail:
    return rc;
}

/* --- post_processor -------------------------------------------------------------------------- */

static int prefix_add(reader *r, const json_t *id_value, const char *where)
{
    cf_tokenizer *t = r->tok;
    int32_t id = -1;
    int rc = id_read(r, id_value, where, &id);
    if (rc < 0)
        return rc;
    if (id >= t->vocab.n)
        return BAD(r, "%s: the id %d is outside the vocabulary of %d", where, id, t->vocab.n);
    if (t->n_prefix == TOK_PREFIX_MAX)
        return BAD(r, "%s: more than %d tokens before the text", where, TOK_PREFIX_MAX);
    t->prefix[t->n_prefix++] = id;
    return 0;
}

/* "single" of a template: the special tokens before the text. What stands behind it (an end of
 * sequence) is not put: a prompt goes on. */
static int template_read(reader *r, const json_t *part, const char *where)
{
    const json_t *single = json_object_get(part, "single"), *item, *value;
    const json_t *specials = json_object_get(part, "special_tokens");
    size_t i, k;
    char text[TOK_QUOTE_SIZE];
    int rc = 0;
    if (!json_is_array(single))
        return BAD(r, "%s.single is %s, not an array", where, type_name(single));
    json_array_foreach((json_t *)single, i, item)
    {
        if (json_object_get(item, "Sequence"))
            return 0;
        const json_t *name = json_object_get(json_object_get(item, "SpecialToken"), "id");
        if (!json_is_string(name))
            return BAD(r, "%s.single[%zu] is neither a SpecialToken nor a Sequence", where, i);
        const json_t *ids =
            json_object_get(json_object_get(specials, json_string_value(name)), "ids");
        if (!json_is_array(ids))
            return BAD(r, "%s.special_tokens has no ids for \"%s\"", where, quoted(name, text));
        json_array_foreach((json_t *)ids, k, value) CF_TRY(prefix_add(r, value, where));
    }
    return BAD(r, "%s.single has no Sequence", where);
fail:
    return rc;
}

static int post_processor_read(reader *r, const json_t *root)
{
    walk w;
    const json_t *part;
    const char *type;
    int rc =
        walk_begin(r, &w, json_object_get(root, "post_processor"), "post_processor", "processors");
    while (rc == 0 && (rc = walk_next(r, &w, &part, &type)) > 0) {
        rc = 0;
        if (strcmp(type, "ByteLevel") == 0)
            continue;
        bool is_template = strcmp(type, "TemplateProcessing") == 0;
        if (!is_template && strcmp(type, "RobertaProcessing") != 0 &&
            strcmp(type, "BertProcessing") != 0)
            return part_unknown(r, w.name, type,
                                "Sequence, ByteLevel, TemplateProcessing, RobertaProcessing, "
                                "BertProcessing");
        if (r->tok->has_template)
            return BAD(r, "%s: a second post-processor that adds tokens", w.name);
        r->tok->has_template = true;
        rc = is_template ? template_read(r, part, w.name)
                         : prefix_add(r, json_array_get(json_object_get(part, "cls"), 1), w.name);
    }
    return rc;
}

int tok_json_read(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err)
{
    reader r = {.tok = tok, .path = path, .err = err};
    int rc = 0;
    if (!json_is_object(root))
        return bad(path, err, "the file is %s, not an object", type_name(root));
    /* The kinds first: what is not supported is said before anything else is. */
    const json_t *model = json_object_get(root, "model");
    CF_TRY(model_check(&r, model));
    CF_TRY(normalizer_read(&r, root));
    CF_TRY(pre_tokenizer_read(&r, root));
    CF_TRY(decoder_read(&r, root));
    CF_TRY(model_read(&r, model));
    CF_TRY(added_tokens_read(&r, root));
    CF_TRY(post_processor_read(&r, root));
fail:
    tok_buf_finish(&r.work);
    return rc;
}

int tok_json_read_config(cf_tokenizer *tok, const json_t *root, const char *path, cf_err *err)
{
    reader r = {.tok = tok, .path = path, .err = err};
    char text[TOK_QUOTE_SIZE];
    bool adds_bos;
    int rc = 0;
    if (!json_is_object(root))
        return bad(path, err, "the file is %s, not an object", type_name(root));
    const json_t *flag = json_object_get(root, "add_bos_token");
    const json_t *bos = json_object_get(root, "bos_token");
    if (json_is_object(bos))
        bos = json_object_get(bos, "content");
    if (tok->has_template || !flag || json_is_null(flag))
        return 0;
    CF_TRY(flag_read(&r, root, "the file", "add_bos_token", false, &adds_bos));
    if (!adds_bos || !json_is_string(bos))
        return 0;
    int32_t id = cf_tokenizer_find(tok, json_string_value(bos));
    if (id < 0)
        return BAD(&r, "bos_token \"%s\" is not in the vocabulary", quoted(bos, text));
    tok->prefix[0] = id;
    tok->n_prefix = 1;
fail:
    return rc;
}
