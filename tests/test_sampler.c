/* Catches: a token drawn that top-k, top-p or min-p rules out, a probability that is not the
 * softmax's, a seed that does not repeat, a NaN or infinity that wins or crashes, and parameters
 * out of range that are taken. */
#include "runtime/sampler.h"

#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "tests/check.h"

static cf_sampler *make(float temperature, int32_t top_k, float top_p, float min_p, uint64_t seed,
                        uint32_t vocab)
{
    cf_sampler *s = NULL;
    cf_err err = {0};
    cf_sampler_params p = {temperature, top_k, top_p, min_p, seed};
    if (cf_sampler_create(&s, &p, vocab, &err) < 0)
        printf("    create: %s\n", err.msg);
    return s;
}

static void row_fill(float *logits, uint32_t n, uint64_t seed)
{
    cf_rng r = {seed};
    for (uint32_t i = 0; i < n; i++)
        logits[i] = (float)(cf_rng_unit(&r) * 12.0 - 6.0);
}

static void parameters_refused(void)
{
    static const struct {
        cf_sampler_params p;
        uint32_t vocab;
        const char *why;
    } cases[] = {
        {{-0.1f, 0, 1.0f, 0.0f, 0}, 8, "temperature -0.1"},
        {{NAN, 0, 1.0f, 0.0f, 0}, 8, "temperature"},
        {{INFINITY, 0, 1.0f, 0.0f, 0}, 8, "temperature inf"},
        {{1.0f, -1, 1.0f, 0.0f, 0}, 8, "top-k -1"},
        {{1.0f, 0, 0.0f, 0.0f, 0}, 8, "top-p 0"},
        {{1.0f, 0, 1.5f, 0.0f, 0}, 8, "top-p 1.5"},
        {{1.0f, 0, NAN, 0.0f, 0}, 8, "top-p"},
        {{1.0f, 0, 1.0f, 1.0f, 0}, 8, "min-p 1"},
        {{1.0f, 0, 1.0f, -0.5f, 0}, 8, "min-p -0.5"},
        {{1.0f, 0, 1.0f, NAN, 0}, 8, "min-p"},
        {{1.0f, 0, 1.0f, 0.0f, 0}, 0, "vocabulary of 0"},
        {{1.0f, 0, 1.0f, 0.0f, 0}, UINT32_MAX, "out of range"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cf_sampler *s = NULL;
        cf_err err = {0};
        CHECK_INT(cf_sampler_create(&s, &cases[i].p, cases[i].vocab, &err), CF_ELIMIT);
        CHECK_HAS(err.msg, cases[i].why);
        CHECK(s == NULL);
        cf_sampler_destroy(&s);
    }
}

static void greedy(void)
{
    float logits[6] = {1.0f, 3.0f, NAN, 3.0f, -INFINITY, 2.0f};
    cf_sampler *s = make(0.0f, 3, 0.5f, 0.5f, 1, 6);
    REQUIRE(s != NULL);
    CHECK_INT(cf_sampler_pick(s, logits), 1); /* ties to the lower id */
    logits[5] = INFINITY;
    CHECK_INT(cf_sampler_pick(s, logits), 5);
    for (int i = 0; i < 6; i++)
        logits[i] = i % 2 ? NAN : -INFINITY;
    CHECK_INT(cf_sampler_pick(s, logits), 0);
    logits[3] = -3e38f;
    CHECK_INT(cf_sampler_pick(s, logits), 3);
    cf_sampler_destroy(&s);
    CHECK(s == NULL);
}

/* --- by definition --------------------------------------------------------------------------- */

typedef struct ranked {
    double p;
    float logit;
    int32_t id;
} ranked;

static int ranked_compare(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The steps of sampler.h one by one, with libm; returns how many candidates stay, their
 * probabilities scaled to 1. */
static uint32_t candidates_by_definition(const float *logits, uint32_t vocab, cf_sampler_params p,
                                         ranked *out)
{
    uint32_t n = vocab;
    double sum = 0.0, kept = 0.0;
    for (uint32_t i = 0; i < vocab; i++)
        out[i] = (ranked){.logit = isnan(logits[i]) ? -INFINITY : logits[i], .id = (int32_t)i};
    qsort(out, vocab, sizeof *out, ranked_compare);
    if (p.top_k > 0 && (uint32_t)p.top_k < n)
        n = (uint32_t)p.top_k;
    for (uint32_t i = 0; i < n; i++)
        sum += out[i].p = exp((double)out[i].logit / (double)p.temperature -
                              (double)out[0].logit / (double)p.temperature);
    for (uint32_t i = 0; i < n; i++)
        out[i].p /= sum;
    uint32_t m = 0;
    while (m < n && out[m].p > 0.0 && out[m].p >= (double)p.min_p * out[0].p)
        m++;
    n = m;
    for (m = 0; m < n && (p.top_p == 1.0f || kept < (double)p.top_p);)
        kept += out[m++].p;
    n = m;
    for (uint32_t i = 0; i < n; i++)
        out[i].p /= kept;
    return n;
}

/* Each draw equals the definition's for the same number from the generator. */
static void draws_by_definition(void)
{
    static const cf_sampler_params cases[] = {
        {1.0f, 0, 1.0f, 0.0f, 0},   {0.7f, 0, 1.0f, 0.0f, 0},   {1.0f, 5, 1.0f, 0.0f, 0},
        {1.3f, 0, 0.9f, 0.0f, 0},   {1.0f, 0, 1.0f, 0.1f, 0},   {0.9f, 40, 0.8f, 0.05f, 0},
        {2.5f, 1, 1.0f, 0.0f, 0},   {1.0f, 0, 1e-6f, 0.0f, 0},  {1.0f, 0, 1.0f, 0.999f, 0},
        {1e-3f, 0, 1.0f, 0.0f, 0},  {100.0f, 0, 1.0f, 0.0f, 0}, {1.0f, 9999, 0.5f, 0.0f, 0},
        {0.05f, 300, 1.0f, 0.2f, 0}};
    enum { VOCAB = 257 };
    float logits[VOCAB];
    ranked list[VOCAB];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (uint64_t round = 0; round < 400; round++) {
            cf_sampler_params p = cases[c];
            p.seed = round * 977 + c;
            row_fill(logits, VOCAB, round);
            if (round % 3 == 0)
                for (int i = 0; i < VOCAB; i++)
                    logits[i] = floorf(logits[i]); /* many ties */
            if (round % 5 == 0)
                logits[round % VOCAB] = NAN;
            cf_sampler *s = make(p.temperature, p.top_k, p.top_p, p.min_p, p.seed, VOCAB);
            REQUIRE(s != NULL);
            int32_t got = cf_sampler_pick(s, logits);
            cf_sampler_destroy(&s);
            cf_rng r = {p.seed};
            double u = cf_rng_unit(&r), reached = 0.0;
            uint32_t n = candidates_by_definition(logits, VOCAB, p, list), at = 0;
            while (at + 1 < n && !((reached += list[at].p) > u))
                at++;
            /* A rounding error moves a draw only where u is at a boundary. */
            bool edge = at + 1 < n && fabs(reached - u) < 1e-9;
            if (got != list[at].id && !edge) {
                printf("    case %zu round %llu: got %d, expected %d\n", c,
                       (unsigned long long)round, got, list[at].id);
                check_case_failed = true;
                return;
            }
        }
}

/* Frequencies against probabilities: chi-square over 40 tokens, bound far in the tail. */
static void frequencies(void)
{
    enum { VOCAB = 40, DRAWS = 40000 };
    static const cf_sampler_params cases[] = {{1.5f, 0, 1.0f, 0.0f, 3}, {3.0f, 12, 0.95f, 0.1f, 4}};
    float logits[VOCAB];
    ranked list[VOCAB];
    row_fill(logits, VOCAB, 99);
    for (size_t c = 0; c < 2; c++) {
        uint32_t counts[VOCAB] = {0}, n, outside = DRAWS;
        cf_sampler_params p = cases[c];
        cf_sampler *s = make(p.temperature, p.top_k, p.top_p, p.min_p, p.seed, VOCAB);
        REQUIRE(s != NULL);
        for (int i = 0; i < DRAWS; i++) {
            int32_t id = cf_sampler_pick(s, logits);
            REQUIRE(id >= 0 && id < VOCAB);
            counts[id]++;
        }
        cf_sampler_destroy(&s);
        double chi = 0.0;
        n = candidates_by_definition(logits, VOCAB, p, list);
        CHECK(c == 0 ? n == VOCAB : n > 3 && n <= 12);
        for (uint32_t i = 0; i < n; i++) {
            double want = list[i].p * DRAWS, d = counts[list[i].id] - want;
            chi += d * d / want;
            outside -= counts[list[i].id];
        }
        CHECK_INT(outside, 0);
        CHECK(chi < 3.0 * n + 60.0);
    }
}

static void seeds_repeat(void)
{
    enum { VOCAB = 1000, DRAWS = 200 };
    float logits[VOCAB];
    int32_t first[DRAWS];
    uint32_t differ = 0;
    row_fill(logits, VOCAB, 5);
    for (uint64_t seed = 11; seed < 14; seed++) {
        cf_sampler *s = make(1.0f, 0, 0.99f, 0.0f, seed == 12 ? 11 : seed, VOCAB);
        REQUIRE(s != NULL);
        for (int i = 0; i < DRAWS; i++) {
            int32_t id = cf_sampler_pick(s, logits);
            if (seed == 11)
                first[i] = id;
            else if (seed == 12)
                CHECK_INT(id, first[i]);
            else
                differ += id != first[i];
        }
        cf_sampler_destroy(&s);
    }
    CHECK(differ > DRAWS / 2);
}

/* These ids were drawn once and must be drawn on every machine, compiler and C library. */
static void seeds_repeat_everywhere(void)
{
    static const int32_t want[8] = {589, 1254, 3631, 3598, 1552, 3873, 667, 1056};
    enum { VOCAB = 4096 };
    static float logits[VOCAB];
    row_fill(logits, VOCAB, 2024);
    cf_sampler *s = make(0.8f, 0, 0.95f, 0.0f, 42, VOCAB);
    REQUIRE(s != NULL);
    for (int i = 0; i < 8; i++)
        CHECK_INT(cf_sampler_pick(s, logits), want[i]);
    cf_sampler_destroy(&s);
}

static void odd_rows(void)
{
    float logits[5] = {-INFINITY, NAN, -2.0f, NAN, -INFINITY};
    for (int k = 0; k < 3; k++) {
        cf_sampler *s = make(1.0f, k == 1 ? 3 : 0, k == 2 ? 0.9f : 1.0f, 0.0f, 1, 5);
        REQUIRE(s != NULL);
        for (int i = 0; i < 50; i++)
            CHECK_INT(cf_sampler_pick(s, logits), 2);
        float none[5] = {NAN, -INFINITY, NAN, -INFINITY, NAN};
        CHECK_INT(cf_sampler_pick(s, none), 0);
        float two[5] = {INFINITY, 1e30f, NAN, INFINITY, -1.0f};
        int seen = 0;
        for (int i = 0; i < 50; i++) {
            int32_t id = cf_sampler_pick(s, two);
            CHECK(id == 0 || id == 3);
            seen |= id == 0 ? 1 : 2;
        }
        CHECK_INT(seen, 3);
        float wide[5] = {3e38f, -3e38f, 0.0f, 1.0f, 3e38f};
        for (int i = 0; i < 50; i++) {
            int32_t id = cf_sampler_pick(s, wide);
            CHECK(id == 0 || id == 4);
        }
        cf_sampler_destroy(&s);
    }
    cf_sampler *one = make(1.0f, 0, 1.0f, 0.0f, 1, 1);
    REQUIRE(one != NULL);
    CHECK_INT(cf_sampler_pick(one, logits), 0);
    cf_sampler_destroy(&one);
}

/* The smallest set whose sum reaches p: an exact sum is enough. */
static void top_p_is_reached_exactly(void)
{
    float logits[4] = {2.0f, -INFINITY, 2.0f, -INFINITY};
    cf_sampler *s = make(1.0f, 0, 0.5f, 0.0f, 9, 4);
    REQUIRE(s != NULL);
    for (int i = 0; i < 50; i++)
        CHECK_INT(cf_sampler_pick(s, logits), 0);
    cf_sampler_destroy(&s);
}

/* A full vocabulary: a draw is milliseconds, also where all tokens are nearly equal. */
static void large_vocabulary(void)
{
    enum { VOCAB = 131072, DRAWS = 20 };
    float *logits = malloc(VOCAB * sizeof *logits);
    REQUIRE(logits != NULL);
    for (int flat = 0; flat < 2; flat++) {
        row_fill(logits, VOCAB, 8);
        for (int i = 0; i < VOCAB; i++)
            logits[i] = flat ? logits[i] * 1e-3f : logits[i] * 3.0f;
        cf_sampler *s = make(0.8f, 0, 0.95f, 0.0f, 6, VOCAB);
        REQUIRE(s != NULL);
        uint64_t begin = cf_clock_ns();
        for (int i = 0; i < DRAWS; i++) {
            int32_t id = cf_sampler_pick(s, logits);
            CHECK(id >= 0 && id < VOCAB);
        }
        double ms = cf_seconds(cf_clock_ns() - begin) * 1e3 / DRAWS;
        printf("    %s row: %.2f ms a draw\n", flat ? "flat" : "peaked", ms);
        CHECK(ms < 1000.0);
        cf_sampler_destroy(&s);
    }
    free(logits);
}

int main(void)
{
    RUN(parameters_refused);
    RUN(greedy);
    RUN(draws_by_definition);
    RUN(frequencies);
    RUN(seeds_repeat);
    RUN(seeds_repeat_everywhere);
    RUN(odd_rows);
    RUN(top_p_is_reached_exactly);
    RUN(large_vocabulary);
    return check_done();
}
