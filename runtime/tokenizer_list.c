/* Reads tokenizer.tok.json, a vocabulary that lists its tokens byte by byte:
 *
 *     {"regular_tokens": [{"bytes": [72, 105], "token": 129}, ..], "special_tokens": [..] likewise,
 *      "word_split": "V1", "pat_str": "..", "vocab_size": ..}
 *
 * A regular token's number is its id and its rank, as in a rank file. word_split names how texts
 * are split (by a rule "word-split-V1"); pat_str, where it is there, is the pattern itself.
 * vocab_size, where it is there, is the highest id and one. */
#include "runtime/tokenizer_parts.h"

#include <stdio.h>

/* One entry: its bytes into `bytes`, and its id. */
static int entry_read(const json_t *entry, const char *list, size_t index, tok_buf *bytes,
                      int32_t *id, const char *path, cf_err *err)
{
    const json_t *values = json_object_get(entry, "bytes"), *value;
    const json_t *token = json_object_get(entry, "token");
    json_int_t number = json_integer_value(token);
    size_t i;
    int rc = 0;
    bytes->n = 0;
    if (!json_is_integer(token) || number < 0 || number >= TOK_VOCAB_MAX)
        return CF_FAIL(err, CF_EFORMAT, "%s: %s[%zu].token is not an id of 0 to %d", path, list,
                       index, TOK_VOCAB_MAX - 1);
    *id = (int32_t)number;
    json_array_foreach((json_t *)values, i, value)
    {
        json_int_t v = json_integer_value(value);
        char byte = (char)v;
        if (!json_is_integer(value) || v < 0 || v > 255)
            return CF_FAIL(err, CF_EFORMAT, "%s: %s[%zu].bytes[%zu] is not a byte", path, list,
                           index, i);
        CF_TRY(tok_buf_add(bytes, &byte, 1, err));
    }
    if (!bytes->n)
        return CF_FAIL(err, CF_EFORMAT, "%s: %s[%zu].bytes is not a list of bytes", path, list,
                       index);
fail:
    return rc;
}

/* The tokens of a list, as given or as special ones. */
static int list_read(cf_tokenizer *tok, const json_t *root, const char *name, bool special,
                     const char *path, cf_err *err)
{
    const json_t *list = json_object_get(root, name), *entry;
    tok_buf bytes = {0};
    int32_t id = 0;
    size_t i;
    int rc = 0;
    if (!json_is_array(list))
        return CF_FAIL(err, CF_EFORMAT, "%s: %s is not a list", path, name);
    if (special && json_array_size(list) > TOK_ADDED_MAX)
        return CF_FAIL(err, CF_EFORMAT, "%s: %s has %zu entries, the limit is %d", path, name,
                       json_array_size(list), TOK_ADDED_MAX);
    json_array_foreach((json_t *)list, i, entry)
    {
        CF_TRY(entry_read(entry, name, i, &bytes, &id, path, err));
        if (id < tok->vocab.n && (tok->vocab.tokens[id].flags & TOK_USED))
            CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: %s[%zu] has id %d, which another token has", path,
                           name, i, id));
        if (special &&
            (bytes.n > TOK_ADDED_BYTES_MAX || cf_utf8_invalid(bytes.data, bytes.n) < bytes.n))
            CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: %s[%zu].bytes is not UTF-8 of at most %d bytes",
                           path, name, i, (int)TOK_ADDED_BYTES_MAX));
        CF_TRY(special ? tok_added_define(tok, bytes.data, bytes.n, id, TOK_IS_SPECIAL, NULL, err)
                       : tok_vocab_set(&tok->vocab, id, bytes.data, bytes.n, 0, err));
    }
fail:
    tok_buf_finish(&bytes);
    return rc;
}

int tok_list_read(cf_tokenizer *tok, const json_t *root, const cf_tokenizer_rules *rules,
                  const char *path, cf_err *err)
{
    static const char prefix[] = "word-split-";
    const json_t *split = json_object_get(root, "word_split"), *size;
    const json_t *pattern = json_object_get(root, "pat_str");
    const cf_tokenizer_rule *rule, own = {.names = "", .patterns = {json_string_value(pattern)}};
    char name[64];
    int rc = 0;
    if (!json_is_string(split) || json_string_length(split) > 32)
        return CF_FAIL(err, CF_EFORMAT, "%s: word_split is not a name", path);
    snprintf(name, sizeof name, "%s%s", prefix, json_string_value(split));
    rule = own.patterns[0] ? &own : tok_rule_find(rules, name, strlen(name));
    if (!rule)
        rule = tok_rule_refuse(tok, rules, path, "word_split", prefix, json_string_value(split),
                               json_string_length(split));
    CF_TRY(list_read(tok, root, "regular_tokens", false, path, err));
    CF_TRY(tok_ranks_finish(tok, rule, path, err));
    CF_TRY(list_read(tok, root, "special_tokens", true, path, err));
    size = json_object_get(root, "vocab_size");
    if (json_is_integer(size) && json_integer_value(size) != tok->vocab.n)
        CF_TRY(CF_FAIL(err, CF_EFORMAT, "%s: vocab_size is %lld, the highest id is %d", path,
                       (long long)json_integer_value(size), tok->vocab.n - 1));
fail:
    return rc;
}
