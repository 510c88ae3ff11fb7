/* The timeline. Catches: a file that is not JSON, events that do not nest or run backwards, reads
 * or stalls that are missing from it or counted differently than by the statistics, events that
 * are lost without being counted, and a recording that ends while others still write. */
#include <jansson.h>
#include <pthread.h>

#include "runtime/timeline.h"
#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/sized.h"
#include "tests/support/tmpfiles.h"

static tmp_dir dir;

/* ---- reading it ---- */

typedef struct event {
    const char *name, *thread;
    double begin, end; /* microseconds */
    int64_t layer, expert, rows;
    json_int_t tid;
} event;

typedef struct file {
    json_t *json;
    event *list; /* those with a duration, in the order of the file */
    size_t n;
} file;

static int64_t arg_of(const json_t *e, const char *key)
{
    const json_t *v = json_object_get(json_object_get(e, "args"), key);
    return v ? json_integer_value(v) : -1;
}

static const char *thread_of(const json_t *events, json_int_t tid)
{
    size_t i;
    json_t *e;
    json_array_foreach(
        events, i,
        e) if (!strcmp(json_string_value(json_object_get(e, "name")), "thread_name") &&
               json_integer_value(json_object_get(e, "tid")) ==
                   tid) return json_string_value(json_object_get(json_object_get(e, "args"),
                                                                 "name"));
    return "";
}

static bool file_load(file *f, const char *path)
{
    json_error_t why;
    *f = (file){.json = json_load_file(path, 0, &why)};
    if (!f->json) {
        printf("    %s: %s\n", path, why.text);
        return false;
    }
    const json_t *events = json_object_get(f->json, "traceEvents");
    f->list = calloc(json_array_size(events) + 1, sizeof *f->list);
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e)
    {
        if (strcmp(json_string_value(json_object_get(e, "ph")), "X") != 0)
            continue;
        double ts = json_number_value(json_object_get(e, "ts"));
        json_int_t tid = json_integer_value(json_object_get(e, "tid"));
        f->list[f->n++] =
            (event){.name = json_string_value(json_object_get(e, "name")),
                    .thread = f->n && f->list[f->n - 1].tid == tid ? f->list[f->n - 1].thread
                                                                   : thread_of(events, tid),
                    .begin = ts,
                    .end = ts + json_number_value(json_object_get(e, "dur")),
                    .layer = arg_of(e, "layer"),
                    .expert = arg_of(e, "expert"),
                    .rows = arg_of(e, "rows"),
                    .tid = tid};
    }
    return true;
}

static void file_free(file *f)
{
    json_decref(f->json);
    free(f->list);
}

static json_int_t count_of(const file *f, const char *key)
{
    return json_integer_value(json_object_get(json_object_get(f->json, "otherData"), key));
}

static bool on_track(const event *e, const char *track)
{
    return strncmp(e->thread, track, strlen(track)) == 0;
}

static size_t count_named(const file *f, const char *track, const char *name)
{
    size_t n = 0;
    for (size_t i = 0; i < f->n; i++)
        n += on_track(&f->list[i], track) && !strcmp(f->list[i].name, name);
    return n;
}

/* name NULL: all of the track. */
static double seconds_of(const file *f, const char *track, const char *name)
{
    double sum = 0;
    for (size_t i = 0; i < f->n; i++)
        if (on_track(&f->list[i], track) && (!name || !strcmp(f->list[i].name, name)))
            sum += f->list[i].end - f->list[i].begin;
    return sum * 1e-6;
}

/* On each track an event begins no earlier than the one before, and two either nest or are apart:
 * what viewers require. A nanosecond of slack: sums of decimals. */
static void check_nesting(const file *f)
{
    enum { DEPTH = 8 };
    const double slack = 1e-3;
    json_int_t tids[512];
    size_t n_tids = 0;
    for (size_t i = 0; i < f->n && n_tids < 512; i++) {
        bool seen = false;
        for (size_t j = 0; j < n_tids; j++)
            seen = seen || tids[j] == f->list[i].tid;
        if (!seen)
            tids[n_tids++] = f->list[i].tid;
    }
    for (size_t t = 0; t < n_tids; t++) {
        double ends[DEPTH], last = 0;
        int depth = 0;
        for (size_t i = 0; i < f->n; i++) {
            const event *e = &f->list[i];
            if (e->tid != tids[t])
                continue;
            bool ordered = e->begin >= last && e->end >= e->begin && e->begin >= 0;
            last = e->begin;
            while (depth && ends[depth - 1] <= e->begin + slack)
                depth--;
            bool nests = !depth || e->end <= ends[depth - 1] + slack;
            if (!ordered || !nests || depth == DEPTH) {
                printf("    %s on %s at %.3f us\n", e->name, e->thread, e->begin);
                CHECK(ordered);
                CHECK(nests);
                return;
            }
            ends[depth++] = e->end;
        }
    }
}

/* ---- the buffer ---- */

enum { WRITERS = 4, PER_WRITER = 500, KEPT = 700 };

static void *writer_main(void *arg)
{
    cf_timeline *t = arg;
    for (uint32_t i = 0; i < PER_WRITER; i++)
        cf_timeline_mark(t, CF_TRACK_COPIES, "written", i, 7, cf_timeline_now(t));
    return NULL;
}

static void writers_run(cf_timeline *t, bool join_first, const char *path)
{
    cf_err err = {0};
    pthread_t threads[WRITERS];
    CHECK_INT(cf_timeline_begin(t, path, KEPT, &err), 0);
    for (int i = 0; i < WRITERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, writer_main, t), 0);
    for (int i = 0; i < WRITERS && join_first; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(cf_timeline_end(t, &err), 0);
    for (int i = 0; i < WRITERS && !join_first; i++)
        pthread_join(threads[i], NULL);
    CHECK_STR(err.msg, "");
}

static void drops_are_counted(void)
{
    cf_err err = {0};
    cf_timeline *t = NULL;
    file f;
    const char *path = tmp_path(&dir, "drops.json");
    REQUIRE(cf_timeline_create(&t, &err) == 0);
    writers_run(t, true, path);
    REQUIRE(file_load(&f, path));
    CHECK_INT(f.n, KEPT);
    CHECK_INT(count_of(&f, "events"), KEPT);
    CHECK_INT(count_of(&f, "dropped"), WRITERS * PER_WRITER - KEPT);
    CHECK_INT(count_named(&f, "copies", "written"), KEPT);
    CHECK_INT(f.list[0].expert, 7);
    check_nesting(&f);
    file_free(&f);
    cf_timeline_destroy(&t);
}

/* Several times, so that the end meets writers at different places. */
static void ends_while_others_write(void)
{
    cf_err err = {0};
    cf_timeline *t = NULL;
    const char *path = tmp_path(&dir, "race.json");
    REQUIRE(cf_timeline_create(&t, &err) == 0);
    for (int i = 0; i < 20; i++) {
        file f;
        writers_run(t, false, path);
        REQUIRE(file_load(&f, path));
        CHECK_INT(f.n, count_of(&f, "events"));
        CHECK(f.n + (size_t)count_of(&f, "dropped") <= WRITERS * PER_WRITER);
        file_free(&f);
    }
    cf_timeline_destroy(&t);
}

static void off_records_nothing(void)
{
    cf_err err = {0};
    cf_timeline *t = NULL;
    file f;
    const char *path = tmp_path(&dir, "off.json");
    uint64_t before = cf_clock_ns();
    REQUIRE(cf_timeline_create(&t, &err) == 0);
    CHECK_INT(cf_timeline_now(NULL), 0);
    CHECK_INT(cf_timeline_now(t), 0);
    cf_timeline_mark(NULL, CF_TRACK_STEPS, "none", 0, 0, before);
    cf_timeline_mark(t, CF_TRACK_STEPS, "off", 0, 0, before);
    CHECK_INT(cf_timeline_end(t, &err), 0);
    REQUIRE(cf_timeline_begin(t, path, 16, &err) == 0);
    cf_timeline_mark(t, CF_TRACK_STEPS, "began while off", 0, 0, 0);
    cf_timeline_mark(t, CF_TRACK_STEPS, "began before", 0, 0, before);
    cf_timeline_mark(t, CF_TRACK_STEPS, "kept", 3, CF_TIMELINE_NONE, cf_timeline_now(t));
    CHECK_INT(cf_timeline_end(t, &err), 0);
    REQUIRE(file_load(&f, path));
    CHECK_INT(f.n, 1);
    CHECK_STR(f.list[0].name, "kept");
    CHECK_STR(f.list[0].thread, "steps");
    CHECK_INT(f.list[0].layer, 3);
    CHECK_INT(f.list[0].rows, -1);
    file_free(&f);
    CHECK(cf_timeline_begin(t, tmp_path(&dir, "no/such"), 16, &err) < 0);
    CHECK_HAS(err.msg, "no/such");
    CHECK(!cf_timeline_on(t));
    cf_timeline_destroy(&t);
}

static void full_disk_is_reported(void)
{
    cf_err err = {0};
    cf_timeline *t = NULL;
    REQUIRE(cf_timeline_create(&t, &err) == 0);
    if (cf_timeline_begin(t, "/dev/full", 16, &err) < 0) {
        cf_timeline_destroy(&t);
        SKIP("there is no /dev/full");
    }
    CHECK(cf_timeline_end(t, &err) < 0);
    CHECK_HAS(err.msg, "/dev/full");
    CHECK_INT(cf_timeline_end(t, &err), 0);
    cf_timeline_destroy(&t);
}

/* ---- an engine's ---- */

/* Each step lies in a batch, each batch has every step of the plan. */
static void check_steps(const file *f, const cf_model *m, size_t batches)
{
    size_t seen = 0, inside = 0;
    const event *batch = NULL;
    for (size_t i = 0; i < f->n; i++) {
        const event *e = &f->list[i];
        if (!on_track(e, "steps"))
            continue;
        if (e->rows >= 0) {
            CHECK(seen == 0 || inside == m->n_steps);
            batch = e;
            inside = 0;
            seen++;
            continue;
        }
        REQUIRE(batch != NULL && inside < m->n_steps);
        CHECK(e->end <= batch->end + 1e-3);
        CHECK_STR(e->name, cf_step_name(m->steps[inside].kind));
        CHECK_INT(e->layer, m->steps[inside].layer);
        inside++;
    }
    CHECK_INT(seen, batches);
    CHECK_INT(inside, m->n_steps);
}

/* What is copied into a slot was read before. */
static void check_fills(const file *f)
{
    for (size_t i = 0; i < f->n; i++) {
        const event *fill = &f->list[i];
        if (!on_track(fill, "copies") || strcmp(fill->name, "fill") != 0)
            continue;
        bool read = false;
        for (size_t j = 0; j < f->n && !read; j++) {
            const event *r = &f->list[j];
            read = on_track(r, "reads") && r->layer == fill->layer && r->expert == fill->expert &&
                   r->end <= fill->begin + 1e-3;
        }
        CHECK(read);
    }
}

static void check_statistics(const file *f, const cf_stats *s)
{
    CHECK_INT(count_of(f, "dropped"), 0);
    CHECK_INT(count_of(f, "events"), f->n);
    CHECK_INT(count_named(f, "reads", "record"), s->all.misses);
    double stalls = s->stall_io_s + s->stall_copy_s;
    CHECK(fabs(seconds_of(f, "stalls", NULL) - stalls) < 1e-6 + 1e-6 * stalls);
    CHECK(fabs(seconds_of(f, "stalls", "copy") - s->stall_copy_s) < 1e-6);
    CHECK(fabs(seconds_of(f, "device waits", "device") - s->stall_device_s) < 1e-6);
    double batches = seconds_of(f, "steps", "prefill") + seconds_of(f, "steps", "decode");
    CHECK(batches <= s->prefill_s + s->decode_s);
    CHECK(batches >= stalls);
}

struct setting {
    const char *name, *memory;
    bool prefetch, tier;
};

static void engine_run(const struct setting *t)
{
    enum { CHUNK = 8, DECODED = 6 };
    cf_err err = {0};
    sized_model m;
    cf_session *s = NULL;
    cf_stats stats;
    file f;
    const char *path = tmp_path(&dir, "engine.json");
    oracle *o = oracle_load("tests/fixtures/models/longcat_flash");
    REQUIRE(o);
    REQUIRE(sized_model_open(&m, "tests/fixtures/models/longcat_flash"));
    cf_options options;
    cf_options_init(&options);
    options.device = "ref";
    options.ctx = 64;
    options.chunk = CHUNK;
    options.threads = 2;
    options.io = "pread";
    options.memory = t->memory;
    options.prefetch = t->prefetch;
    options.no_tier = !t->tier;
    options.ram_bytes = 64u << 20;
    cf_engine *e = sized_open(&m, &options, m.min_slots, false);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    CHECK_INT(cf_engine_timeline(e, path, &err), 0);
    CHECK_INT(cf_session_extend(s, o->prompt, o->n_prompt, CF_PHASE_PROMPT, NULL, &err), 0);
    for (uint32_t i = 0; i < DECODED; i++)
        CHECK_INT(cf_session_extend(s, o->prompt + i, 1, CF_PHASE_DECODE, NULL, &err), 0);
    cf_engine_get_stats(e, &stats);
    CHECK_INT(cf_engine_timeline(e, NULL, &err), 0);
    /* Off again: nothing is written any more, and nothing breaks. */
    CHECK_INT(cf_session_extend(s, o->prompt, 1, CF_PHASE_DECODE, NULL, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(file_load(&f, path));
    CHECK(stats.all.misses > 0);
    check_nesting(&f);
    check_steps(&f, e->model, (o->n_prompt + CHUNK - 1) / CHUNK + DECODED);
    check_statistics(&f, &stats);
    check_fills(&f);
    bool copied = !strcmp(t->memory, "discrete");
    CHECK(!copied || count_named(&f, "copies", "fill") > 0);
    CHECK(!t->tier || count_named(&f, "copies", "save") > 0);
    CHECK_INT(count_named(&f, "copies", "raise") > 0, copied && stats.all.ram_hits > 0);
    file_free(&f);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    sized_model_close(&m);
    oracle_free(o);
}

/* An engine that is closed while it records leaves a whole file. */
static void closing_writes(void)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_options options;
    file f;
    const char *path = tmp_path(&dir, "closed.json");
    cf_options_init(&options);
    options.device = "ref";
    options.ctx = 16;
    options.chunk = 16;
    REQUIRE(cf_engine_open(&e, "tests/fixtures/models/longcat_flash", &options, &err) == 0);
    cf_session *s = NULL;
    REQUIRE(cf_session_create(&s, e, &err) == 0);
    CHECK_INT(cf_engine_timeline(e, path, &err), 0);
    CHECK_INT(cf_session_extend(s, (int32_t[]){1, 2, 3}, 3, CF_PHASE_PROMPT, NULL, &err), 0);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    REQUIRE(file_load(&f, path));
    CHECK_INT(count_named(&f, "steps", "prefill"), 1);
    file_free(&f);
}

int main(void)
{
    tmp_dir_init(&dir);
    RUN(drops_are_counted);
    RUN(ends_while_others_write);
    RUN(off_records_nothing);
    RUN(full_disk_is_reported);
    static const struct setting settings[] = {
        {"in place", "auto", true, false},
        {"copied", "discrete", true, false},
        {"copied, reads at EXPERTS", "discrete", false, false},
        {"copied, two tiers", "discrete", true, true},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        RUN_NAMED(settings[i].name, engine_run(&settings[i]));
    RUN(closing_writes);
    tmp_dir_finish(&dir);
    return check_done();
}
