/* Added tokens: texts that are cut out before anything else happens to the rest.
 *
 * Two sets: those looked for in the text as given, and those (normalized: true) looked for in the
 * normalised text of what is left. In each the leftmost match counts, the longest of those. Tokens
 * are put in, then sealed; more can be put in and sealed again. */
#ifndef CF_RUNTIME_TOKENIZER_ADDED_H
#define CF_RUNTIME_TOKENIZER_ADDED_H

#include "runtime/tokenizer_regex.h"
#include "runtime/tokenizer_trie.h"

enum {
    TOK_ADDED_MAX = 1 << 17,
    TOK_ADDED_BYTES_MAX = 4096,   /* of one token */
    TOK_ADDED_TEXT_MAX = 4 << 20  /* of all together */
};

enum {
    TOK_SINGLE_WORD = 1, /* not within a word */
    TOK_LSTRIP = 2,      /* takes the blanks before it along */
    TOK_RSTRIP = 4,      /* and those behind it */
    TOK_IS_SPECIAL = 8
};

typedef struct tok_added_token {
    int32_t id;
    uint8_t flags;
} tok_added_token;

typedef struct tok_added {
    tok_vocab texts;         /* by their place in the order they were put in */
    tok_added_token *tokens; /* [texts.n] */
    int32_t size;            /* of tokens */
    tok_trie trie;           /* of the texts, as sealed */
    int32_t n_sealed;
    bool first[256]; /* a token begins with this byte */
    tok_regex word;  /* one word character; compiled when a token asks for it */
} tok_added;

/* One step through a text. Start with {.text = t, .bytes = n, .skip_special = ...}. */
typedef struct tok_cut {
    const char *text;
    size_t bytes;
    bool skip_special;    /* a special token in the text is plain text */
    const uint8_t *marks; /* [bytes] or NULL: what hides tokens where (tokenizer.h) */
    uint8_t mark;         /* of every byte */
    size_t at;            /* where to look on */
    size_t plain;         /* what is not yet given out begins here */
    size_t blanks;        /* those that the last token took along begin here, */
    size_t blanks_end;    /* and there are no more of them from here on */
    bool done;
} tok_cut;

/* The text is not empty. A second token with the same text is ignored. */
int tok_added_put(tok_added *added, const char *text, size_t bytes, int32_t id, uint8_t flags,
                  cf_err *err);
/* Tokens are found from here on. */
int tok_added_seal(tok_added *added, cf_err *err);
void tok_added_finish(tok_added *added);
uint64_t tok_added_memory(const tok_added *added);

/* The next plain part [*begin, *begin + *n) (perhaps empty) and the added token behind it, or -1
 * at the end. Returns 1, or 0 when the text is used up, negative on failure. */
int tok_added_next(const tok_added *added, tok_scan *scan, tok_cut *cut, size_t *begin, size_t *n,
                   int32_t *id, cf_err *err);

#endif
