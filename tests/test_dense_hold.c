/* Streamed dense weights that RAM holds are read once, and nothing but the speed tells. Catches a
 * byte that is held and read again all the same; one that is taken for held though its read has
 * failed, or was given up; a place that is written while copies still read it; a copy that
 * overtakes its read; the drive waiting for the bus, or the bus for the drive; held bytes that are
 * not paid for out of --ram; experts' places that are paid for first; a share that lies all in one
 * part of the schedule; anything held where there is one memory.
 *
 * Each run is compared, all logits bit by bit, with one whose weights are all resident.
 *
 *     test_dense_hold [BACKEND [short]]     short: fewer sizes, for slow builds */
#include <pthread.h>
#include <unistd.h>

#include "runtime/base/align.h"
#include "runtime/base/log.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/reoffset.h"
#include "tests/support/sized.h"
#include "tests/support/tmpfiles.h"
#include "tests/support/whole_run.h"

enum { CHUNK = 8, PART = 64 << 10, COPIED = 1, STAGED = 2 };

#define DEMO  "models/demo"
#define FLASH "tests/fixtures/models/longcat_flash"

static const char *device;
static tmp_dir tmp;
static bool in_short;

static cf_options options_make(int kind)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = 96;
    o.chunk = CHUNK;
    o.threads = 2;
    o.kv = "f32";
    o.memory = kind ? "discrete" : "auto";
    o.no_import = kind == STAGED;
    o.check = true;
    o.vram_bytes = o.ram_bytes = 1ull << 30;
    return o;
}

static int plan_of(const sized_model *m, const cf_options *o, cf_memory_plan *plan)
{
    cf_err err = {0};
    int rc = sized_plan(m, o, plan, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    return rc;
}

/* The --vram that streams about half of what can be; --ram as much above the least as `share` of
 * what would hold all of it. False where streaming saves nothing. */
static bool budgets_set(const sized_model *m, cf_options *o, double share, cf_memory_plan *plan)
{
    o->vram_bytes = o->ram_bytes = 1ull << 30;
    if (plan_of(m, o, plan) < 0 || plan->vram_min >= plan->vram_dense)
        return false;
    o->vram_bytes = plan->vram_min + (plan->vram_dense - plan->vram_min) / 3;
    if (plan_of(m, o, plan) < 0)
        return false;
    o->ram_bytes = plan->ram_min; /* of which none is held */
    if (plan_of(m, o, plan) < 0 || !plan->ram_dense)
        return false;
    o->ram_bytes += (uint64_t)((double)(plan->ram_dense - plan->ram_min) * share);
    return plan_of(m, o, plan) == 0;
}

static uint64_t batches_of(const oracle *p)
{
    return (p->n_prompt + CHUNK - 1) / CHUNK + WHOLE_RUN_DECODE;
}

/* The demo's prompt is long for plain C: three chunks of it (short: two), the last one not full. */
static oracle *prompt_of(const char *dir)
{
    oracle *p = oracle_load(dir);
    uint32_t most = (in_short ? 1 : 2) * CHUNK + 1;
    if (p && p->n_prompt > most)
        p->n_prompt = most;
    return p;
}

static bool reference(const char *dir, const oracle *p, whole_run *want)
{
    cf_options o = options_make(0);
    bool ran = whole_run_make(dir, p, &o, want);
    CHECK_INT(want->stats.dense_reads, 0);
    return ran;
}

/* ---- which bytes ---- */

enum { MATRICES = 40 };

/* Matrices of 4 MB and of 40 KB in turn, anywhere in a file. */
static cf_model *model_make(cf_weight_def *weights, uint8_t *streamed)
{
    static cf_model m;
    uint64_t at = 12345;
    m = (cf_model){.weights = weights, .n_weights = MATRICES};
    for (uint32_t i = 0; i < MATRICES; i++) {
        uint32_t rows = i % 2 ? 10 : 1000;
        weights[i] = (cf_weight_def){.dtype = CF_F32, .rows = rows, .cols = 1000};
        weights[i].extent = (cf_extent){.off = at, .bytes = (uint64_t)rows * 4000};
        at += (uint64_t)rows * 4000 + 6;
        streamed[i] = i % 5 != 4; /* some stay */
    }
    return &m;
}

/* The most and the least share of a large matrix that is held. */
static void shares_of(const cf_model *m, const uint8_t *streamed, const uint64_t *held,
                      double *least, double *most)
{
    *least = 1;
    *most = 0;
    for (uint32_t i = 0; i < MATRICES; i++) {
        uint64_t bytes = cf_weight_code_bytes(&m->weights[i]);
        double share = (double)held[i] / (double)bytes;
        if (!streamed[i] || bytes <= PART)
            continue;
        *least = share < *least ? share : *least;
        *most = share > *most ? share : *most;
    }
}

static void test_choice(void)
{
    cf_weight_def weights[MATRICES];
    uint8_t streamed[MATRICES];
    uint64_t held[MATRICES];
    const cf_model *m = model_make(weights, streamed);
    cf_hold_plan all, h;
    for (uint32_t align = 4096; align <= 32768; align *= 8) {
        cf_hold_choose(m, streamed, align, 0, UINT64_MAX / 2, held, &all);
        CHECK_INT(all.memory_bytes, all.all_bytes);
        for (uint32_t i = 0; i < MATRICES; i++)
            CHECK_INT(held[i], streamed[i] ? cf_weight_code_bytes(&weights[i]) : 0);
        for (uint64_t n = 0; n <= 32; n++) {
            uint64_t allowance = all.all_bytes * n / 32, memory = 0, bytes = 0, small = UINT64_MAX;
            double least, most;
            cf_hold_choose(m, streamed, align, 0, allowance, held, &h);
            for (uint32_t i = 0; i < MATRICES; i++) {
                uint64_t whole = cf_weight_code_bytes(&weights[i]),
                         end = weights[i].extent.off + held[i];
                bytes += held[i];
                memory += cf_hold_place_bytes(&weights[i], align, held[i]);
                CHECK(held[i] == 0 || streamed[i]);
                if (held[i] && held[i] < whole) { /* no block is held and read, no read is small */
                    CHECK_INT(end % align, 0);
                    CHECK(held[i] >= PART && whole - held[i] >= PART);
                }
                if (streamed[i] && held[i] < whole && whole < small)
                    small = whole;
            }
            CHECK_INT(h.bytes, bytes);
            CHECK_INT(h.memory_bytes, memory);
            CHECK_INT(h.all_bytes, all.all_bytes);
            CHECK(memory <= allowance);
            if (n == 32)
                CHECK_INT(memory, all.all_bytes);
            else /* what is left would hold no part of anything */
                CHECK(allowance - memory < (small < PART ? small + 2 * align : 2 * PART + align));
            shares_of(m, streamed, held, &least, &most);
            CHECK(most - least < 0.1);
        }
        /* A place is one buffer. */
        cf_hold_choose(m, streamed, align, 1 << 20, UINT64_MAX / 2, held, &h);
        for (uint32_t i = 0; i < MATRICES; i++)
            CHECK(cf_hold_place_bytes(&weights[i], align, held[i]) <= 1 << 20);
        CHECK(h.bytes > 0 && h.bytes < all.bytes);
    }
}

/* ---- which share of --ram ---- */

/* All that is taken out of --ram. */
static uint64_t ram_of(const sized_model *m, const cf_memory_plan *p)
{
    uint64_t vram, host, sum = p->dense.host_bytes + p->hold.memory_bytes;
    cf_slots_memory(&p->shape, 0, &vram, &host);
    for (uint32_t i = 0; i < p->n_ram; i++)
        sum += p->ram[i].bytes;
    return sum + host +
           cf_cache_memory(m->model, p->shape.n_slots + p->shape.n_guess, p->shape.n_tier) +
           (p->row_entries ? cf_rows_memory(p->row_window_bytes, p->row_entries) : 0);
}

static void test_plan(void)
{
    sized_model m;
    cf_memory_plan plan, least;
    device = "ref";
    REQUIRE(sized_model_open(&m, DEMO));
    for (int kind = 0; kind < 3; kind++) {
        cf_options o = options_make(kind);
        if (!kind) {
            CHECK(!budgets_set(&m, &o, 0, &plan));
            CHECK(plan.dense.n_streamed > 0);
            CHECK_INT(plan.hold.all_bytes, 0);
            CHECK_INT(plan.ram_dense, 0);
            o.ram_bytes = 1ull << 30;
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            CHECK_INT(plan.hold.memory_bytes, 0);
            continue;
        }
        REQUIRE(budgets_set(&m, &o, 0, &least));
        CHECK_INT(least.hold.bytes, 0);
        CHECK_INT(least.shape.n_slabs, CF_MIN_SLABS);
        uint64_t last = 0, streamed = least.dense.streamed_bytes;
        for (o.ram_bytes = least.ram_min; o.ram_bytes < least.ram_dense + (1 << 20);
             o.ram_bytes += 44444) {
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            CHECK(ram_of(&m, &plan) <= o.ram_bytes);
            CHECK_INT(plan.dense.streamed_bytes, streamed);
            CHECK(plan.shape.n_slabs >= CF_MIN_SLABS && plan.shape.n_slabs <= m.min_slots);
            CHECK(plan.hold.bytes + 2 * PART >= last); /* a slab more, at times, for a part less */
            last = plan.hold.bytes;
            if (plan.hold.bytes == streamed)
                continue;
            CHECK(plan.shape.n_tier <= 2); /* what no part fits in */
            CHECK(o.ram_bytes < plan.ram_dense);
            CHECK(plan.ram_dense <= least.ram_dense + 65536);
        }
        CHECK_INT(plan.hold.bytes, streamed);
        CHECK_INT(plan.shape.n_tier > 2, kind == COPIED);
        o.ram_bytes = least.ram_dense;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        CHECK_INT(plan.hold.bytes, streamed);
        o.ram_bytes = least.ram_dense - 2 * 4096;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        CHECK(plan.hold.bytes < streamed);
        /* Left to the machine, which has as much: all. */
        o.ram_bytes = 0;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        CHECK_INT(plan.hold.bytes, streamed);
        CHECK_INT(plan.shape.n_tier > 0, kind == COPIED);
    }
    sized_model_close(&m);
}

/* ---- runs ---- */

/* From the least --ram to one that holds everything: exactly what is held is read no more. */
static void every_size(const char *dir, int kind, unsigned steps)
{
    sized_model m;
    whole_run want = {0}, got = {0};
    cf_memory_plan plan;
    oracle *p = prompt_of(dir);
    REQUIRE(p && sized_model_open(&m, dir));
    REQUIRE(reference(dir, p, &want));
    uint64_t batches = batches_of(p);
    for (unsigned i = 0; i <= steps; i++) {
        cf_options o = options_make(kind);
        o.io = i % 2 ? "pread" : "uring";
        o.direct = i % 4 < 2;
        REQUIRE(budgets_set(&m, &o, (double)i / steps, &plan));
        REQUIRE(whole_run_make(dir, p, &o, &got));
        CHECK(whole_run_same(&got, &want));
        CHECK(i > 0 || plan.hold.bytes == 0);
        CHECK(i < steps || plan.hold.bytes == plan.dense.streamed_bytes);
        CHECK_INT(got.stats.dense_held_bytes, plan.hold.bytes);
        CHECK_INT(got.stats.dense_copied_bytes, plan.hold.bytes * (batches - 1));
        CHECK_INT(got.stats.dense_bytes,
                  plan.hold.all_bytes * batches - plan.hold.memory_bytes * (batches - 1));
        CHECK(got.stats.ram_peak <= o.ram_bytes);
        CHECK_INT(got.stats.ram_peak, ram_of(&m, &plan));
        whole_run_free(&got);
    }
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

static cf_engine *engine_open(sized_model *m, const char *dir, int kind, double share,
                              const cf_io_fault *fault)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_memory_plan plan;
    cf_options o = options_make(kind);
    o.fault = fault;
    if (!sized_model_open(m, dir) || !budgets_set(m, &o, share, &plan))
        return NULL;
    if (cf_engine_open(&e, dir, &o, &err) < 0)
        printf("    %s\n", err.msg);
    return e;
}

/* All that is read of streamed weights until everything was used once: once. */
static void read_once(int kind)
{
    sized_model m;
    cf_err err = {0};
    cf_stats stats;
    cf_session *s = NULL;
    oracle *p = prompt_of(DEMO);
    cf_engine *e = engine_open(&m, DEMO, kind, 1, NULL);
    REQUIRE(p && e && cf_session_create(&s, e, &err) == 0);
    /* The head waits for the last chunk. */
    REQUIRE(cf_session_extend(s, p->prompt, p->n_prompt, CF_PHASE_PROMPT, NULL, &err) == 0);
    cf_engine_get_stats(e, &stats);
    CHECK_INT(stats.dense_bytes, e->plan.hold.all_bytes);
    /* The first chunk read, the last one may have been the first to need the head's. */
    uint64_t chunks = (p->n_prompt + CHUNK - 1) / CHUNK;
    CHECK(stats.dense_copied_bytes > (chunks - 2) * e->plan.hold.bytes);
    uint64_t reads = stats.dense_reads, copied = stats.dense_copied_bytes;
    for (uint64_t i = 1; i <= 3; i++) {
        REQUIRE(cf_session_extend(s, p->prompt, 1, CF_PHASE_DECODE, NULL, &err) == 0);
        cf_engine_get_stats(e, &stats);
        CHECK_INT(stats.dense_reads, reads);
        CHECK_INT(stats.dense_copied_bytes, copied + i * e->plan.dense.streamed_bytes);
    }
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- side by side ---- */

static struct {
    pthread_mutex_t lock;
    const cf_engine *engine;
    bool on;
    uint64_t reads;       /* of streamed weights */
    uint64_t raised;      /* bytes of copies from RAM */
    uint64_t until;       /* no read completes before so many */
    uint64_t reads_until; /* no copy from RAM begins before so many reads */
    cf_copier *copier;
    cf_copy_job *waiting[64];
    uint32_t n_waiting;
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

void __real_cf_copier_push(cf_copier *copier, cf_copy_job *job);
void __wrap_cf_copier_push(cf_copier *copier, cf_copy_job *job);

void __wrap_cf_copier_push(cf_copier *copier, cf_copy_job *job)
{
    bool wait = false, poke = false;
    pthread_mutex_lock(&seen.lock);
    if (seen.on && job->kind == CF_COPY_SPAN && strcmp(job->name, "dense raise") == 0) {
        seen.raised += job->from.bytes;
        poke = seen.until && seen.raised >= seen.until;
        wait = seen.reads < seen.reads_until && seen.n_waiting < 64;
        if (wait)
            seen.waiting[seen.n_waiting++] = job;
        seen.copier = copier;
    }
    pthread_mutex_unlock(&seen.lock);
    if (!wait)
        __real_cf_copier_push(copier, job);
    if (poke)
        cf_fetch_poke(seen.engine->fetch);
}

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    (void)user;
    pthread_mutex_lock(&seen.lock);
    for (uint32_t i = 0; seen.on && i < seen.engine->model->n_weights; i++) {
        const cf_extent *x = &seen.engine->model->weights[i].extent;
        seen.reads += seen.engine->streamed[i] && x->file == file && off < x->off + x->bytes &&
                      off + bytes > x->off;
    }
    bool go = seen.reads >= seen.reads_until;
    for (uint32_t i = 0; go && i < seen.n_waiting; i++)
        __real_cf_copier_push(seen.copier, seen.waiting[i]);
    seen.n_waiting = go ? 0 : seen.n_waiting;
    pthread_mutex_unlock(&seen.lock);
}

static bool withhold(void *user)
{
    (void)user;
    pthread_mutex_lock(&seen.lock);
    bool yes = seen.on && seen.raised < seen.until;
    pthread_mutex_unlock(&seen.lock);
    return yes;
}

/* With half of each matrix held: while no read completes, copies go on to the second matrix; while
 * no copy does, reads. Who waits for the other would wait here for ever. */
static void neither_waits(bool drive_stalls)
{
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    cf_io_fault fault = {.on_submit = on_submit, .withhold = withhold, .eio_file = -1};
    whole_run want = {0}, got = {0};
    oracle *p = prompt_of(DEMO);
    REQUIRE(p && reference(DEMO, p, &want));
    cf_engine *e = engine_open(&m, DEMO, COPIED, 0.6, &fault);
    REQUIRE(e && e->dense);
    CHECK_INT(e->plan.dense.n_segments, 2);
    CHECK(e->plan.hold.bytes > e->plan.dense.streamed_bytes / 3);
    REQUIRE(cf_session_create(&s, e, &err) == 0);
    REQUIRE(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err) == 0);
    pthread_mutex_lock(&seen.lock);
    seen.engine = e;
    seen.reads = seen.raised = 0;
    /* More than the largest matrix; as many matrices as there are segments. */
    seen.until = drive_stalls ? e->plan.dense.segment_bytes * 3 / 4 : 0;
    seen.reads_until = drive_stalls ? 0 : 2;
    seen.on = true;
    pthread_mutex_unlock(&seen.lock);
    CHECK_INT(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err), 0);
    pthread_mutex_lock(&seen.lock);
    CHECK(seen.raised >= e->plan.hold.bytes);
    CHECK(seen.reads >= 2);
    seen.on = false;
    pthread_mutex_unlock(&seen.lock);
    cf_session_destroy(&s);
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    CHECK(whole_run_same(&got, &want));
    CHECK_STR(err.msg, "");
    cf_engine_close(&e);
    whole_run_free(&got);
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- what goes wrong ---- */

/* The drive fails in the middle of the nth streamed matrix, while its place is filled or in what is
 * read beside it: one sentence; then as if nothing had been, and nothing is held that was not read.
 */
static void a_fill_fails(int kind, double share, uint32_t nth)
{
    sized_model m;
    cf_err err = {0};
    uint64_t copied = 0;
    cf_session *s = NULL;
    whole_run want = {0}, got = {0};
    oracle *p = prompt_of(DEMO);
    REQUIRE(p && reference(DEMO, p, &want));
    cf_engine *e = engine_open(&m, DEMO, kind, share, NULL);
    REQUIRE(e && e->plan.dense.n_streamed > nth);
    uint32_t at = 0;
    for (uint32_t n = 0; !e->streamed[at] || n++ < nth; at++)
        ;
    const cf_extent *x = &m.model->weights[at].extent;
    cf_io_fault fault = {.eio_file = x->file,
                         .eio_off = (int64_t)(x->off + x->bytes / 2),
                         .eio_times = 2}; /* a read and its retry */
    cf_engine_close(&e);
    sized_model_close(&m);
    e = engine_open(&m, DEMO, kind, share, &fault);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    CHECK_INT(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err), -EIO);
    CHECK_HAS(err.msg, "failed twice");
    CHECK_INT(cf_session_length(s), 0);
    cf_session_destroy(&s);
    err = (cf_err){0};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(whole_run_play(e, p, &got, &err), 0);
        CHECK(whole_run_same(&got, &want));
        if (i) /* whatever the failure left behind: now all is held that can be */
            CHECK_INT(got.stats.dense_copied_bytes - copied, e->plan.hold.bytes * batches_of(p));
        copied = got.stats.dense_copied_bytes;
        whole_run_free(&got);
    }
    CHECK_STR(err.msg, "");
    cf_engine_close(&e);
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

/* A matrix that comes in two parts, of which one does not: neither is taken for held. With the
 * least
 * --vram the demo's head is streamed, a stage's bytes, which no longer end with a block of the
 * file. */
static void a_part_fails(bool second)
{
    sized_model m;
    cf_memory_plan plan;
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    whole_run want = {0}, got = {0};
    cf_options o = options_make(COPIED);
    char path[1024];
    snprintf(path, sizeof path, "%s", tmp_path(&tmp, "demo-moved"));
    if (access(path, F_OK) != 0)
        reoffset_copy(DEMO, path, 6);
    oracle *p = prompt_of(DEMO);
    REQUIRE(p && reference(DEMO, p, &want) && sized_model_open(&m, path));
    REQUIRE(plan_of(&m, &o, &plan) == 0);
    o.vram_bytes = plan.vram_min;
    o.ram_bytes = 64u << 20;
    REQUIRE(plan_of(&m, &o, &plan) == 0);
    CHECK_INT(plan.hold.bytes, plan.dense.streamed_bytes);
    const cf_weight_def *head = &m.model->weights[plan.widest];
    CHECK(cf_hold_place_bytes(head, plan.align, head->extent.bytes) > plan.dense.stage_bytes);
    uint64_t at = head->extent.off + (second ? head->extent.bytes - 1 : 1 << 20);
    cf_io_fault fault = {.eio_file = head->extent.file, .eio_off = (int64_t)at, .eio_times = 2};
    o.fault = &fault;
    REQUIRE(cf_engine_open(&e, path, &o, &err) == 0 && cf_session_create(&s, e, &err) == 0);
    CHECK_INT(e->streamed[plan.widest], 1);
    CHECK_INT(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err), -EIO);
    cf_session_destroy(&s);
    err = (cf_err){0};
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    CHECK(whole_run_same(&got, &want));
    CHECK_STR(err.msg, "");
    cf_engine_close(&e);
    whole_run_free(&got);
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

static void cancel_at(void *user, uint32_t layer, uint32_t position, uint32_t n,
                      const float *hidden)
{
    (void)position;
    (void)n;
    (void)hidden;
    if (layer == 0)
        cf_engine_cancel(user);
}

/* Interrupted while places are filled. */
static void interrupted(int kind, double share)
{
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    whole_run want = {0}, got = {0};
    oracle *p = prompt_of(DEMO);
    REQUIRE(p && reference(DEMO, p, &want));
    cf_engine *e = engine_open(&m, DEMO, kind, share, NULL);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    cf_outputs out = {.layer = cancel_at, .user = e};
    CHECK_INT(cf_session_extend(s, p->prompt, p->n_prompt, CF_PHASE_PROMPT, &out, &err),
              -ECANCELED);
    cf_session_destroy(&s);
    cf_engine_resume(e);
    err = (cf_err){0};
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    CHECK(whole_run_same(&got, &want));
    CHECK_STR(err.msg, "");
    cf_engine_close(&e);
    whole_run_free(&got);
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- what is shown ---- */

static void shown(void)
{
    sized_model m;
    cf_err err = {0};
    whole_run got = {0};
    char path[1024], text[65536] = "", want[200];
    oracle *p = prompt_of(DEMO);
    cf_engine *e = engine_open(&m, DEMO, COPIED, 0.6, NULL);
    REQUIRE(p && e);
    snprintf(path, sizeof path, "%s", tmp_path(&tmp, "timeline.json"));
    REQUIRE(cf_engine_timeline(e, path, &err) == 0);
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    REQUIRE(cf_engine_timeline(e, NULL, &err) == 0);
    FILE *f = fopen(path, "r");
    REQUIRE(f);
    uint64_t fills = 0, raises = 0;
    while (fgets(text, sizeof text, f)) {
        fills += strstr(text, "\"dense fill\"") != NULL;
        raises += strstr(text, "\"dense raise\"") != NULL;
    }
    fclose(f);
    unlink(path);
    CHECK(fills >= got.stats.dense_reads);
    CHECK(raises > batches_of(p));
    char *json = cf_engine_stats_json(e);
    snprintf(want, sizeof want, "\"held_bytes\": %llu", (unsigned long long)e->plan.hold.bytes);
    CHECK_HAS(json, want);
    snprintf(want, sizeof want, "\"copied_bytes\": %llu",
             (unsigned long long)got.stats.dense_copied_bytes);
    CHECK_HAS(json, want);
    free(json);
    whole_run_free(&got);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- devices ---- */

static void device_run(bool ref)
{
    static const char *const dirs[] = {DEMO, FLASH, "tests/fixtures/models/mixtral",
                                       "tests/fixtures/models/deepseek_v3"};
    static const char *const kinds[] = {"in place", "copied", "staged"};
    char name[160];
    for (int kind = COPIED; kind <= STAGED; kind++) {
        for (unsigned i = in_short ? 1 : 0; i < (ref && !in_short ? 4 : 2); i++) {
            if (kind == STAGED && i == 2)
                continue; /* what streaming itself needs is more than it saves */
            snprintf(name, sizeof name, "%s %s, %s, at every --ram", device, dirs[i], kinds[kind]);
            RUN_NAMED(name, every_size(dirs[i], kind, ref && !in_short ? 6 : 2));
        }
        if (!ref)
            continue;
        snprintf(name, sizeof name, "ref all is read once, %s", kinds[kind]);
        RUN_NAMED(name, read_once(kind));
        if (in_short && kind == STAGED)
            continue;
        for (uint32_t nth = 0; nth < 24; nth += in_short ? 12 : 5) {
            snprintf(name, sizeof name, "ref matrix %u fails, %s, all held", nth, kinds[kind]);
            RUN_NAMED(name, a_fill_fails(kind, 1, nth));
            snprintf(name, sizeof name, "ref matrix %u fails, %s, half held", nth, kinds[kind]);
            RUN_NAMED(name, a_fill_fails(kind, 0.6, nth));
        }
        snprintf(name, sizeof name, "ref interrupted, %s", kinds[kind]);
        RUN_NAMED(name, interrupted(kind, 1));
        snprintf(name, sizeof name, "ref interrupted, %s, half held", kinds[kind]);
        RUN_NAMED(name, interrupted(kind, 0.6));
    }
    if (!ref)
        return;
    RUN_NAMED("ref the first of two parts fails", a_part_fails(false));
    RUN_NAMED("ref the second of two parts fails", a_part_fails(true));
    RUN_NAMED("ref copies do not wait for reads", neither_waits(true));
    RUN_NAMED("ref reads do not wait for copies", neither_waits(false));
    RUN_NAMED("ref what is shown", shown());
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    cf_log_level_set(CF_LOG_QUIET); /* each engine here says that it streams */
    tmp_dir_init(&tmp);
    in_short = argc > 2 && strcmp(argv[2], "short") == 0;
    if (argc < 2 || strcmp(argv[1], "ref") == 0) {
        RUN(test_choice);
        RUN(test_plan);
    }
    while (devices_next(&d)) {
        device = d.name;
        device_run(d.ref);
    }
    tmp_dir_finish(&tmp);
    return check_done();
}
