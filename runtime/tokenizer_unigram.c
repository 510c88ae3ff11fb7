/* Unigram model: see tokenizer_unigram.h. Forward search over the piece: the best way to every
 * byte, by the tokens that begin at each character before it. A piece is cut at what no token joins
 * first, so memory follows the word, not the text. */
#include "runtime/tokenizer_unigram.h"

#include <float.h>
#include <math.h>

static const double unk_penalty = 10.0; /* below the lowest score, as the reference has it */

/* The best way to end at a byte. */
typedef struct tok_best {
    double score;
    uint32_t begin; /* of its last token; UINT32_MAX: no way yet */
    int32_t id;     /* UNKNOWN: a character of its own */
} tok_best;

enum {
    UNKNOWN = -1,
    /* Each character of a text may begin a token as long as the longest. What trains such
     * vocabularies makes none longer. */
    CHARS_MAX = 512
};

static int length_check(int32_t id, const char *text, size_t bytes, cf_err *err)
{
    size_t n = 0;
    for (size_t i = 0, step; i < bytes; i += step, n++)
        tok_char(text + i, &step);
    return n <= CHARS_MAX
               ? 0
               : CF_FAIL(err, CF_ELIMIT,
                         "tokenizer: token %d has %zu characters, the limit of a unigram model is "
                         "%d",
                         id, n, CHARS_MAX);
}

int tok_unigram_init(tok_unigram *u, const tok_vocab *vocab, float *scores, int32_t n_scores,
                     int32_t unk_id, cf_err *err)
{
    int32_t *ids = malloc(((size_t)n_scores + 1) * sizeof *ids);
    size_t n = 0, bytes;
    double lowest = DBL_MAX;
    int rc = 0;
    u->scores = scores;
    u->n = n_scores;
    u->unk_id = unk_id;
    if (!ids)
        CF_TRY(CF_FAIL(err, -ENOMEM, "tokenizer: no memory for %d tokens", vocab->n));
    CF_TRY(tok_joints_init(&u->joints, (size_t)vocab->n, err));
    for (int32_t id = 0; id < n_scores && id < vocab->n; id++) {
        const char *text = tok_vocab_bytes(vocab, id, &bytes);
        uint8_t flags = vocab->tokens[id].flags;
        if (!(flags & TOK_USED) || (flags & (TOK_BYTE | TOK_SPECIAL | TOK_UNUSED)) || id == unk_id)
            continue;
        if (!isfinite(scores[id]))
            CF_TRY(
                CF_FAIL(err, CF_EFORMAT, "tokenizer: the score of token %d is not a number", id));
        if (scores[id] < lowest)
            lowest = scores[id];
        if (bytes == 0)
            continue;
        CF_TRY(length_check(id, text, bytes, err));
        ids[n++] = id;
        tok_joints_add_text(&u->joints, text, bytes);
    }
    u->unk_score = (n ? lowest : 0.0) - unk_penalty;
    CF_TRY(tok_trie_build(&u->trie, vocab, ids, n, err));
fail:
    free(ids);
    return rc;
}

void tok_unigram_finish(tok_unigram *u)
{
    tok_trie_finish(&u->trie);
    tok_joints_finish(&u->joints);
    free(u->scores);
    *u = (tok_unigram){0};
}

uint64_t tok_unigram_memory(const tok_unigram *u)
{
    return tok_trie_memory(&u->trie) + tok_joints_memory(&u->joints) +
           (uint64_t)u->n * sizeof *u->scores;
}

void tok_unigram_work_finish(tok_unigram_work *work)
{
    free(work->best);
    *work = (tok_unigram_work){0};
}

static int work_room(tok_unigram_work *w, size_t n, cf_err *err)
{
    if (n <= w->size)
        return 0;
    if (n > TOK_PART_BYTES_MAX)
        return CF_FAIL(err, CF_ELIMIT,
                       "%zu bytes of the text without a place to cut them: the limit is %d", n,
                       TOK_PART_BYTES_MAX);
    size_t size = n < 256 ? 256 : n;
    tok_best *best = realloc(w->best, size * sizeof *best);
    if (!best)
        return CF_FAIL(err, -ENOMEM, "tokenizer: no memory for a piece of %zu bytes", n);
    w->best = best;
    w->size = size;
    return 0;
}

static inline void way_offer(tok_best *best, double score, size_t begin, int32_t id)
{
    if (best->begin == UINT32_MAX || score > best->score)
        *best = (tok_best){.score = score, .begin = (uint32_t)begin, .id = id};
}

static void ways_find(const tok_unigram *u, tok_best *best, const char *text, size_t bytes)
{
    best[0] = (tok_best){.begin = 0};
    for (size_t i = 1; i <= bytes; i++)
        best[i].begin = UINT32_MAX;
    for (size_t begin = 0, step; begin < bytes; begin += step) {
        double score = best[begin].score;
        bool alone = false;
        uint32_t node = 0;
        tok_char(text + begin, &step);
        for (size_t i = begin; i < bytes; i++) {
            node = tok_trie_step(&u->trie, node, (uint8_t)text[i]);
            if (!node)
                break;
            int32_t id = u->trie.nodes[node].id;
            /* A token that ends within a character is no way: nothing begins there. */
            if (id < 0 || (i + 1 < bytes && ((uint8_t)text[i + 1] & 0xc0) == 0x80))
                continue;
            way_offer(&best[i + 1], score + (double)u->scores[id], begin, id);
            alone |= i + 1 - begin == step;
        }
        if (!alone)
            way_offer(&best[begin + step], score + u->unk_score, begin, UNKNOWN);
    }
}

/* The ids of the best way, from its end: turned round in place of what is no longer needed. */
static int way_give(const tok_unigram *u, tok_best *best, const char *text, size_t bytes,
                    bool *after_unk, tok_ids *out, cf_err *err)
{
    size_t n = 0;
    for (size_t end = bytes; end > 0; end = best[end].begin)
        n++;
    /* Each token ends at least one byte further on, so what is written is never read again. */
    size_t at = bytes;
    for (size_t end = bytes, begin; end > 0; end = begin) {
        begin = best[end].begin;
        best[at--] = (tok_best){.begin = (uint32_t)begin, .id = best[end].id};
    }
    for (size_t i = bytes - n + 1; i <= bytes; i++) {
        size_t begin = best[i].begin, end = i < bytes ? best[i + 1].begin : bytes;
        if (best[i].id != UNKNOWN) {
            tok_ids_add(out, best[i].id);
        } else if (!tok_fallback_encode(&u->bytes, text + begin, end - begin, out)) {
            if (u->unk_id < 0)
                return CF_FAIL(err, CF_EFORMAT,
                               "the vocabulary has no token for the byte 0x%02x and no unknown "
                               "token",
                               (uint8_t)text[begin]);
            if (!*after_unk)
                tok_ids_add(out, u->unk_id);
            *after_unk = true;
            continue;
        }
        *after_unk = false;
    }
    return 0;
}

int tok_unigram_encode(const tok_unigram *u, tok_unigram_work *work, const char *piece,
                       size_t bytes, tok_ids *out, cf_err *err)
{
    bool after_unk = false;
    int rc = 0;
    for (size_t begin = 0, end; begin < bytes; begin = end) {
        end = tok_joints_end(&u->joints, piece, bytes, begin);
        CF_TRY(work_room(work, end - begin + 1, err));
        ways_find(u, work->best, piece + begin, end - begin);
        CF_TRY(way_give(u, work->best, piece + begin, end - begin, &after_unk, out, err));
    }
fail:
    return rc;
}
