/* Drives that misbehave: seeded random runs over the fault engine. Catches a short read taken for a
 * whole one, a failed read that leaves a slot half written or a waiter waiting, completions in
 * another order computed on too early, an error that leaks into the next answer, a damaged byte of a
 * pack that becomes a token, a run that is interrupted or has to stream its dense weights and does
 * not come to the same.
 *
 * Subjects are checkpoints, packs of them (made by the built program, beside this one's folder) and a
 * GGUF file. In every run: each failure is one sentence, the session goes on from where its last whole chunk
 * ended, and what it computes in the end is what it computes on a healthy drive, bit for bit. A run
 * that hangs is ended by an alarm that tells its seed.
 *
 *     test_faults [RUNS [SEED]]     so many, 300 when it is not said, from this seed on */
#include <signal.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"
#include "tests/support/cli.h"

enum { CHUNK = 8, RUNS = 300, ATTEMPTS = 200, HANG_SECONDS = 120 };

/* A model file of some kind, and what it computes when nothing goes wrong. */
struct subject {
    const char *dir;
    const char *packed; /* options of `catflap pack`: the pack is the subject; NULL: dir is */
    const char *stem;   /* of the prompt's files; NULL: they are in dir */
    bool checksums;     /* damaged bytes are caught: damage is dealt too */
    char path[300];
    sized_model model;
    oracle *prompt;
    float *want; /* logits [n_prompt, vocab] */
};

static struct subject subjects[] = {
    {.dir = "tests/fixtures/models/longcat_flash"}, /* two shards */
    {.dir = "tests/fixtures/models/longcat_ngram"}, /* rows of tables */
    {.dir = "tests/fixtures/models/mixtral"},
    {.dir = "tests/fixtures/models/dbrx"}, /* fused, transposed */
    {.dir = "tests/fixtures/models/longcat_ngram", .packed = "", .checksums = true},
    {.dir = "tests/fixtures/models/mixtral", .packed = "--experts q8_0 --zstd", .checksums = true},
    {.dir = "../shared/fixtures/gguf/qwen3_moe-q4_k_m.gguf",
     .stem = "../shared/fixtures/gguf/qwen3_moe-q4_k_m"},
};
enum { SUBJECTS = sizeof subjects / sizeof *subjects };

static uint32_t n_subjects; /* those that are there */
static tmp_dir packs;

/* What came of all runs, so that a table of faults that never strike is noticed. */
static struct tally {
    uint64_t runs, opened, failures, damages, refused, streamed, cancelled, first_seed, last_seed;
} tally;

static volatile sig_atomic_t running_seed;

static void on_alarm(int signal)
{
    static const char text[] = "    a run hangs; its seed is ";
    char digits[24];
    int at = (int)sizeof digits;
    (void)signal;
    digits[--at] = '\n';
    for (unsigned n = (unsigned)running_seed; n || at == (int)sizeof digits - 1; n /= 10)
        digits[--at] = (char)('0' + n % 10);
    ssize_t ignored = write(STDOUT_FILENO, text, sizeof text - 1);
    ignored = write(STDOUT_FILENO, digits + at, sizeof digits - (size_t)at);
    (void)ignored;
    _exit(1);
}

/* One run's engine options and faults, drawn from its seed. */
struct run {
    uint64_t seed;
    const struct subject *of;
    cf_options options;
    cf_io_fault fault;
    uint32_t slots;
    double dense;       /* budget between the least, 0, and all dense weights; 1: that */
    uint64_t cancel_at; /* choices of experts until it is interrupted; 0: never */
};

static uint32_t below(cf_rng *rng, uint32_t n)
{
    return (uint32_t)cf_rng_below(rng, n);
}

static cf_io_fault fault_draw(cf_rng *rng, bool checksums)
{
    cf_io_fault f = {.seed = cf_rng_u64(rng), .eio_file = -1};
    if (below(rng, 2))
        f.eio_per_million = below(rng, 60000); /* twice at one place: a failed read */
    if (below(rng, 2))
        f.short_per_million = below(rng, 300000);
    if (below(rng, 2)) {
        f.delay_per_million = below(rng, 200000);
        f.delay_us = below(rng, 1500);
    }
    if (checksums && below(rng, 2))
        f.corrupt_per_million = below(rng, 10000);
    f.reorder = below(rng, 2);
    return f;
}

static struct run run_draw(uint64_t seed)
{
    static const char *const policies[] = {"lru", "lfu", "lfu:1", "phase", "echo"};
    cf_rng rng = {seed};
    struct run r = {.seed = seed, .of = &subjects[below(&rng, n_subjects)]};
    const sized_model *m = &r.of->model;
    cf_options_init(&r.options);
    r.options.device = "ref";
    r.options.ctx = 96;
    r.options.chunk = CHUNK;
    r.options.threads = 2;
    r.options.kv = "f32";
    r.options.policy = policies[below(&rng, 5)];
    r.options.io = below(&rng, 3) ? "uring" : "pread";
    r.options.memory = below(&rng, 2) ? "auto" : "discrete";
    r.options.prefetch = below(&rng, 4) != 0;
    r.options.direct = below(&rng, 2);
    r.options.no_register = below(&rng, 4) == 0;
    r.options.no_tier = below(&rng, 4) == 0;
    r.slots = m->min_slots + below(&rng, m->all_slots - m->min_slots + 1);
    if (r.slots + 1 == m->all_slots) /* no budget gives that: the next place is for a guess */
        r.slots++;
    r.fault = fault_draw(&rng, r.of->checksums);
    r.dense = below(&rng, 3) ? 1 : cf_rng_unit(&rng);
    r.cancel_at = below(&rng, 3) ? 0 : 1 + below(&rng, 200);
    return r;
}

/* Logits [n_prompt, vocab] as they come. */
struct answer {
    uint32_t vocab;
    float *logits;
    cf_engine *engine;
    uint64_t cancel_at;
};

static void row_keep(void *user, uint32_t position, const float *logits, const float *hidden)
{
    struct answer *a = user;
    (void)hidden;
    memcpy(a->logits + (size_t)position * a->vocab, logits, a->vocab * sizeof *logits);
}

static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                     const float *weights, uint32_t n)
{
    struct answer *a = user;
    (void)layer;
    (void)position;
    (void)ids;
    (void)weights;
    (void)n;
    if (a->cancel_at && --a->cancel_at == 0)
        cf_engine_cancel(a->engine);
}

/* A failure must be a sentence: one line that says something. */
static void sentence_check(const struct run *r, const cf_err *err)
{
    size_t n = strlen(err->msg);
    tally.damages += strstr(err->msg, "is damaged") != NULL;
    bool fine = n > 20 && !strchr(err->msg, '\n') && err->code < 0;
    if (!fine)
        printf("    seed %llu: \"%s\" (%d) is no sentence\n", (unsigned long long)r->seed, err->msg,
               err->code);
    CHECK(fine);
}

/* The prompt, begun again behind the last whole chunk after each failure. */
static bool prompt_run(const struct run *r, cf_session *s, struct answer *got)
{
    const oracle *o = r->of->prompt;
    cf_outputs out = {.row = row_keep, .route = on_route, .user = got};
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        cf_err err = {0};
        uint32_t done = cf_session_length(s);
        int rc =
            cf_session_extend(s, o->prompt + done, o->n_prompt - done, CF_PHASE_PROMPT, &out, &err);
        if (rc == 0)
            return true;
        if (rc == -ECANCELED) {
            tally.cancelled++;
            cf_engine_resume(got->engine);
        } else {
            tally.failures++;
            sentence_check(r, &err);
        }
        CHECK_INT(cf_session_length(s) % CHUNK, 0);
    }
    printf("    seed %llu: no end after %d attempts\n", (unsigned long long)r->seed, ATTEMPTS);
    return false;
}

/* Less, so that dense weights are streamed. */
static void budget_lower(struct run *r)
{
    cf_memory_plan plan;
    if (r->dense >= 1 || sized_plan(&r->of->model, &r->options, &plan, NULL) < 0)
        return;
    if (plan.vram_min >= plan.vram_dense) /* it would save nothing */
        return;
    r->options.vram_bytes =
        plan.vram_min + (uint64_t)((double)(plan.vram_dense - 1 - plan.vram_min) * r->dense);
    tally.streamed++;
}

/* Runs and compares with `want`; NULL: on a healthy drive. `keep` takes the logits. */
static void run_one(struct run *r, const float *want, float *keep)
{
    const oracle *o = r->of->prompt;
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    size_t values = (size_t)o->n_prompt * o->vocab;
    struct answer got = {o->vocab, calloc(values, sizeof(float)), NULL, want ? r->cancel_at : 0};
    REQUIRE(got.logits);
    tally.runs++;
    running_seed = (sig_atomic_t)r->seed;
    alarm(HANG_SECONDS);
    r->options.fault = want ? &r->fault : NULL;
    r->slots = sized_slots_from(&r->of->model, &r->options, r->slots);
    CHECK(sized_budgets(&r->of->model, &r->options, r->slots, false));
    if (want)
        budget_lower(r);
    if (cf_engine_open(&e, r->of->path, &r->options, &err) < 0) {
        tally.refused++;
        sentence_check(r, &err);
    } else if (cf_session_create(&s, e, &err) == 0) {
        tally.opened++;
        got.engine = e;
        CHECK(prompt_run(r, s, &got));
        CHECK(cf_cache_verify(e->cache) == NULL);
        if (keep)
            memcpy(keep, got.logits, values * sizeof *keep);
        bool same = !want || memcmp(want, got.logits, values * sizeof *want) == 0;
        if (!same)
            printf("    seed %llu: another answer than on a healthy drive\n",
                   (unsigned long long)r->seed);
        CHECK(same);
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
    alarm(0);
    free(got.logits);
}

/* Where the subject is: its pack is made first. False: it is not there. */
static bool subject_find(struct subject *x)
{
    char line[2048];
    static uint32_t n_packs;
    snprintf(x->path, sizeof x->path, "%s", x->dir);
    if (!x->packed)
        return access(x->path, F_OK) == 0;
    snprintf(x->path, sizeof x->path, "%s/%u.gguf", packs.path, n_packs++);
    snprintf(line, sizeof line, "%s pack %s %s %s -q >/dev/null", cli_binary(), x->dir, x->path,
             x->packed);
    return system(line) == 0;
}

static bool subject_open(struct subject *x)
{
    x->prompt = x->stem ? oracle_load_stem(x->stem) : oracle_load(x->dir);
    if (!x->prompt || !sized_model_open(&x->model, x->path))
        return false;
    x->want = calloc((size_t)x->prompt->n_prompt * x->prompt->vocab, sizeof *x->want);
    struct run r = run_draw(1);
    r.of = x;
    r.slots = x->model.all_slots;
    if (x->want)
        run_one(&r, NULL, x->want);
    return x->want && !check_case_failed;
}

static void faults(void)
{
    signal(SIGALRM, on_alarm);
    for (size_t i = 0; i < SUBJECTS; i++) {
        bool found = subject_find(&subjects[i]);
        CHECK(found || subjects[i].stem); /* which lies outside the repository */
        if (found)
            subjects[n_subjects++] = subjects[i];
    }
    for (size_t i = 0; i < n_subjects; i++)
        REQUIRE(subject_open(&subjects[i]));
    tally = (struct tally){.first_seed = tally.first_seed, .last_seed = tally.last_seed};
    for (uint64_t seed = tally.first_seed; seed <= tally.last_seed; seed++) {
        struct run r = run_draw(seed);
        run_one(&r, r.of->want, NULL);
    }
    printf("    %llu runs: %llu would not open, %llu failures on the way, damage was found %llu "
           "times; %llu streamed dense weights, %llu were interrupted\n",
           (unsigned long long)tally.runs, (unsigned long long)tally.refused,
           (unsigned long long)tally.failures, (unsigned long long)tally.damages,
           (unsigned long long)tally.streamed, (unsigned long long)tally.cancelled);
    if (tally.runs > 100) {
        CHECK(tally.streamed > tally.runs / 10);
        CHECK(tally.cancelled > tally.runs / 20);
        CHECK(tally.opened > tally.runs / 2);
        CHECK(tally.failures > tally.runs / 10);
        CHECK(tally.damages > tally.runs / 20);
    }
    for (size_t i = 0; i < n_subjects; i++) {
        sized_model_close(&subjects[i].model);
        oracle_free(subjects[i].prompt);
        free(subjects[i].want);
    }
}

int main(int argc, char **argv)
{
    uint64_t runs = argc > 1 ? strtoull(argv[1], NULL, 10) : RUNS;
    tally.first_seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    tally.last_seed = tally.first_seed + runs - 1;
    cf_log_level_set(CF_LOG_QUIET); /* each engine that streams says so */
    cli_find();
    tmp_dir_init(&packs);
    RUN(faults);
    tmp_dir_finish(&packs);
    return check_done();
}
