/* Catches: a replay that does not decide what the run decided (hits of either tier, misses,
 * evictions, per layer and phase; every policy, one tier and two, chunks of two sizes, prefetch on
 * and off), a trace reader that accepts what is malformed or joins rows to other groups than the
 * run did, and a MIN that is beaten by a policy or by exhaustive search. */
#include <unistd.h>
#include <zstd.h>

#include "runtime/engine.h"
#include "runtime/replay.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

static const char model_dir[] = "models/demo";
static tmp_dir dir;

/* ---- a run's own trace ---- */

enum { MAX_IDS = 96 };

static uint32_t ids_load(int32_t *ids)
{
    FILE *f = fopen("models/demo/oracle/eval.ids", "r");
    uint32_t n = 0;
    while (f && n < MAX_IDS && fscanf(f, "%d", &ids[n]) == 1)
        n++;
    if (f)
        fclose(f);
    return n;
}

/* Prompt, decode, prompt again, and a second session of text: chunks of every kind. */
static int engine_play(cf_engine *e, const int32_t *ids, cf_err *err)
{
    int rc = 0;
    cf_session *s = NULL, *other = NULL;
    CF_TRY(cf_session_create(&s, e, err));
    CF_TRY(cf_session_create(&other, e, err));
    CF_TRY(cf_session_extend(s, ids, 23, CF_PHASE_PROMPT, NULL, err));
    for (int i = 0; i < 14; i++)
        CF_TRY(cf_session_extend(s, ids + 23 + i, 1, CF_PHASE_DECODE, NULL, err));
    CF_TRY(cf_session_extend(s, ids + 37, 1, CF_PHASE_PROMPT, NULL, err));
    CF_TRY(cf_session_extend(s, ids + 38, 1, CF_PHASE_PROMPT, NULL, err));
    CF_TRY(cf_session_extend(s, ids + 39, 9, CF_PHASE_PROMPT, NULL, err));
    CF_TRY(cf_session_extend(other, ids + 30, 21, CF_PHASE_TEXT, NULL, err));
    for (int i = 0; i < 10; i++)
        CF_TRY(cf_session_extend(i % 3 ? s : other, ids + 51 + i, 1, CF_PHASE_DECODE, NULL, err));
fail:
    cf_session_destroy(&s);
    cf_session_destroy(&other);
    return rc;
}

static void counts_equal(const char *what, const cf_replay_counts *r, const cf_expert_counts *e)
{
    if (r->lookups == e->lookups && r->vram_hits == e->vram_hits && r->ram_hits == e->ram_hits &&
        r->misses == e->misses && r->evictions == e->evictions)
        return;
    printf("    %s: replayed %llu = %llu + %llu + %llu, run %llu = %llu + %llu + %llu; evictions "
           "%llu, "
           "%llu\n",
           what, (unsigned long long)r->lookups, (unsigned long long)r->vram_hits,
           (unsigned long long)r->ram_hits, (unsigned long long)r->misses,
           (unsigned long long)e->lookups, (unsigned long long)e->vram_hits,
           (unsigned long long)e->ram_hits, (unsigned long long)e->misses,
           (unsigned long long)r->evictions, (unsigned long long)e->evictions);
    check_case_failed = true;
}

static void sum_phases(const cf_replay *r, uint32_t n_moe, uint32_t moe, cf_replay_counts *out)
{
    *out = (cf_replay_counts){0};
    for (uint32_t p = 0; p < 3; p++) {
        const cf_replay_counts *c = &r->layers[p * n_moe + moe];
        out->lookups += c->lookups;
        out->vram_hits += c->vram_hits;
        out->ram_hits += c->ram_hits;
        out->misses += c->misses;
        out->evictions += c->evictions;
    }
}

static void run_compare(const cf_engine *e, const char *path, const char *policy)
{
    cf_err err = {0};
    cf_routing *t = NULL;
    int rc = cf_trace_read(&t, path, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    REQUIRE(rc == 0);
    CHECK_INT(t->n_moe, e->model->n_moe);
    CHECK_INT(t->header.chunk, e->plan.chunk);
    CHECK_INT(t->header.slots, e->plan.shape.n_slots);
    CHECK_STR(t->header.policy, policy);
    CHECK_INT(t->header.slabs, e->plan.shape.n_tier);
    cf_replay r = {.slots = t->header.slots, .slabs = t->header.slabs};
    rc = cf_replay_run(t, policy, &r, 1, &err);
    CHECK_INT(rc, 0);
    if (rc == 0) {
        cf_replay_counts prefill = r.phase[CF_PHASE_PROMPT];
        prefill.lookups += r.phase[CF_PHASE_TEXT].lookups;
        prefill.vram_hits += r.phase[CF_PHASE_TEXT].vram_hits;
        prefill.ram_hits += r.phase[CF_PHASE_TEXT].ram_hits;
        prefill.misses += r.phase[CF_PHASE_TEXT].misses;
        prefill.evictions += r.phase[CF_PHASE_TEXT].evictions;
        counts_equal("prefill", &prefill, &e->counters.prefill);
        counts_equal("decode", &r.phase[CF_PHASE_DECODE], &e->counters.decode);
        for (uint32_t m = 0; m < t->n_moe; m++) {
            char name[32];
            cf_replay_counts c;
            snprintf(name, sizeof name, "MoE layer %u", m);
            sum_phases(&r, t->n_moe, m, &c);
            counts_equal(name, &c, &e->counters.layers[m]);
        }
        CHECK(r.all.misses + r.all.ram_hits <= r.slots + r.all.evictions);
    }
    cf_replay_finish(&r, 1);
    cf_routing_free(&t);
}

static cf_options options_make(uint32_t chunk)
{
    cf_options o;
    cf_options_init(&o);
    o.device = "ref";
    o.ctx = 64;
    o.sessions = 2;
    o.chunk = chunk;
    o.threads = 2;
    o.vram_bytes = 256u << 20;
    o.ram_bytes = 64u << 20;
    return o;
}

static void engine_case(const char *policy, cf_options o, const char *file)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    int32_t ids[MAX_IDS];
    const char *path = tmp_path(&dir, file);
    REQUIRE(ids_load(ids) >= 62);
    o.policy = policy;
    int rc = cf_engine_open(&e, model_dir, &o, &err);
    if (rc == 0)
        rc = cf_engine_trace(e, path, &err);
    if (rc == 0)
        rc = engine_play(e, ids, &err);
    if (rc == 0)
        rc = cf_engine_trace(e, NULL, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    if (rc == 0) {
        CHECK(e->counters.decode.misses > 0 && e->counters.decode.vram_hits > 0);
        CHECK(e->counters.decode.evictions > 0 && e->counters.prefill.evictions > 0);
        CHECK((e->plan.shape.n_tier != 0) == (e->counters.decode.ram_hits != 0));
        run_compare(e, path, policy);
    }
    cf_engine_close(&e);
    unlink(path);
}

/* VRAM for `more_slots` beyond the fewest; with two tiers, RAM for `tier` places (about). */
static bool options_size(cf_options *o, uint32_t more_slots, uint32_t tier)
{
    cf_engine *e = NULL;
    o->memory = tier ? "discrete" : "auto";
    o->no_tier = !tier;
    o->vram_bytes = 256u << 20;
    o->ram_bytes = 64u << 20;
    bool opened = cf_engine_open(&e, model_dir, o, NULL) == 0;
    if (opened) {
        const cf_memory_plan *p = &e->plan;
        o->vram_bytes = p->vram_dense + more_slots * p->shape.slot_bytes;
        /* Slabs may take half of what is left. */
        if (tier)
            o->ram_bytes = p->ram_min + 2 * tier * p->shape.slot_bytes;
    }
    cf_engine_close(&e);
    return opened;
}

/* One tier at the fewest slots, where a chunk's set exceeds them, and with more; two tiers with R
 * below and above V; two sizes of chunks. Every policy in each, prefetch on in every other. */
static void test_replay_equals_run(void)
{
    static const char *const policies[] = {"lru", "lfu", "lfu:0.9", "phase", "echo"};
    static const struct {
        uint32_t chunk, more_slots, tier;
    } cases[] = {{7, 0, 0}, {7, 21, 0}, {32, 0, 0}, {32, 60, 0}, {7, 6, 5}, {32, 12, 40}};
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cf_options o = options_make(cases[i].chunk);
        REQUIRE(options_size(&o, cases[i].more_slots, cases[i].tier));
        for (uint32_t k = 0; k < sizeof policies / sizeof *policies; k++) {
            o.prefetch = (i + k) % 2;
            engine_case(policies[k], o, (i + k) % 3 ? "run.csv" : "run.csv.zst");
        }
    }
}

/* ---- the reader ---- */

#define HEAD    "#{\"model\":\"m\",\"n_layers\":3,\"n_experts\":8,\"zero_experts\":2,\"top_k\":2"
#define COLUMNS "\n" CF_TRACE_COLUMNS "\n"

static int parse(cf_routing **t, const char *text, cf_err *err)
{
    *err = (cf_err){0};
    *t = NULL;
    return cf_trace_parse(t, "trace", text, strlen(text), err);
}

static void refused(const char *text, const char *sentence)
{
    cf_err err;
    cf_routing *t;
    CHECK(parse(&t, text, &err) < 0);
    CHECK(t == NULL);
    CHECK_HAS(err.msg, sentence);
    cf_routing_free(&t);
}

static void test_reader_refuses(void)
{
    refused("", "is empty");
    refused("{}\n", "line 1: a trace begins with #");
    refused("#{\n", "line 1: ");
    refused("#[1]\n", "line 1: the header is not a JSON object");
    refused("#{\"top_k\":2}" COLUMNS, "lacks \"n_experts\"");
    refused("#{\"n_experts\":\"8\"}" COLUMNS, "\"n_experts\" must be a number from 1");
    refused("#{\"n_experts\":8,\"top_k\":65}" COLUMNS, "\"top_k\" must be a number from 1 to 64");
    refused(HEAD "}\nsession,token\n", "line 2: the columns must be");
    refused(HEAD "}", "line 2");
    refused(HEAD "}" COLUMNS, "holds no rows");
    static const struct {
        const char *row, *sentence;
    } rows[] = {
        {"", "line 4: a row begins"},
        {"x,0,D,0,1 2,", "line 4: a row begins"},
        {"0,-1,D,0,1 2,", "line 4: a row begins"},
        {"0,4294967296,D,0,1 2,", "line 4: a row begins"},
        {"0,1,X,0,1 2,", "line 4: the phase"},
        {"0,1,DD,0,1 2,", "line 4: the phase"},
        {"0,1,D,4,1 2,", "line 4: the layer"},
        {"0,1,D,a,1 2,", "line 4: the layer"},
        {"0,1,D,0, ,", "line 4: the experts"},
        {"0,1,D,0,,0.5", "line 4: the weights"},
        {"0,1,D,0,1  2,", "line 4: the experts"},
        {"0,1,D,0,1 2", "line 4: the experts"},
        {"0,1,D,0,1 2 3,", "line 4: there are more experts"},
        {"0,1,D,0,1 1,", "line 4: expert 1 is chosen twice"},
        {"0,1,D,0,1 10,", "line 4: expert 10 of 10 does not exist"},
        {"0,1,D,0,1 70000,", "line 4: the experts"},
        {"0,1,D,0,1 2,0.5", "line 4: the weights"},
        {"0,1,D,0,1 2,0.5 nan", "line 4: the weights"},
        {"0,1,D,0,1 2,0.5 0.5 0.5", "line 4: the weights"},
        {"0,1,D,0,1 2,0.5 1e99", "line 4: the weights"},
        {"0,0,D,0,3 4,", "line 4: the row repeats"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        snprintf(text, sizeof text, HEAD "}" COLUMNS "0,0,D,0,1 2,\n%s\n", rows[i].row);
        refused(text, rows[i].sentence);
    }
    /* A line without an end in sight. */
    size_t n = 1 << 16;
    char *text = malloc(n + 1);
    memset(text, '1', n);
    text[n] = 0;
    memcpy(text, HEAD "}" COLUMNS, sizeof HEAD "}" COLUMNS - 1);
    refused(text, "line 3 is longer than");
    free(text);
}

static void test_reader_takes(void)
{
    cf_err err;
    cf_routing *t;
    REQUIRE(parse(&t, HEAD "}" COLUMNS "0,0,D,1,9 3,0.25 0.5\r\n0,0,D,3,7 2,1 -2e-1", &err) == 0);
    CHECK_INT(t->n_rows, 2);
    CHECK_INT(t->n_moe, 2);
    CHECK_INT(t->layers[0], 1);
    CHECK_INT(t->layers[1], 3);
    CHECK_INT(t->rows[0].k, 1);
    CHECK_INT(t->rows[0].zero, 1);
    CHECK_INT(t->ids[0], 3);
    CHECK(t->weights[0] == 0.5f);
    CHECK_INT(t->ids[1], 2);
    CHECK(t->weights[1] == -0.2f && t->weights[2] == 1);
    CHECK_INT(t->n_chunks, 1);
    CHECK_INT(t->n_groups, 2);
    cf_routing_free(&t);
}

static uint64_t random_next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* What the writer writes is read back to the bit: gates decide between experts. */
static void test_round_trip(void)
{
    enum { ROWS = 300, K = 5 };
    const char *path = tmp_path(&dir, "trip.csv.zst");
    uint64_t seed = 3;
    cf_err err = {0};
    cf_trace *w = NULL;
    cf_routing *t = NULL;
    float weights[ROWS][K];
    REQUIRE(cf_trace_open(&w, path, "{\"n_experts\":40}", &err) == 0);
    for (uint32_t r = 0; r < ROWS; r++) {
        uint32_t ids[K];
        for (uint32_t i = 0; i < K; i++) {
            ids[i] = i * 8 + (uint32_t)random_next(&seed) % 8;
            weights[r][i] = (float)random_next(&seed) * 0x1p-31f + 1e-7f;
        }
        CHECK_INT(cf_trace_row(w, 0, r, CF_PHASE_DECODE, 2, ids, weights[r], K, &err), 0);
    }
    CHECK_INT(cf_trace_close(&w, &err), 0);
    REQUIRE(cf_trace_read(&t, path, &err) == 0);
    CHECK_INT(t->n_rows, ROWS);
    CHECK(t->n_ids == ROWS * K && memcmp(t->weights, weights, sizeof weights) == 0);
    cf_routing_free(&t);
}

/* zstd: several frames are one text; cut off or damaged data is refused. */
static void test_reader_zstd(void)
{
    static const char a[] = HEAD "}" COLUMNS "0,0,D,0,1 2,\n0,1", b[] = ",D,0,3 4,\n";
    char packed[512];
    cf_err err = {0};
    cf_routing *t = NULL;
    size_t n = ZSTD_compress(packed, sizeof packed, a, sizeof a - 1, 1);
    size_t m = ZSTD_compress(packed + n, sizeof packed - n, b, sizeof b - 1, 1);
    REQUIRE(!ZSTD_isError(n) && !ZSTD_isError(m));
    CHECK_INT(cf_trace_parse(&t, "trace", packed, n + m, &err), 0);
    CHECK_INT(t ? t->n_rows : 0, 2);
    cf_routing_free(&t);
    CHECK(cf_trace_parse(&t, "trace", packed, n + m - 3, &err) < 0);
    CHECK_HAS(err.msg, "is cut off");
    err = (cf_err){0};
    packed[n + 8] ^= 0x55;
    packed[n + 4] ^= 0x55;
    CHECK(cf_trace_parse(&t, "trace", packed, n + m, &err) < 0);
    CHECK_HAS(err.msg, "cannot be decompressed");
    err = (cf_err){0};
    CHECK(cf_trace_read(&t, "tests/no such file", &err) < 0);
    CHECK_HAS(err.msg, "cannot open trace tests/no such file");
}

/* A window beyond the bound is refused before it is allocated. */
static void test_reader_window(void)
{
    char packed[256];
    cf_err err = {0};
    cf_routing *t = NULL;
    ZSTD_CCtx *c = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 28);
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0);
    ZSTD_inBuffer in = {HEAD, sizeof HEAD - 1, 0};
    ZSTD_outBuffer out = {packed, sizeof packed, 0};
    size_t rc = ZSTD_compressStream2(c, &out, &in, ZSTD_e_continue);
    while (!ZSTD_isError(rc) && (rc = ZSTD_compressStream2(c, &out, &in, ZSTD_e_end)) != 0)
        ;
    ZSTD_freeCCtx(c);
    CHECK_INT(rc, 0);
    CHECK(cf_trace_parse(&t, "trace", packed, out.pos, &err) < 0);
    CHECK_HAS(err.msg, "cannot be decompressed");
}

/* Chunks as "n_rows phase: union | union ...", one per chunk. */
static void chunks_text(const cf_routing *t, char *out, size_t size)
{
    size_t at = 0;
    out[0] = 0;
    for (uint64_t c = 0; c < t->n_chunks; c++) {
        const cf_routing_chunk *k = &t->chunks[c];
        at += (size_t)snprintf(out + at, size - at, "%s%u%c", c ? " " : "", k->n_rows,
                               CF_TRACE_PHASES[k->phase]);
        for (uint32_t g = 0; g < k->n_groups; g++) {
            const cf_routing_group *group = &t->groups[k->first_group + g];
            at += (size_t)snprintf(out + at, size - at, "%c", g ? '|' : ':');
            for (uint32_t i = 0; i < group->n_union; i++)
                at += (size_t)snprintf(out + at, size - at, "%u", t->ids[group->first_union + i]);
        }
    }
}

static void chunked(const char *header, const char *rows, const char *expected)
{
    char text[1024], got[512];
    cf_err err;
    cf_routing *t;
    snprintf(text, sizeof text, HEAD "%s}" COLUMNS "%s", header, rows);
    int rc = parse(&t, text, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    REQUIRE(rc == 0);
    chunks_text(t, got, sizeof got);
    CHECK_STR(got, expected);
    cf_routing_free(&t);
}

static void test_chunks(void)
{
    static const char by_token[] = "0,0,P,0,1 2,\n0,0,P,1,3 4,\n0,1,P,0,2 5,\n0,1,P,1,9 6,\n"
                                   "0,2,P,0,0 7,\n0,2,P,1,8 9,\n0,3,D,0,1 0,\n0,3,D,1,1 2,\n";
    static const char by_layer[] = "0,0,P,0,1 2,\n0,1,P,0,2 5,\n0,2,P,0,0 7,\n0,0,P,1,3 4,\n"
                                   "0,1,P,1,9 6,\n0,2,P,1,8 9,\n0,3,D,0,1 0,\n0,3,D,1,1 2,\n";
    chunked("", by_token, "1P:12|34 1P:25|6 1P:07| 1D:01|12");
    chunked(",\"chunk\":2", by_token, "2P:125|346 1P:07| 1D:01|12");
    chunked(",\"chunk\":8", by_token, "3P:01257|346 1D:01|12");
    chunked(",\"chunk\":8,\"order\":\"plan\"", by_token, "1P:12|34 1P:25|6 1P:07| 1D:01|12");
    chunked(",\"chunk\":8", by_layer, "3P:01257|346 1D:01|12");
    chunked(",\"chunk\":8,\"order\":\"plan\"", by_layer, "3P:01257|346 1D:01|12");
    /* Sessions and phases part chunks; a batch of sessions decodes together. */
    chunked(",\"chunk\":8", "0,0,P,0,1 2,\n1,0,P,0,3 4,\n1,1,T,0,5 6,\n", "1P:12 1P:34 1T:56");
    chunked(",\"chunk\":8",
            "0,5,D,0,1 2,\n1,9,D,0,3 4,\n0,5,D,1,5 6,\n1,9,D,1,6 7,\n0,6,D,0,1 3,\n",
            "2D:1234|567 1D:13");
    /* A layer that some tokens leave out. */
    chunked(",\"chunk\":8", "0,0,P,0,1 2,\n0,1,P,0,3 4,\n0,1,P,1,5 6,\n", "2P:1234|56");
    /* One layer only: nothing but the numbers parts the chunks. */
    chunked(",\"chunk\":2",
            "0,0,T,2,1 2,\n0,1,T,2,3 4,\n0,2,T,2,5 6,\n0,3,D,2,7 1,\n0,4,D,2,7 2,\n",
            "2T:1234 1T:56 1D:17 1D:27");
}

/* ---- MIN ---- */

/* Fewest misses from group g on, by trying every victim. resident: a bit per key. */
static uint32_t exhaust(const cf_routing *t, uint64_t g, uint32_t resident, uint32_t slots)
{
    if (g == t->n_groups)
        return 0;
    const cf_routing_group *group = &t->groups[g];
    uint32_t set = 0, best = UINT32_MAX;
    for (uint32_t i = 0; i < group->n_union; i++)
        set |= 1u << (group->moe * t->header.n_experts + t->ids[group->first_union + i]);
    uint32_t misses = (uint32_t)__builtin_popcount(set & ~resident);
    uint32_t others = resident & ~set;
    uint32_t room = slots - (uint32_t)__builtin_popcount(set);
    /* Forced admission, and only as many leave as must. */
    uint32_t keep_n = (uint32_t)__builtin_popcount(others);
    keep_n = keep_n < room ? keep_n : room;
    for (uint32_t keep = others;; keep = (keep - 1) & others) {
        if ((uint32_t)__builtin_popcount(keep) == keep_n) {
            uint32_t m = exhaust(t, g + 1, keep | set, slots);
            best = m < best ? m : best;
        }
        if (!keep)
            break;
    }
    return misses + best;
}

static void test_min_is_optimal(void)
{
    uint64_t seed = 7;
    for (int round = 0; round < 40; round++) {
        char text[2048];
        int n = snprintf(text, sizeof text, "#{\"n_experts\":4,\"top_k\":2}" COLUMNS);
        for (int token = 0; token < 4; token++)
            for (int layer = 0; layer < 2; layer++) {
                unsigned a = (unsigned)random_next(&seed) % 4, b = (unsigned)random_next(&seed) % 4;
                n += snprintf(text + n, sizeof text - (size_t)n, "0,%d,D,%d,%u", token, layer, a);
                n += snprintf(text + n, sizeof text - (size_t)n, b == a ? ",\n" : " %u,\n", b);
            }
        cf_err err;
        cf_routing *t;
        REQUIRE(parse(&t, text, &err) == 0);
        cf_replay min = {.slots = 4}, lru = {.slots = 4}, echo = {.slots = 4};
        REQUIRE(cf_replay_min(t, &min, 1, &err) == 0);
        REQUIRE(cf_replay_run(t, "lru", &lru, 1, &err) == 0);
        REQUIRE(cf_replay_run(t, "echo", &echo, 1, &err) == 0);
        CHECK_INT(min.all.misses, exhaust(t, 0, 0, 4));
        CHECK(min.all.misses <= lru.all.misses && min.all.misses <= echo.all.misses);
        cf_replay_finish(&min, 1);
        cf_replay_finish(&lru, 1);
        cf_replay_finish(&echo, 1);
        cf_routing_free(&t);
    }
}

static void test_replay_refuses(void)
{
    cf_err err;
    cf_routing *t;
    REQUIRE(parse(&t, HEAD "}" COLUMNS "0,0,D,0,1 2,\n", &err) == 0);
    cf_replay few = {.slots = 3}, fine = {.slots = 4};
    CHECK(cf_replay_run(t, "lru", &few, 1, &err) < 0);
    CHECK_HAS(err.msg, "3 slots are too few: 4");
    err = (cf_err){0};
    CHECK(cf_replay_min(t, &few, 1, &err) < 0);
    err = (cf_err){0};
    CHECK(cf_replay_run(t, "mru", &fine, 1, &err) < 0);
    CHECK_HAS(err.msg, "\"mru\" is unknown");
    cf_routing_free(&t);
}

int main(void)
{
    tmp_dir_init(&dir);
    RUN(test_reader_refuses);
    RUN(test_reader_takes);
    RUN(test_round_trip);
    RUN(test_reader_zstd);
    RUN(test_reader_window);
    RUN(test_chunks);
    RUN(test_min_is_optimal);
    RUN(test_replay_refuses);
    RUN(test_replay_equals_run);
    tmp_dir_finish(&dir);
    return check_done();
}
