/* Added tokens: see tokenizer_added.h. The rules of the flags are those of the reference, down to
 * this: a match that its flags reject is passed over whole. A token takes at most
 * TOK_ADDED_BYTES_MAX bytes, so a step costs at most that. */
#include "runtime/tokenizer_added.h"

#include "runtime/tokenizer.h" /* CF_TOK_MARK_* */
#include "runtime/tokenizer_normal.h"

static int tokens_room(tok_added *a, cf_err *err)
{
    if (a->texts.n < a->size)
        return 0;
    int32_t size = a->size ? a->size * 2 : 64;
    tok_added_token *tokens = realloc(a->tokens, (size_t)size * sizeof *tokens);
    if (!tokens)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %d added tokens", size);
    a->tokens = tokens;
    a->size = size;
    return 0;
}

int tok_added_put(tok_added *a, const char *text, size_t bytes, int32_t id, uint8_t flags,
                  cf_err *err)
{
    /* What \w is to the reference here: unlike in a split pattern, with the two joiners and
     * without the superscript digits and fractions of Latin-1. */
    static const char word_pattern[] =
        "\\A(?:[\\u200C\\u200D]|[\\w&&[^\\u00B2\\u00B3\\u00B9\\u00BC-\\u00BE]])";
    int rc = 0;
    cf_assert(bytes > 0 && bytes <= TOK_ADDED_BYTES_MAX);
    if (a->texts.text.n + bytes > TOK_ADDED_TEXT_MAX || a->texts.n == TOK_VOCAB_MAX)
        return CF_FAIL(err, CF_ELIMIT,
                       "tokenizer: the texts of the added tokens up to %d have more than %d bytes "
                       "together",
                       id, TOK_ADDED_TEXT_MAX);
    CF_TRY(tokens_room(a, err));
    a->first[(uint8_t)text[0]] = true;
    a->tokens[a->texts.n] = (tok_added_token){.id = id, .flags = flags};
    CF_TRY(tok_vocab_set(&a->texts, a->texts.n, text, bytes, 0, err));
    if ((flags & TOK_SINGLE_WORD) && !a->word.code)
        CF_TRY(tok_regex_compile(&a->word, TOK_REGEX_ONIG, word_pattern, sizeof word_pattern - 1,
                                 "the word characters of added tokens", err));
fail:
    return rc;
}

int tok_added_seal(tok_added *a, cf_err *err)
{
    int32_t n = a->texts.n;
    if (n == a->n_sealed)
        return 0;
    int32_t *all = malloc((size_t)n * sizeof *all);
    if (!all)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %d added tokens", n);
    for (int32_t i = 0; i < n; i++)
        all[i] = i;
    tok_trie_finish(&a->trie);
    int rc = tok_trie_build(&a->trie, &a->texts, all, (size_t)n, err);
    a->n_sealed = rc < 0 ? 0 : n;
    free(all);
    return rc;
}

void tok_added_finish(tok_added *a)
{
    tok_vocab_finish(&a->texts);
    free(a->tokens);
    tok_trie_finish(&a->trie);
    tok_regex_finish(&a->word);
    *a = (tok_added){0};
}

uint64_t tok_added_memory(const tok_added *a)
{
    return tok_vocab_memory(&a->texts) + (uint64_t)a->size * sizeof *a->tokens +
           tok_trie_memory(&a->trie) + a->word.memory_bytes;
}

static size_t char_before(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* 1 when the character at `at` is part of a word, 0 when not, negative on failure. */
static int char_is_word(const tok_added *a, tok_scan *scan, const char *text, size_t at,
                        cf_err *err)
{
    size_t bytes, begin, end;
    tok_char(text + at, &bytes);
    tok_find find = {.text = text + at, .bytes = bytes};
    return tok_regex_next(&a->word, scan, &find, &begin, &end, err);
}

/* Does a mark on one of its bytes make this token plain text? */
static bool is_hidden(const tok_added *a, const tok_cut *cut, int32_t token, uint8_t mark,
                      size_t at, size_t last)
{
    bool bracketed = cut->text[at] == '<' && cut->text[last] == '>';
    return mark &&
           ((a->tokens[token].flags & TOK_IS_SPECIAL) || (mark >= CF_TOK_MARK_USER && bracketed));
}

/* The longest token that begins at `at`: its place, -1 for none. */
static int32_t longest_at(const tok_added *a, const tok_cut *cut, size_t at, size_t *bytes)
{
    uint32_t node = 0;
    int32_t best = -1;
    uint8_t mark = cut->mark;
    for (size_t i = at; i < cut->bytes; i++) {
        node = tok_trie_step(&a->trie, node, (uint8_t)cut->text[i]);
        if (!node)
            break;
        if (cut->marks && cut->marks[i] > mark)
            mark = cut->marks[i];
        int32_t token = a->trie.nodes[node].id;
        if (token >= 0 && !is_hidden(a, cut, token, mark, at, i)) {
            best = token;
            *bytes = i + 1 - at;
        }
    }
    return best;
}

/* 1 when the flags let the match [begin, end) count, and widens it; 0 when not. */
static int match_accept(const tok_added *a, tok_scan *scan, tok_cut *cut, uint8_t flags,
                        size_t *begin, size_t *end, cf_err *err)
{
    int rc = 0;
    size_t step;
    if (cut->skip_special && (flags & TOK_IS_SPECIAL))
        return 0;
    if (flags & TOK_SINGLE_WORD) {
        if (*begin > 0)
            CF_TRY(char_is_word(a, scan, cut->text, char_before(cut->text, *begin), err));
        if (rc == 0 && *end < cut->bytes)
            CF_TRY(char_is_word(a, scan, cut->text, *end, err));
        if (rc > 0)
            return 0;
    }
    if (flags & TOK_LSTRIP) {
        while (*begin > cut->plain) {
            size_t before = char_before(cut->text, *begin);
            if (!tok_char_is_space(tok_char(cut->text + before, &step)))
                break;
            *begin = before;
        }
        if (*begin < cut->plain)
            *begin = cut->plain;
    }
    if (flags & TOK_RSTRIP) {
        /* Not one by one again for each token among them. */
        if (*end < cut->blanks || *end > cut->blanks_end)
            cut->blanks = cut->blanks_end = *end;
        *end = cut->blanks_end;
        while (*end < cut->bytes && tok_char_is_space(tok_char(cut->text + *end, &step)))
            *end += step;
        cut->blanks_end = *end;
    }
    return 1;
fail:
    return rc;
}

int tok_added_next(const tok_added *a, tok_scan *scan, tok_cut *cut, size_t *begin, size_t *n,
                   int32_t *id, cf_err *err)
{
    int rc = 0;
    if (cut->done)
        return 0;
    while (a->trie.n > 0 && cut->at < cut->bytes) {
        size_t from = cut->at, bytes = 0, end;
        if (!a->first[(uint8_t)cut->text[from]]) {
            cut->at++;
            continue;
        }
        int32_t token = longest_at(a, cut, from, &bytes);
        if (token < 0) {
            cut->at++;
            continue;
        }
        cut->at = end = from + bytes;
        CF_TRY(match_accept(a, scan, cut, a->tokens[token].flags, &from, &end, err));
        if (rc == 0)
            continue;
        /* A match among the blanks that the last one took along counts (and what follows it is
         * given out again) unless it takes the blanks before it: the reference does the same. */
        if (from >= end) {
            cut->plain = end;
            continue;
        }
        *begin = cut->plain;
        *n = from > cut->plain ? from - cut->plain : 0;
        *id = a->tokens[token].id;
        cut->plain = end;
        return 1;
    }
    cut->done = true;
    *begin = cut->plain;
    *n = cut->bytes - cut->plain;
    *id = -1;
    return 1;
fail:
    return rc;
}
