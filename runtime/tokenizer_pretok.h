/* Pre-tokeniser: cuts a normalised text into the pieces that merges never cross.
 *
 * A list of splits, each applied to every piece of the one before, then the byte-level step (a
 * space in front where the file asks for one, and GPT-2's own pattern) or the one of SentencePiece
 * vocabularies (U+2581 becomes a space, a space in front, cuts before spaces). */
#ifndef CF_RUNTIME_TOKENIZER_PRETOK_H
#define CF_RUNTIME_TOKENIZER_PRETOK_H

#include "runtime/tokenizer_regex.h"

enum { TOK_SPLITS_MAX = 32 };

/* What becomes of a match (of what is between, when inverted). */
typedef enum {
    TOK_SPLIT_ISOLATED,
    TOK_SPLIT_REMOVED,
    TOK_SPLIT_WITH_PREVIOUS,
    TOK_SPLIT_WITH_NEXT,
    TOK_SPLIT_CONTIGUOUS
} tok_split_behavior;

typedef struct tok_split {
    tok_regex regex;
    tok_split_behavior behavior;
    bool invert;
} tok_split;

/* Where the step for SentencePiece vocabularies puts a space in front. */
typedef enum {
    TOK_META_NONE,  /* there is no such step */
    TOK_META_NEVER,
    TOK_META_FIRST, /* only where the text itself begins */
    TOK_META_ALWAYS
} tok_meta_scheme;

typedef struct tok_pretok {
    tok_split splits[TOK_SPLITS_MAX + 1]; /* the last is the byte-level step's own */
    uint32_t n_splits;
    bool add_prefix_space; /* before the byte-level step */
    bool byte_level_split; /* the last of `splits` belongs to it */
    tok_meta_scheme meta;
    bool meta_split; /* each space begins a piece */
} tok_pretok;

/* Working memory of one thread. After a run `pieces` are parts of `text`, which is the text given
 * or, with spaces put in front, `spaced`. */
typedef struct tok_pretok_work {
    tok_pieces pieces, other;
    tok_buf spaced;
    const char *text;
    bool inside; /* set by the caller: something of the text is before this part */
} tok_pretok_work;

/* Adds a split; the pattern is as in tok_regex_compile. */
int tok_pretok_add(tok_pretok *pre, int syntax, const char *pattern, size_t bytes,
                   tok_split_behavior behavior, bool invert, const char *what, cf_err *err);
/* The byte-level step; nothing can be added after it. */
int tok_pretok_byte_level(tok_pretok *pre, bool add_prefix_space, bool use_regex, cf_err *err);
void tok_pretok_finish(tok_pretok *pre);
uint64_t tok_pretok_memory(const tok_pretok *pre);

int tok_pretok_run(const tok_pretok *pre, tok_scan *scan, tok_pretok_work *work, const char *text,
                   size_t bytes, cf_err *err);
void tok_pretok_work_finish(tok_pretok_work *work);

#endif
