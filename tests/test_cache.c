/* Catches: an expert computed on from the wrong bytes; a record in two slots, read twice or handed
 * out twice; a victim that depends on what arrived when; a pinned slot that is written; a failed
 * read that leaks a slot, is told twice or never, or spoils the next group.
 *
 * Guesses: one that evicts, that makes a demand wait, that is read twice, or whose place is lost.
 *
 * Random groups run through the cache and through a plain model of it: what is in VRAM, what in
 * RAM, and "the least worthy outside the group goes". Numbers are expert_cache.c's invariants.
 * Device work copies every piece of every entry out, under the hazard tracker; the device says
 * "done" only when it is waited for, so that nothing is reused by luck. */
#include "runtime/expert_cache.h"

#include <stdatomic.h>
#include <unistd.h>

#include "gpu/backend.h"
#include "runtime/base/align.h"
#include "runtime/base/rng.h"
#include "runtime/copier.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum {
    LAYERS = 3,
    EXPERTS = 16, /* of the largest layer */
    TOP_K = 3,
    ROWS = 11,
    COLS = 37,
    MAX_RECORD = 3 * 2 * ROWS * COLS * LAYERS,
    FILES = 2,
    FILE_BYTES = 400 << 10
};

static tmp_dir dir;
static char paths[FILES][300];
static cf_extent extents[LAYERS][EXPERTS][CF_EXPERT_PIECES];
static cf_moe_def moes[LAYERS];
static cf_model model = {.moe = moes, .n_moe = LAYERS};

/* ---- a checkpoint without meaning: records side by side, apart, across files, unaligned ---- */

static void model_make(void)
{
    cf_rng rng = {7};
    uint64_t at[FILES] = {13, 4096};
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t rows = ROWS * (l + 1);
        moes[l] = (cf_moe_def){
            .layer = l, .experts = EXPERTS - 3 * l, .top_k = TOP_K,
            .n_extents = CF_EXPERT_PIECES, .extents = &extents[l][0][0]};
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            moes[l].pieces[p] = (cf_piece_def){
                .dtype = CF_BF16, .rows = rows, .cols = COLS, .extent = (uint32_t)p};
        for (uint32_t e = 0; e < moes[l].experts; e++)
            for (int p = 0; p < CF_EXPERT_PIECES; p++) {
                uint32_t file = (uint32_t)cf_rng_below(&rng, 8) == 0 ? 1 : e % FILES;
                uint64_t bytes = (uint64_t)rows * COLS * 2;
                switch (cf_rng_below(&rng, 4)) {
                case 0:
                    at[file] = cf_align_up(at[file], 4096);
                    break;
                case 1:
                    at[file] += cf_rng_below(&rng, 9000);
                    break;
                default:
                    break; /* adjacent */
                }
                extents[l][e][p] = (cf_extent){.file = file, .off = at[file], .bytes = bytes};
                at[file] += bytes;
                cf_assert(at[file] <= FILE_BYTES);
            }
    }
    for (uint32_t f = 0; f < FILES; f++) {
        snprintf(paths[f], sizeof paths[f], "%s/shard%u", dir.path, f);
        tmp_write_pattern(paths[f], FILE_BYTES, f);
    }
}

/* ---- a device that is done only when it is waited for ---- */

static _Atomic uint64_t waited[CF_STREAM_COUNT];
static struct cf_gpu_fns lazy_fns;

static bool lazy_reached(cf_gpu *gpu, cf_gpu_point point)
{
    (void)gpu;
    return point.value <= atomic_load(&waited[point.stream]);
}

static int lazy_wait(cf_gpu *gpu, cf_gpu_point point, cf_err *err)
{
    uint64_t before = atomic_load(&waited[point.stream]);
    while (before < point.value &&
           !atomic_compare_exchange_weak(&waited[point.stream], &before, point.value))
        ;
    return cf_ref_fns.wait(gpu, point, err);
}

/* ---- a cache with what it needs ---- */

typedef enum { IN_PLACE, DISCRETE, STAGED } memory_mode;

typedef struct setup {
    const char *name;
    memory_mode memory;
    uint32_t slots, slabs, tier, guess; /* guess: places for guesses */
    bool prefetch;
    const char *policy;
    cf_io_fault fault;
    enum { NEVER_FAILS, MAY_FAIL, FAILS } fails; /* for good, after the fetcher's retry */
} setup;

typedef enum { NOWHERE, VRAM, RAM } place;

typedef struct group {
    uint32_t moe, n, experts[EXPERTS];
    uint32_t hits, ram_hits;
    bool overflows;
    uint32_t order[EXPERTS]; /* entry -> expert, as the cache must process them */
    uint64_t read_bytes;     /* of those that are nowhere */
} group;

/* What the cache may make of guesses: the next group's records that are nowhere, and how often such
 * guesses were right, by layer. */
typedef struct guess_model {
    bool drawn; /* `next` is */
    group next;
    uint32_t moe, n, experts[EXPERTS];
    bool on;
    uint32_t made[LAYERS], right[LAYERS]; /* lately */
    uint64_t issued, used;
    uint64_t asked_bytes, wrong_bytes; /* of misses, and of wrong guesses at most */
} guess_model;

typedef struct rig {
    const setup *how;
    cf_gpu *gpu;
    cf_files files;
    cf_slots slots;
    cf_fetch *fetch;
    cf_policy *policy;
    cf_cache *cache;
    cf_gpu_buf *seen; /* [EXPERTS][CF_EXPERT_PIECES] copies of what the device saw */
    cf_rng plan, rng; /* what is asked for; and what may depend on timing */
    atomic_ullong read_bytes, all_read_bytes;
    atomic_int hazards, waits;
    atomic_bool closed; /* completions are withheld while set */
    /* The model. */
    place at[LAYERS][EXPERTS];
    uint32_t n_at[3];
    uint64_t evictions;
    guess_model guess;
    /* What happened, so that a run that tests nothing is seen. */
    uint32_t hits, ram_hits, misses, overflows, failures;
} rig;

static void on_submit(void *user, uint32_t file, uint64_t off, uint32_t bytes)
{
    rig *r = user;
    (void)file, (void)off;
    atomic_fetch_add(&r->read_bytes, bytes);
    atomic_fetch_add(&r->all_read_bytes, bytes);
}

static bool on_withhold(void *user)
{
    return atomic_load(&((rig *)user)->closed);
}

static void on_wait(void *user)
{
    rig *r = user;
    atomic_fetch_add(&r->waits, 1);
    atomic_store(&r->closed, false);
    cf_fetch_poke(r->fetch);
}

static void on_hazard(void *user, const char *sentence)
{
    rig *r = user;
    if (atomic_fetch_add(&r->hazards, 1) == 0)
        printf("    %s\n", sentence);
}

static cf_slots_shape shape_make(const setup *how, uint32_t align)
{
    cf_slots_shape shape = {.in_place = how->memory == IN_PLACE,
                            .staged = how->memory == STAGED,
                            .n_slots = how->slots,
                            .n_slabs = how->slabs,
                            .n_tier = how->tier,
                            .n_guess = how->guess};
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < moes[l].experts; e++) {
            cf_layout layout;
            uint64_t offs[CF_MAX_PIECES];
            cf_layout_plan(&layout, extents[l][e], CF_EXPERT_PIECES, align);
            shape.slab_bytes = cf_max_u64(shape.slab_bytes, layout.bytes);
            shape.slot_bytes = cf_max_u64(shape.slot_bytes, cf_copy_place(&layout, offs));
        }
    if (shape.in_place)
        shape.slot_bytes = shape.slab_bytes;
    return shape;
}

static int rig_try_open(rig *r, const setup *how, uint64_t seed, cf_err *err)
{
    int rc;
    const char *list[FILES] = {paths[0], paths[1]};
    *r = (rig){.how = how, .plan = {seed}, .rng = {~seed}};
    CF_TRY(cf_gpu_open(&r->gpu, "ref", &(cf_gpu_options){.threads = 1, .check = true}, err));
    for (uint32_t l = 0; l < LAYERS; l++)
        r->n_at[NOWHERE] += moes[l].experts;
    cf_gpu_on_hazard(r->gpu, on_hazard, r);
    for (int i = 0; i < CF_STREAM_COUNT; i++)
        atomic_store(&waited[i], 0);
    lazy_fns = *r->gpu->fns;
    lazy_fns.reached = lazy_reached;
    lazy_fns.wait = lazy_wait;
    r->gpu->fns = &lazy_fns;
    CF_TRY(cf_files_open(&r->files, list, FILES, false, err));
    cf_slots_shape shape = shape_make(how, r->files.align);
    CF_TRY(cf_slots_init(&r->slots, r->gpu, NULL, &shape, err));
    cf_io_fault fault = how->fault;
    fault.seed = seed;
    fault.on_submit = on_submit;
    fault.withhold = on_withhold;
    fault.on_submit_user = fault.withhold_user = r;
    if (!fault.eio_times)
        fault.eio_file = -1;
    cf_io_region regions[8];
    uint32_t n = cf_slots_regions(&r->slots, regions, 8);
    CF_TRY(cf_fetch_open(&r->fetch, &r->files,
                         &(cf_fetch_options){.io = {.kind = CF_IO_PREAD,
                                                    .depth = 8,
                                                    .fault = &fault,
                                                    .regions = regions,
                                                    .n_regions = n},
                                             .split_bytes = 4096},
                         err));
    CF_TRY(cf_policy_create(&r->policy, how->policy ? how->policy : "lfu:0.9", LAYERS, EXPERTS,
                            EXPERTS, err));
    CF_TRY(cf_gpu_buf_create(r->gpu, CF_BUF_READBACK, EXPERTS * MAX_RECORD, "seen", &r->seen, err));
    CF_TRY(cf_cache_create(&r->cache,
                           &(cf_cache_options){.gpu = r->gpu,
                                               .fetch = r->fetch,
                                               .files = &r->files,
                                               .model = &model,
                                               .slots = &r->slots,
                                               .policy = r->policy,
                                               .prefetch = how->prefetch,
                                               .on_wait = on_wait,
                                               .on_wait_user = r},
                           err));
    return 0;
fail:
    return rc;
}

static bool rig_open(rig *r, const setup *how, uint64_t seed)
{
    cf_err err = {0};
    int rc = rig_try_open(r, how, seed, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    CHECK_INT(rc, 0);
    return rc == 0;
}

static void rig_close(rig *r)
{
    CHECK_INT(atomic_load(&r->hazards), 0);
    cf_cache_destroy(&r->cache);
    cf_policy_destroy(&r->policy);
    cf_fetch_close(&r->fetch);
    cf_gpu_buf_destroy(&r->seen);
    cf_slots_finish(&r->slots);
    cf_files_close(&r->files);
    cf_gpu_close(&r->gpu);
}

static void rig_verify(rig *r)
{
    const char *verdict = cf_cache_verify(r->cache);
    if (verdict)
        printf("    %s\n", verdict);
    CHECK(!verdict);
}

/* ---- the model ---- */

static bool group_has(const group *g, uint32_t moe, uint32_t expert)
{
    for (uint32_t i = 0; moe == g->moe && i < g->n; i++)
        if (g->experts[i] == expert)
            return true;
    return false;
}

static void model_move(rig *r, uint32_t moe, uint32_t expert, place to)
{
    r->n_at[r->at[moe][expert]]--;
    r->at[moe][expert] = to;
    r->n_at[to]++;
}

/* The least worthy record of a tier that may go; false when there is none. Of the group nothing
 * leaves VRAM, and what waits in RAM to be raised (from entry `first` on) does not leave it. */
static bool model_least(const rig *r, const group *g, place tier, uint32_t first, uint32_t *moe,
                        uint32_t *expert)
{
    bool found = false;
    cf_worth least = {0, 0};
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < moes[l].experts; e++) {
            bool stays = tier == VRAM && group_has(g, l, e);
            for (uint32_t i = first; tier == RAM && l == g->moe && i < g->hits + g->ram_hits; i++)
                stays = stays || g->order[i] == e;
            if (r->at[l][e] != tier || stays)
                continue;
            cf_worth w = cf_policy_worth(r->policy, g->moe, l, e);
            if (!found || cf_worth_less(w, least)) {
                found = true;
                *moe = l;
                *expert = e;
                least = w;
            }
        }
    return found;
}

/* A record loses its slot: to RAM if there is room or something less worthy, else out. */
static void model_evict(rig *r, const group *g, uint32_t at, uint32_t moe, uint32_t expert)
{
    uint32_t l, e;
    model_move(r, moe, expert, NOWHERE);
    r->evictions++;
    if (r->n_at[RAM] == r->how->tier) {
        if (!model_least(r, g, RAM, at, &l, &e) ||
            !cf_worth_less(cf_policy_worth(r->policy, g->moe, l, e),
                           cf_policy_worth(r->policy, g->moe, moe, expert)))
            return;
        model_move(r, l, e, NOWHERE);
    }
    model_move(r, moe, expert, RAM);
}

static uint64_t record_read_bytes(const rig *r, uint32_t moe, uint32_t expert)
{
    cf_layout layout;
    uint64_t bytes = 0;
    cf_layout_plan(&layout, extents[moe][expert], CF_EXPERT_PIECES, r->files.align);
    for (uint32_t k = 0; k < layout.n_runs; k++)
        bytes += layout.runs[k].bytes;
    return bytes;
}

static void model_order(rig *r, group *g)
{
    static const place places[] = {VRAM, RAM, NOWHERE};
    uint32_t n = 0;
    g->hits = g->ram_hits = 0;
    g->read_bytes = 0;
    for (int p = 0; p < 3; p++)
        for (uint32_t i = 0; i < g->n; i++) {
            uint32_t e = g->experts[i];
            if (r->at[g->moe][e] != places[p])
                continue;
            g->order[n++] = e;
            g->hits += places[p] == VRAM;
            g->ram_hits += places[p] == RAM;
            if (places[p] != NOWHERE)
                continue;
            g->read_bytes += record_read_bytes(r, g->moe, e);
        }
}

/* All decisions of a group (8): who goes, where to; entries give their slots up in turn. */
static void model_route(rig *r, group *g)
{
    uint32_t giver = 0, l = 0, e = 0;
    model_order(r, g);
    g->overflows = false;
    for (uint32_t at = g->hits; at < g->n; at++) {
        if (r->n_at[VRAM] == r->how->slots) {
            if (model_least(r, g, VRAM, 0, &l, &e)) {
                model_evict(r, g, at, l, e);
            } else {
                model_evict(r, g, at, g->moe, g->order[giver++]);
                g->overflows = true;
            }
        }
        model_move(r, g->moe, g->order[at], VRAM);
    }
}

/* After a group that ended early only this much is promised: nothing appears that was not there or
 * in the group, what the group did not touch stays, and the cache knows what it holds. */
static void model_resync(rig *r, const group *g, place before[LAYERS][EXPERTS])
{
    cf_cache_stats stats;
    cf_cache_get_stats(r->cache, &stats);
    r->evictions = stats.evictions;
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < moes[l].experts; e++) {
            place now = cf_cache_holds(r->cache, l, e)       ? VRAM
                        : cf_cache_holds_ram(r->cache, l, e) ? RAM
                                                             : NOWHERE;
            CHECK(now == NOWHERE || before[l][e] != NOWHERE || group_has(g, l, e));
            CHECK(now != NOWHERE || before[l][e] == NOWHERE || before[l][e] != r->at[l][e] ||
                  group_has(g, l, e));
            model_move(r, l, e, now);
        }
    CHECK(r->n_at[VRAM] <= r->how->slots && r->n_at[RAM] <= r->how->tier);
}

/* ---- one group ---- */

static void group_draw(rig *r, group *g)
{
    g->moe = (uint32_t)cf_rng_below(&r->plan, LAYERS);
    uint32_t experts = moes[g->moe].experts;
    /* Mostly decode (top-k of a few favourites), now and then a chunk that wants nearly all. */
    bool chunk = cf_rng_below(&r->plan, 5) == 0;
    uint32_t wanted = chunk ? 1 + (uint32_t)cf_rng_below(&r->plan, 2 * experts) : TOP_K;
    bool in[EXPERTS] = {false};
    for (uint32_t i = 0; i < wanted; i++) {
        uint64_t a = cf_rng_below(&r->plan, experts), b = cf_rng_below(&r->plan, experts);
        in[chunk || a < b ? a : b] = true;
    }
    g->n = 0;
    for (uint32_t e = 0; e < experts; e++)
        if (in[e])
            g->experts[g->n++] = e;
    if (cf_rng_below(&r->plan, 40) == 0)
        g->n = 0; /* a token may choose zero experts only */
}

/* ---- guesses ---- */

/* Some of what the next group will want, and some of what it may not; now and then of a layer that
 * does not come next at all. Which layers are guessed badly: the last. */
static void guess_make(rig *r)
{
    guess_model *m = &r->guess;
    bool in[EXPERTS] = {false};
    uint32_t list[EXPERTS], n = 0;
    if (!r->how->guess || cf_rng_below(&r->plan, 4) == 0)
        return;
    group_draw(r, &m->next);
    m->drawn = true;
    m->moe = cf_rng_below(&r->plan, 8) ? m->next.moe : (uint32_t)cf_rng_below(&r->plan, LAYERS);
    for (uint32_t i = 0; i < m->next.n; i++)
        if (cf_rng_below(&r->plan, 10) < (m->moe == LAYERS - 1 ? 1 : 8) &&
            m->next.experts[i] < moes[m->moe].experts)
            in[list[n++] = m->next.experts[i]] = true;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t e = (uint32_t)cf_rng_below(&r->plan, moes[m->moe].experts);
        if (!in[e])
            in[list[n++] = e] = true;
    }
    m->n = 0;
    for (uint32_t i = 0; i < n; i++)
        if (r->at[m->moe][list[i]] == NOWHERE && m->n < r->how->guess)
            m->experts[m->n++] = list[i];
    m->on = m->made[m->moe] < 16 || 2 * m->right[m->moe] >= m->made[m->moe];
    m->issued += m->on ? m->n : 0;
    cf_cache_guess(r->cache, m->moe, list, n);
    rig_verify(r);
}

/* Group g came; returns how many of the guesses it wants. */
static uint32_t guess_resolve(rig *r, const group *g)
{
    guess_model *m = &r->guess;
    uint32_t right = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        bool hit = group_has(g, m->moe, m->experts[i]);
        if (!hit && m->on)
            m->wrong_bytes += record_read_bytes(r, m->moe, m->experts[i]);
        right += hit;
        if (m->moe != g->moe)
            continue;
        if (m->made[g->moe] == 64) {
            m->made[g->moe] /= 2;
            m->right[g->moe] /= 2;
        }
        m->made[g->moe]++;
        m->right[g->moe] += hit;
    }
    m->n = 0;
    m->used += m->on ? right : 0;
    return m->on ? right : 0;
}

/* With nothing open: counts, and no byte read that was not a miss's or a wrong guess's. */
static void guess_check(rig *r, bool bytes)
{
    cf_cache_stats s;
    guess_model *m = &r->guess;
    cf_cache_abort(r->cache); /* nothing is on its way now */
    for (uint32_t i = 0; m->on && i < m->n; i++)
        m->wrong_bytes += record_read_bytes(r, m->moe, m->experts[i]);
    m->n = 0;
    cf_cache_get_stats(r->cache, &s);
    CHECK_INT(s.guesses_made, m->issued);
    CHECK_INT(s.guesses_used, m->used);
    CHECK(s.guesses_late <= s.guesses_used);
    CHECK_INT(s.guesses_made, s.guesses_used + s.guesses_wasted + s.guesses_cancelled);
    uint64_t read = atomic_load(&r->all_read_bytes);
    CHECK(!bytes || (read >= m->asked_bytes && read <= m->asked_bytes + m->wrong_bytes));
    rig_verify(r);
}

static cf_span seen_span(const rig *r, uint32_t index, int piece)
{
    uint64_t bytes = extents[0][0][0].bytes * LAYERS;
    return cf_span_sub(cf_span_of(r->seen), index * (uint64_t)MAX_RECORD + (uint64_t)piece * bytes,
                       bytes);
}

/* Device work on entries: copies of all their pieces. */
static void entries_use(rig *r, const group *g, const cf_cache_entry *entries, uint32_t n,
                        cf_gpu_point *done)
{
    cf_gpu_point ready = {CF_STREAM_TRANSFER, 0};
    for (uint32_t i = 0; i < n; i++) {
        const cf_cache_entry *e = &entries[i];
        CHECK(e->index < g->n && e->expert == g->order[e->index]);
        CHECK_INT(e->ready.stream, CF_STREAM_TRANSFER);
        if (e->ready.value > ready.value)
            ready = e->ready;
        for (int p = 0; p < CF_EXPERT_PIECES; p++) {
            const cf_piece_def *def = &moes[g->moe].pieces[p];
            const cf_weight *w = &e->pieces[p];
            CHECK_INT(w->span.bytes, extents[g->moe][e->expert][p].bytes);
            CHECK_INT(w->span.off % CF_PIECE_ALIGN, 0);
            CHECK(w->dtype == def->dtype && w->rows == def->rows && w->cols == def->cols);
            cf_gpu_copy(r->gpu, CF_STREAM_COMPUTE,
                        cf_span_sub(seen_span(r, e->index, p), 0, w->span.bytes), w->span);
        }
    }
    done->stream = CF_STREAM_COMPUTE;
    CHECK_INT(
        cf_gpu_submit(r->gpu, CF_STREAM_COMPUTE, &ready, ready.value ? 1 : 0, &done->value, NULL),
        0);
    cf_cache_used(r->cache, entries, n, *done);
}

/* Invariant 1, as the device saw it. */
static void group_compare(const rig *r, const group *g, const bool *taken)
{
    for (uint32_t i = 0; i < g->n; i++)
        for (int p = 0; taken[i] && p < CF_EXPERT_PIECES; p++) {
            const cf_extent *x = &extents[g->moe][g->order[i]][p];
            const uint8_t *got = cf_gpu_host_read(cf_span_sub(seen_span(r, i, p), 0, x->bytes));
            CHECK_INT(tmp_pattern_differs(got, x->bytes, x->file, x->off), -1);
        }
}

/* A failed read names the file and the place, and is told once: after it the group is over (6). */
static void failure_check(const rig *r, const group *g, int rc, const cf_err *err)
{
    CHECK(r->how->fails != NEVER_FAILS);
    CHECK_INT(rc, -EIO);
    CHECK_INT(err->code, -EIO);
    CHECK(strstr(err->msg, paths[0]) || strstr(err->msg, paths[1]));
    CHECK_HAS(err->msg, "offset");
    if (r->how->fault.eio_times < 0) { /* one record always fails */
        bool in_group = false;
        for (uint32_t i = 0; i < g->n; i++)
            for (int p = 0; p < CF_EXPERT_PIECES; p++) {
                const cf_extent *x = &extents[g->moe][g->experts[i]][p];
                in_group = in_group ||
                           (x->file == r->how->fault.eio_file &&
                            cf_align_down(x->off, 4096) <= (uint64_t)r->how->fault.eio_off &&
                            cf_align_up(x->off + x->bytes, 4096) > (uint64_t)r->how->fault.eio_off);
            }
        CHECK(in_group);
    }
}

/* Takes and uses entries until all are, an error comes, or `stop_after` were. */
static int group_serve(rig *r, const group *g, bool *taken, uint32_t stop_after, cf_err *err)
{
    cf_cache_entry entries[EXPERTS];
    cf_gpu_point done = {CF_STREAM_COMPUTE, 0};
    uint32_t n_taken = 0;
    int n = 0;
    while (n_taken < stop_after) {
        uint32_t max = 1 + (uint32_t)cf_rng_below(&r->rng, 5);
        n = cf_cache_take(r->cache, entries, max, err);
        if (n <= 0)
            break;
        CHECK((uint32_t)n <= max);
        for (int i = 0; i < n; i++) {
            CHECK(entries[i].index < g->n && !taken[entries[i].index]); /* handed out once */
            taken[entries[i].index] = true;
            /* Hits first: they never wait for a read. */
            CHECK(entries[i].index < g->hits || n_taken + (uint32_t)i >= g->hits);
        }
        entries_use(r, g, entries, (uint32_t)n, &done);
        n_taken += (uint32_t)n;
        if (cf_rng_below(&r->rng, 3) == 0)
            CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
        rig_verify(r);
    }
    if (n == 0 && stop_after > g->n)
        CHECK_INT(n_taken, g->n);
    CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
    return n < 0 ? n : 0;
}

static void group_run(rig *r, bool may_abort)
{
    group g;
    cf_err err = {0};
    cf_group_counts counts;
    bool taken[EXPERTS] = {false};
    place before[LAYERS][EXPERTS];
    if (r->guess.drawn)
        g = r->guess.next;
    else
        group_draw(r, &g);
    r->guess.drawn = false;
    cf_policy_chunk(r->policy, 1);
    cf_policy_choice(r->policy, g.moe, 0, g.experts, g.n, NULL);
    memcpy(before, r->at, sizeof before);
    uint32_t right = guess_resolve(r, &g);
    model_route(r, &g);
    r->guess.asked_bytes += g.read_bytes;
    atomic_store(&r->read_bytes, 0);
    cf_cache_route(r->cache, g.moe, g.experts, g.n, &counts);
    CHECK_INT(counts.lookups, g.n);
    CHECK(counts.hits >= g.hits && counts.hits <= g.hits + right);
    CHECK_INT(counts.ram_hits, g.ram_hits);
    CHECK_INT(counts.misses, g.n - counts.hits - g.ram_hits);
    for (uint32_t i = 0; i < g.n; i++) {
        uint32_t at = cf_cache_order(r->cache, i);
        CHECK(at < g.n && g.order[at] == g.experts[i]);
    }
    rig_verify(r);
    r->hits += counts.hits;
    r->ram_hits += counts.ram_hits;
    r->misses += counts.misses;
    r->overflows += g.overflows;
    guess_make(r);

    uint64_t fate = may_abort ? cf_rng_below(&r->plan, 12) : 2;
    if (fate == 0) { /* given up before, or soon after, the reads start */
        cf_cache_abort(r->cache);
        r->guess.n = 0;
        rig_verify(r);
        model_resync(r, &g, before);
        return;
    }
    cf_cache_start(r->cache);
    cf_cache_start(r->cache); /* a second time does nothing */
    uint32_t stop_after = fate == 1 ? (uint32_t)cf_rng_below(&r->plan, g.n + 1) : g.n + 1;
    int rc = group_serve(r, &g, taken, stop_after, &err);
    if (rc < 0)
        failure_check(r, &g, rc, &err);
    if (rc == 0 && fate != 1) {
        cf_cache_end(r->cache);
        cf_cache_stats stats;
        cf_cache_get_stats(r->cache, &stats);
        CHECK_INT(stats.evictions, r->evictions);
        /* Each record once: not more bytes than its windows have (2). */
        if (r->how->fails == NEVER_FAILS && !r->how->guess)
            CHECK_INT(atomic_load(&r->read_bytes), g.read_bytes);
    } else if (rc == 0) {
        cf_cache_abort(r->cache);
    }
    r->failures += rc < 0;
    rig_verify(r);
    group_compare(r, &g, taken);
    if (rc < 0 || fate == 1) {
        r->guess.n = 0;
        model_resync(r, &g, before);
    }
}

/* ---- cases ---- */

static void run_random(const setup *how)
{
    rig r;
    bool quiet = !how->fault.delay_per_million;
    if (rig_open(&r, how, 1 + how->slots)) {
        for (int i = 0; i < (quiet ? 150 : 60) && !check_case_failed; i++)
            group_run(&r, false);
        guess_check(&r, how->fails == NEVER_FAILS);
        for (int i = 0; i < (quiet ? 100 : 40) && !check_case_failed; i++)
            group_run(&r, true);
        for (int i = 0; i < 20 && !check_case_failed; i++)
            group_run(&r, false); /* after all that it works as at first */
        guess_check(&r, false);
        CHECK(r.guess.used || !how->guess || (how->slabs && how->slabs < 3));
        CHECK(r.hits && r.misses);
        CHECK((r.ram_hits != 0) == (how->tier != 0));
        CHECK(r.overflows || how->slots > 9);
        CHECK(how->fails == MAY_FAIL || (r.failures != 0) == (how->fails == FAILS));
    }
    rig_close(&r);
}

#define LATE .delay_per_million = 200000, .delay_us = 300, .reorder = true

static void random_all(void)
{
    const cf_extent *bad = &extents[1][4][CF_UP];
    const cf_io_fault one_bad = {.eio_file = bad->file,
                                 .eio_off = (int64_t)(bad->off + 5),
                                 .eio_times = -1,
                                 .reorder = true};
    const setup setups[] = {
        {.name = "smallest cache in place", .slots = 2 * TOP_K, .prefetch = true},
        {.name = "smallest cache, no prefetch", .slots = 2 * TOP_K, .policy = "lru"},
        {.name = "all but one resident", .slots = 38, .policy = "lru"},
        {.name = "everything fits", .slots = 39, .policy = "lfu"},
        {.name = "in place, late and in any order", .slots = 9, .prefetch = true, .fault = {LATE}},
        {.name = "in place, short reads",
         .slots = 8,
         .fails = MAY_FAIL,
         .policy = "lru",
         .fault = {.short_per_million = 50000, .reorder = true}},
        {.name = "in place, one bad record", .slots = 10, .fails = FAILS, .fault = one_bad},
        {.name = "in place, a failing drive",
         .slots = 7,
         .fails = FAILS,
         .prefetch = true,
         .fault = {.eio_per_million = 150000, .reorder = true}},
        {.name = "discrete, two slabs",
         .memory = DISCRETE,
         .slots = 2 * TOP_K,
         .slabs = 2,
         .prefetch = true},
        {.name = "discrete, more slabs than slots",
         .memory = DISCRETE,
         .slots = 7,
         .slabs = 9,
         .policy = "lru"},
        {.name = "discrete, late and in any order",
         .memory = DISCRETE,
         .slots = 8,
         .slabs = 3,
         .prefetch = true,
         .fault = {LATE}},
        {.name = "discrete, one bad record",
         .memory = DISCRETE,
         .slots = 8,
         .slabs = 2,
         .prefetch = true,
         .policy = "lru",
         .fails = FAILS,
         .fault = one_bad},
        {.name = "discrete, a failing drive",
         .memory = DISCRETE,
         .slots = 6,
         .slabs = 2,
         .fails = FAILS,
         .fault = {.eio_per_million = 150000, .short_per_million = 50000}},
        {.name = "staged", .memory = STAGED, .slots = 20, .slabs = 3, .prefetch = true},
        {.name = "staged, short reads",
         .memory = STAGED,
         .slots = 11,
         .slabs = 2,
         .fails = MAY_FAIL,
         .policy = "lfu:0.5",
         .fault = {.short_per_million = 50000}},
        {.name = "small RAM tier",
         .memory = DISCRETE,
         .slots = 2 * TOP_K,
         .slabs = 2,
         .tier = 3,
         .policy = "lfu:1"},
        {.name = "RAM tier that holds the rest",
         .memory = STAGED,
         .slots = 9,
         .slabs = 3,
         .tier = 30,
         .policy = "lru"},
        {.name = "RAM tier, late and in any order",
         .memory = DISCRETE,
         .slots = 7,
         .slabs = 2,
         .tier = 11,
         .prefetch = true,
         .fault = {LATE}},
        {.name = "RAM tier, one bad record",
         .memory = STAGED,
         .slots = 6,
         .slabs = 2,
         .tier = 9,
         .fails = FAILS,
         .fault = one_bad},
        {.name = "guesses in place", .slots = 2 * TOP_K, .guess = 3, .prefetch = true},
        {.name = "guesses in place, lru, late and in any order",
         .slots = 9,
         .guess = 6,
         .prefetch = true,
         .policy = "lru",
         .fault = {LATE}},
        {.name = "guesses in place, a failing drive",
         .slots = 12,
         .guess = 5,
         .prefetch = true,
         .fails = FAILS,
         .fault = {.eio_per_million = 150000, .reorder = true}},
        {.name = "guesses, one bad record",
         .memory = DISCRETE,
         .slots = 9,
         .slabs = 6,
         .guess = 5,
         .prefetch = true,
         .fails = FAILS,
         .fault = one_bad},
        {.name = "guesses through five slabs",
         .memory = DISCRETE,
         .slots = 8,
         .slabs = 5,
         .guess = 4,
         .prefetch = true,
         .policy = "echo"},
        {.name = "guesses through two slabs",
         .memory = DISCRETE,
         .slots = 2 * TOP_K,
         .slabs = 2,
         .guess = 2,
         .prefetch = true},
        {.name = "guesses over a RAM tier, late and in any order",
         .memory = STAGED,
         .slots = 7,
         .slabs = 4,
         .tier = 9,
         .guess = 4,
         .prefetch = true,
         .fault = {LATE}},
        {.name = "guesses over a RAM tier, short reads",
         .memory = DISCRETE,
         .slots = 8,
         .slabs = 3,
         .tier = 6,
         .guess = 6,
         .prefetch = true,
         .fails = MAY_FAIL,
         .fault = {.short_per_million = 50000, .reorder = true}},
        {.name = "RAM tier, a failing drive",
         .memory = DISCRETE,
         .slots = 8,
         .slabs = 3,
         .tier = 12,
         .prefetch = true,
         .policy = "lru",
         .fails = FAILS,
         .fault = {.eio_per_million = 150000, .reorder = true}},
    };
    for (size_t i = 0; i < sizeof setups / sizeof *setups; i++)
        RUN_NAMED(setups[i].name, run_random(&setups[i]));
}

/* A read that failed twice fails its group once, and is tried anew by the next (6). */
static void failed_record_comes_back(void)
{
    const cf_extent *bad = &extents[0][2][CF_GATE];
    const setup how = {
        .memory = IN_PLACE,
        .slots = 8,
        .prefetch = true,
        .policy = "lru",
        .fault = {.eio_file = bad->file, .eio_off = (int64_t)bad->off, .eio_times = 2},
        .fails = FAILS};
    rig r;
    if (rig_open(&r, &how, 3)) {
        group g = {.moe = 0, .n = 3, .experts = {1, 2, 3}};
        cf_group_counts counts;
        for (int round = 0; round < 2; round++) {
            cf_err err = {0};
            bool taken[EXPERTS] = {false};
            place before[LAYERS][EXPERTS];
            memcpy(before, r.at, sizeof before);
            cf_policy_chunk(r.policy, 1);
            cf_policy_choice(r.policy, g.moe, 0, g.experts, g.n, NULL);
            model_route(&r, &g);
            cf_cache_route(r.cache, g.moe, g.experts, g.n, &counts);
            CHECK_INT(counts.misses, round == 0 ? 3 : 1);
            int rc = group_serve(&r, &g, taken, g.n + 1, &err);
            CHECK_INT(rc, round == 0 ? -EIO : 0);
            if (round == 0) {
                char where[64];
                snprintf(where, sizeof where, "offset %llu",
                         (unsigned long long)cf_align_down(bad->off, 4096));
                CHECK_HAS(err.msg, paths[bad->file]);
                CHECK_HAS(err.msg, where);
                CHECK(!cf_cache_holds(r.cache, 0, 2));
                /* The others arrived and stay: their bytes were paid for. */
                CHECK(cf_cache_holds(r.cache, 0, 1) && cf_cache_holds(r.cache, 0, 3));
                model_resync(&r, &g, before);
            } else {
                cf_cache_end(r.cache);
                group_compare(&r, &g, taken);
            }
            rig_verify(&r);
        }
    }
    rig_close(&r);
}

/* Hits are handed out while every read is withheld; only then does the engine say that it waits. */
static void hits_do_not_wait(void)
{
    const setup how = {
        .memory = DISCRETE, .slots = 8, .slabs = 2, .prefetch = true, .policy = "lru"};
    rig r;
    if (rig_open(&r, &how, 5)) {
        const uint32_t first[] = {0, 4, 7}, second[] = {0, 1, 4, 7};
        cf_cache_entry e[EXPERTS];
        cf_group_counts counts;
        cf_gpu_point done;
        group g = {.moe = 2, .n = 3, .order = {0, 4, 7}};
        cf_cache_route(r.cache, 2, first, 3, &counts);
        for (int n, left = 3; left > 0; left -= n) {
            n = cf_cache_take(r.cache, e, 1, NULL);
            CHECK_INT(n, 1);
            entries_use(&r, &g, e, 1, &done);
        }
        CHECK_INT(cf_cache_take(r.cache, e, 1, NULL), 0);
        cf_cache_end(r.cache);
        CHECK_INT(cf_gpu_wait(r.gpu, done, NULL), 0);

        atomic_store(&r.closed, true);
        atomic_store(&r.waits, 0);
        g = (group){.moe = 2, .n = 4, .order = {0, 4, 7, 1}};
        cf_cache_route(r.cache, 2, second, 4, &counts);
        CHECK_INT(counts.hits, 3);
        CHECK_INT(cf_cache_take(r.cache, e, EXPERTS, NULL), 3);
        CHECK_INT(atomic_load(&r.waits), 0);
        entries_use(&r, &g, e, 3, &done);
        CHECK_INT(cf_cache_take(r.cache, e, EXPERTS, NULL), 1); /* on_wait opens the gate */
        CHECK_INT(atomic_load(&r.waits), 1);
        CHECK_INT(e[0].expert, 1);
        entries_use(&r, &g, e, 1, &done);
        cf_cache_end(r.cache);
        CHECK_INT(cf_gpu_wait(r.gpu, done, NULL), 0);
        cf_cache_stats stats;
        cf_cache_get_stats(r.cache, &stats);
        CHECK(stats.io_stall_ns > 0);
        rig_verify(&r);
    }
    rig_close(&r);
}

/* One group of MoE layer 0, taken and used to the end. */
static void group_simple(rig *r, const uint32_t *experts, uint32_t n, cf_group_counts *counts)
{
    cf_cache_entry e[EXPERTS];
    cf_gpu_point done = {CF_STREAM_COMPUTE, 0};
    group g = {.moe = 0, .n = n};
    cf_policy_chunk(r->policy, 1);
    cf_policy_choice(r->policy, 0, 0, experts, n, NULL);
    cf_cache_route(r->cache, 0, experts, n, counts);
    for (uint32_t i = 0; i < n; i++)
        g.order[cf_cache_order(r->cache, i)] = experts[i];
    bool taken[EXPERTS] = {false};
    for (int k; (k = cf_cache_take(r->cache, e, EXPERTS, NULL)) > 0;) {
        for (int i = 0; i < k; i++)
            taken[e[i].index] = true;
        entries_use(r, &g, e, (uint32_t)k, &done);
    }
    cf_cache_end(r->cache);
    CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
    group_compare(r, &g, taken);
}

static void stats_are(const rig *r, uint64_t made, uint64_t used, uint64_t late, uint64_t wasted)
{
    cf_cache_stats s;
    cf_cache_get_stats(r->cache, &s);
    CHECK_INT(s.guesses_made, made);
    CHECK_INT(s.guesses_used, used);
    CHECK_INT(s.guesses_late, late);
    CHECK_INT(s.guesses_wasted, wasted);
    CHECK_INT(s.guesses_cancelled, made - used - wasted);
}

/* The life of a guess, step by step: late, ready, wrong in flight, wrong before it was asked for. */
static void guesses_one_by_one(memory_mode memory)
{
    const setup how = {.memory = memory,
                       .slots = 6,
                       .slabs = 5,
                       .guess = 3,
                       .prefetch = true,
                       .policy = "lru"};
    rig r;
    if (rig_open(&r, &how, 8)) {
        const uint32_t first[] = {0, 1}, second[] = {2, 3}, third[] = {4, 5}, fourth[] = {6, 7};
        const uint32_t guess1[] = {2}, guess2[] = {0, 4}, guess3[] = {9, 10, 11};
        cf_group_counts counts;
        cf_cache_stats s;
        group_simple(&r, first, 2, &counts);
        atomic_store(&r.closed, true); /* until somebody waits */
        cf_cache_guess(r.cache, 0, guess1, 1);
        group_simple(&r, second, 2, &counts);
        CHECK_INT(counts.misses, 2);
        stats_are(&r, 1, 1, 1, 0); /* used, and late */
        CHECK_INT(atomic_load(&r.read_bytes), record_read_bytes(&r, 0, 0) +
                                                  record_read_bytes(&r, 0, 1) +
                                                  record_read_bytes(&r, 0, 2) +
                                                  record_read_bytes(&r, 0, 3));

        cf_cache_guess(r.cache, 0, guess2, 2); /* 0 is resident: no guess */
        uint64_t all = atomic_load(&r.read_bytes) + record_read_bytes(&r, 0, 4);
        for (int i = 0; i < 20000 && atomic_load(&r.read_bytes) < all; i++)
            usleep(100);
        usleep(20000); /* it is asked for; now let it come */
        cf_cache_get_stats(r.cache, &s);
        uint64_t evicted = s.evictions;
        CHECK_INT(evicted, 0); /* a guess takes nobody's slot */
        for (uint32_t e = 0; e < 4; e++)
            CHECK(cf_cache_holds(r.cache, 0, e));
        CHECK(!cf_cache_holds(r.cache, 0, 4)); /* nor is it resident before it was chosen */
        group_simple(&r, third, 2, &counts);
        CHECK_INT(counts.hits, 1);
        CHECK_INT(counts.misses, 1);
        stats_are(&r, 2, 2, 1, 0);

        atomic_store(&r.closed, true);
        cf_cache_guess(r.cache, 0, guess3, 3);
        cf_cache_route(r.cache, 0, fourth, 2, &counts); /* nobody waits for the wrong ones */
        CHECK_INT(counts.misses, 2);
        on_wait(&r);
        cf_cache_abort(r.cache);
        cf_cache_get_stats(r.cache, &s);
        CHECK_INT(s.guesses_made, 5);
        CHECK_INT(s.guesses_wasted + s.guesses_cancelled, 3);
        rig_verify(&r);
    }
    rig_close(&r);
}

static void guesses_in_place(void)
{
    guesses_one_by_one(IN_PLACE);
}

static void guesses_copied(void)
{
    guesses_one_by_one(DISCRETE);
}

/* The cache is destroyed while reads are on their way: they are waited for (ASan sees the rest). */
static void destroyed_in_flight(void)
{
    const setup how = {.memory = DISCRETE,
                       .slots = 8,
                       .slabs = 2,
                       .prefetch = true,
                       .policy = "lru",
                       .fault = {.delay_per_million = 1000000, .delay_us = 2000}};
    rig r;
    if (rig_open(&r, &how, 6)) {
        const uint32_t experts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
        cf_group_counts counts;
        cf_cache_route(r.cache, 0, experts, 10, &counts);
        CHECK_INT(counts.misses, 10);
    }
    rig_close(&r);
}

static void verify_sees_too_few_slots(void)
{
    const setup how = {.memory = IN_PLACE, .slots = 2 * TOP_K - 1, .policy = "lru"};
    rig r;
    if (rig_open(&r, &how, 4)) {
        const char *verdict = cf_cache_verify(r.cache);
        CHECK(verdict && strstr(verdict, "invariant 7"));
    }
    rig_close(&r);
}

int main(void)
{
    tmp_dir_init(&dir);
    model_make();
    random_all();
    RUN(failed_record_comes_back);
    RUN(hits_do_not_wait);
    RUN(guesses_in_place);
    RUN(guesses_copied);
    RUN(destroyed_in_flight);
    RUN(verify_sees_too_few_slots);
    tmp_dir_finish(&dir);
    return check_done();
}
