/* Every barrier and every wait of the executor is needed, and the hazard tracker sees each one
 * that is missing. Catches a barrier that somebody forgets in a new step (nothing else would: the
 * validation layer does not see accesses through buffer addresses, and a device may get the right
 * numbers by luck for years), a tracker that has gone blind, and barriers that only cost time.
 *
 * One decode token and one small prefill chunk are run again and again, each time with another
 * barrier left out (on ref, where barriers mean nothing to the numbers). The linker routes
 * cf_gpu_submit and cf_gpu_wait through the wrappers here (tests.mk). */
#include <pthread.h>

#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

/* ---- the seam, with holes ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool drop_waits;    /* compute batches are submitted without their waits */
    bool hold_transfer; /* nobody learns that a transfer is done before a wait was dropped */
    int waits_dropped;
} hole = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int __real_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __real_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
int __wrap_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);

int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err)
{
    pthread_mutex_lock(&hole.lock);
    bool drop = hole.drop_waits && stream == CF_STREAM_COMPUTE && n_waits > 0;
    pthread_mutex_unlock(&hole.lock);
    int rc = __real_cf_gpu_submit(gpu, stream, waits, drop ? 0 : n_waits, value, err);
    pthread_mutex_lock(&hole.lock);
    hole.waits_dropped += drop;
    pthread_cond_broadcast(&hole.changed);
    pthread_mutex_unlock(&hole.lock);
    return rc;
}

/* The host's own wait for a copy orders what follows it, whatever the device was told: it must not
 * come first by chance. */
int __wrap_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    pthread_mutex_lock(&hole.lock);
    while (hole.hold_transfer && point.stream == CF_STREAM_TRANSFER && !hole.waits_dropped)
        pthread_cond_wait(&hole.changed, &hole.lock);
    pthread_mutex_unlock(&hole.lock);
    return __real_cf_gpu_wait(gpu, point, err);
}

/* ---- running ---- */

enum { MOST_BARRIERS = 4096 };

struct fixture {
    sized_model m;
    oracle *o;
    cf_engine *e;
    cf_session *s;
    int hazards;
    char first[400];
};

static void hazard_seen(void *user, const char *sentence)
{
    struct fixture *f = user;
    if (!f->hazards++)
        snprintf(f->first, sizeof f->first, "%s", sentence);
}

static void layer_ignore(void *user, uint32_t layer, uint32_t position, uint32_t n,
                         const float *hidden)
{
    (void)user, (void)layer, (void)position, (void)n, (void)hidden;
}

static void row_ignore(void *user, uint32_t position, const float *logits, const float *hidden)
{
    (void)user, (void)position, (void)logits, (void)hidden;
}

static void fixture_close(struct fixture *f)
{
    cf_session_destroy(&f->s);
    cf_engine_close(&f->e);
    sized_model_close(&f->m);
    oracle_free(f->o);
}

static bool fixture_open(struct fixture *f, const char *dir, const char *memory, const char *kv,
                         bool no_import, bool small)
{
    cf_err err = {0};
    cf_options o;
    *f = (struct fixture){0};
    cf_options_init(&o);
    o.device = "ref";
    o.ctx = 64;
    o.chunk = small ? 64 : 8;
    o.threads = 1;
    o.kv = kv;
    o.memory = memory;
    o.no_import = no_import;
    o.check = true;
    o.ram_bytes = 64u << 20;
    f->o = oracle_load(dir);
    if (!f->o || !sized_model_open(&f->m, dir) ||
        !(f->e = sized_open(&f->m, &o, small ? f->m.min_slots : f->m.all_slots, false)) ||
        cf_session_create(&f->s, f->e, &err) < 0) {
        printf("    %s\n", err.msg);
        fixture_close(f);
        return false;
    }
    cf_gpu_on_hazard(f->e->gpu, hazard_seen, f);
    return true;
}

/* Runs n tokens after the first four, which stay; with everybody wanting everything, or nothing. */
static bool run(struct fixture *f, uint32_t n, bool outputs)
{
    cf_err err = {0};
    cf_outputs out = {.row = row_ignore, .layer = layer_ignore};
    f->hazards = 0;
    if (cf_session_length(f->s) == 0 &&
        cf_session_extend(f->s, f->o->prompt, 4, CF_PHASE_PROMPT, NULL, &err) < 0)
        return false;
    cf_session_rewind(f->s, 4);
    return cf_session_extend(f->s, f->o->prompt + 4, n, n > 1 ? CF_PHASE_PROMPT : CF_PHASE_DECODE,
                             outputs ? &out : NULL, &err) == 0;
}

static void each_barrier(const char *dir, const char *memory, const char *kv, uint32_t n,
                         bool outputs)
{
    struct fixture f;
    REQUIRE(fixture_open(&f, dir, memory, kv, false, false));
    CHECK(run(&f, n, outputs)); /* afterwards every expert is in its slot: runs are alike */
    CHECK_INT(f.hazards, 0);
    int64_t begin = cf_gpu_test_drop_barrier(f.e->gpu, -1);
    CHECK(run(&f, n, outputs));
    CHECK_INT(f.hazards, 0);
    int64_t count = cf_gpu_test_drop_barrier(f.e->gpu, -1) - begin;
    CHECK(count > 20 && count < MOST_BARRIERS);
    for (int64_t i = 0; i < count && count < MOST_BARRIERS; i++) {
        int64_t now = cf_gpu_test_drop_barrier(f.e->gpu, -1);
        cf_gpu_test_drop_barrier(f.e->gpu, now + i);
        CHECK(run(&f, n, outputs));
        if (f.hazards == 0) {
            printf("    barrier %lld of %lld is not missed\n", (long long)i, (long long)count);
            check_case_failed = true;
        }
    }
    fixture_close(&f);
}

/* Without the wait for the copy, experts are computed on a slot that is being written. */
static void dropped_wait(const char *dir, bool no_import)
{
    struct fixture f;
    REQUIRE(fixture_open(&f, dir, "discrete", "f32", no_import, false));
    pthread_mutex_lock(&hole.lock);
    hole.drop_waits = hole.hold_transfer = true;
    hole.waits_dropped = 0;
    pthread_mutex_unlock(&hole.lock);
    CHECK(run(&f, 1, false)); /* the first tokens miss */
    pthread_mutex_lock(&hole.lock);
    hole.drop_waits = hole.hold_transfer = false;
    int dropped = hole.waits_dropped;
    pthread_cond_broadcast(&hole.changed);
    pthread_mutex_unlock(&hole.lock);
    CHECK(dropped > 0);
    CHECK(f.hazards > 0);
    fixture_close(&f);
}

/* The smallest cache and a chunk that exceeds it: slots are given on within one group, under way.
 */
static void waves_are_ordered(const char *dir, const char *memory, bool no_import)
{
    struct fixture f;
    REQUIRE(fixture_open(&f, dir, memory, "f32", no_import, true));
    cf_err err = {0};
    for (int round = 0; round < 2; round++) {
        cf_session_rewind(f.s, 0);
        CHECK_INT(cf_session_extend(f.s, f.o->prompt, f.o->n_prompt, CF_PHASE_PROMPT, NULL, &err),
                  0);
    }
    cf_stats stats;
    cf_engine_get_stats(f.e, &stats);
    CHECK(stats.all.misses > 2 * f.m.min_slots);
    CHECK_STR(f.first, "");
    CHECK_INT(f.hazards, 0);
    fixture_close(&f);
}

#define FLASH "tests/fixtures/models/longcat_flash"
#define NGRAM "tests/fixtures/models/longcat_ngram"

int main(void)
{
    RUN_NAMED("decode token", each_barrier(FLASH, "auto", "f32", 1, false));
    RUN_NAMED("decode token, all outputs", each_barrier(FLASH, "auto", "f32", 1, true));
    RUN_NAMED("decode token, copied slots", each_barrier(FLASH, "discrete", "f16", 1, true));
    RUN_NAMED("chunk of 3", each_barrier(FLASH, "auto", "f32", 3, false));
    RUN_NAMED("decode token with rows", each_barrier(NGRAM, "auto", "f32", 1, true));
    RUN_NAMED("chunk of 3 with rows", each_barrier(NGRAM, "auto", "f32", 3, false));
    RUN_NAMED("a wait for a copy", dropped_wait(FLASH, false));
    RUN_NAMED("a wait for a staged copy", dropped_wait(FLASH, true));
    RUN_NAMED("waves in place", waves_are_ordered(FLASH, "auto", false));
    RUN_NAMED("waves of copies", waves_are_ordered(FLASH, "discrete", false));
    RUN_NAMED("waves of staged copies", waves_are_ordered(NGRAM, "discrete", true));
    return check_done();
}
