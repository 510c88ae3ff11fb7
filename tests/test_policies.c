/* Catches: policies that drift from their definitions (phase and echo told here in doubles, by the
 * letter) or from what they reached on recorded traces: LRU, LFU and MIN to 0.15 point of the
 * published replay, phase and echo to half a point; a policy that is worse with more memory, echo
 * below lru or lfu, and two tiers that miss more than one tier of their size.
 *
 * The recorded traces are not in every checkout: their cases are skipped then. `long` as the first
 * argument replays the longest trace at every size too. */
#include <stdatomic.h>
#include <unistd.h>

#include "runtime/base/rng.h"
#include "runtime/base/threads.h"
#include "runtime/policy.h"
#include "runtime/replay.h"
#include "tests/check.h"

/* ---- definitions ---- */

enum { L = 4, E = 24, K = 3, W = 512 };

/* Routing with habits: tokens of a few kinds, each with favourite experts. */
static void set_draw(cf_rng *rng, uint32_t token, uint32_t layer, uint32_t *ids, float *weights)
{
    uint32_t kind = (token * 7 / 5) % 6;
    bool in[E] = {false};
    uint32_t n = 0;
    while (n < K) {
        uint64_t e = cf_rng_below(rng, 10) < 7 ? (kind * 5 + layer + cf_rng_below(rng, 4)) % E
                                               : cf_rng_below(rng, E);
        n += !in[e];
        in[e] = true;
    }
    n = 0;
    for (uint32_t e = 0; e < E; e++)
        if (in[e]) {
            ids[n] = e;
            weights[n++] = (float)(0.1 + cf_rng_unit(rng) * 0.23);
        }
}

static double clamp(double p)
{
    return p < 1e-4 ? 1e-4 : p > 1 - 1e-4 ? 1 - 1e-4 : p;
}

static double logit(double p)
{
    p = clamp(p);
    return log(p / (1 - p));
}

/* echo by the letter: the whole history is kept, and nothing is clever. */
typedef struct letter {
    uint32_t t; /* tokens begun, less one */
    double fast[L][E], slow[L][E], gate[L][E], rec[256], n[256], sim[W + 1], value[L][E];
    int32_t last[L][E], context[L][E];
    uint32_t set[2048][L][K];
} letter;

static void letter_init(letter *s)
{
    memset(s, 0, sizeof *s);
    for (uint32_t l = 0; l < L; l++)
        for (uint32_t e = 0; e < E; e++) {
            s->fast[l][e] = s->slow[l][e] = (double)K / E;
            s->last[l][e] = -100000;
        }
    for (int c = 0; c < 256; c++)
        s->rec[c] = (double)K / E;
}

static bool in_set(const uint32_t *set, uint32_t e)
{
    for (uint32_t i = 0; i < K; i++)
        if (set[i] == e)
            return true;
    return false;
}

static int context_of(int32_t since, double gate)
{
    int bucket = since < 8 ? since : 8 + (int)floor(log2(since / 8.0));
    int g = (int)(4 * gate);
    return (bucket < 15 ? bucket : 15) * 16 + (g < 15 ? g : 15);
}

static void letter_learn(letter *s, uint32_t l, const uint32_t *ids, const float *weights)
{
    double T = s->t;
    for (uint32_t e = 0; e < E; e++) {
        double y = in_set(ids, e);
        s->fast[l][e] += (y - s->fast[l][e]) * fmax(0.10, 1 / (T + 2));
        s->slow[l][e] += (y - s->slow[l][e]) * fmax(0.01, 1 / (T + 2));
        if (s->t > 0) {
            int c = s->context[l][e];
            s->n[c] = fmin(s->n[c] + 1, 1000);
            s->rec[c] += (y - s->rec[c]) / (s->n[c] + 1.5);
        }
    }
    for (uint32_t i = 0; i < K; i++) {
        s->last[l][ids[i]] = (int32_t)s->t;
        s->gate[l][ids[i]] = (double)((float)K * weights[i]);
        s->set[s->t][l][i] = ids[i];
    }
}

static void letter_predict(letter *s, uint32_t l)
{
    uint32_t lags = s->t < W ? s->t : W;
    double m = 0, sum = 0, vote[E] = {0};
    for (uint32_t d = 1; d <= lags; d++) {
        double common = 0;
        for (uint32_t i = 0; i < K; i++)
            common += in_set(s->set[s->t - d][l], s->set[s->t][l][i]);
        s->sim[d] = 0.85 * s->sim[d] + common;
        m = fmax(m, s->sim[d]);
    }
    for (uint32_t d = 1; d <= lags; d++) {
        double x = 2.0 / K * (s->sim[d] - m), w = x < -6 ? 0 : exp(x);
        sum += w;
        for (uint32_t i = 0; i < K; i++)
            vote[s->set[s->t + 1 - d][l][i]] += w;
    }
    for (uint32_t e = 0; e < E; e++) {
        s->context[l][e] = context_of((int32_t)s->t - s->last[l][e], s->gate[l][e]);
        double v = (2 * s->slow[l][e] + vote[e]) / (2 + sum);
        double z = 0.2 * logit(s->fast[l][e]) - 0.2 * logit(s->slow[l][e]) +
                   0.3 * logit(s->rec[s->context[l][e]]) + 0.8 * logit(v);
        s->value[l][e] = 1 / (1 + exp(-z));
    }
}

static void test_echo_by_the_letter(void)
{
    enum { TOKENS = 1300 };
    cf_err err = {0};
    cf_policy *p = NULL;
    letter *s = malloc(sizeof *s);
    cf_rng rng = {11};
    double worst = 0;
    letter_init(s);
    REQUIRE(cf_policy_create(&p, "echo", L, E, K, &err) == 0);
    for (uint32_t t = 0; t < TOKENS; t++) {
        s->t = t;
        cf_policy_chunk(p, 1);
        for (uint32_t l = 0; l < L; l++) {
            uint32_t ids[K];
            float weights[K];
            set_draw(&rng, t, l, ids, weights);
            cf_policy_choice(p, l, 0, ids, K, weights);
            letter_learn(s, l, ids, weights);
            letter_predict(s, l);
            for (uint32_t e = 0; e < E; e++) {
                double got = cf_policy_worth(p, l, l, e).score * L; /* distance L */
                worst = fmax(worst, fabs(got / s->value[l][e] - 1));
            }
        }
    }
    printf("    largest difference %.1e of the value\n", worst);
    CHECK(worst < 1e-3);
    cf_policy_destroy(&p);
    free(s);
}

/* A chunk teaches what its tokens one by one would have: close, since the order within it and so
 * the shared recency table differ a little. */
static void test_echo_in_chunks(void)
{
    cf_err err = {0};
    cf_policy *one = NULL, *many = NULL;
    cf_rng rng = {5};
    double sum = 0, worst = 0;
    REQUIRE(cf_policy_create(&one, "echo", L, E, K, &err) == 0);
    REQUIRE(cf_policy_create(&many, "echo", L, E, K, &err) == 0);
    enum { ROWS = 60, CHUNKS = 6 };
    for (uint32_t c = 0; c < CHUNKS; c++) {
        uint32_t ids[ROWS][L][K];
        float weights[ROWS][L][K];
        for (uint32_t r = 0; r < ROWS; r++) {
            cf_policy_chunk(one, 1);
            for (uint32_t l = 0; l < L; l++) {
                set_draw(&rng, c * ROWS + r, l, ids[r][l], weights[r][l]);
                cf_policy_choice(one, l, 0, ids[r][l], K, weights[r][l]);
            }
        }
        cf_policy_chunk(many, ROWS);
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t r = 0; r < ROWS; r++)
                cf_policy_choice(many, l, r, ids[r][l], K, weights[r][l]);
    }
    cf_policy_chunk(one, 1);
    cf_policy_chunk(many, 1);
    for (uint32_t l = 0; l < L; l++)
        for (uint32_t e = 0; e < E; e++) {
            double a = cf_policy_worth(one, l, l, e).score * L;
            double b = cf_policy_worth(many, l, l, e).score * L;
            sum += fabs(a - b);
            worst = fmax(worst, fabs(a - b));
        }
    printf("    chances differ by %.4f on average, %.4f at most\n", sum / (L * E), worst);
    CHECK(sum / (L * E) < 0.005 && worst < 0.05);
    cf_policy_destroy(&one);
    cf_policy_destroy(&many);
}

/* A chunk longer than the history, layers left out, no weights: nothing breaks, values stay
 * chances. */
static void test_echo_edges(void)
{
    cf_err err = {0};
    cf_policy *p = NULL;
    cf_rng rng = {3};
    uint32_t ids[K];
    float weights[K];
    REQUIRE(cf_policy_create(&p, "echo", L, E, K, &err) == 0);
    static const uint32_t chunks[] = {1, 700, 1, 513, 512, 2, 1, 1};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        cf_policy_chunk(p, chunks[c]);
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t r = 0; r < chunks[c]; r++) {
                set_draw(&rng, r, l, ids, weights);
                if ((r + l) % 5 == 0 && c % 2)
                    continue;
                cf_policy_choice(p, l, r, ids, r % 7 == 0 ? 0 : K, r % 3 ? weights : NULL);
            }
    }
    for (uint32_t l = 0; l < L; l++)
        for (uint32_t e = 0; e < E; e++) {
            double v = cf_policy_worth(p, 0, l, e).score;
            CHECK(v > 0 && v < 1);
        }
    cf_policy_destroy(&p);
}

static void test_phase_is_lfu_by_distance(void)
{
    cf_err err = {0};
    cf_policy *lfu = NULL, *phase = NULL;
    cf_rng rng = {2};
    REQUIRE(cf_policy_create(&lfu, "lfu:0.9", L, E, K, &err) == 0);
    REQUIRE(cf_policy_create(&phase, "phase:0.9", L, E, K, &err) == 0);
    for (uint32_t t = 0; t < 40; t++) {
        cf_policy_chunk(lfu, 1);
        cf_policy_chunk(phase, 1);
        for (uint32_t l = 0; l < L; l++) {
            uint32_t ids[K];
            float weights[K];
            set_draw(&rng, t, l, ids, weights);
            cf_policy_choice(lfu, l, 0, ids, K, weights);
            cf_policy_choice(phase, l, 0, ids, K, weights);
        }
    }
    for (uint32_t now = 0; now < L; now++)
        for (uint32_t l = 0; l < L; l++)
            for (uint32_t e = 0; e < E; e++) {
                uint32_t d = (l + L - now) % L ? (l + L - now) % L : L;
                cf_worth a = cf_policy_worth(lfu, now, l, e), b = cf_policy_worth(phase, now, l, e);
                CHECK(b.score == a.score / d && a.last == b.last);
            }
    cf_policy_destroy(&lfu);
    cf_policy_destroy(&phase);
}

static void test_names(void)
{
    static const char *const good[] = {"lru",   "lfu",        "lfu:1", "lfu:.5",
                                       "phase", "phase:0.98", "echo"};
    static const char *const bad[] = {"",       "mru",    "lfu:",    "lfu:0",  "lfu:1.1", "lfu:x",
                                      "lfu: 1", "lfu:-1", "lfu:inf", "phases", "echo:1",  "lru:1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cf_err err = {0};
        cf_policy *p = NULL;
        CHECK_INT(cf_policy_create(&p, good[i], 2, 8, 2, &err), 0);
        cf_policy_destroy(&p);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cf_err err = {0};
        cf_policy *p = NULL;
        CHECK(cf_policy_create(&p, bad[i], 2, 8, 2, &err) < 0);
        CHECK(p == NULL && strstr(err.msg, bad[i]));
    }
    cf_policy *p = NULL;
    CHECK_INT(cf_policy_create(&p, cf_policy_default, 0, 1, 1, NULL), 0); /* no MoE layer */
    cf_policy_chunk(p, 4);
    cf_policy_chunk(p, 1);
    cf_policy_destroy(&p);
    CHECK_STR(cf_policy_default, "echo");
}

/* ---- recorded traces ---- */

enum { SIZES = 4, LRU = 0, LFU, LFU9, LFU98, PHASE, ECHO, POLICIES };
static const char *const policies[POLICIES] = {"lru",      "lfu:1", "lfu:0.9",
                                               "lfu:0.98", "phase", "echo"};

/* Hit rates in percent: the policies above, then MIN, at 5, 10, 25 and 50 % of all records. */
typedef struct recorded {
    const char *name;
    double hits[SIZES][POLICIES + 1];
} recorded;

/* clang-format off */
static const recorded table[] = {
    {"dsv2lite-4workloads", {{0.0, 9.2, 12.8, 13.4, 14.2, 19.2, 31.8}, {24.2, 16.5, 21.7, 22.4, 23.7, 29.7, 46.8}, {41.0, 36.0, 42.8, 44.0, 45.0, 49.7, 69.3}, {66.9, 62.8, 69.7, 70.8, 70.8, 73.4, 87.3}}},
    {"gptoss120b-code-summarize", {{26.3, 25.6, 35.1, 32.8, 36.5, 39.8, 56.5}, {47.6, 40.4, 51.1, 48.9, 53.1, 55.3, 71.2}, {75.0, 67.6, 75.7, 75.0, 76.0, 77.7, 87.4}, {90.8, 88.4, 90.9, 91.0, 90.8, 91.2, 94.4}}},
    {"gptoss20b-benchmix", {{0.0, 13.3, 21.5, 21.6, 23.2, 26.9, 33.1}, {0.0, 25.0, 37.9, 37.5, 39.7, 45.9, 55.9}, {61.5, 52.5, 67.8, 67.3, 69.5, 72.9, 82.7}, {91.3, 82.6, 92.1, 91.7, 92.3, 93.2, 96.6}}},
    {"kimilinear48b-code300", {{35.7, 37.5, 40.5, 38.6, 41.9, 46.5, 60.4}, {54.3, 50.3, 54.5, 52.0, 56.1, 58.5, 71.6}, {73.0, 71.7, 73.3, 73.0, 73.7, 75.3, 84.9}, {87.1, 87.7, 87.1, 87.5, 87.1, 87.9, 91.2}}},
    {"olmoe1b7b-code299", {{0.0, 19.0, 21.2, 20.8, 22.4, 25.8, 32.0}, {0.0, 30.1, 33.7, 33.5, 35.6, 42.9, 53.3}, {56.8, 52.8, 57.4, 57.0, 59.5, 64.7, 76.5}, {78.5, 77.4, 81.1, 80.5, 81.8, 83.9, 91.3}}},
    {"olmoe1b7b-workloads", {{0.0, 14.2, 21.5, 21.3, 22.4, 25.3, 32.0}, {0.0, 24.3, 33.8, 33.7, 35.6, 41.4, 52.6}, {54.2, 46.0, 58.1, 57.6, 60.1, 64.7, 77.4}, {81.8, 72.4, 83.4, 82.7, 84.3, 85.6, 92.8}}},
    {"qwen15moe-a27b-6prompts", {{0.0, 8.8, 9.9, 11.4, 11.7, 17.3, 31.4}, {16.8, 15.9, 18.3, 19.5, 20.1, 25.5, 44.6}, {35.8, 34.7, 37.9, 39.3, 40.4, 44.0, 66.7}, {62.2, 61.3, 63.6, 65.9, 64.8, 68.3, 85.7}}},
    {"qwen3-30b-a3b-top6-explain", {{37.9, 34.8, 36.3, 36.1, 37.9, 42.8, 57.9}, {50.2, 51.0, 54.9, 53.2, 56.4, 60.4, 74.9}, {82.6, 80.3, 83.3, 82.1, 83.8, 85.2, 93.0}, {96.6, 96.6, 96.7, 96.6, 96.5, 96.7, 97.1}}},
    {"qwen36-35b-a3b-explain-mlx", {{35.7, 33.6, 41.5, 38.9, 42.8, 46.0, 62.5}, {56.6, 50.1, 58.4, 55.4, 60.0, 61.5, 76.8}, {81.4, 77.3, 81.5, 80.4, 81.8, 82.1, 91.4}, {93.8, 93.7, 93.7, 93.7, 93.7, 93.7, 94.2}}},
};
/* clang-format on */

static const double shares[SIZES] = {0.05, 0.10, 0.25, 0.50};

/* What is replayed of each trace and policy: the table's sizes, each 5 % larger, and two tiers of
 * the third size, R = V / 2, V, 2 V. */
enum { GROWN = SIZES, TIERED = 2 * SIZES, RUNS = TIERED + 3, LONGEST = 2 };

typedef struct replays {
    const recorded *r;
    cf_routing *t;
    uint32_t runs;
    cf_replay list[POLICIES + 1][RUNS];
    int rc[POLICIES + 1];
} replays;

static replays all[sizeof table / sizeof *table];
static uint32_t n_all;

static double hits(const replays *r, int policy, int run)
{
    const cf_replay_counts *c = &r->list[policy][run].phase[CF_PHASE_DECODE];
    return 100.0 * (double)(c->lookups - c->misses) / (double)c->lookups;
}

static void sizes_set(const replays *r, cf_replay *list)
{
    uint32_t records = r->t->n_moe * r->t->header.n_experts;
    for (int s = 0; s < SIZES; s++) {
        list[s].slots = (uint32_t)(shares[s] * records + 0.5);
        list[GROWN + s].slots = (uint32_t)(1.05 * shares[s] * records + 0.5);
    }
    uint32_t both = list[2].slots;
    for (uint32_t i = 0; i < 3; i++) {
        static const double vram[] = {2.0 / 3, 1.0 / 2, 1.0 / 3};
        list[TIERED + i].slots = (uint32_t)(vram[i] * both + 0.5);
        list[TIERED + i].slabs = both - list[TIERED + i].slots;
    }
}

/* Of the longest trace the default policy and lru are held to everything; the others with `long`. */
static uint32_t runs_of(const replays *r, int policy)
{
    return policy == LRU || policy == ECHO ? RUNS : r->runs;
}

static atomic_uint next_job;

/* Job: trace * (POLICIES + 1) + policy, MIN last. */
static void replay_one(uint32_t job)
{
    replays *r = &all[job / (POLICIES + 1)];
    uint32_t p = job % (POLICIES + 1);
    if (!r->t)
        return;
    sizes_set(r, r->list[p]);
    r->rc[p] = p == POLICIES
                   ? cf_replay_min(r->t, r->list[p], SIZES, NULL)
                   : cf_replay_run(r->t, policies[p], r->list[p], runs_of(r, (int)p), NULL);
}

static void replay_work(void *arg, uint64_t begin, uint64_t end)
{
    (void)arg, (void)begin, (void)end;
    for (uint32_t i; (i = atomic_fetch_add(&next_job, 1)) < n_all * (POLICIES + 1);)
        replay_one(i);
}

static bool traces_load(bool everything)
{
    n_all = sizeof table / sizeof *table;
    bool any = false;
    for (uint32_t i = 0; i < n_all; i++) {
        char path[256];
        cf_err err = {0};
        all[i].r = &table[i];
        all[i].runs = i == LONGEST && !everything ? SIZES : RUNS;
        snprintf(path, sizeof path, "../shared/traces/%s.csv.zst", table[i].name);
        if (access(path, R_OK) != 0)
            continue;
        any = true;
        int rc = cf_trace_read(&all[i].t, path, &err);
        if (rc < 0)
            printf("    %s\n", err.msg);
        CHECK_INT(rc, 0);
    }
    return any;
}

static bool everything;

static void test_traces_replay(void)
{
    cf_threads *threads = NULL;
    if (!traces_load(everything))
        SKIP("the recorded traces (../shared/traces) are not here");
    REQUIRE(cf_threads_create(&threads, 2, NULL) == 0);
    cf_threads_run(threads, 2, 1, replay_work, NULL);
    cf_threads_destroy(&threads);
    for (uint32_t i = 0; i < n_all; i++)
        for (int p = 0; all[i].t && p <= POLICIES; p++)
            CHECK_INT(all[i].rc[p], 0);
}

static void test_published_hits(void)
{
    bool any = false;
    for (uint32_t i = 0; i < n_all; i++)
        for (int p = 0; all[i].t && p <= POLICIES; p++)
            for (int s = 0; s < SIZES; s++) {
                double got = hits(&all[i], p, s), want = all[i].r->hits[s][p];
                any = true;
                if (fabs(got - want) <= (p == PHASE || p == ECHO ? 0.5 : 0.15) + 0.05)
                    continue;
                printf("    %s %s at %g %%: %.2f, published %.1f\n", all[i].r->name,
                       p == POLICIES ? "MIN" : policies[p], 100 * shares[s], got, want);
                check_case_failed = true;
            }
    if (!any)
        SKIP("no traces");
}

static void test_more_memory_never_hurts(void)
{
    bool any = false;
    for (uint32_t i = 0; i < n_all; i++)
        for (int p = 0; all[i].t && p < POLICIES; p++)
            for (int s = 0; s < SIZES && runs_of(&all[i], p) == RUNS; s++) {
                double less = hits(&all[i], p, s), more = hits(&all[i], p, GROWN + s);
                any = true;
                if (more >= less - 0.5)
                    continue;
                printf("    %s %s at %g %%: %.2f, with 5 %% more %.2f\n", all[i].r->name,
                       policies[p], 100 * shares[s], less, more);
                check_case_failed = true;
            }
    if (!any)
        SKIP("no traces");
}

static void test_echo_is_never_far_below(void)
{
    bool any = false;
    for (uint32_t i = 0; i < n_all; i++)
        for (int s = 0; all[i].t && s < (all[i].runs == RUNS ? 2 * SIZES : SIZES); s++) {
            double best = 0;
            for (int p = 0; p < PHASE; p++)
                best = fmax(best, hits(&all[i], p, s));
            any = true;
            if (hits(&all[i], ECHO, s) >= best - 1)
                continue;
            printf("    %s size %d: %.2f, the best of lru and lfu %.2f\n", all[i].r->name, s,
                   hits(&all[i], ECHO, s), best);
            check_case_failed = true;
        }
    if (!any)
        SKIP("no traces");
}

static void test_two_tiers_are_one(void)
{
    double worst = 0;
    bool any = false;
    for (uint32_t i = 0; i < n_all; i++)
        for (int p = 0; all[i].t && p < POLICIES; p++)
            for (int k = 0; k < 3 && runs_of(&all[i], p) == RUNS; k++) {
                double one = hits(&all[i], p, 2), two = hits(&all[i], p, TIERED + k);
                any = true;
                worst = fmax(worst, one - two);
                if (fabs(one - two) <= 2)
                    continue;
                printf("    %s %s R = %s: %.2f in two tiers, %.2f in one\n", all[i].r->name,
                       policies[p], (const char *[]){"V/2", "V", "2V"}[k], two, one);
                check_case_failed = true;
            }
    if (!any)
        SKIP("no traces");
    printf("    at most %.2f points below one tier\n", worst);
}

int main(int argc, char **argv)
{
    everything = argc > 1 && strcmp(argv[1], "long") == 0;
    RUN(test_names);
    RUN(test_phase_is_lfu_by_distance);
    RUN(test_echo_by_the_letter);
    RUN(test_echo_in_chunks);
    RUN(test_echo_edges);
    RUN(test_traces_replay);
    RUN(test_published_hits);
    RUN(test_more_memory_never_hurts);
    RUN(test_echo_is_never_far_below);
    RUN(test_two_tiers_are_one);
    for (uint32_t i = 0; i < n_all; i++) {
        for (int p = 0; p <= POLICIES; p++)
            cf_replay_finish(all[i].list[p], RUNS);
        cf_routing_free(&all[i].t);
    }
    return check_done();
}
