/* Joints: between which two characters a token of the vocabulary may run.
 *
 * Where no token has two characters side by side, a text can be cut between them and both halves be
 * encoded alone, with the same ids: a text without split patterns falls apart into words. Kept as a
 * set of hashes, so a joint may be seen where none is (that only costs time), never missed.
 * Threads: immutable once filled. */
#ifndef CF_RUNTIME_TOKENIZER_JOINTS_H
#define CF_RUNTIME_TOKENIZER_JOINTS_H

#include "runtime/tokenizer_buf.h"

typedef struct tok_joints {
    uint64_t *bits;
    uint32_t shift; /* of a hash of 32 bits, to an index of bits */
} tok_joints;

/* Room for about n tokens. */
int tok_joints_init(tok_joints *j, size_t n, cf_err *err);
void tok_joints_finish(tok_joints *j);
uint64_t tok_joints_memory(const tok_joints *j);

static inline uint32_t tok_joint_hash(const tok_joints *j, uint32_t left, uint32_t right)
{
    return (left * 0x9e3779b1u + right * 0x85ebca6bu) >> j->shift;
}

static inline void tok_joint_add(tok_joints *j, uint32_t left, uint32_t right)
{
    uint32_t h = tok_joint_hash(j, left, right);
    j->bits[h >> 6] |= (uint64_t)1 << (h & 63);
}

/* All neighbours in a valid UTF-8 text. */
void tok_joints_add_text(tok_joints *j, const char *text, size_t bytes);
/* Where the part of `text` that begins at `begin` (below bytes) ends: at the next place that is no
 * joint, or at the end. */
size_t tok_joints_end(const tok_joints *j, const char *text, size_t bytes, size_t begin);

#endif
