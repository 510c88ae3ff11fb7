/* What the readers of a vocabulary share: see the end of tokenizer_parts.h. */
#include "runtime/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>

int tok_piece_define(cf_tokenizer *tok, const char *text, size_t n, int32_t id, bool byte,
                     tok_fallback *bytes, cf_err *err)
{
    char quoted[TOK_QUOTE_SIZE];
    tok_buf plain = {0};
    int rc = 0, value = byte ? tok_byte_token(text, n) : -1;
    if (cf_utf8_invalid(text, n) < n)
        return CF_FAIL(err, CF_EFORMAT, "token %d (\"%s\") is not UTF-8", id,
                       tok_quote(text, n, quoted));
    if (byte && value < 0)
        return CF_FAIL(err, CF_EFORMAT, "token %d (\"%s\") is a byte, but its name is not <0x..>",
                       id, tok_quote(text, n, quoted));
    if (byte) {
        char one = (char)value;
        if (!bytes->on)
            memset(bytes->id, 0xff, sizeof bytes->id);
        bytes->on = true;
        bytes->id[value] = id;
        return tok_vocab_set(&tok->vocab, id, &one, 1, TOK_BYTE, err);
    }
    CF_TRY(tok_meta_add(&plain, text, n, err));
    CF_TRY(tok_vocab_set(&tok->vocab, id, plain.data, plain.n, 0, err));
fail:
    tok_buf_finish(&plain);
    return rc;
}

const cf_tokenizer_rule *tok_rule_find(const cf_tokenizer_rules *rules, const char *name, size_t n)
{
    for (uint32_t i = 0; rules && n > 0 && i < rules->n; i++)
        for (const char *at = rules->rules[i].names; *at; at += strspn(at, " ")) {
            size_t length = strcspn(at, " ");
            if (length == n && memcmp(at, name, n) == 0)
                return &rules->rules[i];
            at += length;
        }
    return NULL;
}

/* The name of a rule that a sentence has, or NULL: the first, as the others go by the same patterns
 * and a sentence has an end; where names have a prefix, the first of those, behind it. */
static const char *rule_name(const cf_tokenizer_rule *rule, const char *prefix)
{
    const char *at = rule->names;
    size_t n = strlen(prefix);
    while (*at && strncmp(at, prefix, n) != 0) {
        at += strcspn(at, " ");
        at += strspn(at, " ");
    }
    return *at ? at + n : NULL;
}

const cf_tokenizer_rule *tok_rule_refuse(cf_tokenizer *tok, const cf_tokenizer_rules *rules,
                                         const char *path, const char *what, const char *prefix,
                                         const char *name, size_t n)
{
    static const cf_tokenizer_rule none = {.names = ""};
    char quoted[TOK_QUOTE_SIZE], known[400];
    size_t at = 0;
    known[0] = 0;
    for (uint32_t i = 0; rules && i < rules->n && at < sizeof known; i++) {
        const char *one = rule_name(&rules->rules[i], prefix);
        if (one)
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%.*s", at ? ", " : "",
                                   (int)strcspn(one, " "), one);
    }
    CF_FAIL(
        &tok->refusal, CF_EFORMAT,
        "%s: %s \"%s\" is not known, so no text can be encoded: give token ids (--ids); known are "
        "%s%s",
        path, what, tok_quote(name, n, quoted), known, *prefix ? "" : ", and names for the same");
    return &none;
}

int tok_rule_apply(cf_tokenizer *tok, const cf_tokenizer_rule *rule, const char *path, cf_err *err)
{
    int rc = 0;
    char what[600];
    if (rule->nfc && !tok_normal_add(&tok->normal, TOK_STEP_NFC, path, err))
        return CF_ELIMIT;
    for (uint32_t i = 0; i < sizeof rule->patterns / sizeof *rule->patterns; i++) {
        const char *pattern = rule->patterns[i];
        if (!pattern)
            break;
        snprintf(what, sizeof what, "%s: split %u", path, i);
        CF_TRY(tok_pretok_add(&tok->pretok, TOK_REGEX_ONIG, pattern, strlen(pattern),
                              TOK_SPLIT_ISOLATED, false, what, err));
    }
    CF_TRY(tok_pretok_byte_level(&tok->pretok, false, !rule->patterns[0], err));
fail:
    return rc;
}

int tok_spaces_set(cf_tokenizer *tok, const uint8_t *map, size_t map_bytes, bool space_first,
                   bool spaces_apart, const char *path, cf_err *err)
{
    char what[600];
    snprintf(what, sizeof what, "%s: precompiled_charsmap", path);
    if (map_bytes > 0) {
        int rc = tok_charsmap_parse(&tok->normal.map, map, map_bytes, what, err);
        if (rc < 0)
            return rc;
    }
    tok_step *step = tok_normal_add(&tok->normal, TOK_STEP_SPACES, path, err);
    if (!step)
        return CF_ELIMIT;
    step->space_first = space_first;
    step->spaces_apart = spaces_apart;
    tok->pretok.meta = TOK_META_NEVER;
    tok->lead = space_first ? TOK_LEAD_ONE : TOK_LEAD_KEEP;
    tok->each_byte = true;
    return 0;
}

typedef struct scored {
    float score;
    int32_t id;
} scored;

/* By score, highest first, equals in order: by merging runs, without recursion. Returns where the
 * result is: `v` or `other`. */
static scored *scored_sort(scored *v, scored *other, size_t n)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t from = 0; from < n; from += 2 * width) {
            size_t mid = from + width < n ? from + width : n;
            size_t to = mid + width < n ? mid + width : n;
            for (size_t a = from, b = mid, at = from; at < to; at++)
                other[at] = b >= to || (a < mid && v[a].score >= v[b].score) ? v[a++] : v[b++];
        }
        scored *swap = v;
        v = other;
        other = swap;
    }
    return v;
}

static int ranks_by_score(const tok_vocab *vocab, const float *scores, uint32_t *ranks, cf_err *err)
{
    size_t room = (size_t)vocab->n + 1, n = 0;
    uint32_t rank = 0;
    int rc = 0;
    scored *order = malloc(2 * room * sizeof *order), *sorted;
    if (!order)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory to order %d pieces", vocab->n);
    for (int32_t id = 0; id < vocab->n; id++) {
        uint8_t flags = vocab->tokens[id].flags;
        ranks[id] = UINT32_MAX;
        if (!(flags & TOK_USED) || (flags & (TOK_BYTE | TOK_ADDED | TOK_SPECIAL)))
            continue;
        if (!isfinite(scores[id])) {
            rc = CF_FAIL(err, CF_EFORMAT, "tokenizer: the score of token %d is not a number", id);
            goto fail;
        }
        order[n++] = (scored){.score = scores[id], .id = id};
    }
    sorted = scored_sort(order, order + room, n);
    for (size_t i = 0; i < n; i++) {
        rank += i > 0 && sorted[i].score < sorted[i - 1].score;
        ranks[sorted[i].id] = rank;
    }
fail:
    free(order);
    return rc;
}

int tok_bpe_by_score(cf_tokenizer *tok, const float *scores, int32_t unk_id,
                     const tok_fallback *bytes, cf_err *err)
{
    int rc = 0;
    uint32_t *ranks = calloc((size_t)tok->vocab.n + 1, sizeof *ranks);
    if (!ranks)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %d pieces", tok->vocab.n);
    CF_TRY(ranks_by_score(&tok->vocab, scores, ranks, err));
    CF_TRY(tok_bpe_init_ranked(&tok->bpe, &tok->vocab, ranks, true, err));
    tok->bpe.bytes = *bytes;
    tok->bpe.fuse_unk = true;
    tok->bpe.unk_id = unk_id;
fail:
    free(ranks);
    return rc;
}
