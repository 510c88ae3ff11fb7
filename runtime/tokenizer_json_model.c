/* The model of a tokenizer.json: BPE or Unigram, its vocabulary and its merges or scores. */
#include "runtime/tokenizer_json.h"

#include <math.h>
#include <stdio.h>

static int token_put(tok_reader *r, const char *text, size_t n, int32_t id, bool byte_tokens)
{
    tok_vocab *v = &r->tok->vocab;
    tok_fallback *bytes = r->tok->is_unigram ? &r->tok->unigram.bytes : &r->tok->bpe.bytes;
    size_t n_bytes;
    int rc = 0;
    if (!r->byte_level) {
        CF_TRY(tok_piece_define(r->tok, text, n, id, byte_tokens && tok_byte_token(text, n) >= 0,
                                bytes, r->err));
        /* Without ByteFallback in its decoder the reference shows the token's name, and a unigram
         * model finds it in texts. */
        if ((v->tokens[id].flags & TOK_BYTE) && !r->decode_bytes)
            CF_TRY(tok_vocab_set(v, id, text, n, r->tok->is_unigram ? 0 : TOK_BYTE, r->err));
        return 0;
    }
    r->work.n = 0;
    CF_TRY(tok_buf_reserve(&r->work, n + 1, r->err));
    if (tok_byte_level_decode(text, n, r->work.data, &n_bytes))
        CF_TRY(tok_vocab_set(v, id, r->work.data, n_bytes, 0, r->err));
    else
        CF_TRY(tok_vocab_set(v, id, text, n, TOK_RAW, r->err));
fail:
    return rc;
}

static int vocab_read(tok_reader *r, const json_t *model, bool byte_tokens)
{
    const json_t *vocab = json_object_get(model, "vocab"), *value;
    const char *key;
    char text[TOK_QUOTE_SIZE], where[TOK_QUOTE_SIZE + 16];
    tok_vocab *v = &r->tok->vocab;
    int rc = 0;
    if (!json_is_object(vocab))
        return TOK_BAD(r, "model.vocab is %s, not an object", tok_json_type(vocab));
    if (json_object_size(vocab) > TOK_VOCAB_MAX)
        return TOK_BAD(r, "model.vocab has %zu entries, the limit is %d", json_object_size(vocab),
                       TOK_VOCAB_MAX);
    json_object_foreach((json_t *)vocab, key, value)
    {
        size_t n = strlen(key);
        int32_t id;
        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= TOK_VOCAB_MAX) {
            snprintf(where, sizeof where, "model.vocab[\"%s\"]", tok_quote(key, n, text));
            return tok_json_id(r, value, where, &id);
        }
        id = (int32_t)json_integer_value(value);
        if (id < v->n && (v->tokens[id].flags & TOK_USED))
            return TOK_BAD(r, "model.vocab: \"%s\" has the id %d, which another token has",
                           tok_quote(key, n, text), id);
        CF_TRY(token_put(r, key, n, id, byte_tokens));
    }
    CF_TRY(tok_vocab_index(v, r->err));
fail:
    return rc;
}

/* One side of a merge, as bytes behind those in r->work. */
static int side_add(tok_reader *r, const char *text, size_t n)
{
    size_t n_bytes;
    int rc = tok_buf_reserve(&r->work, n + 1, r->err);
    if (rc < 0)
        return rc;
    if (!r->byte_level)
        return tok_meta_add(&r->work, text, n, r->err);
    if (!tok_byte_level_decode(text, n, r->work.data + r->work.n, &n_bytes))
        return tok_buf_add(&r->work, text, n, r->err);
    r->work.n += n_bytes;
    return 0;
}

static int merge_find(tok_reader *r, size_t at, const char *bytes, size_t n, int32_t *id)
{
    char text[TOK_QUOTE_SIZE];
    *id = tok_vocab_find(&r->tok->vocab, bytes, n);
    if (*id < 0)
        return TOK_BAD(r, "model.merges[%zu]: \"%s\" is not in the vocabulary", at,
                       tok_quote(bytes, n, text));
    return 0;
}

/* A merge is "left right", or in newer files ["left", "right"]. */
static int merge_read(tok_reader *r, const json_t *item, size_t at)
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
            return TOK_BAD(r, "model.merges[%zu] is not two tokens with a space between", at);
        n_left = (size_t)(space - left);
        right = space + 1;
        n_right = n - n_left - 1;
    } else {
        const json_t *a = json_array_get(item, 0), *b = json_array_get(item, 1);
        if (json_array_size(item) != 2 || !json_is_string(a) || !json_is_string(b))
            return TOK_BAD(r, "model.merges[%zu] is not a pair of strings", at);
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

static int merges_read(tok_reader *r, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges"), *item;
    size_t i;
    int rc = 0;
    if (!json_is_array(merges))
        return TOK_BAD(r, "model.merges is %s, not an array", tok_json_type(merges));
    if (json_array_size(merges) > TOK_MERGES_MAX)
        return TOK_BAD(r, "model.merges has %zu entries, the limit is %d", json_array_size(merges),
                       TOK_MERGES_MAX);
    CF_TRY(tok_bpe_init(&r->tok->bpe, &r->tok->vocab, json_array_size(merges), r->err));
    json_array_foreach((json_t *)merges, i, item)
    {
        const char *line = json_string_value(item);
        if (line && strncmp(line, "#version", 8) == 0)
            continue;
        CF_TRY(merge_read(r, item, i));
    }
    if (!r->byte_level)
        CF_TRY(tok_bpe_use_chars(&r->tok->bpe, &r->tok->vocab, r->err));
fail:
    return rc;
}

/* Fields that would change ids in ways that are not built. */
static int model_fields_check(tok_reader *r, const json_t *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    char text[TOK_QUOTE_SIZE];
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0.0))
        return TOK_BAD(r, "model.dropout is set: ids would be random");
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(model, affixes[i]);
        if (v && !json_is_null(v) && !json_is_string(v))
            return TOK_BAD(r, "model.%s is %s, not a string", affixes[i], tok_json_type(v));
        if (json_string_length(v) > 0)
            return TOK_BAD(r, "model.%s \"%s\" is not supported", affixes[i],
                           tok_json_quoted(v, text));
    }
    return 0;
}

int tok_json_model_check(tok_reader *r, const json_t *model)
{
    const char *type = "BPE"; /* the older layout has no type */
    int rc = 0;
    if (!json_is_object(model))
        return TOK_BAD(r, "model is %s, not an object", tok_json_type(model));
    if (json_object_get(model, "type"))
        CF_TRY(tok_json_part_type(r, model, "model", &type));
    else if (json_is_array(json_object_get(model, "vocab")))
        type = "Unigram";
    r->tok->is_unigram = strcmp(type, "Unigram") == 0;
    if (!r->tok->is_unigram && strcmp(type, "BPE") != 0)
        return tok_json_part_unknown(r, "model", type, "BPE, Unigram");
    CF_TRY(model_fields_check(r, model));
fail:
    return rc;
}

static int bpe_read(tok_reader *r, const json_t *model)
{
    tok_bpe *bpe = &r->tok->bpe;
    char text[TOK_QUOTE_SIZE];
    bool byte_tokens, ignore_merges, fuse_unk;
    int rc = 0;
    CF_TRY(tok_json_flag(r, model, "model", "byte_fallback", false, &byte_tokens));
    CF_TRY(tok_json_flag(r, model, "model", "ignore_merges", false, &ignore_merges));
    CF_TRY(tok_json_flag(r, model, "model", "fuse_unk", false, &fuse_unk));
    CF_TRY(vocab_read(r, model, byte_tokens));
    tok_fallback bytes = bpe->bytes;
    CF_TRY(merges_read(r, model));
    bpe->bytes = bytes;
    bpe->ignore_merges = ignore_merges;
    bpe->fuse_unk = fuse_unk;
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk)) {
        bpe->unk_id =
            tok_vocab_find(&r->tok->vocab, json_string_value(unk), json_string_length(unk));
        if (bpe->unk_id < 0)
            return TOK_BAD(r, "model.unk_token \"%s\" is not in the vocabulary",
                           tok_json_quoted(unk, text));
    } else if (unk && !json_is_null(unk)) {
        return TOK_BAD(r, "model.unk_token is %s, not a string", tok_json_type(unk));
    }
fail:
    return rc;
}

/* "vocab" of a unigram model: [["text", score], ...], the id is the place. */
static int pieces_read(tok_reader *r, const json_t *model, bool byte_tokens)
{
    const json_t *vocab = json_object_get(model, "vocab"), *item;
    size_t i, n = json_array_size(vocab);
    int rc = 0;
    if (!json_is_array(vocab))
        return TOK_BAD(r, "model.vocab is %s, not an array", tok_json_type(vocab));
    if (n > TOK_VOCAB_MAX)
        return TOK_BAD(r, "model.vocab has %zu entries, the limit is %d", n, TOK_VOCAB_MAX);
    r->scores = calloc(n + 1, sizeof *r->scores);
    if (!r->scores)
        return CF_FAIL(r->err, -ENOMEM, "%s: no memory for %zu tokens", r->path, n);
    r->n_scores = (int32_t)n;
    json_array_foreach((json_t *)vocab, i, item)
    {
        const json_t *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        if (json_array_size(item) != 2 || !json_is_string(text) || !json_is_number(score))
            return TOK_BAD(r, "model.vocab[%zu] is not a string and a score", i);
        r->scores[i] = (float)json_number_value(score);
        if (!isfinite(r->scores[i]))
            return TOK_BAD(r, "model.vocab[%zu]: the score is too large", i);
        CF_TRY(token_put(r, json_string_value(text), json_string_length(text), (int32_t)i,
                         byte_tokens));
    }
    CF_TRY(tok_vocab_index(&r->tok->vocab, r->err));
fail:
    return rc;
}

static int unigram_read(tok_reader *r, const json_t *model)
{
    const json_t *unk = json_object_get(model, "unk_id");
    bool byte_tokens;
    int rc = 0;
    r->unk_id = -1;
    if (r->byte_level)
        return TOK_BAD(r, "a model of type \"Unigram\" with a ByteLevel pre_tokenizer is not "
                          "supported");
    CF_TRY(tok_json_flag(r, model, "model", "byte_fallback", false, &byte_tokens));
    CF_TRY(pieces_read(r, model, byte_tokens));
    if (unk && !json_is_null(unk)) {
        CF_TRY(tok_json_id(r, unk, "model.unk_id", &r->unk_id));
        if (r->unk_id >= r->n_scores)
            return TOK_BAD(r, "model.unk_id %d is outside the vocabulary of %d", r->unk_id,
                           r->n_scores);
    }
fail:
    return rc;
}

int tok_json_model(tok_reader *r, const json_t *model)
{
    return r->tok->is_unigram ? unigram_read(r, model) : bpe_read(r, model);
}

/* Which tokens are special, and so never cut from text, is known by now. */
int tok_json_model_finish(tok_reader *r)
{
    if (!r->tok->is_unigram)
        return 0;
    float *scores = r->scores;
    r->scores = NULL;
    return tok_unigram_init(&r->tok->unigram, &r->tok->vocab, scores, r->n_scores, r->unk_id,
                            r->err);
}
