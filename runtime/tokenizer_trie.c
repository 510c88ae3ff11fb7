/* Trie: see tokenizer_trie.h.
 *
 * A node's children need a base at which all their places are free. It is looked for among the
 * first places, of which a bounded number is looked at, and behind everything otherwise: building is
 * linear in the bytes of the tokens but for sorting them. */
#include "runtime/tokenizer_trie.h"

enum {
    TRIES_MAX = 64,
    PLACES_MAX = 4096,
    NODES_MAX = 1 << 25 /* a trie of 384 MiB; a million tokens need a tenth of that */
};

void tok_trie_finish(tok_trie *t)
{
    free(t->nodes);
    *t = (tok_trie){0};
}

uint64_t tok_trie_memory(const tok_trie *t)
{
    return (uint64_t)t->n * sizeof *t->nodes;
}

/* A range of the sorted ids that share their first `depth` bytes: the tokens below a node. */
typedef struct range {
    size_t from, to;
    uint32_t node, depth;
} range;

typedef struct builder {
    tok_trie *trie;
    const tok_vocab *vocab;
    const int32_t *ids;
    range *stack;
    size_t n_stack, size_stack;
    uint32_t size;  /* of nodes */
    uint32_t first; /* no place before it is free, or so few that they are given up */
    cf_err *err;
} builder;

static int ids_order(const void *a, const void *b, void *vocab)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    size_t n_x, n_y;
    const char *text_x = tok_vocab_bytes(vocab, x, &n_x), *text_y = tok_vocab_bytes(vocab, y, &n_y);
    int order = memcmp(text_x, text_y, n_x < n_y ? n_x : n_y);
    if (order)
        return order;
    if (n_x != n_y)
        return n_x < n_y ? -1 : 1;
    return x < y ? -1 : x > y;
}

static int nodes_room(builder *b, uint64_t n)
{
    if (n <= b->size)
        return 0;
    if (n > NODES_MAX)
        return CF_FAIL(b->err, CF_ELIMIT,
                       "tokenizer: the vocabulary needs a trie of more than %d nodes", NODES_MAX);
    uint64_t size = b->size ? (uint64_t)b->size * 2 : 4096;
    if (size < n)
        size = n;
    tok_trie_node *nodes = realloc(b->trie->nodes, size * sizeof *nodes);
    if (!nodes)
        return CF_FAIL(b->err, -ENOMEM, "tokenizer: no memory for a trie of %llu nodes",
                       (unsigned long long)size);
    for (uint64_t i = b->size; i < size; i++)
        nodes[i] = (tok_trie_node){.parent = UINT32_MAX, .id = -1};
    b->trie->nodes = nodes;
    b->size = (uint32_t)size;
    return 0;
}

static int stack_push(builder *b, range r)
{
    if (b->n_stack == b->size_stack) {
        size_t size = b->size_stack ? b->size_stack * 2 : 256;
        range *stack = realloc(b->stack, size * sizeof *stack);
        if (!stack)
            return CF_FAIL(b->err, -ENOMEM, "tokenizer: no memory for a trie");
        b->stack = stack;
        b->size_stack = size;
    }
    b->stack[b->n_stack++] = r;
    return 0;
}

static uint8_t byte_at(const builder *b, size_t i, uint32_t depth)
{
    size_t n;
    return (uint8_t)tok_vocab_bytes(b->vocab, b->ids[i], &n)[depth];
}

static bool is_free(const builder *b, uint64_t at)
{
    return at >= b->trie->n || b->trie->nodes[at].parent == UINT32_MAX;
}

/* A base for children by these bytes (ascending). */
static uint32_t base_find(builder *b, const uint8_t *bytes, uint32_t n)
{
    while (b->first < b->trie->n && !is_free(b, b->first))
        b->first++;
    uint32_t at = b->first;
    for (uint32_t tries = 0; tries < TRIES_MAX && at < b->trie->n && at - b->first < PLACES_MAX;
         at++) {
        if (at <= bytes[0] || !is_free(b, at))
            continue;
        uint32_t i = 1;
        while (i < n && is_free(b, (uint64_t)at - bytes[0] + bytes[i]))
            i++;
        if (i == n)
            return at - bytes[0];
        tries++;
    }
    /* What is this crowded is not looked at for ever. */
    b->first += (at - b->first) / 2;
    return b->trie->n > bytes[0] ? b->trie->n - bytes[0] : 1;
}

static int range_place(builder *b, range r)
{
    uint8_t bytes[256];
    size_t starts[257];
    uint32_t n = 0;
    size_t length;
    int rc = 0;
    /* Those that end here come first: the lowest id of them. */
    for (; r.from < r.to; r.from++) {
        tok_vocab_bytes(b->vocab, b->ids[r.from], &length);
        if (length > r.depth)
            break;
        if (b->trie->nodes[r.node].id < 0)
            b->trie->nodes[r.node].id = b->ids[r.from];
    }
    for (size_t i = r.from; i < r.to; i++) {
        uint8_t byte = byte_at(b, i, r.depth);
        if (n == 0 || bytes[n - 1] != byte) {
            starts[n] = i;
            bytes[n++] = byte;
        }
    }
    if (n == 0)
        return 0;
    starts[n] = r.to;
    uint32_t base = base_find(b, bytes, n);
    uint64_t end = (uint64_t)base + bytes[n - 1] + 1;
    CF_TRY(nodes_room(b, end));
    if (end > b->trie->n)
        b->trie->n = (uint32_t)end;
    b->trie->nodes[r.node].base = base;
    for (uint32_t i = 0; i < n; i++)
        b->trie->nodes[base + bytes[i]].parent = r.node;
    for (uint32_t i = n; i-- > 0;)
        CF_TRY(stack_push(b, (range){.from = starts[i],
                                     .to = starts[i + 1],
                                     .node = base + bytes[i],
                                     .depth = r.depth + 1}));
fail:
    return rc;
}

int tok_trie_build(tok_trie *t, const tok_vocab *vocab, int32_t *ids, size_t n, cf_err *err)
{
    builder b = {.trie = t, .vocab = vocab, .ids = ids, .first = 1, .err = err};
    int rc = 0;
    *t = (tok_trie){0};
    qsort_r(ids, n, sizeof *ids, ids_order, (void *)vocab);
    CF_TRY(nodes_room(&b, 1));
    t->n = 1;
    t->nodes[0].parent = 0;
    CF_TRY(stack_push(&b, (range){.to = n}));
    while (b.n_stack > 0)
        CF_TRY(range_place(&b, b.stack[--b.n_stack]));
    t->nodes[0].parent = UINT32_MAX - 1; /* taken, and nobody's child */
    tok_trie_node *nodes = realloc(t->nodes, (size_t)t->n * sizeof *nodes);
    if (nodes)
        t->nodes = nodes;
fail:
    free(b.stack);
    if (rc < 0)
        tok_trie_finish(t);
    return rc;
}
