/* Reads the vocabulary in the metadata of a GGUF file: the keys tokenizer.ggml.*.
 *
 * Three models, under names that the caller has: byte-level BPE with merges, split by the rule that
 * "pre" names; pieces of SentencePiece that merge by score; pieces of a unigram model. Types of
 * tokens: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; control and unknown
 * ones are special, user-defined ones are cut out of every text. A rule or a model that is not known
 * is no defect of the file: the tokenizer then only refuses to encode. The arrays are untrusted:
 * counts and kinds are checked against that of the tokens. */
#include "runtime/tokenizer_parts.h"

#include <math.h>

#include "storage/gguf.h"

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

#define KEY(name) "tokenizer.ggml." name

typedef struct source {
    cf_tokenizer *tok;
    const cf_gguf *meta;
    const char *path;
    cf_err *err;
    cf_gguf_array tokens, types, scores;
    bool has_types, has_scores, byte_level;
    int32_t n, unk_id;
    tok_fallback bytes;
    tok_buf work;
} source;

/* --- keys ------------------------------------------------------------------------------------ */

static int array_get(const source *s, const char *key, cf_gguf_array *out, bool *there)
{
    int rc = cf_gguf_get_array(s->meta, key, out, s->err);
    *there = rc == 1;
    if (rc == 1 && s->n && out->count != (uint64_t)s->n)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"%s\" has %llu values for %d tokens", s->path, key,
                       (unsigned long long)out->count, s->n);
    return rc < 0 ? rc : 0;
}

/* A token's id, -1 where the key is absent or says none. */
static int id_get(const source *s, const char *key, int32_t missing, int32_t *id)
{
    uint64_t value = 0;
    int32_t minus = 0;
    cf_err ignored = {0};
    *id = missing < s->n ? missing : -1;
    if (cf_gguf_i32(s->meta, key, &minus, &ignored) == 1 && minus == -1) {
        *id = -1;
        return 0;
    }
    int rc = cf_gguf_u64(s->meta, key, &value, s->err);
    if (rc != 1)
        return rc;
    if (value == UINT32_MAX) {
        *id = -1;
        return 0;
    }
    if (value >= (uint64_t)s->n)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"%s\" is %llu, there are %d tokens", s->path, key,
                       (unsigned long long)value, s->n);
    *id = (int32_t)value;
    return 0;
}

/* --- tokens ---------------------------------------------------------------------------------- */

static int type_get(const source *s, int32_t id, int64_t *type)
{
    *type = TYPE_NORMAL;
    if (!s->has_types)
        return 0;
    if (!cf_gguf_array_i64(&s->types, (uint64_t)id, type))
        return CF_FAIL(s->err, CF_EFORMAT,
                       "%s: \"" KEY("token_type") "\" is not a list of whole "
                                                  "numbers",
                       s->path);
    return 0;
}

/* A token of the model, as the bytes it stands for. */
static int normal_set(source *s, int32_t id, cf_text text, int64_t type)
{
    size_t n_bytes;
    int rc = 0;
    if (!s->byte_level) {
        CF_TRY(tok_piece_define(s->tok, text.at, text.bytes, id, type == TYPE_BYTE, &s->bytes,
                                s->err));
    } else {
        s->work.n = 0;
        CF_TRY(tok_buf_reserve(&s->work, text.bytes + 1, s->err));
        if (cf_utf8_invalid(text.at, text.bytes) == text.bytes &&
            tok_byte_level_decode(text.at, text.bytes, s->work.data, &n_bytes))
            CF_TRY(tok_vocab_set(&s->tok->vocab, id, s->work.data, n_bytes, 0, s->err));
        else
            CF_TRY(tok_vocab_set(&s->tok->vocab, id, text.at, text.bytes, TOK_RAW, s->err));
    }
    if (type == TYPE_UNUSED)
        s->tok->vocab.tokens[id].flags |= TOK_UNUSED;
fail:
    return rc;
}

static int token_set(source *s, int32_t id)
{
    cf_text text;
    int64_t type;
    int rc = type_get(s, id, &type);
    if (rc < 0)
        return rc;
    if (!cf_gguf_array_string(&s->tokens, (uint64_t)id, &text))
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("tokens") "\" is not a list of texts",
                       s->path);
    if (text.bytes > TOK_FILE_BYTES_MAX)
        return CF_FAIL(s->err, CF_ELIMIT, "%s: token %d has %llu bytes, the limit is %d", s->path,
                       id, (unsigned long long)text.bytes, TOK_FILE_BYTES_MAX);
    bool special = type == TYPE_UNKNOWN || type == TYPE_CONTROL;
    if (!special && type != TYPE_USER)
        return normal_set(s, id, text, type);
    uint8_t flags = special ? TOK_IS_SPECIAL : 0;
    /* Too long to be looked for in a text, of no text at all, or of what no text has (a part of a
     * character, which would cut one in two): it has an id all the same. */
    if (text.bytes == 0 || text.bytes > TOK_ADDED_BYTES_MAX / 4 ||
        cf_utf8_invalid(text.at, text.bytes) < text.bytes)
        return tok_vocab_set(&s->tok->vocab, id, text.at, text.bytes,
                             (uint8_t)(TOK_ADDED | TOK_UNUSED | (special ? TOK_SPECIAL : 0)),
                             s->err);
    return tok_added_define(s->tok, text.at, text.bytes, id, flags, NULL, s->err);
}

static int tokens_read(source *s)
{
    bool there;
    int rc = 0;
    CF_TRY(array_get(s, KEY("tokens"), &s->tokens, &there));
    if (!there || s->tokens.count == 0)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("tokens") "\" is missing or empty",
                       s->path);
    if (s->tokens.count > TOK_VOCAB_MAX)
        return CF_FAIL(s->err, CF_ELIMIT,
                       "%s: \"" KEY("tokens") "\" has %llu entries, the limit "
                                              "is %d",
                       s->path, (unsigned long long)s->tokens.count, TOK_VOCAB_MAX);
    s->n = (int32_t)s->tokens.count;
    CF_TRY(array_get(s, KEY("token_type"), &s->types, &s->has_types));
    CF_TRY(array_get(s, KEY("scores"), &s->scores, &s->has_scores));
    for (int32_t id = 0; id < s->n; id++)
        CF_TRY(token_set(s, id));
    CF_TRY(tok_vocab_index(&s->tok->vocab, s->err));
fail:
    return rc;
}

/* --- merges ---------------------------------------------------------------------------------- */

static int side_find(source *s, uint64_t at, const char *bytes, size_t n, int32_t *id)
{
    char quoted[TOK_QUOTE_SIZE];
    *id = tok_vocab_find(&s->tok->vocab, bytes, n);
    if (*id < 0)
        return CF_FAIL(s->err, CF_EFORMAT,
                       "%s: \"" KEY("merges") "\" %llu: \"%s\" is not among the tokens", s->path,
                       (unsigned long long)at, tok_quote(bytes, n, quoted));
    return 0;
}

static int merge_read(source *s, uint64_t at, cf_text text)
{
    size_t n_side;
    int32_t left, right, id;
    int rc = 0;
    const char *space = text.bytes > 1 ? memchr(text.at + 1, ' ', (size_t)text.bytes - 1) : NULL;
    if (!space || cf_utf8_invalid(text.at, text.bytes) < text.bytes)
        return CF_FAIL(s->err, CF_EFORMAT,
                       "%s: \"" KEY("merges") "\" %llu is not two tokens with a space between",
                       s->path, (unsigned long long)at);
    size_t n_left = (size_t)(space - text.at), n_right = (size_t)text.bytes - n_left - 1;
    s->work.n = 0;
    CF_TRY(tok_buf_reserve(&s->work, text.bytes + 1, s->err));
    if (tok_byte_level_decode(text.at, n_left, s->work.data, &n_side))
        s->work.n = n_side;
    else
        CF_TRY(tok_buf_add(&s->work, text.at, n_left, s->err));
    n_left = s->work.n;
    if (tok_byte_level_decode(space + 1, n_right, s->work.data + n_left, &n_side))
        s->work.n += n_side;
    else
        CF_TRY(tok_buf_add(&s->work, space + 1, n_right, s->err));
    CF_TRY(side_find(s, at, s->work.data, n_left, &left));
    CF_TRY(side_find(s, at, s->work.data + n_left, s->work.n - n_left, &right));
    CF_TRY(side_find(s, at, s->work.data, s->work.n, &id));
    tok_bpe_add(&s->tok->bpe, left, right, (uint32_t)at, id);
fail:
    return rc;
}

static int merges_read(source *s)
{
    cf_gguf_array merges;
    cf_text text;
    int rc = cf_gguf_get_array(s->meta, KEY("merges"), &merges, s->err);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("merges") "\" is missing", s->path);
    if (merges.count > TOK_MERGES_MAX)
        return CF_FAIL(s->err, CF_ELIMIT,
                       "%s: \"" KEY("merges") "\" has %llu entries, the limit "
                                              "is %d",
                       s->path, (unsigned long long)merges.count, TOK_MERGES_MAX);
    CF_TRY(tok_bpe_init(&s->tok->bpe, &s->tok->vocab, merges.count, s->err));
    for (uint64_t i = 0; i < merges.count; i++) {
        if (!cf_gguf_array_string(&merges, i, &text))
            return CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("merges") "\" is not a list of texts",
                           s->path);
        CF_TRY(merge_read(s, i, text));
    }
fail:
    return rc;
}

/* The rule of "pre", or where that is missing (older files) of the architecture. NULL: a name that
 * is not known, and the tokenizer says so when it is asked to encode. */
static int rule_get(const source *s, const cf_tokenizer_rules *rules,
                    const cf_tokenizer_rule **rule)
{
    cf_text name = {.at = "", .bytes = 0};
    int rc = cf_gguf_string(s->meta, KEY("pre"), &name, s->err);
    bool named = rc == 1;
    if (rc == 0)
        rc = cf_gguf_string(s->meta, "general.architecture", &name, s->err);
    if (rc < 0)
        return rc;
    *rule = tok_rule_find(rules, name.at, name.bytes);
    if (!*rule && !named)
        *rule = tok_rule_find(rules, "default", 7);
    if (!*rule)
        tok_rule_refuse(s->tok, rules, s->path, KEY("pre"), "", named ? name.at : "",
                        named ? name.bytes : 0);
    return 0;
}

static int byte_level_read(source *s, const cf_tokenizer_rules *rules, bool *adds_bos)
{
    const cf_tokenizer_rule *rule;
    int rc = 0;
    s->byte_level = true;
    CF_TRY(rule_get(s, rules, &rule));
    if (rule)
        CF_TRY(tok_rule_apply(s->tok, rule, s->path, s->err));
    CF_TRY(tokens_read(s));
    if (!rule)
        return 0; /* without splits there is nothing to merge */
    CF_TRY(merges_read(s));
    CF_TRY(id_get(s, KEY("unknown_token_id"), -1, &s->tok->bpe.unk_id));
    s->tok->bpe.ignore_merges = rule->whole;
    *adds_bos = rule->adds_bos;
fail:
    return rc;
}

/* --- pieces ---------------------------------------------------------------------------------- */

static int spaces_read(source *s, bool space_first)
{
    bool spaces_apart = false, there;
    cf_gguf_array map = {0};
    int rc = 0;
    CF_TRY(cf_gguf_bool(s->meta, KEY("add_space_prefix"), &space_first, s->err));
    CF_TRY(cf_gguf_bool(s->meta, KEY("remove_extra_whitespaces"), &spaces_apart, s->err));
    rc = cf_gguf_get_array(s->meta, KEY("precompiled_charsmap"), &map, s->err);
    there = rc == 1;
    CF_TRY(rc);
    if (there && map.type != CF_GGUF_U8 && map.type != CF_GGUF_I8)
        return CF_FAIL(s->err, CF_EFORMAT,
                       "%s: \"" KEY("precompiled_charsmap") "\" is not a list "
                                                            "of bytes",
                       s->path);
    CF_TRY(tok_spaces_set(s->tok, map.data, there ? (size_t)map.count : 0, space_first,
                          spaces_apart, s->path, s->err));
fail:
    return rc < 0 ? rc : 0;
}

static int pieces_read(source *s, bool unigram)
{
    float *scores = NULL;
    int rc = 0;
    /* Normalised as a text would be, an added token would get a space in front: it is looked for
     * in the text as given, so the order of these two does not matter. */
    CF_TRY(spaces_read(s, !unigram));
    CF_TRY(tokens_read(s));
    if (!s->has_scores)
        return CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("scores") "\" is missing", s->path);
    CF_TRY(id_get(s, KEY("unknown_token_id"), unigram ? 2 : 0, &s->unk_id));
    scores = calloc((size_t)s->n, sizeof *scores);
    if (!scores)
        CF_TRY(CF_FAIL(s->err, -ENOMEM, "%s: no memory for %d tokens", s->path, s->n));
    for (int32_t id = 0; id < s->n; id++)
        if (!cf_gguf_array_f32(&s->scores, (uint64_t)id, &scores[id]))
            CF_TRY(CF_FAIL(s->err, CF_EFORMAT, "%s: \"" KEY("scores") "\" is not a list of numbers",
                           s->path));
    if (!unigram) {
        CF_TRY(tok_bpe_by_score(s->tok, scores, s->unk_id, &s->bytes, s->err));
    } else {
        float *given = scores;
        scores = NULL;
        s->tok->is_unigram = true;
        s->tok->unigram.bytes = s->bytes;
        CF_TRY(tok_unigram_init(&s->tok->unigram, &s->tok->vocab, given, s->n, s->unk_id, s->err));
    }
fail:
    free(scores);
    return rc;
}

/* --- the whole ------------------------------------------------------------------------------- */

int tok_gguf_read(cf_tokenizer *tok, const cf_gguf *meta, const cf_tokenizer_rules *rules,
                  const char *path, cf_err *err)
{
    source s = {.tok = tok, .meta = meta, .path = path, .err = err, .unk_id = -1};
    cf_text model;
    char quoted[TOK_QUOTE_SIZE];
    bool adds_bos = false;
    int32_t bos;
    int rc = cf_gguf_string(meta, KEY("model"), &model, err);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"" KEY("model") "\" is missing", path);
    bool is_pieces = cf_text_is(model, rules->pieces);
    bool is_unigram = cf_text_is(model, rules->unigram);
    if (cf_text_is(model, rules->merges))
        CF_TRY(byte_level_read(&s, rules, &adds_bos));
    else if (is_pieces || is_unigram)
        CF_TRY(pieces_read(&s, is_unigram));
    else
        CF_FAIL(
            &tok->refusal, CF_EFORMAT,
            "%s: " KEY("model") " \"%s\" is not known, so no text can be encoded: give token ids "
                                "(--ids); known are %s, %s, %s",
            path, tok_quote(model.at, model.bytes, quoted), rules->merges, rules->pieces,
            rules->unigram);
    if (tok->refusal.code)
        goto fail; /* what begins a text is of no use */
    adds_bos |= is_pieces;
    CF_TRY(id_get(&s, KEY("bos_token_id"), is_pieces ? 1 : -1, &bos));
    CF_TRY(cf_gguf_bool(meta, KEY("add_bos_token"), &adds_bos, err));
    rc = 0;
    if (adds_bos && bos >= 0) {
        tok->prefix[0] = bos;
        tok->n_prefix = 1;
    }
fail:
    tok_buf_finish(&s.work);
    return rc < 0 ? rc : 0;
}
