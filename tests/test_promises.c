/* What users of other engines complain of, where no module's test has it; tests/README.md says for
 * each complaint which test that is. Catches: a cache that misses more, reads more, or evicts more
 * for being larger; memory for slots in one block beyond what an iovec or the device's largest
 * buffer holds, or a slot across two blocks; the fewest slots that open doing nothing. */
#include <unistd.h>

#include "gpu/backend.h"
#include "tests/check.h"
#include "tests/support/sized.h"

/* ---- a larger cache is never worse ---- */

enum { MAX_IDS = 400, PROMPT = 32, STEPS = 6 };

static int32_t ids[MAX_IDS];
static uint32_t n_ids;

typedef struct outcome {
    uint32_t slots;
    cf_stats stats;
} outcome;

/* A prompt and its text, token by token. */
static bool run_with(const sized_model *m, const cf_options *o, uint32_t slots, outcome *out)
{
    cf_err err = {0};
    cf_engine *e = sized_open(m, o, slots, false);
    cf_session *s = NULL;
    int rc = e ? cf_session_create(&s, e, &err) : -1;
    if (rc == 0)
        rc = cf_session_extend(s, ids, PROMPT, CF_PHASE_PROMPT, NULL, &err);
    for (uint32_t i = PROMPT; i < n_ids && rc == 0; i++)
        rc = cf_session_extend(s, ids + i, 1, CF_PHASE_DECODE, NULL, &err);
    if (rc < 0 && e)
        printf("    %s\n", err.msg);
    out->slots = slots;
    if (rc == 0)
        cf_engine_get_stats(e, &out->stats);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return rc == 0;
}

/* Without guesses: whether one of them counts as a hit is the clock's. */
static void larger_is_never_worse(const char *dir, const char *policy)
{
    sized_model m;
    outcome before = {0}, now = {0};
    cf_options o;
    REQUIRE(sized_model_open(&m, dir));
    cf_options_init(&o);
    o.device = "ref";
    o.policy = policy;
    o.ctx = MAX_IDS;
    o.chunk = 16;
    o.prefetch = false;
    uint64_t first = 0;
    for (uint32_t i = 0; i <= STEPS; i++) {
        uint32_t slots = m.min_slots + (m.all_slots - m.min_slots) * i / STEPS;
        REQUIRE(run_with(&m, &o, slots, &now));
        uint64_t misses = now.stats.all.misses, was = before.stats.all.misses;
        if (i == 0) {
            first = misses;
            CHECK(now.stats.all.vram_hits > 0); /* the fewest slots are a cache, too */
        } else if (misses > was || now.stats.all.evictions > before.stats.all.evictions ||
                   now.stats.io_bytes > before.stats.io_bytes) {
            printf("    %u slots: %llu misses, %llu evictions, %llu bytes; %u slots: %llu, %llu, "
                   "%llu\n",
                   before.slots, (unsigned long long)was,
                   (unsigned long long)before.stats.all.evictions,
                   (unsigned long long)before.stats.io_bytes, slots, (unsigned long long)misses,
                   (unsigned long long)now.stats.all.evictions,
                   (unsigned long long)now.stats.io_bytes);
            CHECK_NEVER("a larger cache does worse");
        }
        before = now;
    }
    CHECK(now.stats.all.misses < first / 4); /* with a slot for each, once each */
    CHECK_INT(now.stats.all.evictions, 0);
    sized_model_close(&m);
}

static bool ids_load(uint32_t vocab)
{
    FILE *f = fopen("models/demo/oracle/eval.ids", "r");
    n_ids = 0;
    while (f && n_ids < 120 && fscanf(f, "%d", &ids[n_ids]) == 1)
        ids[n_ids++] %= (int32_t)vocab;
    if (f)
        fclose(f);
    return n_ids > 2 * PROMPT;
}

/* ---- no allocation is too large ---- */

/* Slots, slabs and tier of `each` bytes on a device whose largest buffer is `most`. */
static void blocks(bool in_place, bool staged, uint32_t n, uint64_t each, uint64_t most)
{
    cf_err err = {0};
    cf_gpu *gpu = NULL;
    cf_ledger *ledger = NULL;
    cf_slots s;
    cf_slots_shape shape = {.in_place = in_place, .staged = staged, .n_slots = n, .n_guess = 3,
                            .n_slabs = in_place ? 0 : n / 2, .n_tier = in_place ? 0 : n / 4,
                            .slot_bytes = each, .slab_bytes = each};
    uint64_t device, host, limit = most && most < 1u << 30 ? most : 1u << 30;
    REQUIRE(cf_ledger_create(&ledger, 0, 0, &err) == 0);
    REQUIRE(cf_gpu_open(&gpu, "ref", &(cf_gpu_options){.ledger = ledger, .threads = 1}, &err) == 0);
    gpu->info.max_alloc_bytes = most;
    uint64_t held = cf_ledger_used(ledger, CF_POOL_DEVICE);
    int rc = cf_slots_init(&s, gpu, ledger, &shape, &err);
    if (rc < 0)
        printf("    %s\n", err.msg);
    REQUIRE(rc == 0);
    cf_slots_memory(&shape, most, &device, &host);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_DEVICE) - held, device);
    CHECK_INT(cf_ledger_used(ledger, CF_POOL_HOST), host);
    cf_io_region regions[64];
    uint32_t n_regions = cf_slots_regions(&s, regions, 64);
    CHECK(n_regions > 1);
    for (uint32_t i = 0; i < n_regions; i++)
        CHECK(regions[i].bytes <= limit);
    CHECK(s.n_slot_blocks > 1);
    for (uint32_t i = 0; i < n + 3; i++) {
        cf_span span = cf_slots_span(&s, i);
        CHECK(span.off + each <= limit && span.bytes == each);
        CHECK(i == 0 || span.buf != cf_slots_span(&s, i - 1).buf ||
              span.off == cf_slots_span(&s, i - 1).off + each);
    }
    for (uint32_t i = 0; i < cf_landing_count(&s); i++) {
        uint32_t r = cf_landing_region(&s, i);
        const uint8_t *at = cf_landing_host(&s, i), *base = regions[r].data;
        CHECK(r < n_regions && at >= base && at + each <= base + regions[r].bytes);
    }
    cf_slots_finish(&s);
    cf_gpu_close(&gpu);
    cf_ledger_destroy(&ledger);
}

/* Pages that nobody touches cost nothing. */
static void beyond_one_gib_in_place(void)
{
    blocks(true, false, 50, 48u << 20, 0);
}

static void beyond_the_largest_buffer(void)
{
    blocks(true, false, 50, 192u << 10, 1000000);
    blocks(false, false, 50, 192u << 10, 1000000);
    blocks(false, true, 50, 192u << 10, 1000000);
}

static void a_record_larger_than_any_buffer(void)
{
    cf_err err = {0};
    cf_gpu *gpu = NULL;
    cf_slots s;
    cf_slots_shape shape = {.n_slots = 2, .n_slabs = 2, .slot_bytes = 2 << 20,
                            .slab_bytes = 2 << 20};
    REQUIRE(cf_gpu_open(&gpu, "ref", &(cf_gpu_options){.threads = 1}, &err) == 0);
    gpu->info.max_alloc_bytes = 1 << 20;
    CHECK_INT(cf_slots_init(&s, gpu, NULL, &shape, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "an expert record of 2097152 bytes exceeds the largest device buffer");
    cf_gpu_close(&gpu);
}

int main(void)
{
    static const char *const dirs[] = {"models/demo", "tests/fixtures/models/mixtral",
                                       "tests/fixtures/models/deepseek_v3"};
    static const uint32_t vocabs[] = {INT32_MAX, 128, 128};
    static const char *const policies[] = {"echo", "phase", "lfu", "lru"};
    char name[160];
    for (int d = 0; d < 3; d++)
        for (int p = 0; p < 4; p += d ? 1 : 3) { /* the demo is slower */
            snprintf(name, sizeof name, "larger is never worse: %s, %s", dirs[d], policies[p]);
            if (ids_load(vocabs[d]))
                RUN_NAMED(name, larger_is_never_worse(dirs[d], policies[p]));
            else
                RUN_NAMED(name, CHECK_NEVER("models/demo/oracle/eval.ids is too short"));
        }
    RUN(beyond_one_gib_in_place);
    RUN(beyond_the_largest_buffer);
    RUN(a_record_larger_than_any_buffer);
    return check_done();
}
