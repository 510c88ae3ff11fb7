/* Added tokens: see tokenizer_added.h. The rules of the flags are those of the reference, down to
 * this: a match that its flags reject is passed over whole. A token takes at most
 * TOK_ADDED_BYTES_MAX bytes, so a step costs at most that. */
#include "runtime/tokenizer_added.h"

#include "runtime/tokenizer.h" /* CF_TOK_MARK_* */
#include "runtime/tokenizer_normal.h"

static int node_new(tok_added *a, uint8_t byte, uint32_t *at, cf_err *err)
{
    if (a->n == a->size) {
        uint32_t size = a->size ? a->size * 2 : 256;
        tok_node *nodes = realloc(a->nodes, size * sizeof *nodes);
        if (!nodes)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for added tokens");
        a->nodes = nodes;
        a->size = size;
    }
    *at = a->n++;
    a->nodes[*at] = (tok_node){.id = -1, .byte = byte};
    return 0;
}

static uint32_t node_child(const tok_added *a, uint32_t node, uint8_t byte)
{
    uint32_t child = a->nodes[node].child;
    while (child && a->nodes[child].byte != byte)
        child = a->nodes[child].sibling;
    return child;
}

int tok_added_put(tok_added *a, const char *text, size_t bytes, int32_t id, uint8_t flags,
                  cf_err *err)
{
    uint32_t node = 0;
    int rc = 0;
    cf_assert(bytes > 0 && bytes <= TOK_ADDED_BYTES_MAX);
    if (a->n == 0)
        CF_TRY(node_new(a, 0, &node, err));
    a->first[(uint8_t)text[0]] = true;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t child = node_child(a, node, (uint8_t)text[i]);
        if (!child) {
            CF_TRY(node_new(a, (uint8_t)text[i], &child, err));
            a->nodes[child].sibling = a->nodes[node].child;
            a->nodes[node].child = child;
        }
        node = child;
    }
    if (a->nodes[node].id < 0) {
        a->nodes[node].id = id;
        a->nodes[node].flags = flags;
    }
    /* What \w is to the reference here: unlike in a split pattern, with the two joiners and
     * without the superscript digits and fractions of Latin-1. */
    static const char word_pattern[] =
        "\\A(?:[\\u200C\\u200D]|[\\w&&[^\\u00B2\\u00B3\\u00B9\\u00BC-\\u00BE]])";
    if ((flags & TOK_SINGLE_WORD) && !a->word.code)
        CF_TRY(tok_regex_compile(&a->word, TOK_REGEX_ONIG, word_pattern, sizeof word_pattern - 1,
                                 "the word characters of added tokens", err));
fail:
    return rc;
}

void tok_added_finish(tok_added *a)
{
    free(a->nodes);
    tok_regex_finish(&a->word);
    *a = (tok_added){0};
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
static bool is_hidden(const tok_added *a, const tok_cut *cut, uint32_t node, uint8_t mark,
                      size_t at, size_t last)
{
    bool bracketed = cut->text[at] == '<' && cut->text[last] == '>';
    return mark &&
           ((a->nodes[node].flags & TOK_IS_SPECIAL) || (mark >= CF_TOK_MARK_USER && bracketed));
}

/* The longest token that begins at `at`: its node, 0 for none. */
static uint32_t longest_at(const tok_added *a, const tok_cut *cut, size_t at, size_t *bytes)
{
    uint32_t node = 0, best = 0;
    uint8_t mark = cut->mark;
    for (size_t i = at; i < cut->bytes; i++) {
        node = node_child(a, node, (uint8_t)cut->text[i]);
        if (!node)
            break;
        if (cut->marks && cut->marks[i] > mark)
            mark = cut->marks[i];
        if (a->nodes[node].id >= 0 && !is_hidden(a, cut, node, mark, at, i)) {
            best = node;
            *bytes = i + 1 - at;
        }
    }
    return best;
}

/* 1 when the flags let the match [begin, end) count, and widens it; 0 when not. */
static int match_accept(const tok_added *a, tok_scan *scan, const tok_cut *cut, uint8_t flags,
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
    if (flags & TOK_RSTRIP)
        while (*end < cut->bytes && tok_char_is_space(tok_char(cut->text + *end, &step)))
            *end += step;
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
    while (a->n > 0 && cut->at < cut->bytes) {
        size_t from = cut->at, bytes = 0, end;
        if (!a->first[(uint8_t)cut->text[from]]) {
            cut->at++;
            continue;
        }
        uint32_t node = longest_at(a, cut, from, &bytes);
        if (!node) {
            cut->at++;
            continue;
        }
        cut->at = end = from + bytes;
        CF_TRY(match_accept(a, scan, cut, a->nodes[node].flags, &from, &end, err));
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
        *id = a->nodes[node].id;
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
