/* Catches: a choice foreseen by the wrong router, from the wrong buffer, or at a layer that needs
 * no guess; output that depends on guesses; a guess that changes what is resident, so that a replay
 * without guesses no longer tells a run's evictions; counts that do not repeat or do not add up.
 *
 * Models of many families (tests/fixtures/models) run with a few slots, with guesses and without.
 */
#include <unistd.h>

#include <jansson.h>

#include "models/family.h"
#include "runtime/predict.h"
#include "runtime/replay.h"
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { PROMPT = 9, DECODE = 24 };

static tmp_dir dir;

static const char *fixture(const char *name)
{
    static char path[300];
    snprintf(path, sizeof path, "tests/fixtures/models/%s", name);
    return path;
}

/* ---- what is foreseen ---- */

/* Every MoE layer but the first is foreseen, by its own norm and router; in a model with a shortcut
 * around attention none is. */
static void foreseen_of(const char *name, bool shortcut)
{
    cf_err err = {0};
    cf_model *m = NULL;
    int rc = cf_model_open(&m, fixture(name), &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    REQUIRE(rc == 0);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        if (m->steps[i].kind != CF_STEP_ROUTE)
            continue;
        cf_predict p = cf_predict_find(m, i);
        bool last = m->steps[i].u.route.moe + 1 == m->n_moe;
        CHECK((p.route != NULL) == (!shortcut && !last));
        if (!p.route)
            continue;
        seen++;
        CHECK_INT(p.route->u.route.moe, m->steps[i].u.route.moe + 1);
        CHECK(p.norm->kind == CF_STEP_NORM && p.norm->layer == p.route->layer);
        CHECK(p.norm->dst == p.route->src && p.norm > &m->steps[i] && p.norm < p.route);
        CHECK_STR(m->bufs[p.norm->src].name, "x");
    }
    CHECK_INT(cf_predict_any(m), seen > 0);
    cf_model_free(&m);
}

static void test_foreseen(void)
{
    static const char *const foreseen[] = {
        "mixtral",    "qwen2_moe",   "qwen3_moe", "olmoe", "dbrx",    "deepseek_v1", "deepseek_v3",
        "granitemoe", "minicpm_moe", "glm4_moe",  "grok1", "kimi_k2", "llama4_scout"};
    for (size_t i = 0; i < sizeof foreseen / sizeof *foreseen; i++)
        foreseen_of(foreseen[i], false);
    foreseen_of("longcat_flash", true);
    foreseen_of("longcat_ngram", true);
}

/* ---- runs ---- */

typedef struct way {
    const char *model, *policy, *memory;
    uint32_t extra, chunk; /* slots beyond the fewest */
    bool prefetch;
} way;

typedef struct result {
    float *logits; /* [PROMPT + DECODE, vocab] */
    uint32_t vocab, rows;
    cf_stats stats;
    cf_cache_stats cache;
    cf_replay replay; /* of its own trace */
} result;

static void row_keep(void *user, uint32_t position, const float *logits, const float *hidden)
{
    result *r = user;
    (void)hidden;
    memcpy(r->logits + (size_t)position * r->vocab, logits, r->vocab * sizeof *logits);
    r->rows++;
}

static int engine_play(cf_engine *e, result *r, cf_err *err)
{
    int rc;
    cf_session *s = NULL;
    cf_outputs out = {.row = row_keep, .user = r};
    int32_t ids[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        ids[i] = (i * 37 + 11) % (int32_t)r->vocab;
    CF_TRY(cf_session_create(&s, e, err));
    CF_TRY(cf_session_extend(s, ids, PROMPT, CF_PHASE_PROMPT, &out, err));
    for (int i = 0; i < DECODE; i++) {
        int32_t id = (i * i * 13 + i * 5 + 3) % (int32_t)r->vocab;
        CF_TRY(cf_session_extend(s, &id, 1, CF_PHASE_DECODE, &out, err));
    }
fail:
    cf_session_destroy(&s);
    return rc;
}

static int way_options(const way *w, cf_options *o, cf_err *err)
{
    cf_engine *e = NULL;
    cf_options_init(o);
    o->device = "ref";
    o->ctx = 64;
    o->threads = 1;
    o->chunk = w->chunk;
    o->memory = w->memory;
    o->policy = w->policy;
    o->prefetch = w->prefetch;
    o->vram_bytes = 256u << 20;
    o->ram_bytes = 64u << 20;
    int rc = cf_engine_open(&e, w->model, o, err);
    if (rc == 0) {
        o->vram_bytes = e->plan.vram_dense + w->extra * e->plan.shape.slot_bytes;
        /* A RAM tier of about as many records. */
        o->ram_bytes = e->plan.ram_min + (100u << 10) + 2 * w->extra * e->plan.shape.slot_bytes;
    }
    cf_engine_close(&e);
    return rc;
}

static int replay_own(const char *path, const char *policy, uint64_t guess_slots, cf_replay *out,
                      cf_err *err)
{
    cf_routing *t = NULL;
    int rc = cf_trace_read(&t, path, err);
    if (rc < 0)
        return rc;
    CHECK_INT(t->header.guess_slots, guess_slots);
    *out = (cf_replay){.slots = t->header.slots, .slabs = t->header.slabs};
    rc = cf_replay_run(t, policy, out, 1, err);
    cf_routing_free(&t);
    return rc;
}

static bool run(const way *w, result *r)
{
    int rc;
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_options o;
    const char *path = tmp_path(&dir, "run.csv");
    *r = (result){0};
    CF_TRY(way_options(w, &o, &err));
    CF_TRY(cf_engine_open(&e, w->model, &o, &err));
    r->vocab = e->model->spec.vocab;
    r->logits = calloc((size_t)(PROMPT + DECODE) * r->vocab, sizeof *r->logits);
    CF_TRY(cf_engine_trace(e, path, &err));
    CF_TRY(engine_play(e, r, &err));
    CF_TRY(cf_engine_trace(e, NULL, &err));
    cf_engine_get_stats(e, &r->stats);
    cf_cache_get_stats(e->cache, &r->cache);
    const char *verdict = cf_cache_verify(e->cache);
    if (verdict)
        printf("    %s\n", verdict);
    CHECK(!verdict);
    CF_TRY(replay_own(path, w->policy, r->stats.guess_slots, &r->replay, &err));
fail:
    if (rc < 0)
        printf("    %s: %s\n", w->model, err.msg);
    CHECK_INT(rc, 0);
    cf_engine_close(&e);
    unlink(path);
    return rc == 0;
}

static void result_free(result *r)
{
    cf_replay_finish(&r->replay, 1);
    free(r->logits);
}

/* What a replay without guesses tells of a run with them. */
static void replay_agrees(const result *r)
{
    const cf_replay_counts *want = &r->replay.all;
    const cf_stats *s = &r->stats;
    uint64_t in_time = s->prefetch_used - s->prefetch_late;
    CHECK_INT(s->all.lookups, want->lookups);
    CHECK_INT(s->all.ram_hits, want->ram_hits);
    CHECK_INT(s->all.vram_hits, want->vram_hits + in_time);
    CHECK_INT(s->all.misses, want->misses - in_time);
    CHECK_INT(r->cache.evictions, want->evictions);
}

static void counts_add_up(const cf_stats *s)
{
    CHECK_INT(s->prefetch_issued, s->prefetch_used + s->prefetch_wasted + s->prefetch_cancelled);
    CHECK(s->prefetch_late <= s->prefetch_used);
    CHECK_INT(s->all.vram_hits + s->all.ram_hits + s->all.misses, s->all.lookups);
}

static void guesses_change_nothing(const way *given, uint64_t *issued, uint64_t *used)
{
    result on, again, off;
    way w = *given;
    w.prefetch = false;
    if (!run(&w, &off))
        return;
    w.prefetch = true;
    if (run(&w, &on) && run(&w, &again)) {
        size_t bytes = (size_t)on.rows * on.vocab * sizeof(float);
        bool same = on.rows == PROMPT + DECODE && !memcmp(on.logits, off.logits, bytes) &&
                    !memcmp(on.logits, again.logits, bytes);
        if (!same)
            printf("    %s, %s, %s, chunk %u, %u slots more\n", w.model, w.policy, w.memory,
                   w.chunk, w.extra);
        CHECK(same);
        CHECK_INT(on.stats.prefetch_issued, again.stats.prefetch_issued);
        CHECK_INT(on.stats.prefetch_used, again.stats.prefetch_used);
        CHECK_INT(on.cache.evictions, again.cache.evictions);
        counts_add_up(&on.stats);
        replay_agrees(&on);
        replay_agrees(&off);
        CHECK_INT(off.stats.prefetch_issued, 0);
        CHECK(w.extra || !on.stats.guess_slots); /* the fewest slots are all the cache's */
        *issued += on.stats.prefetch_issued;
        *used += on.stats.prefetch_used;
        result_free(&on);
        result_free(&again);
    }
    result_free(&off);
}

static void test_guesses_change_nothing(void)
{
    static const char *const models[] = {"mixtral", "minicpm_moe", "llama4_scout", "deepseek_v3",
                                         "dbrx"};
    static const char *const policies[] = {"echo", "lru", "phase", "lfu:0.9"};
    uint64_t issued = 0, used = 0;
    uint32_t turn = 0;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (uint32_t i = 0; i < 4; i++, turn++) {
            char path[300];
            snprintf(path, sizeof path, "%s", fixture(models[m]));
            way w = {.model = path,
                     .policy = policies[turn % 4],
                     .memory = (turn + turn / 4) % 2 ? "discrete" : "auto",
                     .extra = i,
                     .chunk = i % 2 ? 1 : 5};
            guesses_change_nothing(&w, &issued, &used);
        }
    printf("    %llu guesses, %llu used\n", (unsigned long long)issued, (unsigned long long)used);
    CHECK(issued > 100 && used > 20 && used <= issued);
}

/* ---- the right router, the right buffer ---- */

static bool ends_in(const char *name, const char *const *ends)
{
    for (size_t n = strlen(name); *ends; ends++)
        if (n >= strlen(*ends) && strcmp(name + n - strlen(*ends), *ends) == 0)
            return true;
    return false;
}

/* Copies a fixture; tensors whose names end in one of `zero` become zero. */
static bool file_copy(const char *from, const char *to, const char *const *zero)
{
    FILE *in = fopen(from, "rb");
    if (!in)
        return false;
    fseek(in, 0, SEEK_END);
    size_t n = (size_t)ftell(in);
    rewind(in);
    uint8_t *data = malloc(n + 1);
    bool ok = data && fread(data, 1, n, in) == n;
    fclose(in);
    const char *dot = strrchr(from, '.');
    if (ok && dot && strcmp(dot, ".safetensors") == 0) {
        uint64_t header = 0;
        memcpy(&header, data, sizeof header);
        json_t *j = json_loadb((char *)data + 8, header, 0, NULL);
        const char *name;
        json_t *tensor;
        json_object_foreach(j, name, tensor)
        {
            const json_t *o = json_object_get(tensor, "data_offsets");
            uint64_t begin = (uint64_t)json_integer_value(json_array_get(o, 0));
            uint64_t end = (uint64_t)json_integer_value(json_array_get(o, 1));
            if (ends_in(name, zero))
                memset(data + 8 + header + begin, 0, end - begin);
        }
        json_decref(j);
    }
    if (ok)
        tmp_write(to, data, n);
    free(data);
    return ok;
}

/* With nothing added to the stream between the routers, what is foreseen is what comes. */
static void right_when_nothing_is_added(const char *name, const char *const *zero)
{
    static const char *const files[] = {
        "config.json", "model.safetensors", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    uint32_t copied = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char from[400];
        snprintf(from, sizeof from, "%s/%s", fixture(name), files[i]);
        copied += file_copy(from, tmp_path(&dir, files[i]), zero);
    }
    REQUIRE(copied >= 2);
    for (uint32_t chunk = 1; chunk <= 9; chunk += 8) {
        way w = {.model = dir.path,
                 .policy = "echo",
                 .memory = "auto",
                 .extra = 2,
                 .chunk = chunk,
                 .prefetch = true};
        result r;
        if (!run(&w, &r))
            return;
        CHECK(r.stats.prefetch_issued > 10);
        CHECK_INT(r.stats.prefetch_used, r.stats.prefetch_issued);
        replay_agrees(&r);
        result_free(&r);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        unlink(tmp_path(&dir, files[i]));
}

static void test_right_when_nothing_is_added(void)
{
    static const char *const plain[] = {".w2.weight", ".o_proj.weight", NULL};
    static const char *const offset[] = {".down_proj.weight", ".o_proj.weight", ".out_proj.weight",
                                         NULL};
    right_when_nothing_is_added("mixtral", plain);
    right_when_nothing_is_added("qwen3_next", offset); /* norms by 1 + w */
}

int main(void)
{
    tmp_dir_init(&dir);
    RUN(test_foreseen);
    RUN(test_right_when_nothing_is_added);
    RUN(test_guesses_change_nothing);
    tmp_dir_finish(&dir);
    return check_done();
}
