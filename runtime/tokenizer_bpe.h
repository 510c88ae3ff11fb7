/* Byte-pair merges: the symbols of one piece to ids, the lowest rank first, the leftmost of equals.
 *
 * A symbol is a byte (byte-level vocabularies) or a character; a character that the vocabulary
 * lacks becomes a token for each of its bytes, where there are such tokens, or the unknown one. */
#ifndef CF_RUNTIME_TOKENIZER_BPE_H
#define CF_RUNTIME_TOKENIZER_BPE_H

#include "runtime/tokenizer_joints.h"
#include "runtime/tokenizer_vocab.h"

enum {
    TOK_MERGES_MAX = 1 << 22,
    /* Of a text without a place to cut it: what it takes while it is encoded is 52 times that. */
    TOK_PART_BYTES_MAX = 8 << 20
};

typedef struct tok_merge {
    int32_t left, right; /* left -1: an empty slot */
    uint32_t rank;
    int32_t id; /* what the two become */
} tok_merge;

/* Tokens that stand for one byte each. */
typedef struct tok_fallback {
    int32_t id[256]; /* -1: there is none */
    bool on;
} tok_fallback;

typedef struct tok_bpe {
    tok_merge *slots; /* open addressing on (left, right) */
    uint32_t mask, shift; /* shift: of a hash, to a slot */
    uint64_t seed;        /* odd, at random */
    int32_t byte_id[256]; /* -1: the vocabulary lacks the byte */
    bool chars;           /* symbols are characters */
    tok_joints joints;    /* chars: which characters a merge may join */
    tok_fallback bytes;   /* chars */
    /* chars: those that tokens are put together from without being tokens, as symbols with the ids
     * from extra_from on. */
    tok_vocab extra;
    int32_t extra_from;
    int32_t unk_id;       /* -1: none */
    bool fuse_unk;
    bool ignore_merges; /* a piece that is a token is that token */
} tok_bpe;

/* Working memory of one thread, kept between pieces. */
typedef struct tok_bpe_work {
    struct tok_symbol *symbols;
    size_t size_symbols;
    struct tok_pair *heap;
    size_t n_heap, size_heap;
    bool after_unk; /* the last id given was the unknown one */
    int missing;    /* a byte for which there is nothing, or -1 */
} tok_bpe_work;

/* Where ids go: at most `max` are written, all are counted. */
typedef struct tok_ids {
    int32_t *ids;
    size_t max, n;
} tok_ids;

static inline void tok_ids_add(tok_ids *out, int32_t id)
{
    if (out->n < out->max)
        out->ids[out->n] = id;
    out->n++;
}

/* A token for each of the n bytes; false, and nothing added, where one is missing. */
bool tok_fallback_encode(const tok_fallback *f, const char *bytes, size_t n, tok_ids *out);

int tok_bpe_init(tok_bpe *bpe, const tok_vocab *vocab, size_t n_merges, cf_err *err);
void tok_bpe_finish(tok_bpe *bpe);
/* A later rule for the same pair replaces the earlier one. At most the n_merges of init. */
void tok_bpe_add(tok_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Symbols are characters from here on: after the last merge. */
int tok_bpe_use_chars(tok_bpe *bpe, const tok_vocab *vocab, cf_err *err);
/* Instead of init and add: two tokens side by side merge where what they make is a token that has
 * a rank (ranks [vocab->n], UINT32_MAX: none), at its rank. With `chars` a token is only cut
 * between characters. */
int tok_bpe_init_ranked(tok_bpe *bpe, const tok_vocab *vocab, const uint32_t *ranks, bool chars,
                        cf_err *err);
uint64_t tok_bpe_memory(const tok_bpe *bpe);
void tok_bpe_work_finish(tok_bpe_work *work);

int tok_bpe_encode(const tok_bpe *bpe, const tok_vocab *vocab, tok_bpe_work *work,
                   const char *piece, size_t bytes, tok_ids *out, cf_err *err);

#endif
