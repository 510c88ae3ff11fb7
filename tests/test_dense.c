/* Dense weights that do not fit are streamed, and nothing but the speed tells. Catches a matrix
 * that is computed on before it is there, or overwritten while it is still read; bytes that end up
 * elsewhere when a file is not aligned or a matrix comes in parts; a schedule that is not the order
 * in which steps ask; a read that nobody needs, or that comes twice; a budget that is exceeded by
 * what streaming takes for itself; a cache whose decisions depend on what else is read; a failed or
 * interrupted batch after which the engine cannot go on.
 *
 * Each run is compared, all logits bit by bit, with one whose weights are all resident.
 *
 *     test_dense [BACKEND [short]]     short: fewer families and budgets, for slow builds */
#include <pthread.h>
#include <dirent.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/reoffset.h"
#include "tests/support/sized.h"
#include "tests/support/whole_run.h"

enum { DECODE = WHOLE_RUN_DECODE, CHUNK = 8 };

#define DEMO  "models/demo"
#define FLASH "tests/fixtures/models/longcat_flash"

static const char *device;
static tmp_dir tmp;
static bool in_short;

static cf_options options_make(const char *memory, bool no_import)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = 96;
    o.chunk = CHUNK;
    o.threads = 2;
    o.kv = "f32";
    o.memory = memory;
    o.no_import = no_import;
    o.check = true;
    o.ram_bytes = 8u << 20;
    return o;
}

/* Three chunks of the demo's prompt, the last one not full: plain C takes its time for all of it. */
static oracle *demo_load(void)
{
    oracle *p = oracle_load(DEMO);
    if (p && p->n_prompt > 2 * CHUNK + 1)
        p->n_prompt = 2 * CHUNK + 1;
    return p;
}

static uint64_t batches_of(const oracle *p)
{
    return (p->n_prompt + CHUNK - 1) / CHUNK + DECODE;
}

/* Reads are exact: whole matrices once a batch, what RAM holds of them in the first alone, and no more
 * than alignment adds. */
static void reads_check(const whole_run *r, const oracle *p, const cf_memory_plan *plan)
{
    uint64_t batches = batches_of(p), copied = plan->hold.bytes * (batches - 1);
    uint64_t least = r->stats.dense_streamed_bytes * batches - copied;
    CHECK_INT(r->stats.dense_copied_bytes, copied);
    CHECK(r->stats.dense_bytes >= least);
    CHECK(r->stats.dense_bytes <= least + 2 * plan->align * r->stats.dense_reads);
    CHECK(r->stats.dense_reads >= plan->dense.n_streamed * (plan->hold.bytes ? 1 : batches));
    CHECK(r->stats.vram_peak <= r->stats.vram_budget);
    CHECK(r->stats.ram_peak <= r->stats.ram_budget);
}

static void same_as(const char *dir, const oracle *p, const cf_options *o,
                    const whole_run *want, const cf_memory_plan *plan)
{
    whole_run got;
    bool ran = whole_run_make(dir, p, o, &got);
    bool same = ran && whole_run_same(&got, want);
    if (!same)
        printf("    --vram %llu, memory %s, no_import %d, %s: %u matrices streamed by %u segments "
               "of %llu\n",
               (unsigned long long)o->vram_bytes, o->memory, o->no_import, o->io,
               plan->dense.n_streamed, plan->dense.n_segments,
               (unsigned long long)plan->dense.segment_bytes);
    CHECK(same);
    if (ran)
        reads_check(&got, p, plan);
    whole_run_free(&got);
}

/* ---- budgets ---- */

/* With everything resident and every expert in its slot. */
static bool reference(const char *dir, const sized_model *m, const oracle *p, whole_run *want)
{
    cf_options o = options_make("auto", false);
    o.vram_bytes = 1ull << 30;
    cf_memory_plan plan;
    cf_err err = {0};
    if (sized_plan(m, &o, &plan, &err) < 0) {
        printf("    %s\n", err.msg);
        return false;
    }
    CHECK_INT(plan.dense.n_streamed, 0);
    bool ran = whole_run_make(dir, p, &o, want);
    CHECK_INT(want->stats.dense_reads, 0);
    return ran;
}

static int plan_of(const sized_model *m, const cf_options *o, cf_memory_plan *plan)
{
    cf_err err = {0};
    int rc = sized_plan(m, o, plan, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    return rc;
}

/* Budgets from the least to the most that streams something, in `steps` steps; each kind of
 * memory, or in turn. */
static void every_budget(const char *dir, unsigned steps, bool all_kinds)
{
    sized_model m;
    whole_run want = {0};
    oracle *p = oracle_load(dir);
    REQUIRE(p && sized_model_open(&m, dir));
    REQUIRE(reference(dir, &m, p, &want));
    uint32_t one = 0, two = 0;
    for (int kind = 0; kind < 3; kind++)
        for (unsigned i = 0; i < steps; i++) {
            if (!all_kinds && (i + (unsigned)kind) % 3)
                continue;
            cf_options o = options_make(kind ? "discrete" : "auto", kind == 2);
            cf_memory_plan plan;
            o.io = i % 2 ? "pread" : "uring";
            o.direct = i % 4 < 2;
            o.vram_bytes = 1ull << 30;
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            uint64_t most = plan.vram_dense - 4096, least = plan.vram_min;
            if (least > most) { /* what streaming itself needs is more than it saves */
                CHECK_INT(kind, 2);
                continue;
            }
            o.vram_bytes = least + (most - least) * i / (steps - 1);
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            CHECK(plan.dense.n_streamed > 0);
            one += plan.dense.n_segments == 1;
            two += plan.dense.n_segments == 2;
            same_as(dir, p, &o, &want, &plan);
        }
    CHECK(one > 0);
    CHECK(two > 0);
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

/* Every family's steps ask for their matrices in the order of the schedule, and never for two at
 * once: with the least budget each streams what it can. */
static void every_family_least(void)
{
    uint32_t streamed = 0;
    DIR *d = opendir("tests/fixtures/models");
    REQUIRE(d);
    for (struct dirent *f; (f = readdir(d));) {
        char path[400];
        sized_model m;
        whole_run want = {0};
        cf_memory_plan plan;
        cf_options o = options_make("auto", false);
        snprintf(path, sizeof path, "tests/fixtures/models/%s", f->d_name);
        if (strchr(f->d_name, '.') || strncmp(f->d_name, "switch", 6) == 0)
            continue; /* no folder of a model, or one with two plans */
        oracle *p = oracle_load(path);
        REQUIRE(p && sized_model_open(&m, path));
        p->n_prompt = p->n_prompt < CHUNK + 1 ? p->n_prompt : CHUNK + 1;
        REQUIRE(reference(path, &m, p, &want));
        o.vram_bytes = 1ull << 30;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        o.vram_bytes = plan.vram_min;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        streamed += plan.dense.n_streamed > 0;
        same_as(path, p, &o, &want, &plan);
        whole_run_free(&want);
        sized_model_close(&m);
        oracle_free(p);
    }
    closedir(d);
    CHECK(streamed > 20);
}

/* The words: the demo with room for half of its dense bytes, whatever they are. */
static void half_of_the_demo(void)
{
    sized_model m;
    whole_run want = {0};
    oracle *p = demo_load();
    REQUIRE(p && sized_model_open(&m, DEMO));
    REQUIRE(reference(DEMO, &m, p, &want));
    uint64_t all = cf_model_resident_bytes(m.model);
    for (int kind = 0; kind < 3; kind++) {
        cf_options o = options_make(kind ? "discrete" : "auto", kind == 2);
        cf_memory_plan plan;
        o.vram_bytes = 1ull << 30;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        o.vram_bytes = plan.vram_dense - all / 2;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        CHECK(plan.dense.resident_bytes + plan.dense.device_bytes <= all / 2 + 65536);
        CHECK(plan.dense.streamed_bytes >= all / 2 - 65536);
        CHECK(plan.dense.streamed_bytes < all * 2 / 3);
        CHECK_INT(plan.dense.n_segments, 2);
        same_as(DEMO, p, &o, &want, &plan);
    }
    whole_run_free(&want);
    sized_model_close(&m);
    oracle_free(p);
}

/* Data anywhere modulo 16: moved in its segment, or copied from odd places. */
static void any_offset(void)
{
    static const unsigned mods[] = {0, 2, 8, 14};
    for (unsigned i = 0; i < 4; i++) {
        char name[64], path[1024];
        sized_model m;
        whole_run want = {0};
        snprintf(name, sizeof name, "at-%s-%u", device, mods[i]);
        snprintf(path, sizeof path, "%s", tmp_path(&tmp, name));
        reoffset_copy(FLASH, path, mods[i]);
        oracle *p = oracle_load(FLASH);
        REQUIRE(p && sized_model_open(&m, path));
        REQUIRE(reference(FLASH, &m, p, &want));
        for (int kind = 0; kind < 3; kind++) {
            cf_options o = options_make(kind ? "discrete" : "auto", kind == 2);
            cf_memory_plan plan;
            o.vram_bytes = 1ull << 30;
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            o.vram_bytes = plan.vram_min + 8192 * i;
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            same_as(path, p, &o, &want, &plan);
        }
        whole_run_free(&want);
        sized_model_close(&m);
        oracle_free(p);
    }
}

/* ---- the plan alone ---- */

/* More memory never streams more; what is promised is held; what is refused names what would do. */
static void test_plan(void)
{
    sized_model m;
    cf_memory_plan plan, last = {0};
    cf_err err = {0};
    device = "ref";
    REQUIRE(sized_model_open(&m, DEMO));
    for (int kind = 0; kind < 3; kind++) {
        cf_options o = options_make(kind ? "discrete" : "auto", kind == 2);
        o.vram_bytes = 1ull << 30;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        uint64_t least = plan.vram_min, most = plan.vram_dense;
        last.dense.streamed_bytes = UINT64_MAX;
        for (uint64_t vram = least; vram < most; vram += 33333) {
            o.vram_bytes = vram;
            REQUIRE(plan_of(&m, &o, &plan) == 0);
            const cf_dense_plan *d = &plan.dense;
            uint64_t slots, host;
            cf_slots_memory(&plan.shape, 0, &slots, &host);
            CHECK(plan.vram_fixed + slots <= vram);
            CHECK_INT(plan.vram[0].bytes, d->resident_bytes);
            CHECK_INT(plan.vram[1].bytes, d->device_bytes);
            CHECK(d->n_streamed > 0);
            CHECK(d->resident_bytes + d->streamed_bytes >= cf_model_resident_bytes(m.model));
            CHECK(plan.shape.n_slots >= m.min_slots);
            /* One segment trades reads for room: only among equals is more never worse. */
            if (d->n_segments == last.dense.n_segments)
                CHECK(d->streamed_bytes <= last.dense.streamed_bytes);
            last = plan;
        }
        o.vram_bytes = most;
        REQUIRE(plan_of(&m, &o, &plan) == 0);
        CHECK_INT(plan.dense.n_streamed, 0);
        CHECK_INT(plan.shape.n_slots, m.min_slots);
        o.vram_bytes = least - 1;
        err = (cf_err){0};
        CHECK_INT(sized_plan(&m, &o, &plan, &err), CF_ELIMIT);
        char number[64];
        snprintf(number, sizeof number, "too small: %llu bytes", (unsigned long long)least);
        CHECK_HAS(err.msg, number);
        REQUIRE(plan.widest < m.model->n_weights);
        CHECK_HAS(err.msg, m.model->weights[plan.widest].name);
        CHECK(m.model->weights[plan.widest].rows == 4096 || kind == 2); /* else the head */
    }
    sized_model_close(&m);
}

/* What is used by several steps, what must be checked, and vectors stay. */
static void test_choice(void)
{
    sized_model m;
    REQUIRE(
        sized_model_open(&m, "tests/fixtures/models/granitemoe")); /* its head is its embedding */
    const cf_model *model = m.model;
    uint8_t *streamed = calloc(model->n_weights, 1);
    cf_dense_choose(model, UINT64_MAX, 0, streamed);
    uint32_t n = 0;
    for (uint32_t i = 0; i < model->n_weights; i++) {
        const cf_weight_def *w = &model->weights[i];
        n += streamed[i];
        if (w->rows == 1 || w->must_be_finite || strstr(w->name, "embed"))
            CHECK_INT(streamed[i], 0);
        else
            CHECK_INT(streamed[i], 1);
    }
    CHECK(n > 0);
    /* All that is allowed is resident, and not more. */
    for (uint64_t allowance = 0; allowance < 65536; allowance += 4096) {
        uint64_t resident = 0, small = UINT64_MAX;
        cf_dense_choose(model, UINT64_MAX, 0, streamed);
        uint8_t *could = malloc(model->n_weights);
        memcpy(could, streamed, model->n_weights);
        cf_dense_choose(model, UINT64_MAX, allowance, streamed);
        for (uint32_t i = 0; i < model->n_weights; i++) {
            uint64_t bytes = (cf_weight_code_bytes(&model->weights[i]) + 255) / 256 * 256;
            if (could[i] && !streamed[i])
                resident += bytes;
            else if (could[i] && bytes < small)
                small = bytes;
        }
        CHECK(resident <= allowance);
        CHECK(small == UINT64_MAX || resident + small > allowance);
        free(could);
    }
    free(streamed);
    sized_model_close(&m);
}

/* ---- what is read, and when ---- */

/* Reads since the last reset, of bytes that belong to streamed weights. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const cf_engine *engine;
    uint64_t bytes[4096]; /* by weight */
    bool hold;            /* no read completes */
    uint64_t held;        /* bytes asked for meanwhile */
    uint64_t until;       /* ... until they are so many */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    (void)user;
    pthread_mutex_lock(&seen.lock);
    const cf_engine *e = seen.engine;
    for (uint32_t i = 0; e && i < e->model->n_weights; i++) {
        const cf_extent *x = &e->model->weights[i].extent;
        if (!e->streamed[i] || x->file != file || off + bytes <= x->off || off >= x->off + x->bytes)
            continue;
        uint64_t from = off > x->off ? off : x->off;
        uint64_t to = off + bytes < x->off + x->bytes ? off + bytes : x->off + x->bytes;
        seen.bytes[i] += to - from;
        seen.held += to - from;
    }
    pthread_mutex_unlock(&seen.lock);
}

static bool withhold(void *user)
{
    (void)user;
    pthread_mutex_lock(&seen.lock);
    bool yes = seen.hold && seen.held < seen.until;
    pthread_mutex_unlock(&seen.lock);
    return yes;
}

static void seen_reset(const cf_engine *e)
{
    pthread_mutex_lock(&seen.lock);
    seen.engine = e;
    memset(seen.bytes, 0, sizeof seen.bytes);
    seen.held = 0;
    pthread_mutex_unlock(&seen.lock);
}

/* Neighbours in a file share their blocks: a part of another weight may be read as alignment. */
static void each_once(const cf_engine *e, uint64_t times, bool head)
{
    pthread_mutex_lock(&seen.lock);
    const cf_step *last = &e->model->steps[e->model->n_steps - 1];
    for (uint32_t i = 0; i < e->model->n_weights; i++) {
        uint64_t bytes = cf_weight_code_bytes(&e->model->weights[i]);
        uint64_t want = e->streamed[i] ? times * bytes : 0;
        if (i == last->u.head.w && !head)
            want = 0;
        CHECK(seen.bytes[i] >= want);
        CHECK(seen.bytes[i] <= want + 2 * times * e->files.align);
    }
    pthread_mutex_unlock(&seen.lock);
}

static cf_engine *least_open(const char *dir, const char *memory, uint64_t more,
                             const cf_io_fault *fault, sized_model *m)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_memory_plan plan;
    cf_options o = options_make(memory, false);
    o.vram_bytes = 1ull << 30;
    o.fault = fault;
    if (!sized_model_open(m, dir) || plan_of(m, &o, &plan) < 0)
        return NULL;
    o.vram_bytes = plan.vram_min + more;
    if (plan_of(m, &o, &plan) < 0)
        return NULL;
    o.ram_bytes = plan.ram_min; /* nothing is held: test_dense_hold */
    if (cf_engine_open(&e, dir, &o, &err) < 0)
        printf("    %s\n", err.msg);
    return e;
}

/* One chunk reads each streamed byte once, and the head's only when somebody wants logits. */
static void reads_are_exact(const char *memory)
{
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    cf_io_fault fault = {.on_submit = on_submit, .eio_file = -1};
    oracle *p = oracle_load(FLASH);
    cf_engine *e = least_open(FLASH, memory, 0, &fault, &m);
    REQUIRE(p && e && e->dense);
    const cf_step *last = &e->model->steps[e->model->n_steps - 1];
    CHECK_INT(last->kind, CF_STEP_HEAD);
    CHECK_INT(e->streamed[last->u.head.w], 1);
    REQUIRE(cf_session_create(&s, e, &err) == 0 && p->n_prompt >= CHUNK + 3);
    seen_reset(e);
    REQUIRE(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err) == 0);
    each_once(e, 1, true);
    /* Two chunks, of which the second alone has logits. */
    REQUIRE(cf_session_rewind(s, 0) == 0);
    seen_reset(e);
    REQUIRE(cf_session_extend(s, p->prompt, CHUNK + 3, CF_PHASE_PROMPT, NULL, &err) == 0);
    pthread_mutex_lock(&seen.lock);
    uint64_t head = cf_weight_code_bytes(&e->model->weights[last->u.head.w]);
    CHECK(seen.bytes[last->u.head.w] >= head);
    CHECK(seen.bytes[last->u.head.w] <= head + 4 * e->files.align);
    pthread_mutex_unlock(&seen.lock);
    seen_reset(NULL);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(p);
}

/* While nothing completes, both segments are asked for: the drive never waits for the device as
 * long as there is a segment. A run that asks for less would hang, so the hold gives up at what the
 * two first pages have. */
static void reads_run_ahead(void)
{
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    cf_io_fault fault = {.on_submit = on_submit, .withhold = withhold, .eio_file = -1};
    oracle *p = oracle_load(FLASH);
    cf_engine *e = least_open(FLASH, "auto", 24576, &fault, &m);
    REQUIRE(p && e && e->dense);
    CHECK_INT(e->plan.dense.n_segments, 2);
    REQUIRE(cf_session_create(&s, e, &err) == 0);
    seen_reset(e);
    pthread_mutex_lock(&seen.lock);
    seen.hold = true;
    /* More than one segment can hold. */
    seen.until = e->plan.dense.segment_bytes + 1;
    pthread_mutex_unlock(&seen.lock);
    int rc = cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, NULL, &err);
    pthread_mutex_lock(&seen.lock);
    CHECK(seen.held >= seen.until);
    seen.hold = false;
    pthread_mutex_unlock(&seen.lock);
    CHECK_INT(rc, 0);
    seen_reset(NULL);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(p);
}

/* The cache decides as if nothing else were read. */
static void decisions_stay(void)
{
    sized_model m;
    cf_memory_plan plan;
    whole_run resident = {0}, streamed = {0};
    oracle *p = oracle_load(FLASH);
    REQUIRE(p && sized_model_open(&m, FLASH));
    cf_options o = options_make("auto", false);
    o.vram_bytes = 1ull << 30;
    REQUIRE(plan_of(&m, &o, &plan) == 0);
    o.vram_bytes = plan.vram_dense;
    REQUIRE(whole_run_make(FLASH, p, &o, &resident));
    o.vram_bytes = plan.vram_min;
    REQUIRE(whole_run_make(FLASH, p, &o, &streamed));
    CHECK_INT(streamed.stats.slots, resident.stats.slots);
    CHECK(streamed.stats.dense_bytes > 0);
    CHECK_INT(memcmp(&streamed.stats.all, &resident.stats.all, sizeof resident.stats.all), 0);
    CHECK_INT(memcmp(&streamed.stats.decode, &resident.stats.decode, sizeof resident.stats.all), 0);
    whole_run_free(&resident);
    whole_run_free(&streamed);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- what goes wrong ---- */

static void row_count(void *user, uint32_t position, const float *logits, const float *hidden)
{
    (void)position;
    (void)logits;
    (void)hidden;
    ++*(uint32_t *)user;
}

/* A read of a streamed matrix fails: one sentence, and no row of what was computed without it; the
 * engine goes on as if nothing had been. The demo's matrices have blocks of their own, which
 * nothing reads at open. The last one is the head. */
static void a_read_fails(const char *memory, uint32_t nth)
{
    uint32_t told = 0;
    cf_outputs out = {.row = row_count, .user = &told};
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    whole_run want = {0}, got = {0};
    oracle *p = demo_load();
    REQUIRE(p && sized_model_open(&m, DEMO));
    REQUIRE(reference(DEMO, &m, p, &want));
    /* The nth streamable matrix, from its middle. */
    uint8_t *streamed = calloc(m.model->n_weights, 1);
    cf_dense_choose(m.model, UINT64_MAX, 0, streamed);
    uint32_t at = 0;
    for (uint32_t i = 0, n = 0; i < m.model->n_weights && n <= nth; i++)
        if (streamed[i]) {
            at = i + 1;
            n++;
        }
    const cf_extent *x = &m.model->weights[at - 1].extent;
    cf_io_fault fault = {.eio_file = x->file,
                         .eio_off = (int64_t)(x->off + x->bytes / 2),
                         .eio_times = 2}; /* a read and its retry */
    sized_model_close(&m);
    cf_engine *e = least_open(DEMO, memory, 0, &fault, &m);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    CHECK_INT(e->streamed[at - 1], 1);
    CHECK_INT(cf_session_extend(s, p->prompt, CHUNK, CF_PHASE_PROMPT, &out, &err), -EIO);
    CHECK_INT(told, 0);
    CHECK_HAS(err.msg, ".safetensors: reading ");
    CHECK_HAS(err.msg, "failed twice");
    CHECK_INT(cf_session_length(s), 0);
    cf_session_destroy(&s);
    err = (cf_err){0};
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK(whole_run_same(&got, &want));
    cf_engine_close(&e);
    whole_run_free(&got);
    whole_run_free(&want);
    free(streamed);
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

/* Interrupted in the middle, with reads on their way. */
static void interrupted(const char *memory)
{
    sized_model m;
    cf_err err = {0};
    cf_session *s = NULL;
    whole_run want = {0}, got = {0};
    oracle *p = oracle_load(FLASH);
    REQUIRE(p && sized_model_open(&m, FLASH));
    REQUIRE(reference(FLASH, &m, p, &want));
    sized_model_close(&m);
    cf_engine *e = least_open(FLASH, memory, 16384, NULL, &m);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    cf_outputs out = {.layer = cancel_at, .user = e};
    CHECK_INT(cf_session_extend(s, p->prompt, p->n_prompt, CF_PHASE_PROMPT, &out, &err),
              -ECANCELED);
    cf_session_destroy(&s);
    cf_engine_resume(e);
    err = (cf_err){0};
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    CHECK_STR(err.msg, "");
    CHECK(whole_run_same(&got, &want));
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
    char path[1024], text[65536] = "";
    oracle *p = oracle_load(FLASH);
    cf_engine *e = least_open(FLASH, "auto", 0, NULL, &m);
    REQUIRE(p && e);
    snprintf(path, sizeof path, "%s", tmp_path(&tmp, "timeline.json"));
    REQUIRE(cf_engine_timeline(e, path, &err) == 0);
    CHECK_INT(whole_run_play(e, p, &got, &err), 0);
    REQUIRE(cf_engine_timeline(e, NULL, &err) == 0);
    FILE *f = fopen(path, "r");
    REQUIRE(f);
    uint64_t reads = 0;
    while (fgets(text, sizeof text, f))
        for (const char *at = text; (at = strstr(at, "\"dense\"")) != NULL; at++)
            reads++;
    fclose(f);
    unlink(path);
    CHECK(reads >= got.stats.dense_reads); /* and the stalls */
    char *json = cf_engine_stats_json(e);
    CHECK_HAS(json, "\"dense\": {\n  \"streamed_bytes\": ");
    free(json);
    whole_run_free(&got);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(p);
}

/* ---- devices ---- */

static void device_run(bool ref)
{
    static const char *const families[] = {"longcat_flash", "longcat_ngram", "mixtral",
                                           "deepseek_v3",   "qwen3_moe",     "granitemoe",
                                           "grok1",         "dbrx",          "llama4_scout"};
    char name[160], dir[160];
    snprintf(name, sizeof name, "%s half of the demo's dense bytes", device);
    RUN_NAMED(name, half_of_the_demo());
    for (unsigned i = 0; i < sizeof families / sizeof *families; i++) {
        if ((!ref || in_short) && i != 0 && i != 2 && i != 3)
            continue;
        snprintf(dir, sizeof dir, "tests/fixtures/models/%s", families[i]);
        snprintf(name, sizeof name, "%s %s at every budget", device, families[i]);
        RUN_NAMED(name, every_budget(dir, ref && !in_short ? 9 : 3, ref && !in_short));
    }
    if (!ref)
        return;
    RUN_NAMED("ref every family at its least", every_family_least());
    RUN_NAMED("ref any data offset", any_offset());
    RUN_NAMED("ref reads are exact, in place", reads_are_exact("auto"));
    RUN_NAMED("ref reads are exact, copied", reads_are_exact("discrete"));
    RUN_NAMED("ref reads run ahead", reads_run_ahead());
    RUN_NAMED("ref the cache's decisions stay", decisions_stay());
    for (uint32_t nth = 0; nth < 64; nth += in_short ? 42 : 21) {
        snprintf(name, sizeof name, "ref a failed read of matrix %u, in place", nth);
        RUN_NAMED(name, a_read_fails("auto", nth));
        snprintf(name, sizeof name, "ref a failed read of matrix %u, copied", nth);
        RUN_NAMED(name, a_read_fails("discrete", nth));
    }
    RUN_NAMED("ref a failed read of the head", a_read_fails("auto", UINT32_MAX));
    RUN_NAMED("ref interrupted, in place", interrupted("auto"));
    RUN_NAMED("ref interrupted, copied", interrupted("discrete"));
    RUN_NAMED("ref what is shown", shown());
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    cf_log_level_set(CF_LOG_QUIET); /* each engine here says that it streams */
    tmp_dir_init(&tmp);
    in_short = argc > 2 && strcmp(argv[2], "short") == 0;
    if (argc < 2 || strcmp(argv[1], "ref") == 0) {
        RUN(test_plan);
        RUN(test_choice);
    }
    while (devices_next(&d)) {
        device = d.name;
        device_run(d.ref);
    }
    tmp_dir_finish(&tmp);
    return check_done();
}
