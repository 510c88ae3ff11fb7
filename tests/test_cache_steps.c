/* Catches: a hit that waits for a read; a failed record that is never tried again, or spoils those
 * beside it; a guess that evicts, that makes a demand wait, or is counted as what it was not; reads
 * that outlive the cache; a cache too small for its own promise that says nothing.
 *
 * Each case is one story, step by step, on the cache of support/cache_rig.h. */
#include <unistd.h>

#include "runtime/base/align.h"
#include "tests/check.h"
#include "tests/support/cache_rig.h"

static tmp_dir dir;

/* A read that failed twice fails its group once, and is tried anew by the next (6). */
static void failed_record_comes_back(void)
{
    const cf_extent *bad = &rig_extents[0][2][CF_GATE];
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
            rig_route(&r, &g);
            cf_cache_route(r.cache, g.moe, g.experts, g.n, &counts);
            CHECK_INT(counts.misses, round == 0 ? 3 : 1);
            int rc = rig_serve(&r, &g, taken, g.n + 1, &err);
            CHECK_INT(rc, round == 0 ? -EIO : 0);
            if (round == 0) {
                char where[64];
                snprintf(where, sizeof where, "offset %llu",
                         (unsigned long long)cf_align_down(bad->off, 4096));
                CHECK_HAS(err.msg, rig_paths[bad->file]);
                CHECK_HAS(err.msg, where);
                CHECK(!cf_cache_holds(r.cache, 0, 2));
                /* The others arrived and stay: their bytes were paid for. */
                CHECK(cf_cache_holds(r.cache, 0, 1) && cf_cache_holds(r.cache, 0, 3));
                rig_resync(&r, &g, before);
            } else {
                cf_cache_end(r.cache);
                rig_compare(&r, &g, taken);
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
            rig_use(&r, &g, e, 1, &done);
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
        rig_use(&r, &g, e, 3, &done);
        CHECK_INT(cf_cache_take(r.cache, e, EXPERTS, NULL), 1); /* on_wait opens the gate */
        CHECK_INT(atomic_load(&r.waits), 1);
        CHECK_INT(e[0].expert, 1);
        rig_use(&r, &g, e, 1, &done);
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
        rig_use(r, &g, e, (uint32_t)k, &done);
    }
    cf_cache_end(r->cache);
    CHECK_INT(cf_gpu_wait(r->gpu, done, NULL), 0);
    rig_compare(r, &g, taken);
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

/* The life of a guess: late, ready, wrong in flight, wrong before it was asked for. */
static void guesses_one_by_one(memory_mode memory)
{
    const setup how = {
        .memory = memory, .slots = 6, .slabs = 5, .guess = 3, .prefetch = true, .policy = "lru"};
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
        CHECK_INT(atomic_load(&r.read_bytes),
                  rig_record_bytes(&r, 0, 0) + rig_record_bytes(&r, 0, 1) +
                      rig_record_bytes(&r, 0, 2) + rig_record_bytes(&r, 0, 3));

        cf_cache_guess(r.cache, 0, guess2, 2); /* 0 is resident: no guess */
        uint64_t all = atomic_load(&r.read_bytes) + rig_record_bytes(&r, 0, 4);
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
        rig_reads_released(&r);
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
    rig_files_make(&dir);
    RUN(failed_record_comes_back);
    RUN(hits_do_not_wait);
    RUN(guesses_in_place);
    RUN(guesses_copied);
    RUN(destroyed_in_flight);
    RUN(verify_sees_too_few_slots);
    tmp_dir_finish(&dir);
    return check_done();
}
