/* What the cache must decide, in plain loops: see cache_rig.h. */
#include "tests/check.h"
#include "tests/support/cache_rig.h"

bool rig_group_has(const group *g, uint32_t moe, uint32_t expert)
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
        for (uint32_t e = 0; e < rig_moes[l].experts; e++) {
            bool stays = tier == VRAM && rig_group_has(g, l, e);
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
            g->read_bytes += rig_record_bytes(r, g->moe, e);
        }
}

void rig_route(rig *r, group *g)
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

void rig_resync(rig *r, const group *g, place before[LAYERS][EXPERTS])
{
    cf_cache_stats stats;
    cf_cache_get_stats(r->cache, &stats);
    r->evictions = stats.evictions;
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < rig_moes[l].experts; e++) {
            place now = cf_cache_holds(r->cache, l, e)       ? VRAM
                        : cf_cache_holds_ram(r->cache, l, e) ? RAM
                                                             : NOWHERE;
            CHECK(now == NOWHERE || before[l][e] != NOWHERE || rig_group_has(g, l, e));
            CHECK(now != NOWHERE || before[l][e] == NOWHERE || before[l][e] != r->at[l][e] ||
                  rig_group_has(g, l, e));
            model_move(r, l, e, now);
        }
    CHECK(r->n_at[VRAM] <= r->how->slots && r->n_at[RAM] <= r->how->tier);
}
