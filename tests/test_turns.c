/* Catches: a token that waits for the device more often than it needs a value from it, a window or
 * a group of resident experts that goes to the device in pieces, an engine thread that waits for
 * copies; and a profile (exec.h) that changes a number or forgets to wait.
 *
 * The host needs the device's word once per MoE layer (which experts) and once at the end (logits).
 * The linker routes cf_gpu_submit and cf_gpu_wait through the counters here (tests.mk). */
#include <pthread.h>
#include <stdatomic.h>

#include "gpu/gpu.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"

#define MODELS "tests/fixtures/models/"

static struct {
    pthread_t engine;
    atomic_uint submits, waits, transfer_waits; /* of the engine thread; the first two of compute */
} turns;

int __real_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err);
int __real_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);
int __wrap_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err);

int __wrap_cf_gpu_submit(cf_gpu *gpu, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                         uint64_t *value, cf_err *err)
{
    if (pthread_equal(pthread_self(), turns.engine) && stream == CF_STREAM_COMPUTE)
        turns.submits++;
    return __real_cf_gpu_submit(gpu, stream, waits, n_waits, value, err);
}

int __wrap_cf_gpu_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    if (pthread_equal(pthread_self(), turns.engine) && point.value)
        (*(point.stream == CF_STREAM_COMPUTE ? &turns.waits : &turns.transfer_waits))++;
    return __real_cf_gpu_wait(gpu, point, err);
}

static void turns_reset(void)
{
    turns.engine = pthread_self();
    turns.submits = turns.waits = turns.transfer_waits = 0;
}

static const char *device;

static cf_engine *model_open(sized_model *m, const char *dir, const char *memory, bool resident)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = o.chunk = 64;
    o.threads = 2;
    o.memory = memory;
    o.ram_bytes = 64u << 20;
    if (!sized_model_open(m, dir))
        return NULL;
    return sized_open(m, &o, resident ? m->all_slots : m->min_slots, false);
}

/* MoE layers whose plan has work between ROUTE and EXPERTS. */
static uint32_t windows_count(const cf_model *m)
{
    uint32_t n = 0, steps = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        const cf_step *s = &m->steps[i];
        n += s->kind == CF_STEP_EXPERTS && steps > 0;
        steps = s->kind == CF_STEP_ROUTE ? 0 : steps + (s->kind != CF_STEP_TAP);
    }
    return n;
}

/* Counts that hold for each token, and for a chunk. arrivals: of the group's experts, at most. */
static void turns_check(const cf_model *m, uint64_t arrivals)
{
    CHECK_INT(turns.waits, m->n_moe + 1);
    CHECK_INT(turns.transfer_waits, 0);
    /* ROUTE, its window, the experts that are there; one more for whatever arrives later; logits.
     */
    CHECK(turns.submits <= 2 * m->n_moe + windows_count(m) + arrivals + 1);
}

static void turns_run(const char *dir, const char *memory, bool resident)
{
    cf_err err = {0};
    sized_model m = {0};
    cf_session *s = NULL;
    oracle *o = oracle_load(dir);
    REQUIRE(o);
    cf_engine *e = model_open(&m, dir, memory, resident);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    const cf_model *model = e->model;
    turns_reset();
    uint64_t misses = e->counters.prefill.misses;
    CHECK_INT(cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, NULL, &err), 0);
    /* A chunk whose experts exceed the slots also waits for those that give theirs away. */
    misses = e->counters.prefill.misses - misses;
    CHECK(turns.waits >= model->n_moe + 1 && turns.waits <= model->n_moe + 1 + misses);
    if (resident)
        turns_check(model, misses);
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < o->n_greedy; i++) {
            cf_expert_counts before = e->counters.decode;
            if (i == 0)
                cf_session_rewind(s, o->n_prompt);
            turns_reset();
            CHECK_INT(cf_session_extend(s, &o->greedy[i], 1, CF_PHASE_DECODE, NULL, &err), 0);
            /* From the drive, and from the RAM tier. */
            uint64_t arrivals = e->counters.decode.misses - before.misses +
                                e->counters.decode.ram_hits - before.ram_hits;
            turns_check(model, arrivals);
            CHECK(!resident || round == 0 || arrivals == 0);
        }
    CHECK_STR(err.msg, "");
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(o);
}

/* ---- the profile ---- */

static void profile_run(const char *dir, const char *memory)
{
    cf_err err = {0};
    sized_model m = {0};
    cf_session *s = NULL;
    oracle *o = oracle_load(dir);
    REQUIRE(o);
    cf_engine *e = model_open(&m, dir, memory, false);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    const cf_model *model = e->model;
    cf_step_time *times = calloc(model->n_steps, sizeof *times);
    float *plain = malloc(o->vocab * sizeof *plain);
    REQUIRE(times && plain);
    CHECK_INT(cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, NULL, &err), 0);
    CHECK_INT(cf_session_extend(s, o->greedy, 1, CF_PHASE_DECODE, NULL, &err), 0);
    REQUIRE(cf_session_logits(s));
    memcpy(plain, cf_session_logits(s), o->vocab * sizeof *plain);
    cf_session_rewind(s, o->n_prompt);
    cf_exec_profile(e->exec, times);
    turns_reset();
    CHECK_INT(cf_session_extend(s, o->greedy, 1, CF_PHASE_DECODE, NULL, &err), 0);
    uint32_t timed = 0;
    for (uint32_t i = 0; i < model->n_steps; i++)
        timed += model->steps[i].kind != CF_STEP_TAP;
    /* Every step ends with a wait. */
    CHECK(turns.waits >= timed);
    for (uint32_t i = 0; i < model->n_steps; i++)
        CHECK(times[i].ns > 0 || model->steps[i].kind == CF_STEP_TAP);
    cf_exec_profile(e->exec, NULL);
    REQUIRE(cf_session_logits(s));
    CHECK(memcmp(plain, cf_session_logits(s), o->vocab * sizeof *plain) == 0);
    CHECK_STR(err.msg, "");
    free(times);
    free(plain);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(o);
}

static void device_run(void)
{
    static const struct {
        const char *dir, *memory;
        bool resident;
    } list[] = {
        {MODELS "longcat_flash", "auto", true},     {MODELS "longcat_flash", "auto", false},
        {MODELS "longcat_ngram", "discrete", true}, {MODELS "mixtral", "auto", true},
        {MODELS "mixtral", "discrete", false},      {MODELS "deepseek_v3", "auto", false},
    };
    char name[200];
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        snprintf(name, sizeof name, "%s %s %s%s", device, strrchr(list[i].dir, '/') + 1,
                 list[i].memory, list[i].resident ? ", all resident" : ", fewest slots");
        RUN_NAMED(name, turns_run(list[i].dir, list[i].memory, list[i].resident));
    }
    snprintf(name, sizeof name, "%s profile of longcat_flash", device);
    RUN_NAMED(name, profile_run(MODELS "longcat_flash", "auto"));
    snprintf(name, sizeof name, "%s profile of mixtral, discrete", device);
    RUN_NAMED(name, profile_run(MODELS "mixtral", "discrete"));
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    while (devices_next(&d)) {
        device = d.name;
        device_run();
    }
    return check_done();
}
