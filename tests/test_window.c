/* The prefetch window, tested without a clock. Between ROUTE and EXPERTS the plan has work that
 * needs no expert: reads are to be in flight before that work is submitted, and that work is to be
 * submitted before anything waits for a read. Catches a read that starts late or twice, a window
 * that is submitted only after the reads have come, a read that starts with --prefetch off before
 * EXPERTS asks for it, and a record read twice for one chunk.
 *
 * Every completion of an expert read is withheld (storage/io.h: withhold) until the engine says
 * that it is about to wait; what has happened by then is compared with the plan and the layouts of
 * the records. The linker routes the seams through the wrappers here (tests.mk). */
#include <pthread.h>
#include <time.h>

#include "gpu/ops.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

enum { MOST_READS = 4096, MOST_EXPERTS = 64, NO_GROUP = -1 };

struct piece_read {
    uint32_t file, bytes;
    uint64_t off;
};

/* What happened since the last ROUTE. Guarded by lock; the engine thread and the I/O thread write.
 */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    cf_engine *engine;
    bool gated, gate_open;
    /* The group. */
    int moe; /* or NO_GROUP */
    bool chosen[MOST_EXPERTS];
    struct piece_read expected[MOST_READS], seen[MOST_READS];
    uint32_t n_expected, n_seen, n_records, n_asked; /* records: expected, handed to the fetcher */
    uint32_t attentions, glus;                    /* recorded */
    bool window_submitted;
    cf_gpu_point window;
    /* Of the whole run. */
    uint32_t groups_checked;
    char wrong[400];
} w = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .moe = NO_GROUP};

static void wrong(const char *what, long long got, long long want)
{
    if (!w.wrong[0])
        snprintf(w.wrong, sizeof w.wrong, "MoE layer %d: %s: %lld, expected %lld", w.moe, what, got,
                 want);
}

/* ---- what is in flight ---- */

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    (void)user;
    pthread_mutex_lock(&w.lock);
    if (w.moe != NO_GROUP && w.n_seen < MOST_READS)
        w.seen[w.n_seen++] = (struct piece_read){file, bytes, off};
    pthread_cond_broadcast(&w.changed);
    pthread_mutex_unlock(&w.lock);
}

static bool withhold(void *user)
{
    (void)user;
    pthread_mutex_lock(&w.lock);
    bool yes = w.gated && w.moe != NO_GROUP && !w.gate_open;
    pthread_mutex_unlock(&w.lock);
    return yes;
}

static int piece_compare(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct piece_read));
}

/* Each expected read is in flight once, and no other. The lock is held, and left while waiting. */
static void in_flight_check(void)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 10; /* of a broken engine; a good one never waits that long */
    while (w.n_seen < w.n_expected && pthread_cond_timedwait(&w.changed, &w.lock, &deadline) == 0)
        continue;
    if (w.n_seen != w.n_expected)
        wrong("reads in flight", w.n_seen, w.n_expected);
    qsort(w.seen, w.n_seen, sizeof *w.seen, piece_compare);
    qsort(w.expected, w.n_expected, sizeof *w.expected, piece_compare);
    if (memcmp(w.seen, w.expected, w.n_expected * sizeof *w.seen) != 0)
        wrong("reads that are not those of the missing records", 1, 0);
}

/* ---- the group's story, on the engine thread ---- */

/* Runs of a record that is not in the cache. */
static void record_expect(uint32_t moe, uint32_t expert)
{
    const cf_moe_def *def = &w.engine->model->moe[moe];
    cf_layout layout;
    cf_layout_plan(&layout, &def->extents[(size_t)expert * CF_EXPERT_PIECES], CF_EXPERT_PIECES,
                   w.engine->files.align);
    for (uint32_t i = 0; i < layout.n_runs && w.n_expected < MOST_READS; i++)
        w.expected[w.n_expected++] = (struct piece_read){
            layout.runs[i].file, (uint32_t)layout.runs[i].bytes, layout.runs[i].file_off};
    w.n_records++;
}

static int moe_of_layer(uint32_t layer)
{
    for (uint32_t i = 0; i < w.engine->model->n_moe; i++)
        if (w.engine->model->moe[i].layer == layer)
            return (int)i;
    return NO_GROUP;
}

/* ROUTE has read the ids; reads have not started. */
static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                     const float *weights, uint32_t k)
{
    (void)user, (void)position, (void)weights;
    int moe = moe_of_layer(layer);
    uint32_t experts = w.engine->model->moe[moe].experts;
    bool held[MOST_EXPERTS] = {0}; /* asked before our lock is taken: the cache has one too */
    for (uint32_t i = 0; i < k; i++)
        if (ids[i] < experts)
            held[ids[i]] = cf_cache_holds(w.engine->cache, (uint32_t)moe, ids[i]);
    pthread_mutex_lock(&w.lock);
    if (moe != w.moe) {
        memset(w.chosen, 0, sizeof w.chosen);
        w.n_expected = w.n_seen = w.n_records = w.n_asked = w.attentions = w.glus = 0;
        w.window_submitted = w.gate_open = false;
        w.window = (cf_gpu_point){CF_STREAM_COMPUTE, 0};
        w.moe = moe;
    }
    for (uint32_t i = 0; i < k; i++) {
        uint32_t e = ids[i];
        if (e >= experts || w.chosen[e])
            continue;
        w.chosen[e] = true;
        if (!held[e])
            record_expect((uint32_t)moe, e);
    }
    pthread_mutex_unlock(&w.lock);
}

void __real_cf_fetch_submit(cf_fetch *f, cf_fetch_req *const *reqs, uint32_t n, cf_fetch_class cls);
void __wrap_cf_fetch_submit(cf_fetch *f, cf_fetch_req *const *reqs, uint32_t n, cf_fetch_class cls);
void __wrap_cf_fetch_submit(cf_fetch *f, cf_fetch_req *const *reqs, uint32_t n, cf_fetch_class cls)
{
    pthread_mutex_lock(&w.lock);
    if (w.moe != NO_GROUP) {
        w.n_asked += n;
        if (w.gated && !w.engine->prefetch && !w.window_submitted)
            wrong("records asked for before the window was submitted", w.n_asked, 0);
    }
    pthread_mutex_unlock(&w.lock);
    __real_cf_fetch_submit(f, reqs, n, cls);
}

/* The first compute batch after ROUTE is the window. */
static void window_check(void)
{
    const cf_model *m = w.engine->model;
    uint32_t attentions = 0, glus = 0;
    bool inside = false;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        const cf_step *s = &m->steps[i];
        if (s->kind == CF_STEP_EXPERTS && (int)s->u.experts.moe == w.moe)
            inside = false;
        attentions += inside && s->kind == CF_STEP_ATTN_LATENT;
        glus += inside && s->kind == CF_STEP_DENSE;
        if (s->kind == CF_STEP_ROUTE && (int)s->u.route.moe == w.moe)
            inside = true;
    }
    if (attentions == 0)
        wrong("attentions in the plan's window", 0, 1);
    if (w.attentions != attentions)
        wrong("attentions submitted", w.attentions, attentions);
    if (w.glus != glus)
        wrong("dense layers submitted", w.glus, glus);
    if (w.engine->prefetch) {
        if (w.n_asked != w.n_records)
            wrong("records asked for when the window is submitted", w.n_asked, w.n_records);
        in_flight_check();
    } else if (w.n_seen) {
        wrong("reads in flight before EXPERTS", w.n_seen, 0);
    }
}

int __real_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err)
{
    int rc = __real_cf_gpu_submit(gpu, stream, waits, n_waits, value, err);
    pthread_mutex_lock(&w.lock);
    if (w.gated && stream == CF_STREAM_COMPUTE && w.moe != NO_GROUP && !w.window_submitted) {
        w.window = (cf_gpu_point){stream, *value};
        window_check();
        w.window_submitted = true;
    }
    pthread_mutex_unlock(&w.lock);
    return rc;
}

void __real_cf_gpu_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op);
void __wrap_cf_gpu_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op);
void __wrap_cf_gpu_attn_latent(cf_gpu *gpu, cf_stream stream, const cf_op_attn_latent *op)
{
    w.attentions += !w.window_submitted;
    __real_cf_gpu_attn_latent(gpu, stream, op);
}

void __real_cf_gpu_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op);
void __wrap_cf_gpu_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op);
void __wrap_cf_gpu_glu(cf_gpu *gpu, cf_stream stream, const cf_op_glu *op)
{
    w.glus += !w.window_submitted;
    __real_cf_gpu_glu(gpu, stream, op);
}

/* EXPERTS is about to wait. Nothing has completed; let it, after a look around. */
static void on_experts_wait(void *user)
{
    (void)user;
    pthread_mutex_lock(&w.lock);
    bool first = w.gated && !w.gate_open;
    cf_gpu_point window = w.window;
    if (first) {
        if (!w.window_submitted)
            wrong("waits before the window is submitted", 1, 0);
        if (w.n_asked != w.n_records)
            wrong("records asked for when EXPERTS waits", w.n_asked, w.n_records);
        in_flight_check();
    }
    pthread_mutex_unlock(&w.lock);
    if (!first)
        return;
    /* The window needs no expert: the device gets through it while all reads are withheld. */
    int rc = cf_gpu_wait(w.engine->gpu, window, NULL);
    pthread_mutex_lock(&w.lock);
    if (rc < 0)
        wrong("the window's status", rc, 0);
    w.groups_checked++;
    w.gate_open = true;
    pthread_mutex_unlock(&w.lock);
    cf_fetch_poke(w.engine->fetch);
}

/* ---- runs ---- */

static const char *device;

struct setting {
    const char *dir, *memory, *io;
    bool prefetch, no_import, minimum;
    uint32_t chunk;
};

static cf_engine *setting_open(const struct setting *t, sized_model *m, const cf_io_fault *fault)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = 64;
    o.chunk = 64;
    o.threads = 2;
    o.memory = t->memory;
    o.io = t->io;
    o.prefetch = t->prefetch;
    o.no_import = t->no_import;
    o.no_tier = true; /* every miss is a read */
    o.ram_bytes = 64u << 20;
    o.fault = fault;
    o.on_experts_wait = on_experts_wait;
    if (!sized_model_open(m, t->dir))
        return NULL;
    return sized_open(m, &o, t->minimum ? m->min_slots : m->all_slots - 2, false);
}

/* From now on completions are withheld, or no more. */
static void gate_set(bool gated)
{
    pthread_mutex_lock(&w.lock);
    w.gated = gated;
    if (gated)
        w.wrong[0] = '\0';
    pthread_mutex_unlock(&w.lock);
}

/* One extend is one batch here: its row reads come before its first ROUTE. */
static int batch_run(cf_session *s, const int32_t *ids, uint32_t n, cf_phase phase, cf_err *err)
{
    cf_outputs out = {.route = on_route};
    int rc = cf_session_extend(s, ids, n, phase, &out, err);
    pthread_mutex_lock(&w.lock);
    w.moe = NO_GROUP;
    pthread_mutex_unlock(&w.lock);
    return rc;
}

static void window_run(const struct setting *t)
{
    cf_io_fault fault = {.eio_file = -1, .withhold = withhold, .on_submit = on_submit};
    cf_err err = {0};
    sized_model m;
    cf_session *s = NULL;
    oracle *o = oracle_load(t->dir);
    REQUIRE(o);
    w.engine = setting_open(t, &m, &fault);
    REQUIRE(w.engine && cf_session_create(&s, w.engine, &err) == 0);
    gate_set(true);
    w.groups_checked = 0;
    for (uint32_t i = 0; i < o->n_prompt; i += t->chunk) {
        uint32_t n = o->n_prompt - i < t->chunk ? o->n_prompt - i : t->chunk;
        CHECK_INT(batch_run(s, o->prompt + i, n, n > 1 ? CF_PHASE_PROMPT : CF_PHASE_DECODE, &err),
                  0);
    }
    gate_set(false);
    CHECK_STR(err.msg, "");
    CHECK_STR(w.wrong, "");
    CHECK(w.groups_checked >= (t->chunk == 1 ? 4 : 1));
    CHECK_INT(oracle_run_greedy(o, s, o->vocab, &err), o->n_greedy);
    cf_session_destroy(&s);
    cf_engine_close(&w.engine);
    sized_model_close(&m);
    oracle_free(o);
}

/* A chunk whose experts exceed the slots: served in waves, and still each record is read once for
 * the chunk, no matter how many tokens chose it. */
static void waves_run(const struct setting *t)
{
    cf_io_fault fault = {.eio_file = -1, .on_submit = on_submit};
    cf_err err = {0};
    sized_model m;
    cf_session *s = NULL;
    oracle *o = oracle_load(t->dir);
    REQUIRE(o);
    w.engine = setting_open(t, &m, &fault);
    REQUIRE(w.engine && cf_session_create(&s, w.engine, &err) == 0);
    bool exceeded = false;
    const cf_model *model = w.engine->model;
    /* The counts of one layer after the other; the reads of the last one are still listed. */
    for (uint32_t moe = 0; moe < model->n_moe; moe++) {
        cf_expert_counts before = w.engine->counters.layers[moe];
        cf_session_rewind(s, 0);
        cf_outputs out = {.route = on_route};
        CHECK_INT(cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, &out, &err), 0);
        cf_expert_counts after = w.engine->counters.layers[moe];
        uint64_t lookups = after.lookups - before.lookups, misses = after.misses - before.misses;
        exceeded = exceeded || lookups > m.min_slots;
        CHECK(misses <= lookups);
        pthread_mutex_lock(&w.lock);
        CHECK(moe + 1 < model->n_moe || w.moe == (int)moe);
        if (w.moe == (int)moe) {
            CHECK_INT(w.n_records, misses);
            CHECK_INT(w.n_asked, misses);
            in_flight_check();
            CHECK_STR(w.wrong, "");
        }
        w.moe = NO_GROUP;
        pthread_mutex_unlock(&w.lock);
    }
    CHECK(exceeded);
    CHECK_STR(err.msg, "");
    cf_session_destroy(&s);
    cf_engine_close(&w.engine);
    sized_model_close(&m);
    oracle_free(o);
}

#define FLASH "tests/fixtures/models/longcat_flash"
#define NGRAM "tests/fixtures/models/longcat_ngram"

static void device_run(bool ref)
{
    static const struct setting settings[] = {
        {FLASH, "auto", "uring", true, false, true, 1},
        {FLASH, "auto", "uring", false, false, true, 1},
        {FLASH, "discrete", "pread", true, false, true, 1},
        {FLASH, "discrete", "uring", false, true, false, 1}, /* more slots: slabs for each miss */
        {FLASH, "auto", "pread", true, false, false, 8},
        {NGRAM, "auto", "uring", true, false, true, 1},
        {NGRAM, "discrete", "uring", false, false, false, 8},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        const struct setting *t = &settings[i];
        char name[200];
        if (!ref && i % 3)
            continue;
        snprintf(name, sizeof name, "%s %s %s%s %s prefetch %s, %u at a time", device,
                 strrchr(t->dir, '/') + 1, t->memory, t->no_import ? " no_import" : "", t->io,
                 t->prefetch ? "on" : "off", t->chunk);
        RUN_NAMED(name, window_run(t));
    }
    static const struct setting waves[] = {{FLASH, "auto", "uring", true, false, true, 64},
                                           {NGRAM, "discrete", "uring", true, false, true, 64}};
    for (size_t i = 0; i < (ref ? 2 : 1); i++) {
        char name[200];
        snprintf(name, sizeof name, "%s %s waves", device, strrchr(waves[i].dir, '/') + 1);
        RUN_NAMED(name, waves_run(&waves[i]));
    }
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    while (devices_next(&d)) {
        device = d.name;
        device_run(d.ref);
    }
    return check_done();
}
