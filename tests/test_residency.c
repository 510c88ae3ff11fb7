/* Catches: a residency decision that differs from the rules as residency.h states them, told here
 * in the plainest way over all places; an invariant that breaks after any operation. */
#include "runtime/residency.h"

#include "runtime/base/rng.h"
#include "tests/check.h"

enum { MOE = 5, EXPERTS = 16, K = 4, KEYS = MOE * EXPERTS, NONE = CF_NO_PLACE };

/* The rules without any cleverness: places are scanned, layer minima are not remembered. */
typedef struct plain {
    uint32_t n[2];
    int32_t place[2][KEYS]; /* [tier][place] key or -1 */
    bool pinned[2][KEYS];
    uint64_t evictions;
} plain;

static int32_t plain_at(const plain *p, int tier, uint32_t key)
{
    for (uint32_t i = 0; i < p->n[tier]; i++)
        if (p->place[tier][i] == (int32_t)key)
            return (int32_t)i;
    return -1;
}

static int32_t plain_choose(const plain *p, int tier, const cf_policy *policy, uint32_t now)
{
    int32_t best = -1;
    cf_worth least = {0, 0};
    for (uint32_t i = 0; i < p->n[tier]; i++)
        if (p->place[tier][i] < 0)
            return (int32_t)i;
    for (uint32_t i = 0; i < p->n[tier]; i++) {
        uint32_t key = (uint32_t)p->place[tier][i];
        cf_worth w = cf_policy_worth(policy, now, key / EXPERTS, key % EXPERTS);
        if (p->pinned[tier][i] || (best >= 0 && !cf_worth_less(w, least)))
            continue;
        best = (int32_t)i;
        least = w;
    }
    return best;
}

/* Moves what lay in slot `slot` away; returns the slab it went to, or -1. */
static int32_t plain_vacate(plain *p, const cf_policy *policy, uint32_t now, int32_t slot)
{
    uint32_t key = (uint32_t)p->place[0][slot];
    int32_t slab = p->n[1] ? plain_choose(p, 1, policy, now) : -1;
    p->evictions++;
    p->place[0][slot] = -1;
    if (slab >= 0 && p->place[1][slab] >= 0) {
        uint32_t held = (uint32_t)p->place[1][slab];
        cf_worth a = cf_policy_worth(policy, now, held / EXPERTS, held % EXPERTS);
        cf_worth b = cf_policy_worth(policy, now, key / EXPERTS, key % EXPERTS);
        if (!cf_worth_less(a, b))
            slab = -1;
    }
    if (slab >= 0) {
        p->place[1][slab] = (int32_t)key;
        p->pinned[1][slab] = false;
    }
    return slab;
}

static void plain_route(plain *p, const cf_policy *policy, uint32_t moe, const uint32_t *experts,
                        uint32_t n, cf_placing *out)
{
    uint32_t at = 0, giver = 0;
    memset(p->pinned, 0, sizeof p->pinned);
    for (int source = 0; source < 3; source++)
        for (uint32_t i = 0; i < n; i++) {
            uint32_t key = moe * EXPERTS + experts[i];
            int32_t slot = plain_at(p, 0, key), slab = plain_at(p, 1, key);
            int is = slot >= 0 ? 0 : slab >= 0 ? 1 : 2;
            if (is != source)
                continue;
            out[at++] = (cf_placing){
                experts[i], (cf_source)source, (uint32_t)slot, (uint32_t)slab, NONE, NONE, NONE,
                NONE};
            if (is < 2)
                p->pinned[is][is ? slab : slot] = true;
        }
    for (uint32_t i = 0; i < n; i++) {
        cf_placing *e = &out[i];
        if (e->source == CF_FROM_VRAM)
            continue;
        int32_t slot = plain_choose(p, 0, policy, moe);
        if (slot < 0) {
            e->after = giver++;
            slot = (int32_t)out[e->after].slot;
        }
        if (p->place[0][slot] >= 0) {
            e->evicted_moe = (uint32_t)p->place[0][slot] / EXPERTS;
            e->evicted_expert = (uint32_t)p->place[0][slot] % EXPERTS;
            e->demote_slab = (uint32_t)plain_vacate(p, policy, moe, slot);
        }
        if (e->source == CF_FROM_RAM)
            p->place[1][e->slab] = -1;
        e->slot = (uint32_t)slot;
        p->place[0][slot] = (int32_t)(moe * EXPERTS + e->expert);
        p->pinned[0][slot] = true;
    }
}

/* Distinct, ascending; few experts are chosen often, so that there are hits. */
static uint32_t set_draw(cf_rng *rng, uint32_t most, uint32_t *out)
{
    uint32_t want = 1 + (uint32_t)cf_rng_below(rng, most), n = 0;
    bool in[EXPERTS] = {false};
    for (uint32_t i = 0; i < want; i++) {
        uint64_t a = cf_rng_below(rng, EXPERTS), b = cf_rng_below(rng, EXPERTS);
        in[a < b ? a : b] = true;
    }
    for (uint32_t e = 0; e < EXPERTS; e++)
        if (in[e])
            out[n++] = e;
    return n;
}

static bool placings_equal(const cf_placing *a, const cf_placing *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (a[i].expert != b[i].expert || a[i].source != b[i].source || a[i].slot != b[i].slot ||
            a[i].slab != b[i].slab || a[i].after != b[i].after ||
            a[i].evicted_moe != b[i].evicted_moe || a[i].evicted_expert != b[i].evicted_expert ||
            a[i].demote_slab != b[i].demote_slab) {
            printf("    entry %u of %u: expert %u/%u source %d/%d slot %u/%u slab %u/%u\n", i, n,
                   a[i].expert, b[i].expert, (int)a[i].source, (int)b[i].source, a[i].slot,
                   b[i].slot, a[i].slab, b[i].slab);
            return false;
        }
    return true;
}

static void order_check(const cf_placing *out, const uint32_t *experts, const uint32_t *order,
                        uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        CHECK_INT(out[order[i]].expert, experts[i]);
}

/* `tokens` rounds over the layers, in chunks of 1 to 6 rows, now and then a failed read. */
static void compare(const char *name, uint32_t slots, uint32_t slabs, uint32_t tokens)
{
    cf_err err = {0};
    cf_policy *policy = NULL;
    cf_residency *r = NULL;
    cf_rng rng = {slots * 977u + slabs * 31u + tokens};
    plain p = {.n = {slots, slabs}};
    memset(p.place, 0xff, sizeof p.place);
    REQUIRE(cf_policy_create(&policy, name, MOE, EXPERTS, K, &err) == 0);
    REQUIRE(cf_residency_create(&r, MOE, EXPERTS, slots, slabs, &err) == 0);
    for (uint32_t t = 0; t < tokens && !check_case_failed; t++) {
        uint32_t rows = cf_rng_below(&rng, 4) ? 1 : 1 + (uint32_t)cf_rng_below(&rng, 6);
        cf_policy_chunk(policy, rows);
        for (uint32_t m = 0; m < MOE && !check_case_failed; m++) {
            uint32_t set[EXPERTS], ids[EXPERTS], order[EXPERTS], n = 0;
            bool in[EXPERTS] = {false};
            for (uint32_t row = 0; row < rows; row++) {
                uint32_t k = set_draw(&rng, K, ids);
                cf_policy_choice(policy, m, row, ids, k, NULL);
                for (uint32_t i = 0; i < k; i++)
                    in[ids[i]] = true;
            }
            for (uint32_t e = 0; e < EXPERTS; e++)
                if (in[e])
                    set[n++] = e;
            cf_placing got[EXPERTS], want[EXPERTS];
            cf_residency_route(r, policy, m, set, n, got, order);
            plain_route(&p, policy, m, set, n, want);
            CHECK(placings_equal(got, want, n));
            order_check(got, set, order, n);
            CHECK_INT(cf_residency_evictions(r), p.evictions);
            const char *verdict = cf_residency_verify(r);
            CHECK_STR(verdict ? verdict : "", "");
            if (cf_rng_below(&rng, 20) == 0) {
                uint32_t e = set[cf_rng_below(&rng, n)];
                int32_t slot = plain_at(&p, 0, m * EXPERTS + e);
                int32_t slab = plain_at(&p, 1, m * EXPERTS + e);
                CHECK_INT((int32_t)cf_residency_slot(r, m, e), slot);
                CHECK_INT((int32_t)cf_residency_slab(r, m, e), slab);
                if (slot >= 0) {
                    p.place[0][slot] = -1;
                    p.pinned[0][slot] = false;
                }
                if (slab >= 0)
                    p.place[1][slab] = -1;
                cf_residency_drop(r, m, e);
                CHECK_INT(cf_residency_slot(r, m, e), NONE);
            }
        }
    }
    cf_residency_destroy(&r);
    cf_policy_destroy(&policy);
}

static void test_decisions_follow_the_rules(void)
{
    static const char *const names[] = {"lru", "lfu:1", "lfu:0.5", "phase", "echo"};
    static const uint32_t sizes[][2] = {{8, 0},   {8, 3},   {9, 40}, {20, 10},
                                        {40, 20}, {60, 40}, {80, 0}, {80, 80}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            compare(names[i], sizes[s][0], sizes[s][1], 300);
}

/* lfu's counts are brought back near 1 now and then: the remembered minima must survive it. */
static void test_counts_rescaled(void)
{
    compare("lfu:0.01", 20, 10, 2000);
}

int main(void)
{
    RUN(test_decisions_follow_the_rules);
    RUN(test_counts_rescaled);
    return check_done();
}
