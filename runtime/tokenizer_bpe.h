/* Byte-pair merges: bytes of one piece to ids, the lowest rank first, the leftmost of equals. */
#ifndef CF_RUNTIME_TOKENIZER_BPE_H
#define CF_RUNTIME_TOKENIZER_BPE_H

#include "runtime/tokenizer_vocab.h"

enum { TOK_MERGES_MAX = 1 << 22 };

typedef struct tok_merge {
    int32_t left, right; /* left -1: an empty slot */
    uint32_t rank;
    int32_t id; /* what the two become */
} tok_merge;

typedef struct tok_bpe {
    tok_merge *slots; /* open addressing on (left, right) */
    uint32_t mask;
    int32_t byte_id[256]; /* -1: the vocabulary lacks the byte */
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

int tok_bpe_init(tok_bpe *bpe, const tok_vocab *vocab, size_t n_merges, cf_err *err);
void tok_bpe_finish(tok_bpe *bpe);
/* A later rule for the same pair replaces the earlier one. At most the n_merges of init. */
void tok_bpe_add(tok_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id);
void tok_bpe_work_finish(tok_bpe_work *work);

int tok_bpe_encode(const tok_bpe *bpe, const tok_vocab *vocab, tok_bpe_work *work,
                   const char *piece, size_t bytes, tok_ids *out, cf_err *err);

#endif
