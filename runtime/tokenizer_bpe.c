/* Byte-pair merges: see tokenizer_bpe.h.
 *
 * Short pieces (nearly all) are merged in an array by scanning for the lowest rank; from
 * SHORT_BYTES on, a list with a heap of pairs keeps the cost at O(n log n), so that one very long
 * word is no attack. Both give the same ids. */
#include "runtime/tokenizer_bpe.h"

enum { SHORT_BYTES = 40 };

/* Bytes that are looked at, at most, to find the ways to make tokens of two: a token of n bytes has
 * n - 1, of n bytes each. Vocabularies that are known need less than a hundredth. */
static const uint64_t cuts_bytes_max = 1ull << 32;

/* Part of a long piece; a merged-away one has id -1. */
typedef struct tok_symbol {
    int32_t id;
    uint32_t prev, next; /* UINT32_MAX: none */
} tok_symbol;

/* A pair as it was when it was found; stale when its symbols have changed since. */
typedef struct tok_pair {
    uint32_t rank, at;
    int32_t left, right, id;
} tok_pair;

/* Multiply and shift, by an odd number that no file knows: however ids are chosen, two pairs meet
 * hardly more often than by chance. */
static inline uint32_t pair_hash(const tok_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (uint32_t)(pair * bpe->seed >> bpe->shift);
}

int tok_bpe_init(tok_bpe *bpe, const tok_vocab *vocab, size_t n_merges, cf_err *err)
{
    size_t n_slots = 64;
    uint32_t shift = 64 - 6;
    cf_assert(n_merges <= TOK_MERGES_MAX);
    for (; n_slots < 2 * n_merges; n_slots *= 2)
        shift--;
    *bpe = (tok_bpe){.unk_id = -1,
                     .mask = (uint32_t)(n_slots - 1),
                     .shift = shift,
                     .seed = tok_seed() | 1,
                     .extra = bpe->extra,
                     .extra_from = vocab->n};
    bpe->slots = malloc(n_slots * sizeof *bpe->slots);
    if (!bpe->slots)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %zu merges", n_merges);
    for (size_t i = 0; i < n_slots; i++)
        bpe->slots[i] = (tok_merge){.left = -1};
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        bpe->byte_id[b] = tok_vocab_find(vocab, &byte, 1);
    }
    return 0;
}

void tok_bpe_finish(tok_bpe *bpe)
{
    free(bpe->slots);
    tok_joints_finish(&bpe->joints);
    tok_vocab_finish(&bpe->extra);
    *bpe = (tok_bpe){0};
}

uint64_t tok_bpe_memory(const tok_bpe *bpe)
{
    return (bpe->slots ? ((uint64_t)bpe->mask + 1) * sizeof *bpe->slots : 0) +
           tok_joints_memory(&bpe->joints) + tok_vocab_memory(&bpe->extra);
}

void tok_bpe_work_finish(tok_bpe_work *work)
{
    free(work->symbols);
    free(work->heap);
    *work = (tok_bpe_work){0};
}

void tok_bpe_add(tok_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint32_t at = pair_hash(bpe, left, right);
    tok_merge *slot = &bpe->slots[at & bpe->mask];
    while (slot->left >= 0 && (slot->left != left || slot->right != right))
        slot = &bpe->slots[++at & bpe->mask];
    *slot = (tok_merge){.left = left, .right = right, .rank = rank, .id = id};
}

static uint32_t char_last(const char *text, size_t bytes)
{
    size_t at = bytes - 1, step;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80)
        at--;
    return tok_char(text + at, &step);
}

/* The bytes of a symbol: of a token, or of a character that is none. */
static const char *symbol_bytes(const tok_bpe *bpe, const tok_vocab *vocab, int32_t id, size_t *n)
{
    return id < bpe->extra_from ? tok_vocab_bytes(vocab, id, n)
                                : tok_vocab_bytes(&bpe->extra, id - bpe->extra_from, n);
}

int tok_bpe_use_chars(tok_bpe *bpe, const tok_vocab *vocab, cf_err *err)
{
    size_t n, step;
    int rc = tok_joints_init(&bpe->joints, ((size_t)bpe->mask + 1) / 4, err);
    if (rc < 0)
        return rc;
    bpe->chars = true;
    for (size_t i = 0; i <= bpe->mask; i++) {
        const tok_merge *m = &bpe->slots[i];
        if (m->left < 0)
            continue;
        const char *left = symbol_bytes(bpe, vocab, m->left, &n);
        if (n == 0)
            continue; /* in no text */
        uint32_t last = char_last(left, n);
        const char *right = symbol_bytes(bpe, vocab, m->right, &n);
        if (n > 0)
            tok_joint_add(&bpe->joints, last, tok_char(right, &step));
    }
    return 0;
}

/* The characters of a token that are no tokens become symbols. */
static int extra_add(tok_bpe *bpe, const tok_vocab *vocab, const char *text, size_t n, cf_err *err)
{
    int rc = 0;
    for (size_t i = 0, step; i < n; i += step) {
        tok_char(text + i, &step);
        if (step == n || tok_vocab_find(vocab, text + i, step) >= 0)
            continue;
        if (bpe->extra.n == TOK_VOCAB_MAX)
            return CF_FAIL(err, CF_ELIMIT,
                           "tokenizer: more than %d characters of tokens are not tokens",
                           TOK_VOCAB_MAX);
        /* Twice the same is found by its first. */
        CF_TRY(tok_vocab_set(&bpe->extra, bpe->extra.n, text + i, step, 0, err));
    }
fail:
    return rc;
}

static int32_t symbol_find(const tok_bpe *bpe, const tok_vocab *vocab, const char *text, size_t n)
{
    int32_t id = tok_vocab_find(vocab, text, n);
    if (id >= 0 || bpe->extra.n == 0)
        return id;
    id = tok_vocab_find(&bpe->extra, text, n);
    return id < 0 ? -1 : bpe->extra_from + id;
}

/* Whether a token merges at its rank: not where another has the same bytes. */
static bool is_made(const tok_vocab *vocab, const uint32_t *ranks, int32_t id, const char **text,
                    size_t *n)
{
    if (ranks[id] == UINT32_MAX || !(vocab->tokens[id].flags & TOK_USED))
        return false;
    *text = tok_vocab_bytes(vocab, id, n);
    return tok_vocab_find(vocab, *text, *n) == id;
}

/* Every cut of every ranked token into two symbols: counted, or added. */
static size_t cuts_walk(tok_bpe *bpe, const tok_vocab *vocab, const uint32_t *ranks, bool chars,
                        bool add)
{
    size_t count = 0, n;
    const char *text;
    for (int32_t id = 0; id < vocab->n; id++) {
        if (!is_made(vocab, ranks, id, &text, &n))
            continue;
        for (size_t cut = 1; cut < n; cut++) {
            if (chars && ((unsigned char)text[cut] & 0xc0) == 0x80)
                continue;
            int32_t left = symbol_find(bpe, vocab, text, cut);
            int32_t right = left < 0 ? -1 : symbol_find(bpe, vocab, text + cut, n - cut);
            if (right < 0)
                continue;
            count++;
            if (add)
                tok_bpe_add(bpe, left, right, ranks[id], id);
        }
    }
    return count;
}

/* That is the product of two numbers of the file: refused before it becomes hours. */
static int cuts_check(const tok_vocab *vocab, const uint32_t *ranks, cf_err *err)
{
    uint64_t bytes = 0;
    size_t n;
    const char *text;
    for (int32_t id = 0; id < vocab->n; id++) {
        if (!is_made(vocab, ranks, id, &text, &n))
            continue;
        bytes += (uint64_t)n * n; /* tokens are below 2^28 bytes, 2^21 of them */
        if (bytes > cuts_bytes_max)
            return CF_FAIL(err, CF_ELIMIT,
                           "tokenizer: the tokens up to %d, of %zu bytes, are too long to look for "
                           "all ways to put them together",
                           id, n);
    }
    return 0;
}

int tok_bpe_init_ranked(tok_bpe *bpe, const tok_vocab *vocab, const uint32_t *ranks, bool chars,
                        cf_err *err)
{
    size_t n;
    const char *text;
    int rc = 0;
    bpe->extra_from = vocab->n;
    CF_TRY(cuts_check(vocab, ranks, err));
    for (int32_t id = 0; chars && id < vocab->n; id++)
        if (is_made(vocab, ranks, id, &text, &n))
            CF_TRY(extra_add(bpe, vocab, text, n, err));
    if (bpe->extra.n > 0)
        CF_TRY(tok_vocab_index(&bpe->extra, err));
    n = cuts_walk(bpe, vocab, ranks, chars, false);
    if (n > TOK_MERGES_MAX)
        return CF_FAIL(err, CF_ELIMIT,
                       "tokenizer: the vocabulary has %zu ways to put two tokens together, the "
                       "limit is %d",
                       n, TOK_MERGES_MAX);
    CF_TRY(tok_bpe_init(bpe, vocab, n, err));
    cuts_walk(bpe, vocab, ranks, chars, true);
    if (chars)
        CF_TRY(tok_bpe_use_chars(bpe, vocab, err));
fail:
    return rc;
}

static const tok_merge *merge_of(const tok_bpe *bpe, int32_t left, int32_t right)
{
    for (uint32_t at = pair_hash(bpe, left, right);; at++) {
        const tok_merge *slot = &bpe->slots[at & bpe->mask];
        if (slot->left == left && slot->right == right)
            return slot;
        if (slot->left < 0)
            return NULL;
    }
}

static int byte_missing(unsigned char byte, cf_err *err)
{
    return CF_FAIL(err, CF_EFORMAT,
                   "the vocabulary has no token for the byte 0x%02x and no unknown token", byte);
}

bool tok_fallback_encode(const tok_fallback *f, const char *bytes, size_t n, tok_ids *out)
{
    if (!f->on)
        return false;
    for (size_t i = 0; i < n; i++)
        if (f->id[(unsigned char)bytes[i]] < 0)
            return false;
    for (size_t i = 0; i < n; i++)
        tok_ids_add(out, f->id[(unsigned char)bytes[i]]);
    return true;
}

/* What has no token: its bytes, or the unknown token, one for a run where runs are fused. */
static void unknown_give(const tok_bpe *bpe, tok_bpe_work *work, const char *text, size_t n,
                         tok_ids *out)
{
    if (tok_fallback_encode(&bpe->bytes, text, n, out)) {
        work->after_unk = false;
        return;
    }
    if (bpe->unk_id < 0 && work->missing < 0)
        work->missing = (unsigned char)text[0];
    if (!work->after_unk || !bpe->fuse_unk)
        tok_ids_add(out, bpe->unk_id);
    work->after_unk = true;
}

static inline void symbol_give(const tok_bpe *bpe, tok_bpe_work *work, int32_t id, tok_ids *out)
{
    size_t n;
    if (id < bpe->extra_from) {
        tok_ids_add(out, id);
        work->after_unk = false;
        return;
    }
    const char *text = tok_vocab_bytes(&bpe->extra, id - bpe->extra_from, &n);
    unknown_give(bpe, work, text, n, out);
}

static void merge_short(const tok_bpe *bpe, tok_bpe_work *work, int32_t *ids, size_t n,
                        tok_ids *out)
{
    const tok_merge *pairs[SHORT_BYTES];
    for (size_t i = 0; i + 1 < n; i++)
        pairs[i] = merge_of(bpe, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        uint32_t rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++)
            if (pairs[i] && pairs[i]->rank < rank) {
                rank = pairs[i]->rank;
                best = i;
            }
        if (rank == UINT32_MAX)
            break;
        ids[best] = pairs[best]->id;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(pairs + best + 1, pairs + best + 2, (n - best - 2) * sizeof *pairs);
            pairs[best] = merge_of(bpe, ids[best], ids[best + 1]);
        }
        if (best > 0)
            pairs[best - 1] = merge_of(bpe, ids[best - 1], ids[best]);
    }
    for (size_t i = 0; i < n; i++)
        symbol_give(bpe, work, ids[i], out);
}

static bool pair_before(const tok_pair *a, const tok_pair *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

/* Pushes the pair of symbol `at` and the one behind it, if they merge. There is room: a piece of n
 * symbols pushes n - 1 pairs and each of its merges, of which it has fewer, takes one and pushes at
 * most two. */
static void heap_push(const tok_bpe *bpe, tok_bpe_work *w, uint32_t at)
{
    const tok_symbol *left = &w->symbols[at];
    if (left->next == UINT32_MAX)
        return;
    int32_t right = w->symbols[left->next].id;
    const tok_merge *m = merge_of(bpe, left->id, right);
    if (!m)
        return;
    tok_pair pair = {.rank = m->rank, .at = at, .left = left->id, .right = right, .id = m->id};
    size_t i = w->n_heap++;
    cf_assert(i < w->size_heap);
    for (; i > 0 && pair_before(&pair, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = pair;
}

static tok_pair heap_pop(tok_bpe_work *w)
{
    tok_pair top = w->heap[0], moving = w->heap[--w->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < w->n_heap) {
        if (child + 1 < w->n_heap && pair_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!pair_before(&w->heap[child], &moving))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = moving;
    return top;
}

static int work_room(tok_bpe_work *w, size_t n, cf_err *err)
{
    if (n > TOK_PART_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT,
                       "%zu bytes of the text without a place to cut them: the limit is %d", n,
                       TOK_PART_BYTES_MAX);
    if (n > w->size_symbols) {
        tok_symbol *symbols = realloc(w->symbols, n * sizeof *symbols);
        if (!symbols)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for a piece of %zu bytes", n);
        w->symbols = symbols;
        w->size_symbols = n;
    }
    if (2 * n > w->size_heap) {
        tok_pair *heap = realloc(w->heap, 2 * n * sizeof *heap);
        if (!heap)
            return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for a piece of %zu bytes", n);
        w->heap = heap;
        w->size_heap = 2 * n;
    }
    return 0;
}

/* The symbols 0 to n - 1 of the work memory, merged. */
static void merge_long(const tok_bpe *bpe, tok_bpe_work *w, uint32_t n, tok_ids *out)
{
    tok_symbol *s = w->symbols;
    w->n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        s[i].prev = i == 0 ? UINT32_MAX : i - 1;
        s[i].next = i + 1 == n ? UINT32_MAX : i + 1;
    }
    for (uint32_t i = 0; i + 1 < n; i++)
        heap_push(bpe, w, i);
    while (w->n_heap > 0) {
        tok_pair pair = heap_pop(w);
        tok_symbol *left = &s[pair.at];
        uint32_t next = left->next;
        if (left->id != pair.left || next == UINT32_MAX || s[next].id != pair.right)
            continue;
        left->id = pair.id;
        left->next = s[next].next;
        s[next].id = -1;
        if (left->next != UINT32_MAX)
            s[left->next].prev = pair.at;
        if (left->prev != UINT32_MAX)
            heap_push(bpe, w, left->prev);
        heap_push(bpe, w, pair.at);
    }
    for (uint32_t i = 0; i != UINT32_MAX; i = s[i].next)
        symbol_give(bpe, w, s[i].id, out);
}

static int bytes_encode(const tok_bpe *bpe, tok_bpe_work *work, const char *piece, size_t bytes,
                        tok_ids *out, cf_err *err)
{
    int32_t ids[SHORT_BYTES];
    size_t n = 0;
    int rc = 0;
    bool is_short = bytes <= SHORT_BYTES;
    if (!is_short)
        CF_TRY(work_room(work, bytes, err));
    bool after_unk = false;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)piece[i];
        int32_t id = bpe->byte_id[byte];
        bool unk = id < 0;
        if (unk) {
            if (bpe->unk_id < 0)
                return byte_missing(byte, err);
            if (after_unk && bpe->fuse_unk)
                continue;
            id = bpe->unk_id;
        }
        after_unk = unk;
        if (is_short)
            ids[n++] = id;
        else
            work->symbols[n++].id = id;
    }
    if (is_short)
        merge_short(bpe, work, ids, n, out);
    else
        merge_long(bpe, work, (uint32_t)n, out);
fail:
    return rc;
}

/* The symbol of the character at `text`, or -1. */
static int32_t char_id(const tok_bpe *bpe, const tok_vocab *vocab, const char *text, size_t *step)
{
    unsigned char lead = (unsigned char)text[0];
    *step = 1;
    if (lead < 0x80 && bpe->byte_id[lead] >= 0)
        return bpe->byte_id[lead];
    tok_char(text, step);
    return symbol_find(bpe, vocab, text, *step);
}

static void merge(const tok_bpe *bpe, tok_bpe_work *work, bool is_short, int32_t *ids, size_t n,
                  tok_ids *out)
{
    if (is_short)
        merge_short(bpe, work, ids, n, out);
    else if (n > 0)
        merge_long(bpe, work, (uint32_t)n, out);
}

/* A part within which merges may happen. */
static int part_encode(const tok_bpe *bpe, const tok_vocab *vocab, tok_bpe_work *work,
                       const char *part, size_t bytes, tok_ids *out, cf_err *err)
{
    int32_t ids[SHORT_BYTES];
    size_t n = 0, step;
    int rc = 0;
    bool is_short = bytes <= SHORT_BYTES;
    if (!is_short)
        CF_TRY(work_room(work, bytes, err));
    for (size_t i = 0; i < bytes; i += step) {
        int32_t id = char_id(bpe, vocab, part + i, &step);
        if (id < 0) {
            /* No symbol, so in no merge: what is before it is whole. */
            merge(bpe, work, is_short, ids, n, out);
            n = 0;
            unknown_give(bpe, work, part + i, step, out);
        } else if (is_short) {
            ids[n++] = id;
        } else {
            work->symbols[n++].id = id;
        }
    }
    merge(bpe, work, is_short, ids, n, out);
    if (work->missing >= 0)
        rc = byte_missing((unsigned char)work->missing, err);
fail:
    return rc;
}

int tok_bpe_encode(const tok_bpe *bpe, const tok_vocab *vocab, tok_bpe_work *work,
                   const char *piece, size_t bytes, tok_ids *out, cf_err *err)
{
    int rc = 0;
    if (bytes == 0)
        return 0;
    work->after_unk = false;
    work->missing = -1;
    if (bpe->ignore_merges) {
        int32_t whole = tok_vocab_find(vocab, piece, bytes);
        /* A special token is never made from plain text. */
        if (whole >= 0 && !(vocab->tokens[whole].flags & TOK_SPECIAL)) {
            tok_ids_add(out, whole);
            return 0;
        }
    }
    if (!bpe->chars)
        return bytes_encode(bpe, work, piece, bytes, out, err);
    for (size_t begin = 0, end; begin < bytes; begin = end) {
        end = tok_joints_end(&bpe->joints, piece, bytes, begin);
        CF_TRY(part_encode(bpe, vocab, work, piece + begin, end - begin, out, err));
    }
fail:
    return rc;
}
