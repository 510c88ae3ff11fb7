/* Trie over the bytes of a vocabulary, as a double array: a step is one addition and one compare.
 *
 * The child of node n by byte c lies at base[n] + c, and says there whose child it is. Built once
 * from sorted tokens, by a stack of ranges (no recursion), then immutable. */
#ifndef CF_RUNTIME_TOKENIZER_TRIE_H
#define CF_RUNTIME_TOKENIZER_TRIE_H

#include "runtime/tokenizer_vocab.h"

typedef struct tok_trie_node {
    uint32_t base;
    uint32_t parent; /* UINT32_MAX: free */
    int32_t id;      /* -1: no token ends here */
} tok_trie_node;

typedef struct tok_trie {
    tok_trie_node *nodes; /* node 0 is the root */
    uint32_t n;
} tok_trie;

/* The tokens of these ids, which are USED and not empty. Of two with the same bytes the lower id
 * counts. `ids` is sorted in place. */
int tok_trie_build(tok_trie *t, const tok_vocab *vocab, int32_t *ids, size_t n, cf_err *err);
void tok_trie_finish(tok_trie *t);
uint64_t tok_trie_memory(const tok_trie *t);

/* The child, or 0 (the root is nobody's child). */
static inline uint32_t tok_trie_step(const tok_trie *t, uint32_t node, uint8_t byte)
{
    uint32_t at = t->nodes[node].base + byte;
    return at < t->n && t->nodes[at].parent == node ? at : 0;
}

#endif
