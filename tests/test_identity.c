/* Invariant 8 of the expert cache, from outside: on one device the output is a function of model,
 * prompt and chunk size, bit for bit. Catches a slot that is computed on too early, evicted too
 * early or holds another record's bytes; a sum whose order depends on what was resident; a piece
 * read from beside its place when a file is not aligned; a row window that is cut short.
 *
 * Each run is compared with one whose cache holds every expert: all logits of a prompt and of a
 * greedy continuation.
 *
 *     test_identity [BACKEND [short]]     short: a few ways of each kind, for slow builds */
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/reoffset.h"
#include "tests/support/sized.h"

enum { DECODE = 6 };

/* One way to run, and what it computed. */
struct way {
    const char *policy, *io, *memory;
    bool prefetch, direct, no_register, no_import, tight;
    uint32_t slots;
};

struct result {
    uint32_t n_rows, vocab;
    float *logits; /* [prompt + DECODE, vocab] */
    int32_t ids[DECODE];
    cf_stats stats;
};

static const char *device;
static oracle *prompt_of;
static int runs;
static bool in_short;

static cf_options options_of(const struct way *w, uint32_t chunk)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.ctx = 96;
    o.chunk = chunk;
    o.threads = 2;
    o.kv = "f32";
    o.policy = w->policy;
    o.io = w->io;
    o.memory = w->memory;
    o.prefetch = w->prefetch;
    o.direct = w->direct;
    o.no_register = w->no_register;
    o.no_import = w->no_import;
    return o;
}

static void row_keep(void *user, uint32_t position, const float *logits, const float *hidden)
{
    struct result *r = user;
    (void)hidden;
    if (position < r->n_rows)
        memcpy(r->logits + (size_t)position * r->vocab, logits, r->vocab * sizeof *logits);
}

static int32_t greedy(const float *logits, uint32_t vocab)
{
    int32_t best = 0;
    for (uint32_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best])
            best = (int32_t)v;
    return best;
}

static void result_free(struct result *r)
{
    free(r->logits);
    *r = (struct result){0};
}

/* Prompt in chunks, then DECODE tokens one at a time. */
static bool run(const sized_model *m, const struct way *w, uint32_t chunk, struct result *r)
{
    cf_err err = {0};
    cf_options o = options_of(w, chunk);
    cf_engine *e = sized_open(m, &o, w->slots, w->tight);
    cf_session *s = NULL;
    bool ok = e && cf_session_create(&s, e, &err) == 0;
    *r = (struct result){.n_rows = prompt_of->n_prompt + DECODE, .vocab = prompt_of->vocab};
    r->logits = calloc((size_t)r->n_rows * r->vocab, sizeof *r->logits);
    cf_outputs out = {.row = row_keep, .user = r};
    ok = ok && cf_session_extend(s, prompt_of->prompt, prompt_of->n_prompt, CF_PHASE_PROMPT, &out,
                                 &err) == 0;
    for (int i = 0; ok && i < DECODE; i++) {
        r->ids[i] = greedy(cf_session_logits(s), r->vocab);
        ok = cf_session_extend(s, &r->ids[i], 1, CF_PHASE_DECODE, &out, &err) == 0;
    }
    if (ok) {
        const char *verdict = cf_cache_verify(e->cache);
        cf_engine_get_stats(e, &r->stats);
        if (verdict)
            printf("    %s\n", verdict);
        ok = !verdict;
    }
    if (err.msg[0])
        printf("    %s\n", err.msg);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    runs++;
    return ok;
}

static struct way way_all(const sized_model *m)
{
    return (struct way){.policy = "lru",
                        .io = "uring",
                        .memory = "auto",
                        .prefetch = true,
                        .direct = true,
                        .slots = m->all_slots};
}

static void way_print(const struct way *w)
{
    printf("    at %u slots, %s, prefetch %d, %s, direct %d, no_register %d, memory %s, no_import "
           "%d, tight ram %d\n",
           w->slots, w->policy, w->prefetch, w->io, w->direct, w->no_register, w->memory,
           w->no_import, w->tight);
}

static void same_as(const sized_model *m, const struct way *w, uint32_t chunk,
                    const struct result *want)
{
    struct result got;
    bool ran = run(m, w, chunk, &got);
    size_t bytes = (size_t)want->n_rows * want->vocab * sizeof(float);
    bool same = ran && memcmp(got.logits, want->logits, bytes) == 0 &&
                memcmp(got.ids, want->ids, sizeof got.ids) == 0;
    if (!same)
        way_print(w);
    CHECK(ran);
    CHECK(same);
    /* Slots for everything miss each record once; few slots really miss more, in VRAM at least. */
    if (same && w->slots == m->min_slots)
        CHECK(got.stats.all.misses + got.stats.all.ram_hits > want->stats.all.misses);
    CHECK_INT(got.stats.all.lookups, want->stats.all.lookups);
    CHECK_INT(got.stats.all.vram_hits + got.stats.all.ram_hits + got.stats.all.misses,
              got.stats.all.lookups);
    result_free(&got);
}

/* ---- the matrices ---- */

static const char *const policies[] = {"lru", "lfu", "lfu:1"};

static struct way memory_set(struct way w, int kind)
{
    w.memory = kind == 0 ? "auto" : "discrete";
    w.no_import = kind == 2;
    return w;
}

/* Bits 0 .. 4 of n choose the rest. */
static struct way bits_set(struct way w, unsigned n)
{
    w.io = n & 1 ? "pread" : "uring";
    w.direct = !(n & 2);
    w.no_register = n & 4;
    w.tight = n & 8;
    w.prefetch = !(n & 16);
    return w;
}

/* Every cache size with every policy, prefetch on and off; the rest turns, kinds of memory first.
 */
static void every_size(const sized_model *m, uint32_t chunk, uint32_t step)
{
    struct result want;
    struct way all = way_all(m);
    REQUIRE(run(m, &all, chunk, &want));
    unsigned turn = 0;
    for (uint32_t slots = m->min_slots; slots <= m->all_slots; slots += step)
        for (unsigned policy = 0; policy < 3; policy++, turn++) {
            struct way w = bits_set(memory_set(all, (int)((slots + policy) % 3)), turn % 16);
            w.slots = slots;
            w.policy = policies[policy];
            for (int prefetch = 0; prefetch < 2; prefetch++) {
                w.prefetch = prefetch;
                same_as(m, &w, chunk, &want);
            }
        }
    result_free(&want);
}

/* Everything else against everything else, at the smallest cache. */
static void every_way(const sized_model *m, uint32_t chunk)
{
    struct result want;
    struct way all = way_all(m);
    REQUIRE(run(m, &all, chunk, &want));
    for (int kind = 0; kind < 3; kind++)
        for (unsigned n = 0; n < 32; n++) {
            struct way w = bits_set(memory_set(all, kind), n);
            w.slots = m->min_slots;
            same_as(m, &w, chunk, &want);
        }
    result_free(&want);
}

/* A few ways, for slow devices and larger models: each value of each setting at least once. */
static void some_ways(const sized_model *m, uint32_t chunk)
{
    struct result want;
    struct way all = way_all(m);
    REQUIRE(run(m, &all, chunk, &want));
    uint32_t sizes[] = {m->min_slots, m->min_slots + 1, (m->min_slots + m->all_slots) / 2,
                        m->all_slots};
    static const unsigned bits[] = {0, 5, 26, 12, 19, 11, 20, 1};
    for (unsigned i = 0; i < 8; i++) {
        struct way w = bits_set(memory_set(all, (int)(i % 3)), bits[i]);
        w.slots = i < 4 ? sizes[i] : sizes[i % 2];
        w.policy = policies[(i + i / 3) % 3];
        same_as(m, &w, chunk, &want);
    }
    result_free(&want);
}

/* The data section anywhere modulo 16: pieces are moved in place, or copied from odd places. */
static void any_offset(const sized_model *m, uint32_t chunk, const tmp_dir *dir, bool few)
{
    static const unsigned mods[] = {0, 1, 2, 4, 8, 14};
    struct result want;
    struct way all = way_all(m);
    REQUIRE(run(m, &all, chunk, &want));
    for (unsigned i = 0; i < 6; i++) {
        char name[96], path[1024];
        snprintf(name, sizeof name, "%s-%s-%u-%d", device, strrchr(m->model->dir, '/') + 1, mods[i],
                 few);
        snprintf(path, sizeof path, "%s", tmp_path(dir, name));
        reoffset_copy(m->model->dir, path, mods[i]);
        sized_model moved;
        REQUIRE(sized_model_open(&moved, path));
        for (int kind = 0; kind < 3; kind++) {
            if (few && (unsigned)kind != i % 3)
                continue;
            struct way w = bits_set(memory_set(all, kind), i);
            w.slots = m->min_slots + i % 2;
            same_as(&moved, &w, chunk, &want);
        }
        sized_model_close(&moved);
    }
    result_free(&want);
}

/* ---- a checkpoint on a device ---- */

static void model_run(const char *dir, bool small, const tmp_dir *tmp)
{
    char name[160];
    const char *tail = strrchr(dir, '/') + 1;
    bool ref = strncmp(device, "ref", 3) == 0;
    sized_model m;
    prompt_of = oracle_load(dir);
    if (!prompt_of || !sized_model_open(&m, dir)) {
        RUN_NAMED(dir, CHECK_NEVER("does not open"));
        return;
    }
    uint32_t long_chunk = 32; /* its union of experts exceeds the smallest cache */
    if (ref && small && !in_short) {
        snprintf(name, sizeof name, "%s %s every cache size, chunk 32", device, tail);
        RUN_NAMED(name, every_size(&m, long_chunk, 1));
        snprintf(name, sizeof name, "%s %s every cache size, chunk 5", device, tail);
        RUN_NAMED(name, every_size(&m, 5, 3));
        snprintf(name, sizeof name, "%s %s every way, chunk 3", device, tail);
        RUN_NAMED(name, every_way(&m, 3));
    } else {
        snprintf(name, sizeof name, "%s %s some ways, chunk 32", device, tail);
        RUN_NAMED(name, some_ways(&m, long_chunk));
    }
    snprintf(name, sizeof name, "%s %s any data offset", device, tail);
    if (small && (ref || !strstr(tail, "ngram")))
        RUN_NAMED(name, any_offset(&m, long_chunk, tmp, !ref || in_short));
    sized_model_close(&m);
    oracle_free(prompt_of);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    tmp_dir tmp;
    tmp_dir_init(&tmp);
    in_short = argc > 2 && strcmp(argv[2], "short") == 0;
    while (devices_next(&d)) {
        device = d.name;
        model_run("tests/fixtures/models/longcat_flash", true, &tmp);
        model_run("tests/fixtures/models/longcat_ngram", true, &tmp);
        if (d.ref) { /* records of six extents */
            model_run("tests/fixtures/models/deepseek_v3_fp8", false, &tmp);
            model_run("tests/fixtures/models/gpt_oss", false, &tmp);
        }
        if (!in_short)
            model_run("models/demo", false, &tmp);
    }
    printf("  %d runs\n", runs);
    tmp_dir_finish(&tmp);
    return check_done();
}
