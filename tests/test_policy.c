/* Catches: a policy that ranks residents otherwise than its definition says: recency in the wrong
 * order, a decay that depends on how tokens are cut into chunks, counts that overflow or lose
 * their order when they are rescaled, ties that the clock decides, names that are half understood.
 *
 * Every choice of a random history is kept, and each rank is computed anew from all of them. */
#include "runtime/policy.h"

#include "runtime/base/rng.h"
#include "tests/check.h"

enum { LAYERS = 3, EXPERTS = 8, K = 3, MAX_CHOICES = 40000 };

typedef struct choice {
    uint32_t layer, expert;
    int64_t token;
} choice;

static choice history[MAX_CHOICES]; /* in plan order */
static uint32_t n_history;
static int64_t n_tokens;

typedef struct rank {
    long double score; /* with the newest token as 1 */
    uint64_t last;     /* 0 = never; else 1 + index of the last choice */
} rank;

static void ranks_compute(double decay, bool counts, rank *out)
{
    memset(out, 0, LAYERS * EXPERTS * sizeof *out);
    for (uint32_t i = 0; i < n_history; i++) {
        rank *r = &out[history[i].layer * EXPERTS + history[i].expert];
        r->last = i + 1;
        if (counts)
            r->score += powl(decay, n_tokens - 1 - history[i].token);
    }
}

/* A chunk of n rows: layer by layer, row by row, k distinct experts each, as the executor does. */
static void chunk_feed(cf_policy *p, cf_rng *rng, uint32_t n)
{
    cf_policy_chunk(p, n);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t r = 0; r < n; r++) {
            uint32_t ids[EXPERTS], k = 0, most = (uint32_t)cf_rng_below(rng, K + 1);
            for (uint32_t e = 0; e < EXPERTS && k < most; e++)
                if (cf_rng_below(rng, EXPERTS) < (e < 2 ? 5 : 2))
                    ids[k++] = e;
            cf_policy_choice(p, l, r, ids, k, NULL);
            for (uint32_t i = 0; i < k && n_history < MAX_CHOICES; i++)
                history[n_history++] = (choice){l, ids[i], n_tokens + r};
        }
    n_tokens += n;
}

/* All pairs of experts are ordered as the definition says; returns how many could be compared. */
static uint32_t order_check(const cf_policy *p, double decay, bool counts)
{
    rank ranks[LAYERS * EXPERTS];
    uint32_t compared = 0;
    ranks_compute(decay, counts, ranks);
    for (uint32_t i = 0; i < LAYERS * EXPERTS; i++)
        for (uint32_t j = 0; j < LAYERS * EXPERTS; j++) {
            const rank *a = &ranks[i], *b = &ranks[j];
            long double gap = fabsl(a->score - b->score);
            /* What double rounding may swap, or has long vanished, is not promised. */
            if (i == j || (gap != 0 && (gap < 1e-9L * fmaxl(a->score, b->score) || gap < 1e-150L)))
                continue;
            bool less = a->score != b->score ? a->score < b->score : a->last < b->last;
            cf_worth wa = cf_policy_worth(p, 0, i / EXPERTS, i % EXPERTS);
            cf_worth wb = cf_policy_worth(p, 0, j / EXPERTS, j % EXPERTS);
            CHECK(isfinite(wa.score));
            CHECK_INT(cf_worth_less(wa, wb), a->last || b->last ? less : false);
            compared++;
        }
    return compared;
}

static void run_random(const char *name, double decay, bool counts, uint32_t max_chunk,
                       int64_t tokens)
{
    cf_policy *p = NULL;
    cf_rng rng = {11};
    n_history = 0;
    n_tokens = 0;
    CHECK_INT(cf_policy_create(&p, name, LAYERS, EXPERTS, K, NULL), 0);
    uint32_t compared = order_check(p, decay, counts);
    while (n_tokens < tokens && !check_case_failed) {
        chunk_feed(p, &rng, 1 + (uint32_t)cf_rng_below(&rng, max_chunk));
        compared = order_check(p, decay, counts);
    }
    CHECK(compared > LAYERS * EXPERTS * 8);
    cf_policy_destroy(&p);
    CHECK(!p);
}

/* The same tokens in one layer rank the same, whole, cut up or one by one: to the last bit of the
 * order, since rows of one layer come in the order of tokens. */
static void chunks_do_not_matter(void)
{
    static const uint32_t cuts[] = {1, 3, 40, 120};
    const uint32_t tokens = 120;
    cf_worth worth[4][EXPERTS];
    for (int c = 0; c < 4; c++) {
        cf_policy *p = NULL;
        cf_rng rng = {5};
        CHECK_INT(cf_policy_create(&p, "lfu:0.9", 1, EXPERTS, K, NULL), 0);
        for (uint32_t t = 0; t < tokens; t += cuts[c]) {
            cf_policy_chunk(p, cuts[c]);
            for (uint32_t r = 0; r < cuts[c]; r++) {
                uint32_t a = (uint32_t)cf_rng_below(&rng, EXPERTS - 1);
                uint32_t ids[] = {a, a + 1};
                cf_policy_choice(p, 0, r, ids, 2, NULL);
            }
        }
        for (uint32_t e = 0; e < EXPERTS; e++)
            worth[c][e] = cf_policy_worth(p, 0, 0, e);
        cf_policy_destroy(&p);
    }
    for (int c = 1; c < 4; c++)
        for (uint32_t a = 0; a < EXPERTS; a++)
            for (uint32_t b = 0; b < EXPERTS; b++)
                CHECK_INT(cf_worth_less(worth[c][a], worth[c][b]),
                          cf_worth_less(worth[0][a], worth[0][b]));
}

/* A chunk so long that its first rows' share vanishes: the newest rows still rank rightly. */
static void long_chunk(void)
{
    cf_policy *p = NULL;
    const uint32_t rows = 5000;
    CHECK_INT(cf_policy_create(&p, "lfu:0.5", 1, EXPERTS, K, NULL), 0);
    cf_policy_chunk(p, rows);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t id = r == rows - 1 ? 0 : r == rows - 2 ? 1 : r == 0 ? 3 : 2;
        cf_policy_choice(p, 0, r, &id, 1, NULL);
    }
    cf_worth w[4];
    for (uint32_t e = 0; e < 4; e++) {
        w[e] = cf_policy_worth(p, 0, 0, e);
        CHECK(isfinite(w[e].score));
    }
    /* 1; 1/2; 1/4 + 1/8 + ... just below 1/2; nothing left. */
    CHECK(cf_worth_less(w[1], w[0]));
    CHECK(cf_worth_less(w[2], w[1]) || w[2].score == w[1].score);
    CHECK(cf_worth_less(w[3], w[2]));
    cf_policy_destroy(&p);
}

/* Equal counts: who was chosen longer ago goes; among those chosen by one token, the lower id. */
static void ties(void)
{
    static const char *const names[] = {"lru", "lfu", "lfu:1"};
    for (int i = 0; i < 3; i++) {
        cf_policy *p = NULL;
        const uint32_t first[] = {2, 5}, second[] = {0, 5};
        CHECK_INT(cf_policy_create(&p, names[i], 1, EXPERTS, K, NULL), 0);
        cf_policy_chunk(p, 1);
        cf_policy_choice(p, 0, 0, first, 2, NULL);
        CHECK(cf_worth_less(cf_policy_worth(p, 0, 0, 2), cf_policy_worth(p, 0, 0, 5)));
        CHECK(cf_worth_less(cf_policy_worth(p, 0, 0, 1), cf_policy_worth(p, 0, 0, 2)));
        cf_policy_chunk(p, 1);
        cf_policy_choice(p, 0, 0, second, 2, NULL);
        CHECK(cf_worth_less(cf_policy_worth(p, 0, 0, 2), cf_policy_worth(p, 0, 0, 0)));
        CHECK(cf_worth_less(cf_policy_worth(p, 0, 0, 0), cf_policy_worth(p, 0, 0, 5)));
        cf_policy_destroy(&p);
    }
}

static void names_refused(void)
{
    static const char *const bad[] = {"",         "LRU",    "lru:0.5", "lfu:",    "lfu:x",
                                      "lfu:0",    "lfu:-1", "lfu:1.5", "lfu:nan", "lfu:inf",
                                      "lfu:0.5x", "mru",    "lfuu",    "belady",  "lfu:1e-999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cf_policy *p = NULL;
        cf_err err = {0};
        CHECK_INT(cf_policy_create(&p, bad[i], 1, 1, 1, &err), -EINVAL);
        CHECK(!p);
        char quoted[32];
        snprintf(quoted, sizeof quoted, "\"%s\"", bad[i]);
        CHECK_HAS(err.msg, quoted);
        if (strncmp(bad[i], "lfu:", 4) == 0)
            CHECK_HAS(err.msg, "above 0 and at most 1");
        else
            CHECK_HAS(err.msg, "known: lru, lfu[:D]");
    }
    cf_policy *p = NULL;
    CHECK_INT(cf_policy_create(&p, cf_policy_default, 2, 2, 1, NULL), 0);
    cf_policy_destroy(&p);
    cf_policy_destroy(&p); /* accepts NULL */
}

static void lru_random(void)
{
    run_random("lru", 1, false, 7, 400);
}

static void lfu_random(void)
{
    run_random("lfu", 0.98, true, 9, 600);
}

static void lfu_all_time_random(void)
{
    run_random("lfu:1", 1, true, 5, 400);
}

/* 2^-t: counts are rescaled after 333 tokens, several times in this run. */
static void lfu_rescaled(void)
{
    run_random("lfu:0.5", 0.5, true, 30, 2000);
}

static void lfu_rescaled_within_chunks(void)
{
    run_random("lfu:0.1", 0.1, true, 300, 2500);
}

int main(void)
{
    RUN(lru_random);
    RUN(lfu_random);
    RUN(lfu_all_time_random);
    RUN(lfu_rescaled);
    RUN(lfu_rescaled_within_chunks);
    RUN(chunks_do_not_matter);
    RUN(long_chunk);
    RUN(ties);
    RUN(names_refused);
    return check_done();
}
