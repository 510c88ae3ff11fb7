/* Unigram model: of all ways to cut a piece into tokens the one whose scores sum up highest.
 *
 * A character that no token begins with alone counts as unknown, at a score below the lowest; runs
 * of unknown characters are one unknown token, or with byte fallback a token for each byte. */
#ifndef CF_RUNTIME_TOKENIZER_UNIGRAM_H
#define CF_RUNTIME_TOKENIZER_UNIGRAM_H

#include "runtime/tokenizer_bpe.h"
#include "runtime/tokenizer_trie.h"

typedef struct tok_unigram {
    tok_trie trie;
    tok_joints joints;
    float *scores; /* [n] by id */
    int32_t n;
    double unk_score;
    int32_t unk_id; /* -1: none */
    tok_fallback bytes;
} tok_unigram;

/* Working memory of one thread, kept between pieces. */
typedef struct tok_unigram_work {
    struct tok_best *best;
    size_t size;
} tok_unigram_work;

/* `scores` [n] by id becomes the model's own, also on failure. Only ids below n are cut from text,
 * and none that is marked BYTE, SPECIAL or UNUSED. What `bytes` says must be there before. */
int tok_unigram_init(tok_unigram *u, const tok_vocab *vocab, float *scores, int32_t n,
                     int32_t unk_id, cf_err *err);
void tok_unigram_finish(tok_unigram *u);
uint64_t tok_unigram_memory(const tok_unigram *u);
void tok_unigram_work_finish(tok_unigram_work *work);

int tok_unigram_encode(const tok_unigram *u, tok_unigram_work *work, const char *piece,
                       size_t bytes, tok_ids *out, cf_err *err);

#endif
