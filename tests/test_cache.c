/* Catches: an expert computed on from the wrong bytes; a record in two slots, read twice or handed
 * out twice; a victim that depends on what arrived when; a pinned slot that is written; a failed
 * read that leaks a slot, is told twice or never, or spoils the next group. Of guesses: one that
 * evicts, that is read twice, or whose place is lost.
 *
 * Random groups run through the cache and through the plain model of it (support/cache_rig.h), in
 * every kind of memory, over drives that are late, short or fail. */
#include "runtime/base/align.h"
#include "tests/check.h"
#include "tests/support/cache_rig.h"

static tmp_dir dir;

/* ---- one group ---- */

static void group_draw(rig *r, group *g)
{
    g->moe = (uint32_t)cf_rng_below(&r->plan, LAYERS);
    uint32_t experts = rig_moes[g->moe].experts;
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
            m->next.experts[i] < rig_moes[m->moe].experts)
            in[list[n++] = m->next.experts[i]] = true;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t e = (uint32_t)cf_rng_below(&r->plan, rig_moes[m->moe].experts);
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
        bool hit = rig_group_has(g, m->moe, m->experts[i]);
        if (!hit && m->on)
            m->wrong_bytes += rig_record_bytes(r, m->moe, m->experts[i]);
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
        m->wrong_bytes += rig_record_bytes(r, m->moe, m->experts[i]);
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

/* A failed read names the file and the place, and is told once: after it the group is over (6). */
static void failure_check(const rig *r, const group *g, int rc, const cf_err *err)
{
    CHECK(r->how->fails != NEVER_FAILS);
    CHECK_INT(rc, -EIO);
    CHECK_INT(err->code, -EIO);
    CHECK(strstr(err->msg, rig_paths[0]) || strstr(err->msg, rig_paths[1]));
    CHECK_HAS(err->msg, "offset");
    if (r->how->fault.eio_times < 0) { /* one record always fails */
        bool in_group = false;
        for (uint32_t i = 0; i < g->n; i++)
            for (int p = 0; p < CF_EXPERT_PIECES; p++) {
                const cf_extent *x = &rig_extents[g->moe][g->experts[i]][p];
                in_group = in_group ||
                           (x->file == r->how->fault.eio_file &&
                            cf_align_down(x->off, 4096) <= (uint64_t)r->how->fault.eio_off &&
                            cf_align_up(x->off + x->bytes, 4096) > (uint64_t)r->how->fault.eio_off);
            }
        CHECK(in_group);
    }
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
    rig_route(r, &g);
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
        rig_resync(r, &g, before);
        return;
    }
    cf_cache_start(r->cache);
    cf_cache_start(r->cache); /* a second time does nothing */
    uint32_t stop_after = fate == 1 ? (uint32_t)cf_rng_below(&r->plan, g.n + 1) : g.n + 1;
    int rc = rig_serve(r, &g, taken, stop_after, &err);
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
    rig_compare(r, &g, taken);
    if (rc < 0 || fate == 1) {
        r->guess.n = 0;
        rig_resync(r, &g, before);
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
    const cf_extent *bad = &rig_extents[1][4][CF_UP];
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

int main(void)
{
    tmp_dir_init(&dir);
    rig_files_make(&dir);
    random_all();
    tmp_dir_finish(&dir);
    return check_done();
}
